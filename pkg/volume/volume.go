package volume

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	"github.com/csi-s3/csi-s3/pkg/cache"
	"github.com/csi-s3/csi-s3/pkg/config"
	"github.com/csi-s3/csi-s3/pkg/fuse"
	"github.com/csi-s3/csi-s3/pkg/inode"
	"github.com/csi-s3/csi-s3/pkg/s3"
	"github.com/csi-s3/csi-s3/pkg/vfs"
)

// Spec says what to mount and where.
type Spec struct {
	ID       string       // volume ID: BUCKET or BUCKET/PREFIX
	Bucket   s3.Bucket    // an open client of the bucket
	Server   string       // URL of its endpoint. "": nobody finds out what it supports, and all is compared
	Prefix   s3.Key       // "" or a prefix that ends with a slash
	Dir      string       // mount point, an existing directory
	CacheDir string       // directory of this volume's cache and journal, made if missing, mode 0700
	Options  config.Mount // see there
	Log      *slog.Logger // nil: slog.Default

	Node      string        // how others call this node; empty: its host name
	LeaseWait time.Duration // how long Mount waits for the clean lease of another node to lapse, 0: 10 s

	// Budget is the space that caches on one file system share; nil: this one has what there is.
	Budget *cache.Budget

	// Incident hears what a person should know of the volume. It must not block, nor call the volume. nil: nobody.
	Incident func(reason Reason, message string)

	sightings *sightings // of a Set; nil: the volume's own
	tuning    tuning
}

// sourcePrefix stands before the volume ID in the source of a mount, as the kernel lists it.
const sourcePrefix = "s3://"

// Volume is one mounted volume.
type Volume struct {
	id, dir string
	log     *slog.Logger
	core    *core
	server  *fuse.Server

	closing sync.Mutex // one Close at a time
	closed  bool       // guarded by closing: the core is closed
}

// Status is the state of a volume for csi-s3 status, in bytes and counts.
type Status struct {
	ID         string  `json:"id"`
	Dir        string  `json:"dir"`
	Dirty      int64   `json:"dirtyBytes"`
	DirtyFiles int     `json:"dirtyFiles"`
	Queue      int     `json:"queue"`          // changes that wait for the bucket
	OldestAge  float64 `json:"oldestDirtyAge"` // seconds
	CacheUsed  int64   `json:"cacheBytes"`
	CacheLimit int64   `json:"cacheLimit"`
	HitRate    float64 `json:"hitRate"` // of read bytes, 0 to 1
	Hidden     int64   `json:"hiddenKeys"`
	LastError  string  `json:"lastError,omitempty"`  // why changes do not get into the bucket
	ErrorClass string  `json:"errorClass,omitempty"` // of LastError, one word
	Failing    bool    `json:"failing"`              // changes wait, and there is a LastError

	Conflicts   int64 `json:"conflicts"`   // since the mount: files for whose names there were others' objects
	Damaged     int64 `json:"damaged"`     // since the mount: blocks of the cache that the node's disk has changed
	Quarantined int   `json:"quarantined"` // files of which a loss of power left what is in the cache's quarantine

	LeaseEpoch uint64 `json:"leaseEpoch,omitempty"`
	LeaseState string `json:"lease,omitempty"` // clean, dirty, waiting or lost; empty: the volume needs none
}

// Mount opens and serves the volume. It returns when the kernel's mount is up. A cache directory that another process
// holds, or that belongs to another volume, is an error that names it. A volume that one node writes to is mounted once its
// lease is held, or the server is away and this cache has held it before. ErrHeld, ErrLeased or ErrGivenUp: it is in the
// hands of another node, which the text names.
func Mount(ctx context.Context, spec Spec) (*Volume, error) {
	if spec.Log == nil {
		spec.Log = slog.Default()
	}
	if spec.Node == "" {
		name, err := os.Hostname()
		if err != nil {
			return nil, err
		}
		spec.Node = name
	}
	c, err := open(spec)
	if err != nil {
		return nil, err
	}
	if err := c.acquire(ctx, spec.LeaseWait); err != nil {
		return nil, errors.Join(err, c.close(ctx))
	}
	v := &Volume{id: spec.ID, dir: spec.Dir, log: spec.Log, core: c}
	kernel := &invalidator{}
	c.fs.SetInvalidator(kernel)
	v.server, err = fuse.Mount(c.fs, fuse.Options{
		Dir:        spec.Dir,
		Name:       sourcePrefix + spec.ID,
		ReadOnly:   spec.Options.ReadOnly,
		AllowOther: spec.Options.AllowOther,
		Status:     v.status,
		Log:        spec.Log,
	})
	if err != nil {
		return nil, errors.Join(err, c.close(ctx))
	}
	kernel.set(v.server)
	c.start(context.WithoutCancel(ctx))
	return v, nil
}

// invalidator is there before the kernel's mount is: what it hears until then, no kernel can have cached.
type invalidator struct {
	mu sync.Mutex
	to vfs.Invalidator // guarded by mu
}

func (i *invalidator) set(to vfs.Invalidator) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.to = to
}

func (i *invalidator) get() vfs.Invalidator {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.to
}

// InvalidateInode implements vfs.Invalidator.
func (i *invalidator) InvalidateInode(ino inode.Ino, off, length int64) {
	if to := i.get(); to != nil {
		to.InvalidateInode(ino, off, length)
	}
}

// InvalidateEntry implements vfs.Invalidator.
func (i *invalidator) InvalidateEntry(dir inode.Ino, name string) {
	if to := i.get(); to != nil {
		to.InvalidateEntry(dir, name)
	}
}

// Drain returns when everything that was written before the call is in the bucket, or ctx ends: then the error says
// how many bytes are left and why.
func (v *Volume) Drain(ctx context.Context) error { return v.core.drain(ctx) }

// Close drains until ctx ends, unmounts, and closes the cache. What could not be drained stays in the journal for the
// next Mount, durable, and the error says so. With lazy set the mount point is detached even while it is in use;
// without it a mount point in use is an error, and the volume goes on. Close of a closed volume does nothing.
func (v *Volume) Close(ctx context.Context, lazy bool) error {
	v.closing.Lock()
	defer v.closing.Unlock()
	if v.closed {
		return nil
	}
	drained := v.core.drain(ctx)
	if err := v.server.Unmount(lazy); err != nil {
		return errors.Join(drained, fmt.Errorf("unmount %s: %w", v.dir, err))
	}
	v.server.Wait()
	// What was written between the drain and the end of the mount.
	if drained == nil {
		drained = v.core.drain(ctx)
	}
	v.closed = true
	return errors.Join(drained, v.core.close(ctx))
}

// Status is cheap and never waits for S3.
func (v *Volume) Status() Status {
	w, u := v.core.executor.Status(), v.core.store.Usage()
	s := Status{
		ID: v.id, Dir: v.dir,
		Dirty: w.DirtyBytes, DirtyFiles: w.DirtyFiles, Queue: w.Queue,
		CacheUsed: u.Dirty + u.Clean, CacheLimit: u.Capacity,
		HitRate: v.core.hitRate(), Hidden: v.core.fs.HiddenKeys(),
		Conflicts: v.core.conflicts.Load(), Damaged: v.core.damages.Load(), Quarantined: v.core.quarantined,
	}
	if !w.Oldest.IsZero() {
		s.OldestAge = time.Since(w.Oldest).Seconds()
	}
	if l := v.core.lease; l != nil {
		s.LeaseEpoch, s.LeaseState = l.state()
	}
	if err := v.core.trouble(w); err != nil {
		s.LastError, s.ErrorClass, s.Failing = err.Error(), class(err), w.Queue > 0
	}
	return s
}

// status answers the ioctl of the mount.
func (v *Volume) status() []byte {
	s := v.Status()
	// The ioctl's answer has room for 16 KiB less two bytes; an error text is the only part without a limit of its own,
	// and JSON may need six bytes for one of it.
	const room, maxText = 16<<10 - 2, 2048
	for limit := maxText; ; limit /= 2 {
		s.LastError = s.LastError[:min(limit, len(s.LastError))]
		text, err := json.Marshal(s)
		if err != nil {
			v.log.Error("cannot write the status", "err", err)
		}
		if len(text) <= room || limit == 0 {
			return text
		}
	}
}

// Usage is what the volume holds and may hold, in bytes and inodes, for NodeGetVolumeStats. Free is -1 when the volume
// has no limit.
func (v *Volume) Usage() (used, free int64, inodes uint64) {
	bytes, files := v.core.usage.Get()
	free = -1
	if limit := v.core.policy.Capacity; limit > 0 {
		free = max(0, limit-bytes)
	}
	return bytes, free, uint64(files)
}

// Done is closed when the mount is gone, for whatever reason. Close is still to be called.
func (v *Volume) Done() <-chan struct{} { return v.server.Done() }
