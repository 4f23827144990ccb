package volume

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/csi-s3/csi-s3/pkg/config"
	"github.com/csi-s3/csi-s3/pkg/metrics"
	"github.com/csi-s3/csi-s3/pkg/s3"
)

// StageRequest says which volume is to be mounted where, as whom and how.
type StageRequest struct {
	ID      config.VolumeID
	Dir     string // staging path: an existing directory
	Secret  config.Secret
	Options config.Mount
}

// Stage mounts the volume on its staging directory. The directory is sealed before, so that nothing can be written to
// the node's disk through it while the mount is not there. A volume that is staged already is success; new credentials
// of the same server replace the old ones then. A mount that nobody serves any more is detached and made anew.
//
// ErrDiffers when it is staged elsewhere or with other options, ErrForeign when something else is mounted there, ErrPath
// and ErrSecret for what their names say, ErrNotFound, ErrDenied and ErrUnavailable for the bucket, ErrHeld, ErrLeased and
// ErrGivenUp for a volume that another node may write to.
func (s *Set) Stage(ctx context.Context, r StageRequest) error {
	unlock, err := s.locks.lock(ctx, r.ID.String())
	if err != nil {
		return err
	}
	defer unlock()
	_, err = s.stage(ctx, r)
	return err
}

// stage is Stage under the volume's lock.
func (s *Set) stage(ctx context.Context, r StageRequest) (*staged, error) {
	dir, err := resolve(r.Dir)
	if err != nil {
		return nil, err
	}
	r.Dir = dir
	v := s.volume(r.ID)
	if v != nil {
		ok, err := v.serving()
		if err != nil {
			return nil, err
		}
		if ok {
			if err := v.matches(r); err != nil {
				return nil, err
			}
			s.renew(ctx, v, r.Secret)
			return v, nil
		}
		s.bury(ctx, v)
	}
	return s.mount(ctx, r)
}

// matches compares what is mounted with what is asked for. Secrets may differ: they change in the life of a mount. Who
// asks for no group takes the one that is there.
func (v *staged) matches(r StageRequest) error {
	if v.request.Dir != r.Dir {
		return fmt.Errorf("volume %s is staged at %s: %w", r.ID, v.request.Dir, ErrDiffers)
	}
	is, want := v.request.Options, r.Options
	switch {
	case is.Group == want.Group:
	case want.Group == 0:
		want.Group, want.Gid, want.FileMode, want.DirMode = is.Group, is.Gid, is.FileMode, is.DirMode
	case is.Group == 0:
		return fmt.Errorf("volume %s is in use on this node by pods without an fsGroup, and one with fsGroup %d cannot share it with them there: %w", r.ID, want.Group, ErrDiffers)
	default:
		return fmt.Errorf("volume %s is in use on this node by pods with fsGroup %d, and one with fsGroup %d cannot share it with them there: %w", r.ID, is.Group, want.Group, ErrDiffers)
	}
	if is != want {
		return fmt.Errorf("volume %s is staged with options %+v, asked for are %+v: %w", r.ID, is, want, ErrDiffers)
	}
	return nil
}

// bury closes a volume whose mount is gone, so that its cache can be opened again. It does not wait for the bucket:
// what is left stays in the cache, and whoever calls opens that next.
func (s *Set) bury(ctx context.Context, v *staged) {
	s.Log.Warn("mount is gone", "volume", v.request.ID.String(), "dir", v.request.Dir)
	s.tell(v.request.ID, ReasonMountLost, "the mount was taken away from outside the driver; pods that use the volume on this node must restart")
	now, cancel := context.WithCancel(ctx)
	cancel()
	if err := v.mounted.Close(now, true); err != nil {
		s.Log.Info("closed the volume of the lost mount", "volume", v.request.ID.String(), "err", err)
	}
	s.forget(v)
}

// mount makes the mount of r. The caller holds the volume's lock and knows that this process does not serve it.
func (s *Set) mount(ctx context.Context, r StageRequest) (_ *staged, err error) {
	if err := clearDead(ctx, r.Dir); err != nil {
		return nil, err
	}
	b, err := s.connect(r.ID.Bucket, r.Secret)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			b.close()
		}
	}()
	if err := s.check(ctx, b, s3.Key(r.ID.Prefix)); err != nil {
		return nil, err
	}
	n := s.nest(r)
	fresh, err := s.occupy(n, r)
	if err != nil {
		return nil, err
	}
	if err := seal(r.Dir); err != nil {
		return nil, errors.Join(err, n.vacate(fresh))
	}
	mount := s.Mount
	if mount == nil {
		mount = func(ctx context.Context, spec Spec) (Mounted, error) {
			v, err := Mount(ctx, spec)
			if err != nil {
				return nil, err // not v: a nil *Volume is not a nil Mounted
			}
			return v, nil
		}
	}
	m, err := mount(ctx, Spec{
		ID: r.ID.String(), Bucket: b, Server: r.Secret.Endpoint, Prefix: s3.Key(r.ID.Prefix), Dir: r.Dir, CacheDir: n.cache, Options: r.Options,
		Log: s.Log, Budget: &s.budget, Node: s.Node, sightings: &s.sightings, Incident: func(reason Reason, message string) { s.tell(r.ID, reason, message) },
	})
	if errors.Is(err, ErrHeld) || errors.Is(err, ErrGivenUp) {
		s.tell(r.ID, ReasonHeld, fmt.Sprintf("the volume is not mounted on this node: %v", err))
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("mount volume %s: %w", r.ID, classify(err)), unseal(r.Dir), n.vacate(fresh))
	}
	on, err := mountsAt(r.Dir)
	if err == nil && len(on) == 0 {
		err = errors.New("the kernel does not know the new mount")
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("mount volume %s: %w", r.ID, err), m.Close(ctx, true))
	}
	v := &staged{request: r, mounted: m, device: deviceOf(on[len(on)-1]), bucket: b}
	v.retire = s.Metrics.Volume(r.ID.String(), func() metrics.Volume {
		st := m.Status()
		return metrics.Volume{
			DirtyBytes: st.Dirty, DirtyFiles: st.DirtyFiles, Queue: st.Queue, OldestDirtyAge: st.OldestAge,
			CacheBytes: st.CacheUsed, CacheLimit: st.CacheLimit, HitRate: st.HitRate, HiddenKeys: st.Hidden,
			Conflicts: st.Conflicts, Damaged: st.Damaged, Quarantined: st.Quarantined, Failing: st.Failing, ErrorClass: st.ErrorClass,
		}
	})
	s.keep(v)
	return v, nil
}

// drainReserve is what Unstage leaves of its caller's time to unmount and to answer.
const drainReserve = 5 * time.Second

// drainMost bounds a drain whose caller sets no deadline.
const drainMost = 110 * time.Second

// Unstage drains the volume and takes its mount away; the staging directory is left as it was before Stage. A volume
// that is not staged there is success.
//
// What a process left undrained when it died is drained by way of a new mount, with the secret that Set.Secret gives.
//
// ErrUndrained when ctx ends first, or when what a dead process left cannot be drained: the text says how much and what to
// do, and the mount, if there is one, goes on. ErrInUse while a target is bound. ErrForeign as with Stage.
func (s *Set) Unstage(ctx context.Context, id config.VolumeID, dir string) error {
	unlock, err := s.locks.lock(ctx, id.String())
	if err != nil {
		return err
	}
	defer unlock()
	dir, err = resolve(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	v := s.volume(id)
	if v != nil && v.request.Dir != dir {
		return errors.Join(clearDead(ctx, dir), unseal(dir)) // it is staged elsewhere
	}
	if v == nil {
		v, err = s.revive(ctx, id, dir)
		if err != nil {
			return fmt.Errorf("volume %s: its mount ended before it was drained: %w: %w", id, ErrUndrained, err)
		}
		if v == nil {
			return errors.Join(clearDead(ctx, dir), unseal(dir))
		}
	}
	ok, err := v.serving()
	if err != nil {
		return err
	}
	if !ok {
		// What the lost mount left in the cache goes to the bucket by way of a new one.
		s.bury(ctx, v)
		if v, err = s.mount(ctx, v.request); err != nil {
			return fmt.Errorf("the mount is lost and cannot be made again to drain the volume: %w: %w", ErrUndrained, err)
		}
	}
	bound, err := boundOf(v.device, dir)
	if err != nil {
		return err
	}
	if len(bound) > 0 {
		return fmt.Errorf("volume %s is mounted at %q too: %w", id, bound, ErrInUse)
	}
	if err := drain(ctx, v.mounted); err != nil {
		return fmt.Errorf("volume %s: %w: %w", id, ErrUndrained, err)
	}
	if err := s.closeVolume(ctx, v, false); err != nil {
		return err
	}
	others, err := s.marks(id)
	if err != nil {
		return err
	}
	if len(others) > 0 {
		return fmt.Errorf("volume %s: %w: an earlier mount of it, with another endpoint in its secret, ended before it was drained", id, ErrUndrained)
	}
	return nil
}

// drain leaves some of the caller's time for the rest.
func drain(ctx context.Context, m Mounted) error {
	most := drainMost
	if end, ok := ctx.Deadline(); ok {
		most = time.Until(end)
		most -= min(drainReserve, most/4)
	}
	ctx, cancel := context.WithTimeout(ctx, most)
	defer cancel()
	return m.Drain(ctx)
}

// closeVolume ends a volume that is served. On an error it is still known, so that the call can be repeated.
func (s *Set) closeVolume(ctx context.Context, v *staged, lazy bool) error {
	if err := v.mounted.Close(ctx, lazy); err != nil {
		return fmt.Errorf("unmount volume %s: %w", v.request.ID, err)
	}
	s.forget(v)
	return errors.Join(s.nest(v.request).vacate(true), unseal(v.request.Dir))
}

// revive mounts a volume that a dead process left undrained, with what its mark says and with the secret that its cluster
// knows: an unstage carries none. It returns nil for a volume that is drained.
func (s *Set) revive(ctx context.Context, id config.VolumeID, dir string) (*staged, error) {
	marks, err := s.marks(id)
	if err != nil || len(marks) == 0 {
		return nil, err
	}
	const advice = "use the volume on this node once more to have it uploaded"
	if s.Secret == nil {
		return nil, errors.New("an unstage carries no credentials; " + advice)
	}
	secret, err := s.Secret(ctx, id)
	if err != nil {
		return nil, fmt.Errorf("an unstage carries no credentials, and those of the volume cannot be had (%w); %s", err, advice)
	}
	r := StageRequest{ID: id, Dir: dir, Secret: secret}
	m, ok := marks[s.nest(r).mark]
	if !ok {
		return nil, fmt.Errorf("its secret is of endpoint %s now, and the data is for another one; %s, with the old secret", secret.Endpoint, advice)
	}
	r.Options = m.Options
	return s.mount(ctx, r)
}
