package writeback_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/csi-s3/csi-s3/pkg/cache"
	"github.com/csi-s3/csi-s3/pkg/inode"
	"github.com/csi-s3/csi-s3/pkg/journal"
	"github.com/csi-s3/csi-s3/pkg/namespace"
	"github.com/csi-s3/csi-s3/pkg/s3"
	"github.com/csi-s3/csi-s3/pkg/s3/s3fault"
)

// stuckAt makes the bucket answer all requests up to the nth of a method, that one included, and none of that method
// after it. It returns a channel that is closed when the first one stays without an answer.
func (r *rig) stuckAt(method string, n int) <-chan struct{} {
	var mu sync.Mutex
	calls, stuck := 0, make(chan struct{})
	r.faulty(func(op s3fault.Op) s3fault.Action {
		if op.Name != method {
			return s3fault.Action{}
		}
		mu.Lock()
		defer mu.Unlock()
		if calls++; calls <= n {
			return s3fault.Action{}
		}
		if calls == n+1 {
			close(stuck)
		}
		return s3fault.Delay(time.Hour)
	})
	return stuck
}

// largeKilled has a file of 20 parts that is on its way when 8 of them were taken; then the process is killed.
func largeKilled(t *testing.T) (r *rig, ino inode.Ino, body []byte) {
	t.Helper()
	opt := small
	opt.Parts = 1
	r = newRig(t, opt)
	ino, body = r.create("large"), noise(320<<10)
	r.write(ino, 0, body)
	stuck := r.stuckAt("UploadPart", 8)
	r.tree.Urge()
	<-stuck
	r.kill()
	r.faulty(nil)
	return r, ino, body
}

// After a restart an upload goes on where it was.
func TestUploadGoesOn(t *testing.T) {
	r, _, body := largeKilled(t)
	r.flush()
	r.holds("large", body)
	r.noUploads()
	if n := r.faults.Count("UploadPart"); n != 12 {
		t.Errorf("%d of 20 parts were sent after the restart, 8 had been sent before", n)
	}
	if n := r.faults.Count("CreateUpload"); n != 0 {
		t.Errorf("%d uploads were begun anew", n)
	}
}

// What changed since its part was sent is sent again, and nothing of an older content is completed.
func TestUploadOfOlderContent(t *testing.T) {
	r, ino, body := largeKilled(t)
	copy(body[20<<10:], noise(10<<10))
	r.write(ino, 20<<10, body[20<<10:30<<10])
	r.flush()
	r.holds("large", body)
	r.noUploads()
}

// An upload of a file that was removed is aborted, and so is one of a file that became small.
func TestUploadNotNeeded(t *testing.T) {
	for _, what := range []string{"removed", "cut", "renamed"} {
		t.Run(what, func(t *testing.T) {
			r, ino, body := largeKilled(t)
			switch what {
			case "removed":
				r.ok(r.tree.Unlink(namespace.Op{}, inode.Root, "large"))
			case "cut":
				r.change(ino, func(f *cache.File, now time.Time) error { return f.Truncate(100, now) })
			case "renamed":
				r.ok(r.tree.Rename(namespace.Op{}, inode.Root, "large", inode.Root, "other", 0))
			}
			r.flush()
			switch what {
			case "cut":
				r.holds("large", body[:100])
			case "renamed":
				r.holds("other", body)
			}
			r.noUploads()
		})
	}
}

// An upload whose creation was not answered is found and aborted; those of others on the same key stay.
func TestUploadWithoutAnswer(t *testing.T) {
	for _, kill := range []bool{false, true} {
		r := newRig(t, small)
		foreign, err := r.bucket.CreateUpload(t.Context(), "large", s3.Attributes{})
		r.ok(err)
		ino, body := r.create("large"), noise(320<<10)
		r.write(ino, 0, body)
		calls := r.nth("CreateUpload", 1, s3fault.FailAfter(nil))
		r.tree.Urge()
		for calls.Load() == 0 {
			time.Sleep(time.Millisecond)
		}
		if kill {
			r.kill()
		}
		r.faulty(nil)
		r.flush()
		r.holds("large", body)
		open, _, err := r.bucket.ListUploads(t.Context(), "")
		if err != nil || len(open) != 1 || open[0].ID != foreign {
			t.Errorf("killed %v: open uploads %v, %v; want that of others alone", kill, open, err)
		}
		r.ok(r.bucket.AbortUpload(t.Context(), "large", foreign))
	}
}

// serverTime makes the bucket's clock one of its own, hours ahead of this node's, which stands still until it is advanced.
func (r *rig) serverTime() (advance func(time.Duration)) {
	var now atomic.Int64
	now.Store(time.Now().Add(5 * time.Hour).UnixNano())
	r.bucket.Now = func() time.Time { return time.Unix(0, now.Load()) }
	return func(d time.Duration) { now.Add(int64(d)) }
}

// open are the uploads that are open on a key.
func (r *rig) open(key s3.Key) (ids []s3.UploadID) {
	r.t.Helper()
	open, _, err := r.bucket.ListUploads(r.t.Context(), key)
	r.ok(err)
	for _, u := range open {
		ids = append(ids, u.ID)
	}
	return ids
}

// unanswered makes the file "large", whose upload is created without an answer, or not at all. Until the bucket is healed
// nobody can look what became of it.
func (r *rig) unanswered(applied bool) (body []byte) {
	r.t.Helper()
	var lists, creates atomic.Int32
	r.faulty(func(op s3fault.Op) s3fault.Action {
		switch {
		case op.Name == "ListUploads" && lists.Add(1) > 1:
			return s3fault.FailBefore(nil)
		case op.Name == "CreateUpload" && creates.Add(1) > 0 && applied:
			return s3fault.FailAfter(nil)
		case op.Name == "CreateUpload":
			return s3fault.FailBefore(nil)
		}
		return s3fault.Action{}
	})
	body = noise(320 << 10)
	r.write(r.create("large"), 0, body)
	r.tree.Urge()
	for creates.Load() == 0 || applied && len(r.open("large")) == 0 {
		time.Sleep(time.Millisecond)
	}
	return body
}

// inLedger counts the uploads that the Executor has something to do with.
func (r *rig) inLedger() (n int) {
	r.t.Helper()
	r.ok(r.exec.Dump(func(recs ...journal.Record) error {
		for _, rec := range recs {
			if rec.Kind == journal.OwnerWriteback|1 {
				n++
			}
		}
		return nil
	}))
	return n
}

// An upload that others begin on the key of one that was not answered is not taken for it. Which one is which the time
// tells, by the server's clock. When it does not, both stay, and the log says so.
func TestUploadWithoutAnswerBesideOthers(t *testing.T) {
	for _, c := range []struct {
		name    string
		applied bool          // the server made ours
		after   time.Duration // others begin theirs so much later
		timeless,
		undated bool // the server tells no time with its list, or not when uploads were begun
		waits bool // the server says nothing, instead of breaking off
		stays bool // ours
	}{
		{name: "later", applied: true, after: 10 * time.Second},
		{name: "later, killed", applied: true, after: time.Hour, waits: true},
		{name: "soon, killed", applied: true, after: 10 * time.Second, waits: true, stays: true},
		{name: "instead", after: time.Hour},
		{name: "meanwhile", applied: true, stays: true},
		{name: "without the time of the list", applied: true, after: time.Hour, timeless: true, stays: true},
		{name: "without their times", applied: true, after: time.Hour, undated: true, stays: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			var log lines
			opt := small
			opt.Log = slog.New(slog.NewTextHandler(&log, nil))
			r := newRig(t, opt)
			v := &vague{timeless: c.timeless, undated: c.undated}
			v.mute.Store(c.waits)
			r.server = func(b s3.Bucket) s3.Bucket {
				v.Bucket = b
				return v
			}
			r.kill()
			advance := r.serverTime()
			body := r.unanswered(c.applied)
			want := r.open("large")
			if !c.stays {
				want = nil
			}
			advance(c.after)
			theirs, err := r.bucket.CreateUpload(t.Context(), "large", s3.Attributes{})
			r.ok(err)
			want = append(want, theirs)
			if c.waits {
				r.kill()
				v.mute.Store(false)
			}
			r.faulty(nil)
			r.flush()
			r.holds("large", body)
			if open := r.open("large"); !slices.Equal(open, want) {
				t.Errorf("open are %q, want %q: theirs is %q", open, want, theirs)
			}
			if n := r.inLedger(); n > 0 {
				t.Errorf("%d uploads are still looked for", n)
			}
			if said := log.has("cannot be told", "key=large", "uploads=2"); said != c.stays {
				t.Errorf("the log says so: %v", said)
			}
		})
	}
}

// Two attempts are not answered, one after the other, and then the file is removed: one look finds both. Where the one for
// the second fails, the first waits, however late it is.
func TestUploadTwiceWithoutAnswer(t *testing.T) {
	for _, fails := range []bool{false, true} {
		r := newRig(t, small)
		advance := r.serverTime()
		var lists atomic.Int32
		r.faulty(func(op s3fault.Op) s3fault.Action {
			switch op.Name {
			case "ListUploads":
				if n := lists.Add(1); n != 1 && n != 3 {
					return s3fault.FailBefore(nil)
				}
			case "CreateUpload":
				return s3fault.FailAfter(nil)
			}
			return s3fault.Action{}
		})
		r.write(r.create("large"), 0, noise(320<<10))
		r.tree.Urge()
		for len(r.open("large")) < 2 {
			time.Sleep(time.Millisecond)
		}
		r.ok(r.tree.Unlink(namespace.Op{}, inode.Root, "large"))
		r.faulty(nil)
		if fails {
			advance(time.Hour)
			r.nth("ListUploads", 1, s3fault.FailBefore(nil))
			r.flush()
		}
		r.flush()
		r.noUploads()
		if n := r.inLedger(); n > 0 {
			t.Errorf("%d uploads are still looked for", n)
		}
	}
}

// vague is a server that does not tell all that it could.
type vague struct {
	s3.Bucket
	timeless, undated bool
	mute              atomic.Bool // it creates uploads and does not answer
}

func (v *vague) CreateUpload(ctx context.Context, key s3.Key, attr s3.Attributes) (s3.UploadID, error) {
	mute := v.mute.Load()
	id, err := v.Bucket.CreateUpload(ctx, key, attr)
	if mute {
		<-ctx.Done()
		return "", errors.Join(s3.ErrUnavailable, ctx.Err())
	}
	return id, err
}

func (v *vague) ListUploads(ctx context.Context, prefix s3.Key) ([]s3.Upload, time.Time, error) {
	open, at, err := v.Bucket.ListUploads(ctx, prefix)
	if v.timeless {
		at = time.Time{}
	}
	for i := range open {
		if v.undated {
			open[i].Initiated = time.Time{}
		}
	}
	return open, at, err
}

// lines is a log.
type lines struct {
	mu sync.Mutex
	b  bytes.Buffer // guarded by mu
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

// has says that a line has all the texts.
func (l *lines) has(texts ...string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	for line := range strings.Lines(l.b.String()) {
		if !slices.ContainsFunc(texts, func(text string) bool { return !strings.Contains(line, text) }) {
			return true
		}
	}
	return false
}

// The server may make an upload when it was looked for already: it is looked for until its time is over.
func TestUploadMadeLate(t *testing.T) {
	r := newRig(t, small)
	advance := r.serverTime()
	body := r.unanswered(false)
	r.faulty(nil)
	r.flush()
	r.holds("large", body)
	_, err := r.bucket.CreateUpload(t.Context(), "large", s3.Attributes{})
	r.ok(err)
	r.flush()
	r.noUploads()
	if n := r.inLedger(); n > 0 {
		t.Errorf("%d uploads are still looked for", n)
	}

	r.write(r.create("other"), 0, body)
	r.nth("CreateUpload", 1, s3fault.FailBefore(nil))
	r.flush()
	if n := r.inLedger(); n != 1 {
		t.Errorf("%d uploads are looked for, want 1", n)
	}
	advance(10 * time.Second)
	r.flush()
	if n := r.inLedger(); n > 0 {
		t.Errorf("%d uploads are looked for though their time is over", n)
	}
}

// Records of older versions, without times: an upload that is known is aborted, and what may be that of others stays.
func TestUploadOfOlderVersion(t *testing.T) {
	r := newRig(t, small)
	id, err := r.bucket.CreateUpload(t.Context(), "known", s3.Attributes{})
	r.ok(err)
	foreign, err := r.bucket.CreateUpload(t.Context(), "lost", s3.Attributes{})
	r.ok(err)
	for _, rec := range []journal.Record{
		{Kind: journal.OwnerWriteback | 1, Data: []byte("\x01\x63\x05known\x00\x01\x01k\x01v\x01\x00")},
		{Kind: journal.OwnerWriteback | 2, Data: append([]byte{1, byte(len(id))}, id...)},
		{Kind: journal.OwnerWriteback | 1, Data: []byte("\x02\x63\x04lost\x00\x00\x01\x01\x05other")},
		{Kind: journal.OwnerWriteback | 1, Data: []byte("\x03\x63\x04gone\x00\x00\x01\x00")},
	} {
		r.ok(r.exec.Replay(rec))
	}
	r.flush()
	if open := r.open(""); len(open) != 1 || open[0] != foreign {
		t.Errorf("open are %q, want that of others alone: %q", open, foreign)
	}
	if n := r.inLedger(); n > 0 {
		t.Errorf("%d uploads are still looked for", n)
	}
}

// Where others write too, an upload that may be theirs is left alone.
func TestUploadWithoutAnswerShared(t *testing.T) {
	opt := small
	opt.Shared = true
	r := newRig(t, opt)
	ino, body := r.create("large"), noise(320<<10)
	r.write(ino, 0, body)
	r.nth("CreateUpload", 1, s3fault.FailAfter(nil))
	r.flush()
	r.holds("large", body)
	if open, _, err := r.bucket.ListUploads(t.Context(), ""); err != nil || len(open) != 1 {
		t.Errorf("open uploads %v, %v; the one without an answer stays", open, err)
	}
}

// The server forgot the upload meanwhile.
func TestUploadExpired(t *testing.T) {
	r, _, body := largeKilled(t)
	open, _, err := r.bucket.ListUploads(t.Context(), "")
	r.ok(err)
	for _, u := range open {
		r.ok(r.bucket.AbortUpload(t.Context(), u.Key, u.ID))
	}
	r.flush()
	r.holds("large", body)
	r.noUploads()
}

// A checkpoint keeps what is known of uploads.
func TestUploadCheckpoint(t *testing.T) {
	opt := small
	opt.Parts = 1
	r := newRig(t, opt)
	ino, body := r.create("large"), noise(320<<10)
	r.write(ino, 0, body)
	stuck := r.stuckAt("UploadPart", 8)
	r.tree.Urge()
	<-stuck
	r.ok(r.journal.Checkpoint(func(emit func(...journal.Record) error) error {
		return errors.Join(r.tree.Dump(emit), r.store.Dump(emit), r.exec.Dump(emit))
	}))
	r.kill()
	r.faulty(nil)
	r.flush()
	r.holds("large", body)
	r.noUploads()
	if n := r.faults.Count("UploadPart"); n != 12 {
		t.Errorf("%d parts were sent after the restart", n)
	}
}

// FuzzReplay feeds records that this package did not write: they are refused, or say something harmless.
func FuzzReplay(f *testing.F) {
	f.Add(byte(1), []byte{1, 2, 1, 'k', 0, 1, 1, 'a', 1, 'b', 1, 1, 2, 'i', 'd'})
	f.Add(byte(1), []byte{1, 2, 1, 'k', 0, 0, 1, 1, 2, 'i', 'd', 0xe8, 7, 0xd0, 15})
	f.Add(byte(2), []byte{1, 2, 'i', 'd'})
	f.Add(byte(3), []byte{1, 1, 0, 16, 1, 'e', 1, 'c', 0, 0})
	f.Add(byte(4), []byte{1})
	f.Fuzz(func(t *testing.T, kind byte, data []byte) {
		r := newRig(t, small)
		begun := []byte{1, 2, 1, 'k', 0, 0, 1, 0}
		if err := r.exec.Replay(journal.Record{Kind: journal.OwnerWriteback | 1, Data: begun}); err != nil {
			t.Fatal(err)
		}
		err := r.exec.Replay(journal.Record{Kind: journal.OwnerWriteback | journal.Kind(kind&15), Data: data})
		if err != nil && !errors.Is(err, journal.ErrCorrupt) {
			t.Fatal(err)
		}
		if err := r.exec.Dump(func(recs ...journal.Record) error { return nil }); err != nil {
			t.Fatal(err)
		}
	})
}

// A server that refuses all for a while does not make an upload be forgotten: who could list uploads waits until it can again.
func TestRefusedForAWhile(t *testing.T) {
	r := newRig(t, small)
	r.write(r.create("first"), 0, noise(100<<10))
	r.flush()
	var lists, creates atomic.Int32
	r.faulty(func(op s3fault.Op) s3fault.Action {
		switch {
		case op.Name == "ListUploads" && lists.Add(1) <= 2:
			return s3fault.FailBefore(s3.ErrAuth)
		case op.Name == "CreateUpload" && creates.Add(1) == 1:
			return s3fault.FailAfter(nil)
		}
		return s3fault.Action{}
	})
	body := noise(100 << 10)
	r.write(r.create("second"), 0, body)
	r.flush()
	r.holds("second", body)
	r.settled()
	r.noUploads()
}
