package volume_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/csi-s3/csi-s3/pkg/config"
	"github.com/csi-s3/csi-s3/pkg/volume"
)

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
	var heard []volume.Incident
	n.Incident = func(i volume.Incident) { heard = append(heard, i) }
	p.Pod = volume.Pod{Namespace: "ns", Name: "pod", UID: "uid"}
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
	if len(heard) != 1 || heard[0].Reason != volume.ReasonMountLost || heard[0].Volume != r.ID || len(heard[0].Pods) != 1 || heard[0].Pods[0] != p.Pod {
		t.Errorf("told is %+v", heard)
	}
	must(t, n.Unpublish(ctx, r.ID, p.Target))
	n.last(r.ID).lose(t)
	must(t, n.Unstage(ctx, r.ID, r.Dir))
	if n.mounts(r.ID) != 3 {
		t.Errorf("mounted %d times, want 3: the last to drain", n.mounts(r.ID))
	}
	if len(heard) != 2 || len(heard[1].Pods) != 0 {
		t.Errorf("told is %+v, the second without the pod that is gone", heard)
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
	var heard []volume.Incident
	n.Incident = func(i volume.Incident) {
		// The namespace began as a copy: mounts of other packages' tests are in it, and die when these end.
		if strings.HasPrefix(i.Volume.String(), "bucket/") {
			heard = append(heard, i)
		}
	}
	must(t, n.DetachDead(ctx))
	if len(heard) != 1 || heard[0].Reason != volume.ReasonMountLost || heard[0].Volume.String() != "bucket/dead" {
		t.Errorf("told is %+v", heard)
	}
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
