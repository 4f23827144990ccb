package writeback_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/csi-s3/csi-s3/pkg/cache"
	"github.com/csi-s3/csi-s3/pkg/disk"
	"github.com/csi-s3/csi-s3/pkg/disk/diskmem"
	"github.com/csi-s3/csi-s3/pkg/fetch"
	"github.com/csi-s3/csi-s3/pkg/inode"
	"github.com/csi-s3/csi-s3/pkg/journal"
	"github.com/csi-s3/csi-s3/pkg/namespace"
	"github.com/csi-s3/csi-s3/pkg/s3"
	"github.com/csi-s3/csi-s3/pkg/s3/s3fault"
	"github.com/csi-s3/csi-s3/pkg/s3/s3mem"
	"github.com/csi-s3/csi-s3/pkg/s3/s3probe"
	"github.com/csi-s3/csi-s3/pkg/writeback"
)

// small makes every file above 64 KiB a multipart upload of parts of 16 KiB, and every copy above 128 KiB one too.
var small = writeback.Options{SinglePut: 64 << 10, Part: 16 << 10, MaxCopy: 128 << 10}

// rig is an Executor with the tree and the cache that it serves, on a bucket and a disk in memory.
type rig struct {
	t      testing.TB
	opt    writeback.Options
	cache  cache.Options
	names  namespace.Options
	bucket *s3mem.Bucket
	server func(s3.Bucket) s3.Bucket // what the faults are put upon; nil: bucket itself
	faults *s3fault.Bucket
	guard  *s3probe.Guard // what the Executor has: it knows that the bucket honours all, or nothing when there are quirks
	script atomic.Pointer[func(s3fault.Op) s3fault.Action]
	disk   *diskmem.FS
	dir    string       // of the cache when it is not on disk
	over   *atomic.Bool // the process is dead: no request begins any more

	journal *journal.Journal
	store   *cache.Store
	tree    *namespace.Tree
	fetcher *fetch.Fetcher
	exec    *writeback.Executor
}

func newRig(t *testing.T, opt writeback.Options) *rig {
	t.Helper()
	bucket := s3mem.New("bucket")
	bucket.MinPart = opt.Part
	r := &rig{t: t, opt: opt, bucket: bucket, disk: diskmem.New(), names: namespace.Options{WriterID: "0123456789abcdef", Settle: time.Hour, MaxAge: time.Hour}}
	r.start()
	t.Cleanup(func() { r.stop() })
	return r
}

// start opens everything on the rig's disk and bucket.
func (r *rig) start() {
	r.t.Helper()
	over := &atomic.Bool{}
	r.over = over
	var server s3.Bucket = r.bucket
	if r.server != nil {
		server = r.server(server)
	}
	r.faults = s3fault.New(server)
	r.faults.Fault = func(op s3fault.Op) s3fault.Action {
		if over.Load() {
			return s3fault.FailBefore(nil)
		}
		if f := r.script.Load(); f != nil {
			return (*f)(op)
		}
		return s3fault.Action{}
	}
	var fsys disk.FS = r.disk
	if r.dir != "" {
		dir, err := disk.OpenOS(r.dir)
		r.ok(err)
		r.t.Cleanup(func() { r.ok(dir.Close()) })
		fsys = dir
	}
	r.store = cache.New(fsys, r.cache)
	names := r.names
	store := r.store
	names.Gone = func(ino inode.Ino) {
		if err := store.Remove(cache.ID(ino)); err != nil {
			r.t.Errorf("remove: %v", err)
		}
	}
	r.tree = namespace.New(names)
	r.fetcher = fetch.New(r.faults, fetch.Options{})
	r.guard = s3probe.NewGuard(r.faults)
	if r.bucket.Quirks == nil {
		r.guard.Know(s3probe.All(s3probe.Honoured))
	}
	r.exec = writeback.New(r.tree, r.store, r.fetcher, r.guard, r.opt)
	var err error
	r.journal, err = journal.Open(fsys, "journal", journal.Options{}, func(frame []journal.Record) error {
		for _, rec := range frame {
			replay := r.tree.Replay
			switch rec.Kind.Owner() {
			case journal.OwnerCache:
				replay = r.store.Replay
			case journal.OwnerWriteback:
				replay = r.exec.Replay
			}
			if err := replay(rec); err != nil {
				return err
			}
		}
		return nil
	})
	r.ok(err)
	found, err := r.store.Recover(r.journal, false)
	r.ok(err)
	r.ok(r.tree.Recover(r.journal))
	r.exec.Recover(r.journal)
	for _, d := range found.Dirty {
		if !r.tree.Recovered(inode.Ino(d.ID), d.Size, d.Mtime) {
			r.ok(r.store.Remove(d.ID))
		}
	}
	r.exec.Start()
}

// stop ends everything at once, without another request.
func (r *rig) stop() {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	_ = r.exec.Stop(ctx) // the context's error
	r.fetcher.Close()
	if err := errors.Join(r.journal.Close(), r.store.Close()); err != nil {
		r.t.Errorf("close: %v", err)
	}
}

// kill is a kill -9 and a new process on the same disk. Requests that were under way may still be applied.
func (r *rig) kill() {
	r.t.Helper()
	r.over.Store(true)
	next := r.disk.Clone()
	r.stop()
	r.disk = next
	r.start()
}

func (r *rig) ok(err error) {
	r.t.Helper()
	if err != nil {
		r.t.Fatal(err)
	}
}

// faulty scripts the bucket; nil heals it.
func (r *rig) faulty(f func(s3fault.Op) s3fault.Action) {
	if f == nil {
		r.script.Store(nil)
		return
	}
	r.script.Store(&f)
}

// quirks makes the bucket worse than the Executor knows.
func (r *rig) quirks(q s3mem.Quirks) {
	r.bucket.Quirks = q
	r.guard.Know(nil)
}

// nth makes the nth call (from 1) of a method meet an action, counted from now.
func (r *rig) nth(method string, n int32, action s3fault.Action) *atomic.Int32 {
	var calls atomic.Int32
	r.faulty(func(op s3fault.Op) s3fault.Action {
		if op.Name == method && calls.Add(1) == n {
			return action
		}
		return s3fault.Action{}
	})
	return &calls
}

// make enters a new inode.
func (r *rig) make(dir inode.Ino, name string, mode uint32) inode.Ino {
	r.t.Helper()
	res, err := r.tree.Resolve(dir, name)
	r.ok(err)
	now := time.Now()
	n, err := r.tree.Create(namespace.Op{}, dir, name, res.Version, inode.Attr{Mode: mode, Atime: now, Mtime: now, Ctime: now}, "")
	r.ok(err)
	return n.Attr.Ino
}

func (r *rig) create(name string) inode.Ino {
	r.t.Helper()
	return r.make(inode.Root, name, inode.ModeRegular|0o644)
}

// link gives a file another name, in the root.
func (r *rig) link(ino inode.Ino, name string) {
	r.t.Helper()
	res, err := r.tree.Resolve(inode.Root, name)
	r.ok(err)
	_, err = r.tree.Link(namespace.Op{}, ino, inode.Root, name, res.Version)
	r.ok(err)
}

// learn enters a file that the bucket has.
func (r *rig) learn(name string) inode.Ino {
	r.t.Helper()
	info, err := r.bucket.Head(r.t.Context(), s3.Key(name))
	r.ok(err)
	res, err := r.tree.Resolve(inode.Root, name)
	r.ok(err)
	n, err := r.tree.Learn(inode.Root, name, res.Version, namespace.Remote{Info: info, Known: true})
	r.ok(err)
	return n.Attr.Ino
}

func (r *rig) file(ino inode.Ino) *cache.File {
	r.t.Helper()
	src, _, err := r.tree.Source(ino)
	r.ok(err)
	return r.store.File(cache.ID(ino), src.Size)
}

// change is one change of a file's bytes, as the core makes it.
func (r *rig) change(ino inode.Ino, do func(f *cache.File, now time.Time) error) {
	r.t.Helper()
	f := r.file(ino)
	r.ok(r.tree.BeginWrite(ino))
	now := time.Now()
	r.ok(do(f, now))
	r.ok(r.tree.Written(ino, f.Size(), now))
}

func (r *rig) write(ino inode.Ino, off int64, p []byte) {
	r.t.Helper()
	r.change(ino, func(f *cache.File, now time.Time) error { return f.WriteAt(p, off, now) })
}

// writeWhenRoom is a write as a program makes it: held up as the cache fills.
func (r *rig) writeWhenRoom(ctx context.Context, ino inode.Ino, off int64, p []byte) error {
	r.t.Helper()
	return r.exec.Throttle(ctx, func() error {
		r.t.Helper()
		if err := r.file(ino).Fits(off, off+int64(len(p))); err != nil {
			return err
		}
		r.write(ino, off, p)
		return nil
	})
}

// flush brings everything to the bucket.
func (r *rig) flush() {
	r.t.Helper()
	r.ok(r.tryFlush(20 * time.Second))
}

func (r *rig) tryFlush(d time.Duration) error {
	ctx, cancel := context.WithTimeout(r.t.Context(), d)
	defer cancel()
	return r.exec.Flush(ctx, 0, nil)
}

// put stores an object as another client does.
func (r *rig) put(key string, body []byte) s3.ETag {
	r.t.Helper()
	info, err := r.bucket.Put(r.t.Context(), s3.Key(key), s3.Body{R: bytes.NewReader(body), Size: int64(len(body))}, s3.Attributes{}, s3.Condition{})
	r.ok(err)
	return info.ETag
}

func (r *rig) get(key string) []byte {
	r.t.Helper()
	body, _, err := r.bucket.Get(r.t.Context(), s3.Key(key), nil, "")
	r.ok(err)
	p, err := io.ReadAll(body)
	r.ok(errors.Join(err, body.Close()))
	return p
}

// holds says what the bucket must have under a key.
func (r *rig) holds(key string, want []byte) {
	r.t.Helper()
	got := r.get(key)
	if !bytes.Equal(got, want) {
		i := 0
		for i < min(len(got), len(want)) && got[i] == want[i] {
			i++
		}
		r.t.Fatalf("%q has %d bytes, want %d; first difference at %d", key, len(got), len(want), i)
	}
}

// keys are all keys of the bucket but the volume's own.
func (r *rig) keys() []string {
	r.t.Helper()
	var keys []string
	in := s3.ListInput{}
	for {
		page, err := r.bucket.List(r.t.Context(), in)
		r.ok(err)
		for _, o := range page.Objects {
			if !strings.HasPrefix(string(o.Key), ".csi-s3/") {
				keys = append(keys, string(o.Key))
			}
		}
		if in.Token = page.Token; in.Token == "" {
			return keys
		}
	}
}

func (r *rig) wantKeys(want ...string) {
	r.t.Helper()
	slices.Sort(want)
	if got := r.keys(); !slices.Equal(got, want) {
		r.t.Fatalf("the bucket has %q, want %q", got, want)
	}
}

// noUploads says that no multipart upload stays open. One that the server makes after it was looked for, since the request was slow and
// the process was killed meanwhile, is found by one of the next sweeps.
func (r *rig) noUploads() {
	r.t.Helper()
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		u, _, err := r.bucket.ListUploads(r.t.Context(), "")
		if err == nil && len(u) == 0 {
			return
		}
		if err != nil || time.Now().After(deadline) {
			r.t.Fatalf("open uploads: %v, %v", u, err)
		}
	}
}

// settled says that nothing waits any more.
func (r *rig) settled() {
	r.t.Helper()
	// The bytes of removed files go a moment after the last of their objects.
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		s := r.exec.Status()
		if s.Queue == 0 && s.DirtyBytes == 0 && s.DirtyFiles == 0 {
			return
		}
		if time.Now().After(deadline) {
			r.t.Fatalf("left: %+v", s)
		}
	}
}

// noise is n bytes that are not like any others.
func noise(n int) []byte {
	p := make([]byte, n)
	random := rand.NewChaCha8([32]byte(slices.Repeat([]byte{byte(n), byte(n >> 8), byte(seed.Add(1)), byte(seed.Load() >> 8)}, 8)))
	_, _ = random.Read(p) // never fails
	return p
}

var seed atomic.Uint32
