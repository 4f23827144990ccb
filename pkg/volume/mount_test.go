package volume_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/csi-s3/csi-s3/pkg/config"
	"github.com/csi-s3/csi-s3/pkg/fuse"
	"github.com/csi-s3/csi-s3/pkg/s3"
	"github.com/csi-s3/csi-s3/pkg/s3/s3fault"
	"github.com/csi-s3/csi-s3/pkg/s3/s3mem"
	"github.com/csi-s3/csi-s3/pkg/volume"
)

// real is a real mount with its surroundings. Only children of the test use the mount: a process that waits for a mount
// that it serves itself may wait for ever.
type real struct {
	*volume.Volume
	t      *testing.T
	spec   volume.Spec
	bucket *s3mem.Bucket
	down   atomic.Bool // nothing can be written to the bucket
}

func newReal(t *testing.T) *real {
	t.Helper()
	needFuse(t)
	dir, err := filepath.EvalSymlinks(t.TempDir())
	must(t, err)
	r := &real{t: t, bucket: s3mem.New("bucket")}
	f := s3fault.New(r.bucket)
	f.Fault = func(op s3fault.Op) s3fault.Action {
		if r.down.Load() && op.Name != "Head" && op.Name != "List" && op.Name != "Get" {
			return s3fault.FailBefore(nil)
		}
		return s3fault.Action{}
	}
	o := config.DefaultMount()
	o.Settle = time.Hour
	r.spec = volume.Spec{
		ID: "bucket", Bucket: f, Dir: filepath.Join(dir, "mnt"), CacheDir: filepath.Join(dir, "cache", "deep"),
		Options: o, Log: slog.New(slog.DiscardHandler),
	}
	must(t, os.Mkdir(r.spec.Dir, 0o755))
	t.Cleanup(func() {
		for _, m := range mountsBelow(t, dir) {
			t.Errorf("left behind: %s on %s", m.FSType, m.Mountpoint)
			_ = unix.Unmount(m.Mountpoint, unix.MNT_DETACH)
		}
	})
	return r
}

func (r *real) mount() {
	r.t.Helper()
	v, err := volume.Mount(r.t.Context(), r.spec)
	must(r.t, err)
	r.Volume = v
}

func (r *real) soon() context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	r.t.Cleanup(cancel)
	return ctx
}

// sh runs a shell in the mount and returns what it says.
func (r *real) sh(script string) string {
	r.t.Helper()
	c := exec.CommandContext(r.soon(), "sh", "-ec", "cd \"$0\"\n"+script, r.spec.Dir)
	out, err := c.CombinedOutput()
	if err != nil {
		r.t.Fatalf("%s: %v\n%s", script, err, out)
	}
	return string(out)
}

// user is a child that has a file of the mount open.
type user struct {
	t   *testing.T
	in  io.WriteCloser
	out *bufio.Reader
}

// use starts a child that opens f and appends to it each line that it is told.
func (r *real) use() *user {
	r.t.Helper()
	c := exec.CommandContext(r.soon(), "sh", "-c", `exec 3>>"$0/f"; while read line; do if printf %s "$line" >&3; then echo ok; else echo failed; fi; done`, r.spec.Dir)
	in, err := c.StdinPipe()
	must(r.t, err)
	out, err := c.StdoutPipe()
	must(r.t, err)
	must(r.t, c.Start())
	r.t.Cleanup(func() {
		in.Close()
		_ = c.Wait() // it ends as its last write did
	})
	return &user{r.t, in, bufio.NewReader(out)}
}

func (u *user) write(text, want string) {
	u.t.Helper()
	if _, err := io.WriteString(u.in, text+"\n"); err != nil {
		u.t.Fatal(err)
	}
	if line, err := u.out.ReadString('\n'); err != nil || line != want+"\n" {
		u.t.Fatalf("the write of %q: %q, %v", text, line, err)
	}
}

func (r *real) wantObject(key, want string) {
	r.t.Helper()
	body, _, err := r.bucket.Get(r.t.Context(), s3.Key(key), nil, "")
	if err != nil {
		r.t.Fatalf("%s: %v", key, err)
	}
	defer body.Close()
	if got, err := io.ReadAll(body); err != nil || string(got) != want {
		r.t.Errorf("%s has %q, %v; want %q", key, got, err, want)
	}
}

func (r *real) wantNoObject(key string) {
	r.t.Helper()
	if _, err := r.bucket.Head(r.t.Context(), s3.Key(key)); !errors.Is(err, s3.ErrNotExist) {
		r.t.Errorf("%s is in the bucket: %v", key, err)
	}
}

// gone says that nothing is mounted, and that the volume knows.
func (r *real) gone() {
	r.t.Helper()
	if left := mountsBelow(r.t, r.spec.Dir); len(left) > 0 {
		r.t.Errorf("%s is still mounted", left[0].Mountpoint)
	}
	select {
	case <-r.Done():
	case <-time.After(10 * time.Second):
		r.t.Error("the volume is not done")
	}
}

// A mount shows what the bucket has and brings to it what is written; a second one goes on where the first ended.
func TestMount(t *testing.T) {
	if !ownMounts(t) {
		return
	}
	r := newReal(t)
	_, err := r.bucket.Put(t.Context(), "there", s3.Body{R: strings.NewReader("remote"), Size: 6}, s3.Attributes{}, s3.Condition{})
	must(t, err)
	r.spec.Options.Size = 1 << 20
	r.mount()
	m := mountsBelow(t, r.spec.Dir)
	if len(m) != 1 || m[0].FSType != fuse.Type || m[0].Source != "s3://bucket" {
		t.Fatalf("%+v", m)
	}
	if st, err := os.Stat(r.spec.CacheDir); err != nil || st.Mode().Perm() != 0o700 {
		t.Errorf("the cache directory: %v, %v", st.Mode(), err)
	}
	if got := r.sh("cat there; printf local > f; mkdir d; cp f d/g; mv there d/moved; ls d"); got != "remoteg\nmoved\n" {
		t.Errorf("the shell says %q", got)
	}
	s := r.Status()
	if s.ID != "bucket" || s.Dir != r.spec.Dir || s.Dirty != 10 || s.DirtyFiles != 2 || s.Queue < 3 || s.CacheLimit <= 0 || s.CacheUsed < 10 {
		t.Errorf("%+v", s)
	}
	// What the ioctl says is the same.
	text := make(chan []byte, 1)
	go func() {
		b, err := fuse.Status(r.spec.Dir)
		if err != nil {
			t.Error(err)
		}
		text <- b
	}()
	var asked volume.Status
	if err := json.Unmarshal(<-text, &asked); err != nil || asked.Dirty != s.Dirty || asked.Dir != s.Dir {
		t.Errorf("the ioctl says %+v, %v", asked, err)
	}
	must(t, r.Drain(r.soon()))
	r.wantObject("f", "local")
	r.wantObject("d/g", "local")
	r.wantObject("d/moved", "remote")
	r.wantNoObject("there")
	if s := r.Status(); s.Dirty != 0 || s.DirtyFiles != 0 || s.Queue != 0 || s.LastError != "" || s.OldestAge != 0 {
		t.Errorf("after the drain: %+v", s)
	}
	if used, free, _ := r.Usage(); used < 10 || used+free != 1<<20 {
		t.Errorf("usage: %d and %d free", used, free)
	}
	r.sh("printf x >> f")
	must(t, r.Close(r.soon(), false))
	r.gone()
	r.wantObject("f", "localx")
	must(t, r.Close(r.soon(), false))
	must(t, r.Close(r.soon(), true))

	r.mount()
	if got := r.sh("cat f d/moved; rm f"); got != "localxremote" {
		t.Errorf("the second mount shows %q", got)
	}
	must(t, r.Close(r.soon(), false))
	r.gone()
	r.wantNoObject("f")
}

// A mount that cannot be made leaves nothing mounted and the cache free for the next.
func TestMountRefused(t *testing.T) {
	if !ownMounts(t) {
		return
	}
	r := newReal(t)
	for name, tt := range map[string]struct {
		change func(s *volume.Spec)
		want   error
	}{
		"no directory":     {func(s *volume.Spec) { s.Dir += "/absent" }, unix.ENOENT},
		"a file":           {func(s *volume.Spec) { s.Dir = filepath.Join(filepath.Dir(s.Dir), "file") }, unix.ENOTDIR},
		"cache not usable": {func(s *volume.Spec) { s.CacheDir = filepath.Join(filepath.Dir(s.Dir), "file", "cache") }, volume.ErrCacheDir},
	} {
		spec := r.spec
		must(t, os.WriteFile(filepath.Join(filepath.Dir(spec.Dir), "file"), nil, 0o600))
		tt.change(&spec)
		if _, err := volume.Mount(t.Context(), spec); !errors.Is(err, tt.want) {
			t.Errorf("%s: %v, want %v", name, err, tt.want)
		}
	}
	r.mount()
	r.sh("printf mine > f")
	// The cache is taken, by this process as well as by another.
	second := r.spec
	second.Dir = filepath.Join(filepath.Dir(r.spec.Dir), "second")
	must(t, os.Mkdir(second.Dir, 0o755))
	if _, err := volume.Mount(t.Context(), second); !errors.Is(err, volume.ErrCacheDir) || !strings.Contains(err.Error(), r.spec.CacheDir) {
		t.Errorf("a second mount on one cache: %v", err)
	}
	must(t, r.Close(r.soon(), false))
	second.ID = "bucket/other/"
	if _, err := volume.Mount(t.Context(), second); !errors.Is(err, volume.ErrCacheDir) || !strings.Contains(err.Error(), `"bucket"`) {
		t.Errorf("another volume on the cache: %v", err)
	}
	r.gone()
	r.wantObject("f", "mine")
}

// A mount in use is not closed, and goes on; lazily it is, at once, and what was written before is in the bucket.
func TestCloseInUse(t *testing.T) {
	if !ownMounts(t) {
		return
	}
	r := newReal(t)
	r.mount()
	u := r.use()
	u.write("one", "ok")
	if err := r.Close(r.soon(), false); !errors.Is(err, unix.EBUSY) {
		t.Fatalf("close of a mount in use: %v", err)
	}
	r.wantObject("f", "one") // it was drained
	u.write("two", "ok")
	begin := time.Now()
	must(t, r.Close(r.soon(), true))
	if took := time.Since(begin); took > 8*time.Second {
		t.Errorf("it took %v", took)
	}
	r.gone()
	r.wantObject("f", "onetwo")
	u.write("three", "failed")
	// The cache is free, and nothing that was acknowledged is lost.
	r.mount()
	if got := r.sh("cat f"); got != "onetwo" {
		t.Errorf("the next mount shows %q", got)
	}
	must(t, r.Close(r.soon(), false))
}

// While the bucket cannot be written to, a close ends with its context, says how much is left, and keeps it.
func TestCloseWhileBucketIsAway(t *testing.T) {
	if !ownMounts(t) {
		return
	}
	r := newReal(t)
	r.mount()
	r.down.Store(true)
	r.sh("printf content > f; mkdir d; printf more > d/g")
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	err := r.Close(ctx, true)
	if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(fmt.Sprint(err), "11 bytes") {
		t.Errorf("close: %v", err)
	}
	r.gone()
	r.wantNoObject("f")
	r.down.Store(false)
	r.mount()
	if got := r.sh("cat f d/g"); got != "contentmore" {
		t.Errorf("the next mount shows %q", got)
	}
	must(t, r.Close(r.soon(), false))
	r.wantObject("f", "content")
	r.wantObject("d/g", "more")
}

// A mount that somebody else takes away ends the volume's service; Close brings what is left to the bucket.
func TestMountTakenAway(t *testing.T) {
	if !ownMounts(t) {
		return
	}
	r := newReal(t)
	r.mount()
	r.sh("printf content > f")
	must(t, unix.Unmount(r.spec.Dir, 0))
	r.gone()
	r.wantNoObject("f")
	must(t, r.Close(r.soon(), false))
	r.wantObject("f", "content")
}

// A read-only mount refuses changes and reads what the bucket has.
func TestMountReadOnly(t *testing.T) {
	if !ownMounts(t) {
		return
	}
	r := newReal(t)
	_, err := r.bucket.Put(t.Context(), "f", s3.Body{R: strings.NewReader("remote"), Size: 6}, s3.Attributes{}, s3.Condition{})
	must(t, err)
	r.spec.Options.ReadOnly = true
	r.mount()
	if got := r.sh("cat f; if printf x 2>/dev/null >> f; then echo written; fi; if mkdir d 2>/dev/null; then echo made; fi"); got != "remote" {
		t.Errorf("the shell says %q", got)
	}
	if s := r.Status(); s.Dirty != 0 || s.Queue != 0 {
		t.Errorf("%+v", s)
	}
	must(t, r.Close(r.soon(), false))
	r.gone()
}
