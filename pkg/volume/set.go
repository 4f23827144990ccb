package volume

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/csi-s3/csi-s3/pkg/cache"
	"github.com/csi-s3/csi-s3/pkg/config"
	"github.com/csi-s3/csi-s3/pkg/metrics"
	"github.com/csi-s3/csi-s3/pkg/s3"
	"github.com/csi-s3/csi-s3/pkg/s3/s3sdk"
)

// Sentinels of Set. An error that wraps none of them, nor one of a context, is unknown.
var (
	// ErrPath: a path that is relative, has "..", leads through a symbolic link at its end, or is no directory.
	ErrPath = errors.New("path is not usable as a mount point")
	// ErrSecret: a secret that no client can be made of.
	ErrSecret = errors.New("secret is not usable")
	// ErrNotFound: the bucket does not exist.
	ErrNotFound = errors.New("no such volume")
	// ErrDenied: the server refuses the credentials, or they may not do this.
	ErrDenied = errors.New("access denied")
	// ErrUnavailable: the server does not answer. Retrying is right.
	ErrUnavailable = errors.New("server unavailable")
	// ErrDiffers: the volume is staged, or the target published, in another way than asked for.
	ErrDiffers = errors.New("already mounted differently")
	// ErrForeign: what is mounted there is not ours to touch.
	ErrForeign = errors.New("another file system is mounted there")
	// ErrNotStaged: the volume is not mounted by this process and cannot be from what the call says.
	ErrNotStaged = errors.New("volume is not staged on this node")
	// ErrInUse: a mount cannot go yet, since something still uses it. Retrying is right.
	ErrInUse = errors.New("still in use")
	// ErrUndrained: data waits for the bucket, so the mount stays. Retrying is right.
	ErrUndrained = errors.New("not everything is in the bucket yet")
)

// Mounted is what a Set needs of a Volume.
type Mounted interface {
	Drain(ctx context.Context) error
	Close(ctx context.Context, lazy bool) error
	Status() Status
	Usage() (used, free int64, inodes uint64)
	Done() <-chan struct{}
}

// Set is the volumes that this process serves on a node: each is mounted once on its staging directory and bound from
// there to the targets of pods. What is mounted where is always read from the kernel, never remembered, so that any
// call may be repeated, before and after a crash.
//
// Calls for one volume wait for each other, calls for different ones do not. CacheDir and Log are required; the fields
// are not changed after the first call.
type Set struct {
	CacheDir string // the caches and journals of all volumes; made if missing
	Log      *slog.Logger
	Metrics  *metrics.Metrics // nil for none

	// Mount makes a mount; nil is the package's.
	Mount func(ctx context.Context, spec Spec) (Mounted, error)
	// Connect opens a bucket without touching the network; nil is the real client. close gives up what it holds.
	Connect func(bucket string, secret config.Secret) (b s3.Bucket, close func(), err error)
	// Secret returns the secret of a volume for the calls that carry none; nil: there is none. It is asked only where
	// nothing else can be done.
	Secret func(ctx context.Context, id config.VolumeID) (config.Secret, error)
	// Incident hears what a person should know of a volume. It must not block, nor call the Set. nil: nobody.
	Incident func(Incident)
	// Node is how other nodes call this one; empty: its host name.
	Node string
	// Patience bounds the question to the bucket that precedes a mount; 0 is a minute.
	Patience time.Duration

	transports s3sdk.Transports // shared by the clients of all volumes
	budget     cache.Budget     // shared by their caches
	locks      locks
	sightings  sightings
	nests      sync.Mutex // held while a cache is taken into use or given up

	mu      sync.Mutex
	volumes map[config.VolumeID]*staged        // guarded by mu
	pods    map[config.VolumeID]map[string]Pod // guarded by mu: by target
}

// staged is one volume of a Set. It is made and changed under the volume's lock; a reader without that lock sees it
// whole or not at all.
type staged struct {
	request StageRequest // Dir is resolved
	mounted Mounted
	device  device
	bucket  *current
	retire  func() // takes the volume's metrics away
}

// serving reports whether the volume answers at its staging directory.
func (v *staged) serving() (bool, error) {
	select {
	case <-v.mounted.Done():
		return false, nil
	default:
	}
	on, err := mountsAt(v.request.Dir)
	if err != nil {
		return false, err
	}
	return len(on) > 0 && deviceOf(on[len(on)-1]) == v.device, nil
}

func (s *Set) volume(id config.VolumeID) *staged {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.volumes[id]
}

func (s *Set) keep(v *staged) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.volumes == nil {
		s.volumes = map[config.VolumeID]*staged{}
	}
	s.volumes[v.request.ID] = v
}

func (s *Set) forget(v *staged) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.volumes, v.request.ID)
	v.retire()
	v.bucket.close()
}

func (s *Set) all() []*staged {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]*staged, 0, len(s.volumes))
	for _, v := range s.volumes {
		out = append(out, v)
	}
	return out
}

// Stats is the state of one volume at one of its paths.
type Stats struct {
	Used    int64  // bytes
	Free    int64  // bytes; -1 when the volume has no limit
	Inodes  uint64 // in use
	Lost    string // why the path does not show the volume any more; empty when it does
	Trouble string // the last error of a volume that works; empty when there is none
}

// Stats describes the volume that is mounted at path: its staging directory, which "" means too, or a target. It never
// waits for S3 nor for a mount. ErrNotStaged when the volume is not at path.
func (s *Set) Stats(id config.VolumeID, path string) (Stats, error) {
	v := s.volume(id)
	if v == nil {
		return Stats{}, fmt.Errorf("volume %s: %w", id, ErrNotStaged)
	}
	if path == "" {
		path = v.request.Dir
	}
	path, err := resolve(path)
	if err != nil {
		return Stats{}, err
	}
	on, err := mountsAt(path)
	if err != nil {
		return Stats{}, err
	}
	if len(on) == 0 && path != v.request.Dir {
		return Stats{}, fmt.Errorf("volume %s at %s: %w", id, path, ErrNotStaged)
	}
	ok, err := v.serving()
	if err != nil {
		return Stats{}, err
	}
	var st Stats
	st.Used, st.Free, st.Inodes = v.mounted.Usage()
	switch {
	case !ok:
		st.Lost = "the mount is gone; it comes back when the volume is published again, pods that use it must restart"
	case len(on) == 0 || deviceOf(on[len(on)-1]) != v.device:
		st.Lost = "this path shows an earlier mount of the volume; the pod must restart"
	}
	st.Trouble = v.mounted.Status().LastError
	return st, nil
}

// Status is the state of all volumes, in no order.
func (s *Set) Status() []Status {
	all := s.all()
	out := make([]Status, len(all))
	for i, v := range all {
		out[i] = v.mounted.Status()
	}
	return out
}

// DetachDead takes away the mounts that a process left behind when it died: nothing answers for them any more. Those
// that are served are not touched. What cannot be detached is in the error; the rest is done.
func (s *Set) DetachDead(ctx context.Context) error {
	mounts, err := ourMounts()
	if err != nil {
		return err
	}
	lost := map[string]bool{} // sources
	var errs []error
	// From the end: later mounts may lie on earlier ones.
	for i := len(mounts) - 1; i >= 0; i-- {
		path := mounts[i].Mountpoint
		if !dead(ctx, path) {
			continue
		}
		if err := detach(path); err != nil {
			errs = append(errs, err)
			continue
		}
		s.Log.Warn("dead mount detached", "path", path)
		lost[mounts[i].Source] = true
	}
	for source := range lost {
		if id, err := config.ParseVolumeID(strings.TrimPrefix(source, sourcePrefix)); err == nil {
			s.tell(id, ReasonMountLost, "the process that served the mount ended; pods that use the volume on this node must restart")
		}
	}
	return errors.Join(errs...)
}

// Close drains all volumes until ctx ends and takes their staging mounts away, even where they are in use. What could
// not be drained stays in the caches for the next process; the error says how much of which volume.
func (s *Set) Close(ctx context.Context) error {
	all := s.all()
	errs := make([]error, len(all))
	var wg sync.WaitGroup
	for i, v := range all {
		wg.Go(func() {
			// Not ctx: a volume that is busy elsewhere must be closed too when ctx has ended.
			unlock, err := s.locks.lock(context.WithoutCancel(ctx), v.request.ID.String())
			if err != nil {
				errs[i] = err
				return
			}
			defer unlock()
			if s.volume(v.request.ID) != v {
				return // unstaged meanwhile
			}
			if err := s.closeVolume(ctx, v, true); err != nil {
				errs[i] = fmt.Errorf("volume %s: %w", v.request.ID, err)
				s.forget(v)
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// locks serialises calls by name. The zero value is ready.
type locks struct {
	mu   sync.Mutex
	held map[string]*turnstile // guarded by mu
}

type turnstile struct {
	free  chan struct{} // holds one token while nobody is inside
	users int           // inside or waiting; guarded by locks.mu
}

// lock returns when nobody else holds name, or with the error of ctx.
func (l *locks) lock(ctx context.Context, name string) (unlock func(), err error) {
	l.mu.Lock()
	if l.held == nil {
		l.held = map[string]*turnstile{}
	}
	t := l.held[name]
	if t == nil {
		t = &turnstile{free: make(chan struct{}, 1)}
		t.free <- struct{}{}
		l.held[name] = t
	}
	t.users++
	l.mu.Unlock()

	leave := func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		if t.users--; t.users == 0 {
			delete(l.held, name)
		}
	}
	select {
	case <-t.free:
		return func() { t.free <- struct{}{}; leave() }, nil
	case <-ctx.Done():
		leave()
		return nil, fmt.Errorf("wait for another call for volume %s: %w", name, context.Cause(ctx))
	}
}
