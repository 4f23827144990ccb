package volume

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/csi-s3/csi-s3/pkg/config"
)

// PublishRequest says which volume is to be shown where. StageRequest is what the volume is staged with; its Secret may
// be zero: a lost staging mount is then made again with the one of Set.Secret.
type PublishRequest struct {
	StageRequest
	Target   string // target path: made if missing, its parent exists
	ReadOnly bool   // nothing can be changed through this target
	Single   bool   // no other target may show the volume
	Pod      Pod    // that asks, if it is known
	// SecretErr is why the call's secret is not usable, nil when it is or there is none.
	SecretErr error
}

// Publish binds the staged volume to the target. When the staging mount is lost, it is made again first: kubelet does
// not stage a volume that it believes staged. A secret that differs from the one in use replaces it.
//
// A target that shows the volume already is success, ErrDiffers when it does so with another ReadOnly. A dead mount at
// the target is replaced. ErrNotStaged when the volume is staged in another way than r says or cannot be staged from r,
// ErrInUse when Single does not hold, ErrForeign, ErrPath, and what Stage returns.
func (s *Set) Publish(ctx context.Context, r PublishRequest) error {
	unlock, err := s.locks.lock(ctx, r.ID.String())
	if err != nil {
		return err
	}
	defer unlock()
	s.seat(r.ID, r.Target, r.Pod)
	v, err := s.restage(ctx, r.StageRequest)
	if err != nil {
		return err
	}
	target, err := resolve(r.Target)
	if err != nil {
		return err
	}
	if r.SecretErr != nil {
		s.tell(r.ID, ReasonSecret, fmt.Sprintf("the secret of the pod's volume is not usable, the mount goes on with the old one: %v", r.SecretErr))
	}
	staging, err := mountsAt(v.request.Dir)
	if err != nil {
		return err
	}
	if len(staging) == 0 {
		return fmt.Errorf("%s: %w: its mount went away just now", v.request.Dir, ErrNotStaged)
	}
	readOnly := r.ReadOnly || isReadOnly(staging[len(staging)-1])
	for {
		on, err := mountsAt(target)
		if err != nil {
			return err
		}
		if len(on) == 0 {
			break
		}
		top := on[len(on)-1]
		if deviceOf(top) == v.device {
			if isReadOnly(top) != readOnly {
				return fmt.Errorf("%s is published with readonly=%t: %w", target, isReadOnly(top), ErrDiffers)
			}
			return nil
		}
		if err := detachDead(ctx, top); err != nil {
			return err
		}
	}
	if r.Single {
		others, err := boundOf(v.device, v.request.Dir)
		if err != nil {
			return err
		}
		if len(others) > 0 {
			return fmt.Errorf("volume %s is for one pod and published at %q: %w", r.ID, others, ErrInUse)
		}
	}
	made, err := makeTarget(target)
	if err != nil {
		return err
	}
	if err := bind(v.request.Dir, target, v.device, readOnly); err != nil {
		if made {
			err = errors.Join(err, os.Remove(target))
		}
		return fmt.Errorf("publish volume %s at %s: %w", r.ID, target, err)
	}
	return nil
}

// restage returns the volume as it is served at its staging directory, after a loss as it is served anew.
func (s *Set) restage(ctx context.Context, r StageRequest) (*staged, error) {
	v := s.volume(r.ID)
	if r.Secret == (config.Secret{}) {
		switch {
		case v != nil:
			r.Secret = v.request.Secret
		case s.Secret == nil:
			return nil, fmt.Errorf("volume %s: %w, and the call has no secret to stage it with", r.ID, ErrNotStaged)
		default:
			secret, err := s.Secret(ctx, r.ID)
			if err != nil {
				return nil, fmt.Errorf("volume %s: %w, the call has no secret to stage it with, and it cannot be had: %w", r.ID, ErrNotStaged, err)
			}
			r.Secret = secret
		}
	}
	lost := v == nil
	if !lost {
		ok, err := v.serving()
		if err != nil {
			return nil, err
		}
		lost = !ok
	}
	v, err := s.stage(ctx, r)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, ErrDiffers) {
		return nil, fmt.Errorf("volume %s: %w: %w", r.ID, ErrNotStaged, err)
	}
	if err == nil && lost {
		s.Log.Warn("staging mount made again", "volume", r.ID.String(), "dir", v.request.Dir)
	}
	return v, err
}

// Unpublish takes the mount at the target and the target itself away. A target that is not there is success. ErrInUse
// while something on the node has it open; ErrForeign when what is mounted there is none of ours.
func (s *Set) Unpublish(ctx context.Context, id config.VolumeID, target string) error {
	unlock, err := s.locks.lock(ctx, id.String())
	if err != nil {
		return err
	}
	defer unlock()
	s.seat(id, target, Pod{})
	target, err = resolve(target)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	served := make([]device, 0, 8)
	for _, v := range s.all() {
		if v.request.Dir == target {
			return fmt.Errorf("%s is the staging path of volume %s: %w", target, v.request.ID, ErrPath)
		}
		served = append(served, v.device)
	}
	for {
		on, err := mountsAt(target)
		if err != nil {
			return err
		}
		if len(on) == 0 {
			break
		}
		top := on[len(on)-1]
		if !isOurs(top) && !slices.Contains(served, deviceOf(top)) {
			return fmt.Errorf("%s: %w (%s)", target, ErrForeign, top.FSType)
		}
		err = unix.Unmount(target, unix.UMOUNT_NOFOLLOW)
		if errors.Is(err, unix.EBUSY) {
			// A dead mount is of no use to whoever is in it.
			if !slices.Contains(served, deviceOf(top)) && dead(ctx, target) {
				err = detach(target)
			} else {
				err = fmt.Errorf("%w: a process of the node works in it", ErrInUse)
			}
		}
		if err != nil {
			return fmt.Errorf("unmount %s: %w", target, err)
		}
	}
	// Not more than the directory itself: what is in it now was never in the volume.
	if err := os.Remove(target); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("target path: %w", err)
	}
	return nil
}

// makeTarget makes the directory of a target, if there is none.
func makeTarget(target string) (made bool, err error) {
	err = os.Mkdir(target, 0o750)
	switch {
	case err == nil:
		return true, nil
	case errors.Is(err, fs.ErrExist):
		return false, nil // bind refuses what is no directory
	case errors.Is(err, fs.ErrNotExist):
		return false, fmt.Errorf("%w: target path: %w", ErrPath, err)
	}
	return false, fmt.Errorf("target path: %w", err)
}
