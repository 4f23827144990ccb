package provision_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/csi-s3/csi-s3/pkg/config"
	"github.com/csi-s3/csi-s3/pkg/provision"
	"github.com/csi-s3/csi-s3/pkg/s3"
	"github.com/csi-s3/csi-s3/pkg/s3/s3fault"
	"github.com/csi-s3/csi-s3/pkg/s3/s3mem"
	"github.com/csi-s3/csi-s3/pkg/volmeta"
)

// from makes every call from the nth on fail: the controller dies there. applied says whether the nth took effect.
func from(at int, applied bool) func(int, s3fault.Op) s3fault.Action {
	return func(n int, _ s3fault.Op) s3fault.Action {
		switch {
		case n < at:
			return s3fault.Action{}
		case n == at && applied:
			return s3fault.FailAfter(nil)
		}
		return s3fault.FailBefore(nil)
	}
}

// everywhere runs step once for each call that it makes, with a crash at that call, until it comes through.
func everywhere(t *testing.T, test func(t *testing.T, fault func(int, s3fault.Op) s3fault.Action) (crashed bool)) {
	t.Helper()
	for _, applied := range []bool{false, true} {
		for at := 1; ; at++ {
			if !test(t, from(at, applied)) {
				if at < 3 {
					t.Errorf("applied=%v: only %d calls", applied, at-1)
				}
				break
			}
			if at > 100 {
				t.Fatal("does not end")
			}
		}
	}
}

// A Create that died at any call is healed by the next, and what it made goes away whole.
func TestCreateCrashes(t *testing.T) {
	for what, parameters := range map[string][]string{
		"bucket":             nil,
		"prefix":             {"bucket", "shared", "prefix", "a/b"},
		"prefix, new bucket": {"bucket", "fresh", "prefix", "a/b"},
	} {
		t.Run(what, func(t *testing.T) {
			everywhere(t, func(t *testing.T, fault func(int, s3fault.Op) s3fault.Action) bool {
				s := newServer()
				if err := s.mem("shared").CreateBucket(t.Context()); err != nil {
					t.Fatal(err)
				}
				r := request(t, pvc, parameters...)
				s.inject(fault)
				_, err := s.provisioner().Create(t.Context(), r)
				crashed := err != nil
				if crashed {
					refuse(t, err, provision.ErrUnavailable)
				}
				s.inject(nil)
				p := s.provisioner()
				id := create(t, p, r)
				if v := s.record(t, id); v.Name != pvc || v.MadeBucket != (id.Prefix == "") {
					t.Errorf("%+v", v)
				}
				if err := p.Delete(t.Context(), id, none); err != nil {
					t.Error(err)
				}
				if id.Prefix == "" {
					s.gone(t, id.Bucket)
				} else {
					s.holds(t, id.Bucket)
				}
				return crashed
			})
		})
	}
}

// A Delete that died at any call is finished by the next, touches nothing else, and no Create hands out what is left.
func TestDeleteCrashes(t *testing.T) {
	for what, parameters := range map[string][]string{"bucket": nil, "prefix": {"bucket", "shared", "prefix", "a"}} {
		t.Run(what, func(t *testing.T) {
			everywhere(t, func(t *testing.T, fault func(int, s3fault.Op) s3fault.Action) bool {
				s := newServer()
				p, r := s.provisioner(), request(t, pvc, parameters...)
				id := create(t, p, r)
				s.put(t, id.Bucket, id.Prefix+"f", id.Prefix+"d/g")
				others := []string{}
				if id.Prefix != "" {
					others = []string{"a-b", "b/f"}
					s.put(t, id.Bucket, others...)
				}
				if _, err := s.mem(id.Bucket).CreateUpload(t.Context(), s3.Key(id.Prefix+"u"), s3.Attributes{}); err != nil {
					t.Fatal(err)
				}
				s.inject(fault)
				err := p.Delete(t.Context(), id, none)
				crashed := err != nil
				if crashed {
					refuse(t, err, provision.ErrUnavailable)
				}
				s.inject(nil)
				marked := strings.Contains(strings.Join(s.keys(t, id.Bucket), "\n"), "volume.json") && s.record(t, id).State == volmeta.Deleting
				if marked {
					_, err := s.provisioner().Create(t.Context(), r)
					refuse(t, err, provision.ErrBusy)
					_, err = s.provisioner().Exists(t.Context(), id, none)
					refuse(t, err, provision.ErrNotFound)
				}
				if err := s.provisioner().Delete(t.Context(), id, none); err != nil {
					t.Fatal(err)
				}
				if id.Prefix == "" {
					s.gone(t, id.Bucket)
				} else {
					s.holds(t, id.Bucket, others...)
				}
				return crashed
			})
		})
	}
}

// Whatever an answer says that is not "absent": nothing is taken for absent, made, or removed.
func TestUnknownIsNotAbsent(t *testing.T) {
	for cause, want := range map[error]error{
		s3.ErrUnavailable: provision.ErrUnavailable, s3.ErrCorrupt: provision.ErrUnavailable, s3.ErrAuth: provision.ErrDenied,
		s3.ErrFull: provision.ErrFull, s3.ErrInvalid: provision.ErrInvalid, errors.New("odd"): nil,
	} {
		s := newServer()
		p, r := s.provisioner(), request(t, pvc)
		id := create(t, p, r)
		s.put(t, pvc, "f")
		before := s.record(t, id)
		for _, name := range []string{"Get", "Put", "ListUploads", "ListVersions", "DeleteVersions"} {
			s.inject(func(_ int, op s3fault.Op) s3fault.Action {
				if op.Name == name {
					return s3fault.FailBefore(cause)
				}
				return s3fault.Action{}
			})
			err := p.Delete(t.Context(), id, none)
			if err == nil || want != nil && !errors.Is(err, want) || !errors.Is(err, cause) {
				t.Errorf("%s of delete: %v, want %v", name, err, want)
			}
			if want == nil {
				for _, sentinel := range []error{provision.ErrNotFound, provision.ErrNotOwned, provision.ErrExists, provision.ErrUnavailable} {
					if errors.Is(err, sentinel) {
						t.Errorf("%s: %v is known", name, err)
					}
				}
			}
			s.holds(t, pvc, ".csi-s3/volume.json", "f")
		}
		s.inject(func(_ int, op s3fault.Op) s3fault.Action { return s3fault.FailBefore(cause) })
		if _, err := p.Create(t.Context(), r); err == nil || !errors.Is(err, cause) {
			t.Error(err)
		}
		if _, err := p.Exists(t.Context(), id, none); err == nil || !errors.Is(err, cause) || errors.Is(err, provision.ErrNotFound) {
			t.Error(err)
		}
		if _, err := p.Expand(t.Context(), id, none, 2<<30, 0); err == nil || !errors.Is(err, cause) {
			t.Error(err)
		}
		s.inject(nil)
		if after := s.record(t, id); after.Created != before.Created || after.Capacity != before.Capacity {
			t.Errorf("%+v, was %+v", after, before)
		}
	}
}

// Controllers that run at once agree on one volume, and of different requests one wins.
func TestRacingCreates(t *testing.T) {
	for _, parameters := range [][]string{nil, {"bucket", "shared"}, {"bucket", "shared", "prefix", "${pvc.name}"}} {
		for range 30 {
			s := newServer()
			shared := s.provisioner()
			const n = 8
			var wg sync.WaitGroup
			got := make([]provision.Volume, n)
			errs := make([]error, n)
			for i := range n {
				r := request(t, pvc, parameters...)
				if i%2 == 1 {
					r.Required, r.Limit = 2<<30, 2<<30
				}
				p := shared
				if i%4 < 2 {
					p = s.provisioner()
				}
				wg.Go(func() { got[i], errs[i] = p.Create(context.Background(), r) })
			}
			wg.Wait()
			winners := 0
			for i := range n {
				switch {
				case errs[i] == nil:
					winners++
					if v := s.record(t, got[i].ID); v.Capacity != got[i].Capacity {
						t.Errorf("record of %d, got %d", v.Capacity, got[i].Capacity)
					}
				case !errors.Is(errs[i], provision.ErrExists):
					t.Error(errs[i])
				}
			}
			// A request of 1 GiB or more fits a volume of 2 GiB; the reverse does not hold.
			if winners != n && winners != n/2 {
				t.Errorf("%d of %d", winners, n)
			}
		}
	}
}

// servers are what servers make of the conditions of a PUT, and the last moment before ours at which another's write is seen:
// where the condition does not count, that is the look before the PUT.
var servers = []struct {
	quirk s3mem.Quirk
	last  string
}{{s3mem.Honours, "Put"}, {s3mem.Ignores, "Head"}, {s3mem.Refuses, "Head"}}

// shared makes the bucket of that name, on a server that does as it likes with the conditions of a PUT.
func (s *server) shared(t *testing.T, quirk s3mem.Quirk) {
	t.Helper()
	b := s.mem("shared")
	b.Quirks = s3mem.Quirks{s3.PutIfNoneMatch: quirk, s3.PutIfMatch: quirk}
	if err := b.CreateBucket(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// meanwhile calls f once, before the next request of that name: a HEAD only of the record itself.
func (s *server) meanwhile(name string, id config.VolumeID, f func()) {
	s.inject(func(_ int, op s3fault.Op) s3fault.Action {
		if op.Name == name && (name != "Head" || op.Key == volmeta.Key(s3.Key(id.Prefix))) {
			s.inject(nil)
			f()
		}
		return s3fault.Action{}
	})
}

// The other controller writes its record between our look and ours.
func TestLostRace(t *testing.T) {
	for what, c := range map[string]struct {
		name string
		want error
	}{
		"same":    {pvc, nil},
		"another": {"pvc-other", provision.ErrExists},
	} {
		for _, x := range servers {
			s := newServer()
			s.shared(t, x.quirk)
			for _, at := range []string{"List", x.last} {
				other, happened := s.provisioner(), false
				id := config.VolumeID{Bucket: "shared", Prefix: at + "/"}
				s.meanwhile(at, id, func() {
					happened = true
					create(t, other, request(t, c.name, "bucket", "shared", "prefix", at))
				})
				_, err := s.provisioner().Create(t.Context(), request(t, pvc, "bucket", "shared", "prefix", at))
				if !errors.Is(err, c.want) || !happened {
					t.Errorf("%s at %s, quirk %d: %v, raced: %v", what, at, x.quirk, err, happened)
				}
				if v := s.record(t, id); v.Name != c.name {
					t.Errorf("%s at %s, quirk %d: the volume is %q's", what, at, x.quirk, v.Name)
				}
			}
		}
	}
}

// The other controller changes a record between our look and ours: what it wrote stays, and we say so.
func TestLostRaceOfAChange(t *testing.T) {
	for _, x := range servers {
		for what, change := range map[string]func(p *provision.Provisioner, id config.VolumeID) error{
			"expand": func(p *provision.Provisioner, id config.VolumeID) error {
				_, err := p.Expand(t.Context(), id, none, 2<<30, 0)
				return err
			},
			"release": func(p *provision.Provisioner, id config.VolumeID) error { return p.Delete(t.Context(), id, none) },
		} {
			s := newServer()
			s.shared(t, x.quirk)
			id := create(t, s.provisioner(), request(t, pvc, "bucket", "shared", "prefix", "p", "onDelete", "retain"))
			s.meanwhile(x.last, id, func() {
				if _, err := s.provisioner().Expand(t.Context(), id, none, 4<<30, 0); err != nil {
					t.Error(err)
				}
			})
			refuse(t, change(s.provisioner(), id), provision.ErrBusy)
			if v := s.record(t, id); v.Capacity != 4<<30 || v.State != volmeta.Live {
				t.Errorf("%s, quirk %d: %+v", what, x.quirk, v)
			}
		}
	}
}

// Create and Delete of one volume, over and over from several controllers, leave a volume that is whole or gone.
func TestCreateRacesDelete(t *testing.T) {
	s := newServer()
	r := request(t, pvc)
	id := config.VolumeID{Bucket: pvc}
	var wg sync.WaitGroup
	for i := range 6 {
		p := s.provisioner()
		wg.Go(func() {
			for range 40 {
				var err error
				if i%2 == 0 {
					_, err = p.Create(context.Background(), r)
				} else {
					err = p.Delete(context.Background(), id, none)
				}
				// One that takes the bucket away between two steps of the other makes it fail, to be repeated.
				if err != nil && !errors.Is(err, provision.ErrBusy) {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	p := s.provisioner()
	for range 3 {
		if err := p.Delete(t.Context(), id, none); err != nil {
			t.Error(err)
		}
		s.gone(t, pvc)
		create(t, p, r)
		s.holds(t, pvc, ".csi-s3/volume.json")
	}
}

// Somebody writes between the last look and the bucket's removal: the record comes back, and the next Delete works.
func TestDeleteWhileWritten(t *testing.T) {
	s := newServer()
	p := s.provisioner()
	id := create(t, p, request(t, pvc))
	s.inject(func(_ int, op s3fault.Op) s3fault.Action {
		if op.Name == "DeleteBucket" {
			s.put(t, pvc, "late")
		}
		return s3fault.Action{}
	})
	refuse(t, p.Delete(t.Context(), id, none), provision.ErrBusy)
	s.holds(t, pvc, ".csi-s3/volume.json", "late")
	s.inject(nil)
	if err := p.Delete(t.Context(), id, none); err != nil {
		t.Fatal(err)
	}
	s.gone(t, pvc)
}

func TestContextEnds(t *testing.T) {
	s := newServer()
	p, r := s.provisioner(), request(t, pvc)
	id := create(t, p, r)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	s.inject(func(int, s3fault.Op) s3fault.Action { return s3fault.Delay(time.Hour) })
	err := p.Delete(ctx, id, none)
	refuse(t, err, provision.ErrUnavailable)
	refuse(t, err, context.DeadlineExceeded)

	// A call that waits for another one of its volume ends with its own context, and others are not held up.
	s.inject(nil)
	entered, leave := make(chan struct{}), make(chan struct{})
	s.inject(func(n int, op s3fault.Op) s3fault.Action {
		if n == 1 {
			close(entered)
			<-leave
		}
		return s3fault.Action{}
	})
	done := make(chan error, 1)
	go func() {
		_, err := p.Create(context.Background(), r)
		done <- err
	}()
	<-entered
	short, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	_, err = p.Exists(short, id, none)
	refuse(t, err, provision.ErrBusy)
	refuse(t, err, context.DeadlineExceeded)
	create(t, p, request(t, "another-volume"))
	close(leave)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// versioned is a bucket that keeps old versions: pages of them come after those of the present ones.
type versioned struct {
	*s3mem.Bucket
	old *[]s3.Version
}

func (b versioned) ListVersions(ctx context.Context, prefix s3.Key, token string) ([]s3.Version, string, error) {
	if token != "old" {
		now, next, err := b.Bucket.ListVersions(ctx, prefix, token)
		if next == "" {
			next = "old"
		}
		return now, next, err
	}
	var out []s3.Version
	for _, v := range *b.old {
		if strings.HasPrefix(string(v.Key), string(prefix)) {
			out = append(out, v)
		}
	}
	return out, "", nil
}

func (b versioned) DeleteVersions(ctx context.Context, doomed []s3.Version) (map[s3.Version]error, error) {
	*b.old = slices.DeleteFunc(*b.old, func(v s3.Version) bool { return slices.Contains(doomed, v) })
	return b.Bucket.DeleteVersions(ctx, doomed)
}

func (b versioned) DeleteBucket(ctx context.Context) error {
	if len(*b.old) > 0 {
		return s3.ErrBucketNotEmpty
	}
	return b.Bucket.DeleteBucket(ctx)
}

func TestDeleteTakesAllVersions(t *testing.T) {
	for _, parameters := range [][]string{nil, {"bucket", "shared", "prefix", "a"}} {
		s := newServer()
		var old []s3.Version
		s.wrap = func(b *s3mem.Bucket) s3.Bucket { return versioned{b, &old} }
		p := s.provisioner()
		id := create(t, p, request(t, pvc, parameters...))
		s.put(t, id.Bucket, id.Prefix+"f")
		for _, key := range []string{"f", "removed", ".csi-s3/volume.json"} {
			old = append(old, s3.Version{Key: s3.Key(id.Prefix + key), VersionID: "1"}, s3.Version{Key: s3.Key(id.Prefix + key), VersionID: "2"})
		}
		var others []s3.Version
		if id.Prefix != "" {
			others = []s3.Version{{Key: "ab", VersionID: "1"}, {Key: "a", VersionID: "7"}}
			old = append(old, others...)
		}
		if err := p.Delete(t.Context(), id, none); err != nil || !slices.Equal(old, others) {
			t.Errorf("%v, left %v", err, old)
		}
	}
}

// hiding lists nothing below a/ while there is an object a, as MinIO does.
type hiding struct{ *s3mem.Bucket }

func (b hiding) ListVersions(ctx context.Context, prefix s3.Key, token string) ([]s3.Version, string, error) {
	all, next, err := b.Bucket.ListVersions(ctx, prefix, token)
	return slices.DeleteFunc(all, func(v s3.Version) bool {
		for i, c := range v.Key {
			if _, err := b.Head(ctx, v.Key[:i]); c == '/' && err == nil {
				return true
			}
		}
		return false
	}), next, err
}

func TestDeleteFindsHiddenKeys(t *testing.T) {
	s := newServer()
	s.wrap = func(b *s3mem.Bucket) s3.Bucket { return hiding{b} }
	p := s.provisioner()
	id := create(t, p, request(t, pvc, "bucket", "shared", "prefix", "v"))
	s.put(t, "shared", "v/a", "v/a/b", "v/a/b/c", "v/a/b/c/d")
	if err := p.Delete(t.Context(), id, none); err != nil {
		t.Fatal(err)
	}
	s.holds(t, "shared")
}

// An object that cannot be removed (a legal hold, say) ends the call with its reason instead of turning for ever.
type held struct{ *s3mem.Bucket }

func (b held) DeleteVersions(ctx context.Context, versions []s3.Version) (map[s3.Version]error, error) {
	for _, v := range versions {
		if strings.HasSuffix(string(v.Key), "held") {
			return map[s3.Version]error{v: s3.ErrAuth}, nil
		}
	}
	return b.Bucket.DeleteVersions(ctx, versions)
}

func TestDeleteOfHeldObject(t *testing.T) {
	s := newServer()
	s.wrap = func(b *s3mem.Bucket) s3.Bucket { return held{b} }
	p := s.provisioner()
	id := create(t, p, request(t, pvc))
	s.put(t, pvc, "f", "held")
	err := p.Delete(t.Context(), id, none)
	refuse(t, err, provision.ErrDenied)
	if !strings.Contains(err.Error(), `"held"`) {
		t.Error(err)
	}
	if v := s.record(t, id); v.State != volmeta.Deleting {
		t.Errorf("%+v", v)
	}
}

// Credentials that see only their prefix make volumes there.
func TestConfinedCredentials(t *testing.T) {
	s := newServer()
	if err := s.mem("shared").CreateBucket(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.inject(func(_ int, op s3fault.Op) s3fault.Action {
		if !strings.HasPrefix(string(op.Key), "mine/") {
			return s3fault.FailBefore(s3.ErrAuth)
		}
		return s3fault.Action{}
	})
	p := s.provisioner()
	id := create(t, p, request(t, pvc, "bucket", "shared", "prefix", "mine/${pv.name}"))
	if err := p.Delete(t.Context(), id, none); err != nil {
		t.Fatal(err)
	}
	s.holds(t, "shared")
}
