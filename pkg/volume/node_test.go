package volume_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"github.com/csi-s3/csi-s3/pkg/config"
	"github.com/csi-s3/csi-s3/pkg/s3"
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

func (f *fake) Done() <-chan struct{} { return f.done }

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
	if err := unix.Mount("s3://bucket/dead", dir, "fuse.csi-s3", 0, fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0", fd)); err != nil {
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
