package volume_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/csi-s3/csi-s3/pkg/config"
	"github.com/csi-s3/csi-s3/pkg/volume"
)

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
