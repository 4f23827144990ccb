package volume_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"github.com/csi-s3/csi-s3/pkg/config"
	"github.com/csi-s3/csi-s3/pkg/s3"
	"github.com/csi-s3/csi-s3/pkg/s3/s3fault"
	"github.com/csi-s3/csi-s3/pkg/s3/s3mem"
	"github.com/csi-s3/csi-s3/pkg/volume"
)

// fake is a mounted volume: a tmpfs, since a Set only looks at what the kernel says of a mount.
type fake struct {
	spec volume.Spec
	done chan struct{}

	mu    sync.Mutex
	dirty int64
	gone  bool
}

func (f *fake) Drain(ctx context.Context) error {
	for {
		f.mu.Lock()
		dirty := f.dirty
		f.mu.Unlock()
		if dirty == 0 {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%d bytes are left: %w", dirty, ctx.Err())
		case <-time.After(time.Millisecond):
		}
	}
}

func (f *fake) Close(ctx context.Context, lazy bool) error {
	err := f.Drain(ctx)
	if err != nil && !lazy {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.gone {
		return err
	}
	flags := 0
	if lazy {
		flags = unix.MNT_DETACH
	}
	if err := unix.Unmount(f.spec.Dir, flags); err != nil {
		return err
	}
	f.gone = true
	close(f.done)
	return err
}

// lose is what happens to a mount whose connection is aborted from outside.
func (f *fake) lose(t *testing.T) {
	t.Helper()
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := unix.Unmount(f.spec.Dir, unix.MNT_DETACH); err != nil {
		t.Fatal(err)
	}
	f.gone = true
	close(f.done)
}

func (f *fake) write(n int64) { f.mu.Lock(); f.dirty = n; f.mu.Unlock() }

func (f *fake) Status() volume.Status {
	f.mu.Lock()
	defer f.mu.Unlock()
	return volume.Status{ID: f.spec.ID, Dir: f.spec.Dir, Dirty: f.dirty}
}
func (f *fake) Usage() (int64, int64, uint64) { return 10, 20, 3 }
func (f *fake) Done() <-chan struct{}         { return f.done }

// node is a Set with its surroundings.
type node struct {
	volume.Set
	dir string
	log *bytes.Buffer

	mu      sync.Mutex
	mounted map[string][]*fake // by volume ID, the last is the living one
	buckets map[string]s3.Bucket
	before  func(spec volume.Spec) error // called in Mount
}

func newNode(t *testing.T) *node {
	t.Helper()
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	n := &node{dir: dir, mounted: map[string][]*fake{}, buckets: map[string]s3.Bucket{}, log: &bytes.Buffer{}}
	n.restart()
	t.Cleanup(func() {
		for _, m := range mountsBelow(t, dir) {
			t.Errorf("left behind: %s on %s", m.FSType, m.Mountpoint)
			_ = unix.Unmount(m.Mountpoint, unix.MNT_DETACH)
		}
		// What is still sealed cannot be removed.
		for _, d := range []string{"staging", "a", "b", "c"} {
			seal(filepath.Join(dir, d), false)
		}
		for _, secret := range []string{"the-secret-key", "the-access-key"} {
			if strings.Contains(n.log.String(), secret) {
				t.Errorf("%s is in the log:\n%s", secret, n.log)
			}
		}
	})
	return n
}

// restart is a new process on the same node.
func (n *node) restart() {
	n.Set = volume.Set{
		CacheDir: filepath.Join(n.dir, "cache"),
		Log:      slog.New(slog.NewTextHandler(n.log, nil)),
		Patience: 2 * time.Second,
		Connect: func(bucket string, secret config.Secret) (s3.Bucket, func(), error) {
			n.mu.Lock()
			defer n.mu.Unlock()
			if b := n.buckets[bucket+" "+string(secret.AccessKeyID)]; b != nil {
				return b, func() {}, nil
			}
			return s3mem.New(bucket), func() {}, nil
		},
		Mount: func(_ context.Context, spec volume.Spec) (volume.Mounted, error) {
			n.mu.Lock()
			before := n.before
			n.mu.Unlock()
			if before != nil {
				if err := before(spec); err != nil {
					return nil, err
				}
			}
			if err := unix.Mount("fake", spec.Dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, ""); err != nil {
				return nil, err
			}
			f := &fake{spec: spec, done: make(chan struct{})}
			n.mu.Lock()
			defer n.mu.Unlock()
			n.mounted[spec.ID] = append(n.mounted[spec.ID], f)
			return f, nil
		},
	}
}

func (n *node) last(id config.VolumeID) *fake {
	n.mu.Lock()
	defer n.mu.Unlock()
	all := n.mounted[id.String()]
	return all[len(all)-1]
}

func (n *node) mounts(id config.VolumeID) int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return len(n.mounted[id.String()])
}

func (n *node) path(t *testing.T, name string) string {
	t.Helper()
	p := filepath.Join(n.dir, name)
	if err := os.MkdirAll(p, 0o750); err != nil {
		t.Fatal(err)
	}
	return p
}

func (n *node) request(t *testing.T) volume.StageRequest {
	t.Helper()
	return volume.StageRequest{
		ID: config.VolumeID{Bucket: "bucket", Prefix: "a/"}, Dir: n.path(t, "staging"),
		Secret:  config.Secret{Endpoint: "https://s3.example", AccessKeyID: "the-access-key", SecretAccessKey: "the-secret-key"},
		Options: config.DefaultMount(),
	}
}

func mountsBelow(t *testing.T, dir string) []*mountinfo.Info {
	t.Helper()
	found, err := mountinfo.GetMounts(mountinfo.PrefixFilter(dir))
	if err != nil {
		t.Fatal(err)
	}
	return found
}

func seal(dir string, on bool) {
	f, err := os.Open(dir)
	if err != nil {
		return
	}
	defer f.Close()
	flags, err := unix.IoctlGetInt(int(f.Fd()), unix.FS_IOC_GETFLAGS)
	if err != nil {
		return
	}
	if flags &^= 0x10; on {
		flags |= 0x10
	}
	_ = unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, flags)
}

// deadMount mounts a FUSE file system of our type whose server is gone.
func deadMount(t *testing.T, dir string) {
	t.Helper()
	fd, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := unix.Mount("csi-s3", dir, "fuse.csi-s3", 0, fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0", fd)); err != nil {
		t.Fatal(err)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func mustBe(t *testing.T, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Fatalf("error is %v\nwant %v", err, want)
	}
}

func TestStagePublish(t *testing.T) {
	if !ownMounts(t) {
		return
	}
	n := newNode(t)
	ctx := t.Context()
	r := n.request(t)
	pods := n.path(t, "pods")
	rw := volume.PublishRequest{StageRequest: r, Target: filepath.Join(pods, "rw")}
	ro := volume.PublishRequest{StageRequest: r, Target: filepath.Join(pods, "ro"), ReadOnly: true}
	ro.Secret = config.Secret{} // not needed where the volume is staged

	for range 3 {
		must(t, n.Stage(ctx, r))
	}
	for range 3 {
		must(t, n.Publish(ctx, rw))
		must(t, n.Publish(ctx, ro))
	}
	if got := n.mounts(r.ID); got != 1 {
		t.Errorf("mounted %d times", got)
	}
	if got := len(mountsBelow(t, n.dir)); got != 3 {
		t.Errorf("%d mounts, want staging and two targets", got)
	}
	must(t, os.WriteFile(filepath.Join(rw.Target, "f"), []byte("x"), 0o600))
	if got, err := os.ReadFile(filepath.Join(ro.Target, "f")); err != nil || string(got) != "x" {
		t.Errorf("through the other target: %q, %v", got, err)
	}
	mustBe(t, os.WriteFile(filepath.Join(ro.Target, "f"), nil, 0o600), syscall.EROFS)
	for _, m := range mountsBelow(t, pods) {
		if !strings.Contains(m.Options, "nosuid") || !strings.Contains(m.Options, "nodev") {
			t.Errorf("%s lost its flags: %s", m.Mountpoint, m.Options)
		}
	}

	other := ro
	other.ReadOnly = false
	mustBe(t, n.Publish(ctx, other), volume.ErrDiffers)
	mustBe(t, n.Unstage(ctx, r.ID, r.Dir), volume.ErrInUse)
	st, err := n.Stats(r.ID, rw.Target)
	if err != nil || st != (volume.Stats{Used: 10, Free: 20, Inodes: 3}) {
		t.Errorf("stats: %+v, %v", st, err)
	}
	if _, err := n.Stats(r.ID, pods); !errors.Is(err, volume.ErrNotStaged) {
		t.Errorf("stats of a path without the volume: %v", err)
	}

	for range 2 {
		must(t, n.Unpublish(ctx, r.ID, rw.Target))
		must(t, n.Unpublish(ctx, r.ID, ro.Target))
	}
	if entries, err := os.ReadDir(pods); err != nil || len(entries) > 0 {
		t.Errorf("targets are still there: %v, %v", entries, err)
	}
	for range 2 {
		must(t, n.Unstage(ctx, r.ID, r.Dir))
	}
	must(t, os.Remove(r.Dir)) // as kubelet does
	must(t, n.Unstage(ctx, r.ID, r.Dir))
	if _, err := n.Stats(r.ID, r.Dir); !errors.Is(err, volume.ErrNotStaged) {
		t.Errorf("stats after unstage: %v", err)
	}
}

// Nothing can be written below the staging directory before the mount is there, and after a failed mount and an
// unstage it is as it was.
func TestStageSeals(t *testing.T) {
	if !ownMounts(t) {
		return
	}
	n := newNode(t)
	r := n.request(t)
	calls := 0
	n.before = func(spec volume.Spec) error {
		if calls++; calls == 1 {
			return errors.New("no")
		}
		if err := os.WriteFile(filepath.Join(spec.Dir, "f"), nil, 0o600); err == nil {
			t.Error("the unmounted directory takes a file")
		}
		return nil
	}
	writable := func() {
		t.Helper()
		f := filepath.Join(r.Dir, "f")
		must(t, os.WriteFile(f, nil, 0o600))
		must(t, os.Remove(f))
	}
	if err := n.Stage(t.Context(), r); err == nil {
		t.Fatal("a failed mount is success")
	}
	writable()
	must(t, n.Stage(t.Context(), r))
	must(t, n.Unstage(t.Context(), r.ID, r.Dir))
	writable()
}

func TestStageDiffers(t *testing.T) {
	if !ownMounts(t) {
		return
	}
	n := newNode(t)
	ctx := t.Context()
	r := n.request(t)
	must(t, n.Stage(ctx, r))
	options := r
	options.Options.Gid = 7
	mustBe(t, n.Stage(ctx, options), volume.ErrDiffers)
	elsewhere := r
	elsewhere.Dir = n.path(t, "a")
	mustBe(t, n.Stage(ctx, elsewhere), volume.ErrDiffers)
	mustBe(t, n.Publish(ctx, volume.PublishRequest{StageRequest: options, Target: filepath.Join(n.dir, "target")}), volume.ErrNotStaged)
	must(t, n.Unstage(ctx, r.ID, elsewhere.Dir)) // it is not there
	if n.last(r.ID).gone {
		t.Error("an unstage of another directory took the mount away")
	}
	must(t, n.Unstage(ctx, r.ID, r.Dir))
}

// Pods with one fsGroup, or with none, may share a volume on a node that a pod with that group mounted. A group that
// comes later, or a second one, cannot be had.
func TestStageGroups(t *testing.T) {
	if !ownMounts(t) {
		return
	}
	n := newNode(t)
	ctx := t.Context()
	of := func(group uint32) volume.PublishRequest {
		r := n.request(t)
		if group != 0 {
			r.Options.Gid, r.Options.Group, r.Options.DirMode = group, group, 0o775|os.ModeSetgid
		}
		return volume.PublishRequest{StageRequest: r, Target: n.path(t, fmt.Sprint("target-", group))}
	}
	for _, c := range []struct{ first, good, bad uint32 }{{2000, 0, 3000}, {2000, 2000, 3000}, {0, 0, 2000}} {
		must(t, n.Stage(ctx, of(c.first).StageRequest))
		must(t, n.Publish(ctx, of(c.good)))
		err := n.Publish(ctx, of(c.bad))
		mustBe(t, err, volume.ErrNotStaged)
		if !strings.Contains(err.Error(), fmt.Sprint("fsGroup ", c.bad)) {
			t.Errorf("%v", err)
		}
		must(t, n.Unpublish(ctx, of(c.good).ID, of(c.good).Target))
		must(t, n.Unstage(ctx, of(c.first).ID, of(c.first).Dir))
	}
}

func TestSetPaths(t *testing.T) {
	if !ownMounts(t) {
		return
	}
	n := newNode(t)
	ctx := t.Context()
	r := n.request(t)
	link, file := filepath.Join(n.dir, "link"), filepath.Join(n.dir, "file")
	must(t, os.Symlink(n.path(t, "a"), link))
	must(t, os.WriteFile(file, []byte("kept"), 0o600))
	bad := []string{"", "relative", "/", n.dir + "/a/../b", n.dir + "/nul\x00", link, file, filepath.Join(n.dir, "no", "such")}
	for _, p := range bad {
		q := r
		q.Dir = p
		mustBe(t, n.Stage(ctx, q), volume.ErrPath)
	}
	mustBe(t, n.Publish(ctx, volume.PublishRequest{StageRequest: volume.StageRequest{ID: r.ID, Dir: r.Dir, Options: r.Options}, Target: file}), volume.ErrNotStaged)
	must(t, n.Stage(ctx, r))
	for _, p := range bad {
		mustBe(t, n.Publish(ctx, volume.PublishRequest{StageRequest: r, Target: p}), volume.ErrPath)
	}
	if got, err := os.ReadFile(file); err != nil || string(got) != "kept" {
		t.Errorf("file at a target path: %q, %v", got, err)
	}
	full := n.path(t, "b")
	must(t, os.WriteFile(filepath.Join(full, "precious"), nil, 0o600))
	if err := n.Unpublish(ctx, r.ID, full); err == nil {
		t.Error("a target that holds files is gone")
	}
	if _, err := os.Stat(filepath.Join(full, "precious")); err != nil {
		t.Error(err)
	}
	mustBe(t, n.Unpublish(ctx, r.ID, r.Dir), volume.ErrPath)
	must(t, n.Unpublish(ctx, r.ID, filepath.Join(n.dir, "no", "such")))
	must(t, n.Unstage(ctx, r.ID, r.Dir))
}

func TestSetForeign(t *testing.T) {
	if !ownMounts(t) {
		return
	}
	n := newNode(t)
	ctx := t.Context()
	r := n.request(t)
	foreign := n.path(t, "a")
	must(t, unix.Mount("theirs", foreign, "tmpfs", 0, ""))
	there := r
	there.Dir = foreign
	mustBe(t, n.Stage(ctx, there), volume.ErrForeign)
	mustBe(t, n.Unstage(ctx, r.ID, foreign), volume.ErrForeign)
	must(t, n.Stage(ctx, r))
	mustBe(t, n.Publish(ctx, volume.PublishRequest{StageRequest: r, Target: foreign}), volume.ErrForeign)
	mustBe(t, n.Unpublish(ctx, r.ID, foreign), volume.ErrForeign)
	second := r
	second.ID.Prefix, second.Dir = "b/", n.path(t, "b")
	must(t, n.Stage(ctx, second))
	target := filepath.Join(n.dir, "target")
	must(t, n.Publish(ctx, volume.PublishRequest{StageRequest: second, Target: target}))
	mustBe(t, n.Publish(ctx, volume.PublishRequest{StageRequest: r, Target: target}), volume.ErrForeign)
	must(t, n.Unpublish(ctx, second.ID, target))
	must(t, n.Unstage(ctx, second.ID, second.Dir))
	must(t, n.Unstage(ctx, r.ID, r.Dir))
	must(t, unix.Unmount(foreign, 0))
}

func TestSetSingle(t *testing.T) {
	if !ownMounts(t) {
		return
	}
	n := newNode(t)
	ctx := t.Context()
	p := volume.PublishRequest{StageRequest: n.request(t), Target: filepath.Join(n.dir, "one"), Single: true}
	q := p
	q.Target = filepath.Join(n.dir, "two")
	must(t, n.Stage(ctx, p.StageRequest))
	must(t, n.Publish(ctx, p))
	must(t, n.Publish(ctx, p))
	mustBe(t, n.Publish(ctx, q), volume.ErrInUse)
	if _, err := os.Stat(q.Target); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("refused target: %v", err)
	}
	must(t, n.Unpublish(ctx, p.ID, p.Target))
	must(t, n.Publish(ctx, q))
	must(t, n.Unpublish(ctx, q.ID, q.Target))
	must(t, n.Unstage(ctx, q.ID, q.Dir))
}

// An unstage that cannot drain in its time says so in time, and the volume goes on.
func TestUnstageDrains(t *testing.T) {
	if !ownMounts(t) {
		return
	}
	n := newNode(t)
	r := n.request(t)
	must(t, n.Stage(t.Context(), r))
	f := n.last(r.ID)
	f.write(4711)
	ctx, cancel := context.WithTimeout(t.Context(), 400*time.Millisecond)
	defer cancel()
	err := n.Unstage(ctx, r.ID, r.Dir)
	mustBe(t, err, volume.ErrUndrained)
	if ctx.Err() != nil {
		t.Error("the answer came after the deadline")
	}
	if !strings.Contains(err.Error(), "4711 bytes") {
		t.Errorf("the error does not say what is left: %v", err)
	}
	if f.gone || len(mountsBelow(t, n.dir)) != 1 {
		t.Error("the mount is gone though data is left")
	}
	f.write(0)
	must(t, n.Unstage(t.Context(), r.ID, r.Dir))
}

// A mount that is lost while the process lives comes back with the next publish, and before an unstage, which drains
// what was left in the cache.
func TestLostMount(t *testing.T) {
	if !ownMounts(t) {
		return
	}
	n := newNode(t)
	ctx := t.Context()
	r := n.request(t)
	p := volume.PublishRequest{StageRequest: r, Target: filepath.Join(n.dir, "target")}
	p.Secret = config.Secret{}
	must(t, n.Stage(ctx, r))
	must(t, n.Publish(ctx, p))
	n.last(r.ID).lose(t)
	st, err := n.Stats(r.ID, p.Target)
	if err != nil || st.Lost == "" {
		t.Errorf("stats of a lost mount: %+v, %v", st, err)
	}
	// The pod's mount is a tmpfs that nobody serves any more, so it is foreign now; a real one is dead.
	must(t, unix.Unmount(p.Target, 0))
	must(t, n.Publish(ctx, p))
	if n.mounts(r.ID) != 2 {
		t.Errorf("mounted %d times, want 2", n.mounts(r.ID))
	}
	must(t, n.Unpublish(ctx, r.ID, p.Target))
	n.last(r.ID).lose(t)
	must(t, n.Unstage(ctx, r.ID, r.Dir))
	if n.mounts(r.ID) != 3 {
		t.Errorf("mounted %d times, want 3: the last to drain", n.mounts(r.ID))
	}
	must(t, n.Unstage(ctx, r.ID, r.Dir))
}

// After a crash the mounts are dead, and data may be left in the cache: an unstage by the next process is not success
// until a stage made the volume's mount again.
func TestProcessDies(t *testing.T) {
	needFuse(t)
	if !ownMounts(t) {
		return
	}
	n := newNode(t)
	ctx := t.Context()
	r := n.request(t)
	p := volume.PublishRequest{StageRequest: r, Target: n.path(t, "target")}
	must(t, n.Stage(ctx, r))
	n.last(r.ID).lose(t)
	deadMount(t, r.Dir)
	deadMount(t, p.Target)
	n.restart()

	mustBe(t, n.Unstage(ctx, r.ID, r.Dir), volume.ErrUndrained)
	mustBe(t, n.Publish(ctx, volume.PublishRequest{StageRequest: volume.StageRequest{ID: r.ID, Dir: r.Dir, Options: r.Options}, Target: p.Target}), volume.ErrNotStaged)
	deadMount(t, r.Dir)
	deadMount(t, r.Dir) // one on the other
	must(t, n.Publish(ctx, p))
	if got := mountsBelow(t, n.dir); len(got) != 2 {
		t.Errorf("%d mounts, want staging and target", len(got))
	}
	must(t, n.Unpublish(ctx, r.ID, p.Target))
	must(t, n.Unstage(ctx, r.ID, r.Dir))
	n.restart()
	must(t, n.Unstage(ctx, r.ID, r.Dir))
}

// A process that died left data, and all that is asked of the next one is an unstage, or a publish without a secret: the
// cluster knows the secret, and the cache how the volume was mounted.
func TestRevive(t *testing.T) {
	if !ownMounts(t) {
		return
	}
	n := newNode(t)
	ctx := t.Context()
	r := n.request(t)
	r.Options.Access, r.Options.Gid = "rwx", 2000
	die := func(secret config.Secret, err error) {
		select {
		case <-n.last(r.ID).Done():
		default:
			n.last(r.ID).lose(t)
		}
		n.restart()
		n.Secret = func(_ context.Context, id config.VolumeID) (config.Secret, error) {
			if id != r.ID {
				t.Errorf("asked for the secret of %s", id)
			}
			return secret, err
		}
	}
	other := r.Secret
	other.Endpoint = "https://other.example"

	must(t, n.Stage(ctx, r))
	nothing := errors.New("no secret")
	die(config.Secret{}, nothing)
	err := n.Unstage(ctx, r.ID, r.Dir)
	mustBe(t, err, volume.ErrUndrained)
	mustBe(t, err, nothing)
	die(r.Secret, nil)
	n.before = func(spec volume.Spec) error {
		if spec.Options != r.Options || spec.Dir != r.Dir {
			t.Errorf("mounted at %s with %+v, before with %+v", spec.Dir, spec.Options, r.Options)
		}
		return errors.New("no mount")
	}
	mustBe(t, n.Unstage(ctx, r.ID, r.Dir), volume.ErrUndrained)
	before := n.before
	n.before = func(spec volume.Spec) error { _ = before(spec); return nil }
	must(t, n.Unstage(ctx, r.ID, r.Dir))
	if n.mounts(r.ID) != 2 {
		t.Errorf("%d mounts were made, want a second one", n.mounts(r.ID))
	}
	n.restart()
	must(t, n.Unstage(ctx, r.ID, r.Dir))

	// A publish without a secret.
	p := volume.PublishRequest{StageRequest: r, Target: n.path(t, "target")}
	p.Secret = config.Secret{}
	die(config.Secret{}, nothing)
	err = n.Publish(ctx, p)
	mustBe(t, err, volume.ErrNotStaged)
	mustBe(t, err, nothing)
	die(r.Secret, nil)
	must(t, n.Publish(ctx, p))
	must(t, n.Unpublish(ctx, r.ID, p.Target))

	// Data of another endpoint stays where it is, whether the volume is staged meanwhile or not.
	die(other, nil)
	mustBe(t, n.Unstage(ctx, r.ID, r.Dir), volume.ErrUndrained)
	moved := r
	moved.Secret = other
	must(t, n.Stage(ctx, moved))
	mustBe(t, n.Unstage(ctx, r.ID, r.Dir), volume.ErrUndrained)
	die(r.Secret, nil)
	must(t, n.Unstage(ctx, r.ID, r.Dir))

	// A mark that cannot be read is not one that is not there.
	must(t, n.Stage(ctx, r))
	die(r.Secret, nil)
	found, err := filepath.Glob(filepath.Join(n.dir, "cache", "volumes", "*", "*.undrained"))
	must(t, err)
	for _, name := range found {
		must(t, os.WriteFile(name, nil, 0o600))
	}
	if err := n.Unstage(ctx, r.ID, r.Dir); err == nil || len(found) != 1 || !strings.Contains(err.Error(), found[0]) {
		t.Errorf("unstage with the broken mark of %q: %v", found, err)
	}
	must(t, n.Stage(ctx, r))
	must(t, n.Unstage(ctx, r.ID, r.Dir))
}

func TestDetachDead(t *testing.T) {
	needFuse(t)
	if !ownMounts(t) {
		return
	}
	n := newNode(t)
	ctx := t.Context()
	r := n.request(t)
	must(t, n.Stage(ctx, r))
	one, two := n.path(t, "a"), n.path(t, "b")
	for _, d := range []string{one, two, two} {
		deadMount(t, d)
	}
	must(t, n.DetachDead(ctx))
	if got := mountsBelow(t, n.dir); len(got) != 1 || got[0].Mountpoint != r.Dir {
		t.Errorf("%d mounts are left, want the staged one", len(got))
	}
	deadMount(t, one)
	must(t, n.Unpublish(ctx, r.ID, one))
	must(t, n.Unstage(ctx, r.ID, r.Dir))
}

func TestSetClose(t *testing.T) {
	if !ownMounts(t) {
		return
	}
	n := newNode(t)
	r := n.request(t)
	dirty := r
	dirty.ID.Prefix, dirty.Dir = "dirty/", n.path(t, "b")
	must(t, n.Stage(t.Context(), r))
	must(t, n.Stage(t.Context(), dirty))
	n.last(dirty.ID).write(99)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	err := n.Close(ctx)
	if err == nil || !strings.Contains(err.Error(), "dirty") || !strings.Contains(err.Error(), "99 bytes") || strings.Contains(err.Error(), "bucket/a") {
		t.Errorf("close: %v", err)
	}
	n.restart()
	must(t, n.Unstage(t.Context(), r.ID, r.Dir))
	mustBe(t, n.Unstage(t.Context(), dirty.ID, dirty.Dir), volume.ErrUndrained)
}

func TestStageChecksBucket(t *testing.T) {
	if !ownMounts(t) {
		return
	}
	n := newNode(t)
	r := n.request(t)
	for _, c := range []struct{ fault, want error }{
		{s3.ErrNoBucket, volume.ErrNotFound}, {s3.ErrAuth, volume.ErrDenied}, {s3.ErrUnavailable, volume.ErrUnavailable},
	} {
		b := s3fault.New(s3mem.New("bucket"))
		b.Fault = func(s3fault.Op) s3fault.Action { return s3fault.FailBefore(c.fault) }
		n.buckets["bucket the-access-key"] = b
		mustBe(t, n.Stage(t.Context(), r), c.want)
		mustBe(t, n.Stage(t.Context(), r), c.fault)
	}
	// What was never mounted holds no data.
	must(t, n.Unstage(t.Context(), r.ID, r.Dir))

	n.Connect = nil // the real client
	r.Secret.Endpoint = "http://127.0.0.1:1"
	start := time.Now()
	mustBe(t, n.Stage(t.Context(), r), volume.ErrUnavailable)
	if took := time.Since(start); took > n.Patience+5*time.Second {
		t.Errorf("an endpoint that is down took %s", took)
	}
	r.Secret.Endpoint = "not a URL"
	mustBe(t, n.Stage(t.Context(), r), volume.ErrSecret)
}

// New credentials take over in a living mount; ones that do not work, or are for another server, leave it as it is.
func TestRenewCredentials(t *testing.T) {
	if !ownMounts(t) {
		return
	}
	n := newNode(t)
	ctx := t.Context()
	r := n.request(t)
	put := func(b s3.Bucket, key s3.Key) {
		t.Helper()
		_, err := b.Put(ctx, key, s3.Body{R: strings.NewReader(""), Size: 0}, s3.Attributes{}, s3.Condition{})
		must(t, err)
	}
	first, second, refused := s3mem.New("bucket"), s3mem.New("bucket"), s3fault.New(s3mem.New("bucket"))
	refused.Fault = func(s3fault.Op) s3fault.Action { return s3fault.FailBefore(s3.ErrAuth) }
	put(first, "first")
	put(second, "second")
	n.buckets["bucket the-access-key"] = first
	n.buckets["bucket second"] = second
	n.buckets["bucket refused"] = refused
	must(t, n.Stage(ctx, r))
	b := n.last(r.ID).spec.Bucket
	sees := func(key s3.Key) {
		t.Helper()
		_, err := b.Head(ctx, key)
		must(t, err)
	}
	sees("first")
	p := volume.PublishRequest{StageRequest: r, Target: filepath.Join(n.dir, "target")}
	p.Secret.AccessKeyID = "refused"
	must(t, n.Publish(ctx, p))
	sees("first")
	p.Secret.AccessKeyID, p.Secret.Endpoint = "second", "https://elsewhere.example"
	must(t, n.Publish(ctx, p))
	sees("first")
	p.Secret.Endpoint = r.Secret.Endpoint
	must(t, n.Publish(ctx, p))
	sees("second")
	if n.mounts(r.ID) != 1 {
		t.Errorf("mounted %d times", n.mounts(r.ID))
	}
	must(t, n.Unpublish(ctx, r.ID, p.Target))
	must(t, n.Unstage(ctx, r.ID, r.Dir))
}

func TestLockWaits(t *testing.T) {
	if !ownMounts(t) {
		return
	}
	n := newNode(t)
	slow := n.request(t)
	fast := slow
	fast.ID.Prefix, fast.Dir = "fast/", n.path(t, "b")
	inMount, goOn := make(chan struct{}), make(chan struct{})
	n.before = func(spec volume.Spec) error {
		if spec.ID == slow.ID.String() {
			close(inMount)
			<-goOn
		}
		return nil
	}
	staged := make(chan error)
	go func() { staged <- n.Stage(context.WithoutCancel(t.Context()), slow) }() // ends below
	<-inMount
	must(t, n.Stage(t.Context(), fast)) // another volume does not wait
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	mustBe(t, n.Stage(ctx, slow), context.DeadlineExceeded)
	close(goOn)
	must(t, <-staged)
	must(t, n.Unstage(t.Context(), slow.ID, slow.Dir))
	must(t, n.Unstage(t.Context(), fast.ID, fast.Dir))
}

// Any calls in any order from many sides leave nothing behind once the last unstage is through.
func TestSetRaces(t *testing.T) {
	if !ownMounts(t) {
		return
	}
	n := newNode(t)
	ctx := t.Context()
	var wg sync.WaitGroup
	requests := make([]volume.StageRequest, 3)
	for i := range requests {
		r := n.request(t)
		r.ID.Prefix, r.Dir = fmt.Sprintf("v%d/", i), n.path(t, string(rune('a'+i)))
		requests[i] = r
	}
	for worker := range 12 {
		wg.Go(func() {
			random := rand.New(rand.NewPCG(1, uint64(worker)))
			for range 40 {
				r := requests[random.IntN(len(requests))]
				target := filepath.Join(n.dir, fmt.Sprintf("t%d-%s", random.IntN(2), r.ID.Prefix[:2]))
				var err error
				switch random.IntN(6) {
				case 0, 1:
					err = n.Stage(ctx, r)
				case 2:
					err = n.Publish(ctx, volume.PublishRequest{StageRequest: r, Target: target})
				case 3:
					err = n.Unpublish(ctx, r.ID, target)
				case 4:
					if err = n.Unstage(ctx, r.ID, r.Dir); errors.Is(err, volume.ErrInUse) {
						err = nil
					}
				case 5:
					if _, err = n.Stats(r.ID, r.Dir); errors.Is(err, volume.ErrNotStaged) {
						err = nil
					}
				}
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	for _, r := range requests {
		for i := range 2 {
			must(t, n.Unpublish(ctx, r.ID, filepath.Join(n.dir, fmt.Sprintf("t%d-%s", i, r.ID.Prefix[:2]))))
		}
		must(t, n.Unstage(ctx, r.ID, r.Dir))
	}
}

// Caches of volumes that left the node go after a while; those in use, with data, or with something in quarantine stay.
func TestSweep(t *testing.T) {
	if !ownMounts(t) {
		return
	}
	n := newNode(t)
	ctx := t.Context()
	caches := map[string]string{}
	n.before = func(spec volume.Spec) error {
		caches[spec.ID] = spec.CacheDir
		must(t, os.MkdirAll(filepath.Join(spec.CacheDir, "data"), 0o700))
		return os.WriteFile(filepath.Join(spec.CacheDir, "data", "f"), []byte("x"), 0o600)
	}
	stage := func(prefix string) volume.StageRequest {
		r := n.request(t)
		r.ID.Prefix, r.Dir = prefix+"/", n.path(t, "staging-"+prefix)
		must(t, n.Stage(ctx, r))
		return r
	}
	there := func() (names []string) {
		for id, dir := range caches {
			if _, err := os.Stat(dir); err == nil {
				names = append(names, id)
			}
		}
		slices.Sort(names)
		return names
	}
	must(t, n.Sweep(0)) // nothing yet
	gone, used, left, precious := stage("gone"), stage("used"), stage("left"), stage("precious")
	must(t, os.MkdirAll(filepath.Join(caches["bucket/precious"], "quarantine"), 0o700))
	must(t, os.WriteFile(filepath.Join(caches["bucket/precious"], "quarantine", "1"), nil, 0o600))
	must(t, n.Unstage(ctx, gone.ID, gone.Dir))
	must(t, n.Unstage(ctx, precious.ID, precious.Dir))
	n.last(left.ID).lose(t)

	must(t, n.Sweep(time.Hour))
	if got := there(); len(got) != 4 {
		t.Errorf("too early: %q are left", got)
	}
	must(t, n.Sweep(0))
	if got := there(); !slices.Equal(got, []string{"bucket/left", "bucket/precious", "bucket/used"}) {
		t.Errorf("%q are left", got)
	}
	// What a sweep that broke off left behind.
	must(t, n.Unstage(ctx, used.ID, used.Dir))
	must(t, os.Rename(caches["bucket/used"], caches["bucket/used"]+".gone"))
	must(t, n.Sweep(time.Hour))
	if _, err := os.Stat(filepath.Dir(caches["bucket/used"])); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%v", err)
	}
	must(t, n.Stage(ctx, gone))
	must(t, n.Unstage(ctx, gone.ID, gone.Dir))
	must(t, n.Unstage(ctx, left.ID, left.Dir))
}
