package provision_test

import (
	"context"
	"errors"
	"fmt"
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

// pvc is a name as csi-provisioner gives it.
const pvc = "pvc-0b7e3c8e-5b0d-4b8e-9f4e-2f8f0c1d2e3f"

// server is one S3 server in memory, with a fault in front of each bucket.
type server struct {
	*s3mem.Server
	// wrap, when set, is put between a bucket and its faults.
	wrap func(*s3mem.Bucket) s3.Bucket

	mu    sync.Mutex
	ops   int                                       // guarded by mu: calls of all buckets
	fault func(n int, op s3fault.Op) s3fault.Action // guarded by mu: n counts from 1
}

func newServer() *server { return &server{Server: s3mem.NewServer()} }

func (s *server) Bucket(name string) s3.Bucket {
	inner := s.Server.Bucket(name)
	if s.wrap != nil {
		inner = s.wrap(s.mem(name))
	}
	b := s3fault.New(inner)
	b.Fault = func(op s3fault.Op) s3fault.Action {
		s.mu.Lock()
		s.ops++
		n, fault := s.ops, s.fault
		s.mu.Unlock()
		if fault == nil {
			return s3fault.Action{}
		}
		return fault(n, op)
	}
	return b
}

func (s *server) inject(fault func(n int, op s3fault.Op) s3fault.Action) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ops, s.fault = 0, fault
}

func (s *server) mem(name string) *s3mem.Bucket { return s.Server.Bucket(name).(*s3mem.Bucket) }

// provisioner is a controller of this server.
func (s *server) provisioner() *provision.Provisioner {
	return provision.New(func(config.Secret) (provision.Server, error) { return s, nil }, provision.Options{
		Driver: "csi-s3.dev", Cluster: "here", Now: func() time.Time { return time.Unix(1e9, 0) },
	})
}

func (s *server) put(t *testing.T, bucket string, keys ...string) {
	t.Helper()
	for _, key := range keys {
		if _, err := s.mem(bucket).Put(t.Context(), s3.Key(key), s3.Body{R: strings.NewReader("x"), Size: 1}, s3.Attributes{}, s3.Condition{}); err != nil {
			t.Fatal(err)
		}
	}
}

// keys returns all keys of a bucket, and nil when it does not exist.
func (s *server) keys(t *testing.T, bucket string) []string {
	t.Helper()
	keys := []string{}
	for in := (s3.ListInput{}); ; {
		page, err := s.mem(bucket).List(context.Background(), in)
		if errors.Is(err, s3.ErrNoBucket) {
			return nil
		}
		if err != nil {
			t.Fatal(err)
		}
		for _, o := range page.Objects {
			keys = append(keys, string(o.Key))
		}
		if in.Token = page.Token; in.Token == "" {
			return keys
		}
	}
}

func (s *server) holds(t *testing.T, bucket string, want ...string) {
	t.Helper()
	if got := s.keys(t, bucket); got == nil || !slices.Equal(got, want) {
		t.Errorf("bucket %s holds %q, want %q", bucket, got, want)
	}
}

func (s *server) gone(t *testing.T, bucket string) {
	t.Helper()
	if got := s.keys(t, bucket); got != nil {
		t.Errorf("bucket %s exists and holds %q", bucket, got)
	}
}

func (s *server) record(t *testing.T, id config.VolumeID) volmeta.Volume {
	t.Helper()
	v, _, err := volmeta.Read(t.Context(), s.mem(id.Bucket), s3.Key(id.Prefix))
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func request(t *testing.T, name string, parameters ...string) provision.Request {
	t.Helper()
	m := map[string]string{"csi.storage.k8s.io/pvc/name": "claim", "csi.storage.k8s.io/pvc/namespace": "team", "csi.storage.k8s.io/pv/name": name}
	for i := 0; i < len(parameters); i += 2 {
		m[parameters[i]] = parameters[i+1]
	}
	p, err := config.ParseParameters(m)
	if err != nil {
		t.Fatal(err)
	}
	return provision.Request{Name: name, Parameters: p, Required: 1 << 30}
}

func create(t *testing.T, p *provision.Provisioner, r provision.Request) config.VolumeID {
	t.Helper()
	v, err := p.Create(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	return v.ID
}

func refuse(t *testing.T, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("%v, want %v", err, want)
	}
}

var none = config.Secret{}

func TestLifeOfABucket(t *testing.T) {
	s := newServer()
	p, r := s.provisioner(), request(t, pvc, "options", "--dir-mode 0777")
	v, err := p.Create(t.Context(), r)
	if err != nil || v.ID.String() != pvc || v.Capacity != 1<<30 {
		t.Fatalf("%+v, %v", v, err)
	}
	if a, err := config.ParseAttributes(v.Attributes); err != nil || !a.Provisioned || a.Capacity != 1<<30 || !slices.Equal(a.Geesefs.Options, []string{"dir-mode=0777"}) {
		t.Fatalf("%+v, %v", a, err)
	}
	s.holds(t, pvc, ".csi-s3/volume.json")
	want := volmeta.Volume{Version: 1, ID: pvc, Name: pvc, Driver: "csi-s3.dev", Cluster: "here", Created: time.Unix(1e9, 0).UTC(),
		Capacity: 1 << 30, MadeBucket: true, OnDelete: "delete", Claim: &volmeta.Claim{Namespace: "team", Name: "claim"}}
	if got := s.record(t, v.ID); *got.Claim != *want.Claim || func() bool { got.Claim = want.Claim; return got != want }() {
		t.Errorf("%+v\nwant %+v", got, want)
	}
	if again, err := p.Create(t.Context(), r); err != nil || again.ID != v.ID || again.Capacity != v.Capacity {
		t.Fatalf("%+v, %v", again, err)
	}
	if found, err := p.Exists(t.Context(), v.ID, none); err != nil || found.Capacity != 1<<30 {
		t.Fatalf("%+v, %v", found, err)
	}
	s.put(t, pvc, "a", "a/b", "dir/", "dir/f", "\x01odd", "z z", ".csi-s3/lease")
	for range 2 {
		if err := p.Delete(t.Context(), v.ID, none); err != nil {
			t.Fatal(err)
		}
		s.gone(t, pvc)
	}
	_, err = p.Exists(t.Context(), v.ID, none)
	refuse(t, err, provision.ErrNotFound)
}

// pvc-1 is not pvc-10, and neither is pvc-1-a.
func TestDeleteStaysWithinItsPrefix(t *testing.T) {
	s := newServer()
	p := s.provisioner()
	one := create(t, p, request(t, "pvc-1", "bucket", "shared"))
	ten := create(t, p, request(t, "pvc-10", "bucket", "shared"))
	s.put(t, "shared", "pvc-1/f", "pvc-1/.csi-s3/lease", "pvc-10/f", "pvc-1-a", "pvc-1", "pvc-1.x/f", "other")
	if err := p.Delete(t.Context(), one, none); err != nil {
		t.Fatal(err)
	}
	s.holds(t, "shared", "other", "pvc-1", "pvc-1-a", "pvc-1.x/f", "pvc-10/.csi-s3/volume.json", "pvc-10/f")
	if err := p.Delete(t.Context(), config.VolumeID{Bucket: "shared", Prefix: "pvc-10"}, none); !errors.Is(err, provision.ErrInvalid) {
		t.Errorf("a prefix without its slash: %v", err)
	}
	if err := p.Delete(t.Context(), ten, none); err != nil {
		t.Fatal(err)
	}
	// The bucket is not ours, even where we made it: others put their volumes there.
	s.holds(t, "shared", "other", "pvc-1", "pvc-1-a", "pvc-1.x/f")
}

func TestDeleteReclaimsManyPages(t *testing.T) {
	s := newServer()
	p := s.provisioner()
	id := create(t, p, request(t, pvc, "bucket", "shared", "prefix", "a"))
	for i := range 2500 {
		s.put(t, "shared", fmt.Sprintf("a/%05d", i))
	}
	s.put(t, "shared", "a-foreign", "b")
	most := 0
	s.inject(func(_ int, op s3fault.Op) s3fault.Action {
		if op.Name == "DeleteVersions" {
			most++
		}
		return s3fault.Action{}
	})
	if err := p.Delete(t.Context(), id, none); err != nil {
		t.Fatal(err)
	}
	if most != 4 { // three pages, and the record
		t.Errorf("%d calls of DeleteVersions", most)
	}
	s.holds(t, "shared", "a-foreign", "b")
}

func TestDeleteAbortsItsUploads(t *testing.T) {
	s := newServer()
	p := s.provisioner()
	id := create(t, p, request(t, "pvc-1", "bucket", "shared"))
	for _, key := range []s3.Key{"pvc-1/f", "pvc-1/g", "pvc-10/f", "pvc-1"} {
		if _, err := s.mem("shared").CreateUpload(t.Context(), key, s3.Attributes{}); err != nil {
			t.Fatal(err)
		}
	}
	if err := p.Delete(t.Context(), id, none); err != nil {
		t.Fatal(err)
	}
	open, _, err := s.mem("shared").ListUploads(t.Context(), "")
	var keys []s3.Key
	for _, u := range open {
		keys = append(keys, u.Key)
	}
	if slices.Sort(keys); err != nil || !slices.Equal(keys, []s3.Key{"pvc-1", "pvc-10/f"}) {
		t.Fatal(keys, err)
	}
}

func TestDeleteWithoutRecord(t *testing.T) {
	s := newServer()
	p := s.provisioner()
	static := config.VolumeID{Bucket: "datasets"}
	if err := p.Delete(t.Context(), static, none); err != nil {
		t.Error("an absent bucket:", err)
	}
	if err := s.mem("datasets").CreateBucket(t.Context()); err != nil {
		t.Fatal(err)
	}
	// Empty and of a name that somebody chose: it may be anybody's.
	for _, id := range []config.VolumeID{static, {Bucket: "datasets", Prefix: "a/"}} {
		if err := p.Delete(t.Context(), id, none); err != nil {
			t.Error(err)
		}
	}
	s.holds(t, "datasets")
	s.put(t, "datasets", "a/f", "g")
	for _, id := range []config.VolumeID{static, {Bucket: "datasets", Prefix: "a/"}} {
		refuse(t, p.Delete(t.Context(), id, none), provision.ErrNotOwned)
	}
	s.holds(t, "datasets", "a/f", "g")
	// What was there is nothing that Create takes over either.
	_, err := p.Create(t.Context(), request(t, "datasets"))
	refuse(t, err, provision.ErrExists)
	_, err = p.Create(t.Context(), request(t, pvc, "bucket", "datasets", "prefix", "a"))
	refuse(t, err, provision.ErrExists)
	s.holds(t, "datasets", "a/f", "g")
}

// A record that was copied here with its objects, of another cluster, or that we cannot read, permits nothing.
func TestDeleteNeedsTheRightRecord(t *testing.T) {
	for what, change := range map[string]func(*volmeta.Volume){
		"another volume":  func(v *volmeta.Volume) { v.ID = "elsewhere" },
		"another cluster": func(v *volmeta.Volume) { v.Cluster = "there" },
	} {
		s := newServer()
		p, r := s.provisioner(), request(t, "pvc-1", "bucket", "shared")
		id := create(t, p, r)
		s.put(t, "shared", "pvc-1/f")
		v, tag, err := volmeta.Read(t.Context(), s.mem("shared"), "pvc-1/")
		if err != nil {
			t.Fatal(err)
		}
		change(&v)
		if err := volmeta.Replace(t.Context(), s.mem("shared"), "pvc-1/", v, tag); err != nil {
			t.Fatal(err)
		}
		if err := p.Delete(t.Context(), id, none); !errors.Is(err, provision.ErrNotOwned) {
			t.Errorf("%s: %v", what, err)
		}
		if _, err := p.Create(t.Context(), r); !errors.Is(err, provision.ErrExists) {
			t.Errorf("%s: %v", what, err)
		}
		if _, err := p.Expand(t.Context(), id, none, 2<<30, 0); !errors.Is(err, provision.ErrNotOwned) {
			t.Errorf("%s: %v", what, err)
		}
		s.holds(t, "shared", "pvc-1/.csi-s3/volume.json", "pvc-1/f")
		s.put(t, "shared", "pvc-1/.csi-s3/volume.json")
		if err := p.Delete(t.Context(), id, none); !errors.Is(err, provision.ErrNotOwned) {
			t.Errorf("%s: %v", what, err)
		}
		if _, err := p.Create(t.Context(), r); !errors.Is(err, provision.ErrExists) {
			t.Errorf("%s: %v", what, err)
		}
		s.holds(t, "shared", "pvc-1/.csi-s3/volume.json", "pvc-1/f")
	}
}

func TestCreateRefuses(t *testing.T) {
	s := newServer()
	p, r := s.provisioner(), request(t, pvc)
	create(t, p, r)
	for what, c := range map[string]struct {
		change func(*provision.Request)
		want   error
	}{
		"more":             {func(r *provision.Request) { r.Required = 2 << 30 }, provision.ErrExists},
		"less at most":     {func(r *provision.Request) { r.Required, r.Limit = 0, 1<<20 }, provision.ErrExists},
		"another policy":   {func(r *provision.Request) { r.Parameters.OnDelete = "retain" }, provision.ErrExists},
		"a negative size":  {func(r *provision.Request) { r.Required = -1 }, provision.ErrInvalid},
		"an empty range":   {func(r *provision.Request) { r.Limit = 1 }, provision.ErrInvalid},
		"no name":          {func(r *provision.Request) { r.Name = "" }, provision.ErrInvalid},
		"a bad template":   {func(r *provision.Request) { r.Parameters.Bucket = "${x}" }, provision.ErrInvalid},
		"a range it is in": {func(r *provision.Request) { r.Required, r.Limit = 1<<20, 1<<40 }, nil},
		"any size":         {func(r *provision.Request) { r.Required = 0 }, nil},
	} {
		changed := r
		c.change(&changed)
		v, err := p.Create(t.Context(), changed)
		if !errors.Is(err, c.want) || err == nil && v.Capacity != 1<<30 {
			t.Errorf("%s: %+v, %v", what, v, err)
		}
	}
	s.holds(t, pvc, ".csi-s3/volume.json")
}

// Two claims of one prefix: the second is refused while the first lives, and takes over what it released.
func TestRetain(t *testing.T) {
	s := newServer()
	p := s.provisioner()
	parameters := []string{"bucket", "shared", "prefix", "${pvc.namespace}/${pvc.name}", "onDelete", "retain"}
	id := create(t, p, request(t, "pvc-1", parameters...))
	s.put(t, "shared", "team/claim/f")
	_, err := p.Create(t.Context(), request(t, "pvc-2", parameters...))
	refuse(t, err, provision.ErrExists)
	for range 2 {
		if err := p.Delete(t.Context(), id, none); err != nil {
			t.Fatal(err)
		}
	}
	_, err = p.Exists(t.Context(), id, none)
	refuse(t, err, provision.ErrNotFound)
	_, err = p.Expand(t.Context(), id, none, 2<<30, 0)
	refuse(t, err, provision.ErrNotFound)
	r := request(t, "pvc-2", parameters...)
	r.Required = 2 << 30
	if again := create(t, p, r); again != id {
		t.Fatal(again)
	}
	if v := s.record(t, id); v.Name != "pvc-2" || v.State != volmeta.Live || v.Capacity != 2<<30 {
		t.Fatalf("%+v", v)
	}
	s.holds(t, "shared", "team/claim/.csi-s3/volume.json", "team/claim/f")
}

// A volume within another one would be shown there, and deleted with it.
func TestNestedVolumes(t *testing.T) {
	s := newServer()
	p := s.provisioner()
	create(t, p, request(t, "pvc-1", "bucket", "shared", "prefix", "a/b"))
	for _, prefix := range []string{"a/b/c", "a/b/c/d"} {
		_, err := p.Create(t.Context(), request(t, "pvc-2", "bucket", "shared", "prefix", prefix))
		refuse(t, err, provision.ErrExists)
	}
	_, err := p.Create(t.Context(), request(t, "pvc-2", "bucket", "shared", "prefix", "a"))
	refuse(t, err, provision.ErrExists)
	create(t, p, request(t, "pvc-3", "bucket", "shared", "prefix", "a/bc"))
	create(t, p, request(t, pvc))
	_, err = p.Create(t.Context(), request(t, "pvc-4", "bucket", pvc))
	refuse(t, err, provision.ErrExists)
}

// The marker of the directory, as other drivers make it, is nothing that stands in the way.
func TestMarkerIsVacant(t *testing.T) {
	s := newServer()
	if err := s.mem("shared").CreateBucket(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := s.mem("shared").Put(t.Context(), "pvc-1/", s3.Body{R: strings.NewReader("")}, s3.Attributes{}, s3.Condition{}); err != nil {
		t.Fatal(err)
	}
	id := create(t, s.provisioner(), request(t, "pvc-1", "bucket", "shared"))
	if err := s.provisioner().Delete(t.Context(), id, none); err != nil {
		t.Fatal(err)
	}
	s.holds(t, "shared")
}

func TestExpand(t *testing.T) {
	s := newServer()
	p := s.provisioner()
	id := create(t, p, request(t, pvc))
	for _, c := range []struct {
		required, limit, want int64
		err                   error
	}{
		{2 << 30, 0, 2 << 30, nil},
		{2 << 30, 0, 2 << 30, nil},
		{1 << 30, 0, 2 << 30, nil},
		{3 << 30, 4 << 30, 3 << 30, nil},
		{1 << 30, 2 << 30, 0, provision.ErrExists},
		{2, 1, 0, provision.ErrInvalid},
		{-1, 0, 0, provision.ErrInvalid},
	} {
		if got, err := p.Expand(t.Context(), id, none, c.required, c.limit); got != c.want || !errors.Is(err, c.err) {
			t.Errorf("%d..%d: %d, %v", c.required, c.limit, got, err)
		}
	}
	if v := s.record(t, id); v.Capacity != 3<<30 {
		t.Errorf("%+v", v)
	}
	_, err := p.Expand(t.Context(), config.VolumeID{Bucket: "absent"}, none, 1, 0)
	refuse(t, err, provision.ErrNotFound)
	// A static volume has its capacity from its PV.
	if err := s.mem("static").CreateBucket(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got, err := p.Expand(t.Context(), config.VolumeID{Bucket: "static"}, none, 7, 0); got != 7 || err != nil {
		t.Error(got, err)
	}
	s.holds(t, "static")
}

func TestExistsOfStaticVolumes(t *testing.T) {
	s := newServer()
	p := s.provisioner()
	if err := s.mem("static").CreateBucket(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.put(t, "static", "a/f")
	for id, want := range map[config.VolumeID]error{
		{Bucket: "static"}:                  nil,
		{Bucket: "static", Prefix: "a/"}:    nil,
		{Bucket: "static", Prefix: "b/"}:    provision.ErrNotFound,
		{Bucket: "absent"}:                  provision.ErrNotFound,
		{Bucket: "absent", Prefix: "a/"}:    provision.ErrNotFound,
		{Bucket: "static", Prefix: "a"}:     provision.ErrInvalid,
		{Bucket: "static", Prefix: "/"}:     provision.ErrInvalid,
		{Prefix: "a/"}:                      provision.ErrInvalid,
		{Bucket: "static", Prefix: "a/f/g"}: provision.ErrInvalid,
	} {
		if _, err := p.Exists(t.Context(), id, none); !errors.Is(err, want) {
			t.Errorf("%v: %v", id, err)
		}
	}
}

// The bucket is made where the nodes will look for it: the flags of geesefs count for the controller too.
func TestCreateAppliesFlags(t *testing.T) {
	s := newServer()
	var got []config.Secret
	p := provision.New(func(secret config.Secret) (provision.Server, error) {
		got = append(got, secret)
		return s, nil
	}, provision.Options{Driver: "csi-s3.dev"})
	r := request(t, pvc, "options", "--region eu-9 --subdomain --no-verify-ssl")
	r.Secret = config.Secret{Endpoint: "http://minio", Region: "us-1"}
	create(t, p, r)
	want := config.Secret{Endpoint: "http://minio", Region: "eu-9", VirtualHost: true, Insecure: true}
	if len(got) != 1 || got[0] != want {
		t.Errorf("%+v", got)
	}
	r.Parameters.Options = "--log-file x"
	_, err := p.Create(t.Context(), r)
	refuse(t, err, provision.ErrInvalid)
}
