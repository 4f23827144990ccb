package vfs_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"path"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/csi-s3/csi-s3/pkg/cache"
	"github.com/csi-s3/csi-s3/pkg/disk/diskmem"
	"github.com/csi-s3/csi-s3/pkg/fetch"
	"github.com/csi-s3/csi-s3/pkg/inode"
	"github.com/csi-s3/csi-s3/pkg/journal"
	"github.com/csi-s3/csi-s3/pkg/namespace"
	"github.com/csi-s3/csi-s3/pkg/s3"
	"github.com/csi-s3/csi-s3/pkg/s3/s3fault"
	"github.com/csi-s3/csi-s3/pkg/s3/s3mem"
	"github.com/csi-s3/csi-s3/pkg/s3/s3probe"
	"github.com/csi-s3/csi-s3/pkg/vfs"
	"github.com/csi-s3/csi-s3/pkg/writeback"
)

// failer is what *testing.T and *rapid.T have in common.
type failer interface {
	Helper()
	Fatalf(format string, args ...any)
	Errorf(format string, args ...any)
	Logf(format string, args ...any)
}

// config is what a test wants to be different. The zero value is a volume that is the whole bucket, whose changes go to
// the bucket only when a test flushes.
type config struct {
	policy    vfs.Policy
	prefix    s3.Key
	settle    time.Duration // 0 is an hour
	cache     cache.Options
	views     int64
	writer    string
	overwrite bool
	patience  time.Duration
	part      int64 // size of the parts of an upload, 0 is the default
	admit     func(context.Context) error
	announce  func(context.Context) error
}

// volume is a file system with all that is below it, on a bucket and a disk in memory, as package volume makes it.
type volume struct {
	*vfs.FS
	t      failer
	cfg    config
	bucket *s3mem.Bucket
	faults *s3fault.Bucket
	guard  *s3probe.Guard // knows that the bucket honours all conditions, or nothing when it has quirks
	fault  *atomic.Pointer[func(op s3fault.Op) s3fault.Action]
	disk   *diskmem.FS
	skew   *atomic.Int64 // of the clock, in nanoseconds
	usage  *vfs.Usage
	notes  *notes

	journal  *journal.Journal
	store    *cache.Store
	tree     *namespace.Tree
	fetcher  *fetch.Fetcher
	executor *writeback.Executor
	views    *vfs.Views
	remote   *vfs.Remote
	powerCut bool
	lost     []string
	life     *life
	listed   atomic.Pointer[func()]
}

// lister is the bucket of a volume's view. Before a listing is given to the view, v.listed is called once.
type lister struct {
	s3.Bucket
	v *volume
}

func (l lister) List(ctx context.Context, in s3.ListInput) (s3.Page, error) {
	page, err := l.Bucket.List(ctx, in)
	if f := l.v.listed.Swap(nil); f != nil {
		(*f)()
	}
	return page, err
}

// life is that of a process: when it is over, no request begins any more.
type life struct {
	mu   sync.RWMutex
	over bool // guarded by mu
}

// notes is what the kernel was told.
type notes struct {
	mu      sync.Mutex
	entries []string
}

func (n *notes) InvalidateInode(inode.Ino, int64, int64) {}

func (n *notes) InvalidateEntry(dir inode.Ino, name string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.entries = append(n.entries, fmt.Sprintf("%d/%s", dir, name))
}

func (n *notes) all() []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Clone(n.entries)
}

// newVolume opens a volume on an empty bucket and an empty disk, and closes it when the test ends.
func newVolume(t *testing.T, cfg config) *volume {
	t.Helper()
	bucket := s3mem.New("bucket")
	bucket.MinPart = cfg.part // the server allows what the volume is told to send
	v := openVolume(t, bucket, diskmem.New(), cfg)
	t.Cleanup(func() { v.close() })
	return v
}

func openVolume(t failer, bucket *s3mem.Bucket, d *diskmem.FS, cfg config) *volume {
	t.Helper()
	v := &volume{t: t, cfg: cfg, bucket: bucket, disk: d, skew: &atomic.Int64{}, fault: &atomic.Pointer[func(op s3fault.Op) s3fault.Action]{}}
	v.start()
	return v
}

func (v *volume) now() time.Time { return time.Now().Add(time.Duration(v.skew.Load())) }

// pass lets time go by, as far as the file system and the bucket's view can see it.
func (v *volume) pass(d time.Duration) { v.skew.Add(int64(d)) }

// start opens the volume on v.disk and v.bucket.
func (v *volume) start() {
	v.t.Helper()
	life := &life{}
	v.life = life
	v.faults = s3fault.New(v.bucket)
	v.faults.Fault = func(op s3fault.Op) s3fault.Action {
		life.mu.RLock()
		defer life.mu.RUnlock()
		if life.over {
			return s3fault.FailBefore(nil)
		}
		if f := v.fault.Load(); f != nil {
			return (*f)(op)
		}
		return s3fault.Action{}
	}
	if v.cfg.settle == 0 {
		v.cfg.settle = time.Hour
	}
	if v.cfg.writer == "" {
		v.cfg.writer = "0123456789abcdef"
	}
	if v.cfg.patience == 0 {
		v.cfg.patience = 10 * time.Second
	}
	v.usage, v.notes = &vfs.Usage{}, &notes{}
	v.views = vfs.NewViews(v.cfg.views)
	v.remote = vfs.NewRemote(lister{v.faults, v}, v.views, v.cfg.policy.TTL())
	v.store = cache.New(v.disk, v.cfg.cache)
	v.tree = namespace.New(namespace.Options{
		Prefix: v.cfg.prefix, Uid: 1000, Gid: 1000, WriterID: v.cfg.writer, Settle: v.cfg.settle, MaxAge: time.Hour,
		Overwrite: v.cfg.overwrite, Now: v.now,
		Settled: v.remote.Settled,
		Gone:    func(ino inode.Ino) { v.FS.Gone(ino) },
	})
	v.fetcher = fetch.New(v.faults, fetch.Options{})
	v.guard = s3probe.NewGuard(v.faults)
	if v.bucket.Quirks == nil {
		v.guard.Know(s3probe.All(s3probe.Honoured))
	}
	v.executor = writeback.New(v.tree, v.store, v.fetcher, v.guard, writeback.Options{
		Conflict: func(ino inode.Ino, kept string) { v.FS.Conflict(ino, kept) }, Patience: v.cfg.policy.IOTimeout, Part: v.cfg.part,
	})
	v.FS = vfs.New(vfs.Options{
		Tree: v.tree, Store: v.store, Fetcher: v.fetcher, Executor: v.executor, Remote: v.remote, Policy: v.cfg.policy,
		Admit: v.cfg.admit, Announce: v.cfg.announce, Usage: v.usage, Log: slog.New(slog.DiscardHandler), Now: v.now,
	})
	v.SetInvalidator(v.notes)
	if err := v.recover(); err != nil {
		v.t.Fatalf("open: %v", err)
	}
	v.executor.Start()
}

func (v *volume) recover() (err error) {
	v.journal, err = journal.Open(v.disk, "journal", journal.Options{}, func(frame []journal.Record) error {
		for _, rec := range frame {
			replay := v.tree.Replay
			switch rec.Kind.Owner() {
			case journal.OwnerCache:
				replay = v.store.Replay
			case journal.OwnerWriteback:
				replay = v.executor.Replay
			}
			if err := replay(rec); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	found, err := v.store.Recover(v.journal, v.powerCut)
	if err != nil {
		return err
	}
	if err := v.tree.Recover(v.journal); err != nil {
		return err
	}
	v.executor.Recover(v.journal)
	for _, d := range found.Dirty {
		if !v.tree.Recovered(inode.Ino(d.ID), d.Size, d.Mtime) {
			if err := v.store.Remove(d.ID); err != nil {
				return err
			}
		}
	}
	v.lost = nil
	for _, id := range found.Lost {
		v.lost = append(v.lost, v.tree.Lost(inode.Ino(id)))
	}
	if err := v.store.Forget(found.Lost); err != nil {
		return err
	}
	if !v.powerCut {
		return nil
	}
	return v.checkpoint()
}

func (v *volume) checkpoint() error {
	return v.journal.Checkpoint(func(emit func(...journal.Record) error) error {
		if err := errors.Join(v.tree.Dump(emit), v.executor.Dump(emit)); err != nil {
			return err
		}
		return v.store.Dump(emit)
	})
}

// stop ends all that runs, without another request to the bucket or write to the disk.
func (v *volume) stop() {
	v.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	_ = v.executor.Stop(ctx) // the context's error
	v.FS.Close()
	v.fetcher.Close()
	v.remote.Close()
	v.views.Close()
}

func (v *volume) close() {
	v.stop()
	if err := errors.Join(v.journal.Close(), v.store.Close()); err != nil {
		v.t.Errorf("close: %v", err)
	}
}

// kill is a kill -9 of the process and a new one on the same disk. Requests that were under way may have reached the
// bucket.
func (v *volume) kill() {
	v.t.Helper()
	v.life.mu.Lock()
	next := v.disk.Clone()
	v.life.over = true
	v.life.mu.Unlock()
	v.close()
	v.disk = next
	v.powerCut = false
	v.start()
}

// elsewhere goes on with an empty disk: what another node sees.
func (v *volume) elsewhere() {
	v.t.Helper()
	v.close()
	v.disk = diskmem.New()
	v.powerCut = false
	v.start()
}

// flush brings everything to the bucket.
func (v *volume) flush() {
	v.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), v.cfg.patience)
	defer cancel()
	if err := v.FlushTree(ctx, inode.Root, nil); err != nil {
		v.t.Fatalf("flush: %v", err)
	}
}

// quirks makes the bucket worse than write-back knows.
func (v *volume) quirks(q s3mem.Quirks) {
	v.bucket.Quirks = q
	v.guard.Know(nil)
}

// break_ scripts the bucket, nil heals it.
func (v *volume) faulty(f func(op s3fault.Op) s3fault.Action) {
	if f == nil {
		v.fault.Store(nil)
		return
	}
	v.fault.Store(&f)
}

// down makes every request fail as a 503 does.
func (v *volume) down() {
	v.faulty(func(s3fault.Op) s3fault.Action { return s3fault.FailBefore(nil) })
}

// The bucket as others see it.

func (v *volume) put(key, content string) s3.ETag {
	v.t.Helper()
	return v.putMeta(key, content, nil)
}

func (v *volume) putMeta(key, content string, meta map[string]string) s3.ETag {
	v.t.Helper()
	info, err := v.bucket.Put(context.Background(), s3.Key(key), s3.Body{R: strings.NewReader(content), Size: int64(len(content))}, s3.Attributes{Meta: meta}, s3.Condition{})
	if err != nil {
		v.t.Fatalf("put %q: %v", key, err)
	}
	return info.ETag
}

func (v *volume) delete(key string) {
	v.t.Helper()
	if err := v.bucket.Delete(context.Background(), s3.Key(key)); err != nil {
		v.t.Fatalf("delete %q: %v", key, err)
	}
}

// objects returns the bucket's objects without those that are the volume's own.
func (v *volume) objects() map[string]string {
	v.t.Helper()
	out := map[string]string{}
	for _, key := range v.keys() {
		if strings.HasPrefix(strings.TrimPrefix(key, string(v.cfg.prefix)), ".csi-s3/") {
			continue
		}
		out[key] = v.object(key)
	}
	return out
}

func (v *volume) keys() []string {
	v.t.Helper()
	keys, err := v.tryKeys()
	if err != nil {
		v.t.Fatalf("list: %v", err)
	}
	return keys
}

// tryKeys is for goroutines that are not the test's own.
func (v *volume) tryKeys() ([]string, error) {
	var keys []string
	in := s3.ListInput{}
	for {
		page, err := v.bucket.List(context.Background(), in)
		if err != nil {
			return nil, err
		}
		for _, o := range page.Objects {
			keys = append(keys, string(o.Key))
		}
		if in.Token = page.Token; in.Token == "" {
			return keys, nil
		}
	}
}

func (v *volume) object(key string) string {
	v.t.Helper()
	body, _, err := v.bucket.Get(context.Background(), s3.Key(key), nil, "")
	if err != nil {
		v.t.Fatalf("get %q: %v", key, err)
	}
	defer func() { _ = body.Close() }()
	b, err := io.ReadAll(body)
	if err != nil {
		v.t.Fatalf("get %q: %v", key, err)
	}
	return string(b)
}

// wantObjects checks the bucket against key, content, key, content, ...
func (v *volume) wantObjects(pairs ...string) {
	v.t.Helper()
	want := map[string]string{}
	for i := 0; i < len(pairs); i += 2 {
		want[pairs[i]] = pairs[i+1]
	}
	if got := v.objects(); !maps.Equal(got, want) {
		v.t.Fatalf("the bucket has %q, want %q", got, want)
	}
}

// A client of the file system that works with paths, as the kernel does for programs; it remembers nothing, so it
// forgets each inode after its use. The helpers with an error
// result return what a program would see; those without end the test.

var root = vfs.Request{Uid: 1000, Gid: 1000}

var ctx = context.Background()

// walk looks a path up.
func (v *volume) walk(p string) (inode.Attr, error) {
	a, _, err := v.GetAttr(ctx, root, inode.Root)
	if err != nil || p == "" {
		return a, err
	}
	for _, name := range strings.Split(p, "/") {
		if !a.IsDir() {
			return a, namespace.ErrNotDir
		}
		e, err := v.Lookup(ctx, root, a.Ino, name)
		if err != nil {
			return a, err
		}
		a = e.Attr
		v.Forget(a.Ino, 1)
	}
	return a, nil
}

func (v *volume) stat(p string) inode.Attr {
	v.t.Helper()
	a, err := v.walk(p)
	if err != nil {
		v.t.Fatalf("stat %q: %v", p, err)
	}
	return a
}

func (v *volume) ino(p string) inode.Ino {
	v.t.Helper()
	return v.stat(p).Ino
}

// at looks up the directory of a path.
func (v *volume) at(p string) (dir inode.Ino, name string, err error) {
	d, name := path.Split(p)
	a, err := v.walk(strings.TrimSuffix(d, "/"))
	if err == nil && !a.IsDir() {
		err = namespace.ErrNotDir
	}
	return a.Ino, name, err
}

func (v *volume) tryWrite(p, content string) error { return v.writeWith(ctx, p, content) }

// writeWith is tryWrite by a program whose patience ends with ctx.
func (v *volume) writeWith(ctx context.Context, p, content string) error {
	dir, name, err := v.at(p)
	if err != nil {
		return err
	}
	e, h, err := v.Create(ctx, root, dir, name, 0o644, syscall.O_RDWR|syscall.O_TRUNC)
	if err != nil {
		return err
	}
	_, err = v.Write(ctx, root, e.Attr.Ino, h, []byte(content), 0)
	ferr := v.Flush(ctx, root, e.Attr.Ino, h)
	v.Release(e.Attr.Ino, h)
	v.Forget(e.Attr.Ino, 1)
	return errors.Join(err, ferr)
}

// write makes or replaces a file.
func (v *volume) write(p, content string) inode.Ino {
	v.t.Helper()
	if err := v.tryWrite(p, content); err != nil {
		v.t.Fatalf("write %q: %v", p, err)
	}
	return v.ino(p)
}

func (v *volume) open(p string, flags int) (inode.Ino, vfs.HandleID) {
	v.t.Helper()
	ino := v.ino(p)
	h, _, err := v.Open(ctx, root, ino, flags)
	if err != nil {
		v.t.Fatalf("open %q: %v", p, err)
	}
	return ino, h
}

func (v *volume) tryRead(p string) (string, error) {
	a, err := v.walk(p)
	if err != nil {
		return "", err
	}
	h, _, err := v.Open(ctx, root, a.Ino, syscall.O_RDONLY)
	if err != nil {
		return "", err
	}
	defer v.Release(a.Ino, h)
	return v.readIno(a.Ino, h)
}

func (v *volume) readIno(ino inode.Ino, h vfs.HandleID) (string, error) {
	var out bytes.Buffer
	p := make([]byte, 100_000)
	for {
		n, err := v.Read(ctx, root, ino, h, p, int64(out.Len()))
		out.Write(p[:n])
		if err != nil || n < len(p) {
			return out.String(), err
		}
	}
}

func (v *volume) wantFile(p, want string) {
	v.t.Helper()
	got, err := v.tryRead(p)
	if err != nil {
		v.t.Fatalf("read %q: %v", p, err)
	}
	if got != want {
		v.t.Fatalf("%q holds %.80q (%d bytes), want %.80q (%d bytes)", p, got, len(got), want, len(want))
	}
}

func (v *volume) writeAt(ino inode.Ino, h vfs.HandleID, content string, off int64) {
	v.t.Helper()
	if n, err := v.Write(ctx, root, ino, h, []byte(content), off); err != nil || n != len(content) {
		v.t.Fatalf("write at %d: %d, %v", off, n, err)
	}
}

func (v *volume) tryMkdir(p string) error {
	dir, name, err := v.at(p)
	if err == nil {
		var e vfs.Entry
		e, err = v.Mkdir(ctx, root, dir, name, 0o755)
		v.Forget(e.Attr.Ino, 1)
	}
	return err
}

func (v *volume) mkdir(p string) {
	v.t.Helper()
	v.ok(v.tryMkdir(p))
}

func (v *volume) symlink(p, target string) error {
	dir, name, err := v.at(p)
	if err == nil {
		var e vfs.Entry
		e, err = v.Symlink(ctx, root, dir, name, target)
		v.Forget(e.Attr.Ino, 1)
	}
	return err
}

func (v *volume) unlink(p string) error {
	dir, name, err := v.at(p)
	if err == nil {
		err = v.Unlink(ctx, root, dir, name)
	}
	return err
}

func (v *volume) rmdir(p string) error {
	dir, name, err := v.at(p)
	if err == nil {
		err = v.Rmdir(ctx, root, dir, name)
	}
	return err
}

func (v *volume) rename(from, to string, flags uint32) error {
	d1, n1, err := v.at(from)
	if err != nil {
		return err
	}
	d2, n2, err := v.at(to)
	if err != nil {
		return err
	}
	return v.Rename(ctx, root, d1, n1, d2, n2, flags)
}

func (v *volume) link(from, to string) error {
	a, err := v.walk(from)
	if err != nil {
		return err
	}
	dir, name, err := v.at(to)
	if err == nil {
		var e vfs.Entry
		e, err = v.Link(ctx, root, a.Ino, dir, name)
		v.Forget(e.Attr.Ino, 1)
	}
	return err
}

func (v *volume) truncate(p string, size int64) error {
	a, err := v.walk(p)
	if err == nil {
		_, _, err = v.SetAttr(ctx, root, a.Ino, 0, vfs.SetAttr{Size: &size})
	}
	return err
}

func (v *volume) tryList(p string) ([]string, error) {
	a, err := v.walk(p)
	if err != nil {
		return nil, err
	}
	h, err := v.OpenDir(ctx, root, a.Ino)
	if err != nil {
		return nil, err
	}
	defer v.ReleaseDir(h)
	var names []string
	err = v.ReadDir(ctx, root, a.Ino, h, 0, false, func(d vfs.DirEntry, _ vfs.Entry) bool {
		if d.Name != "." && d.Name != ".." {
			names = append(names, d.Name)
		}
		return true
	})
	slices.Sort(names)
	return names, err
}

func (v *volume) wantNames(p string, want ...string) {
	v.t.Helper()
	got, err := v.tryList(p)
	if err != nil {
		v.t.Fatalf("list %q: %v", p, err)
	}
	slices.Sort(want)
	if !slices.Equal(got, want) {
		v.t.Fatalf("%q lists %q, want %q", p, got, want)
	}
}

// wantClean says that the cache holds nothing that the bucket does not have. The bytes of removed files go a moment after
// the last of their objects.
func (v *volume) wantClean() {
	v.t.Helper()
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		u := v.store.Usage()
		if u.DirtyFiles == 0 && u.Dirty == 0 {
			return
		}
		if time.Now().After(deadline) {
			v.t.Fatalf("after a flush %d files with %d bytes are dirty", u.DirtyFiles, u.Dirty)
		}
	}
}

func (v *volume) ok(err error) {
	v.t.Helper()
	if err != nil {
		v.t.Fatalf("%v", err)
	}
}

// errno checks what a program is told.
func (v *volume) errno(err error, want syscall.Errno) {
	v.t.Helper()
	if got := vfs.Errno(err); got != want {
		v.t.Fatalf("errno %v (%v), want %v", got, err, want)
	}
}
