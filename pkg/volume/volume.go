package volume

import (
	"context"
	"log/slog"

	"github.com/csi-s3/csi-s3/pkg/config"
	"github.com/csi-s3/csi-s3/pkg/s3"
)

// Spec says what to mount and where.
type Spec struct {
	ID       string       // volume ID: BUCKET or BUCKET/PREFIX
	Bucket   s3.Bucket    // an open client of the bucket
	Prefix   s3.Key       // "" or a prefix that ends with a slash
	Dir      string       // mount point, an existing directory
	CacheDir string       // directory of this volume's cache and journal, made if missing, mode 0700
	Options  config.Mount // see there
	Log      *slog.Logger
}

// Volume is one mounted volume.
type Volume struct{}

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
	LastError  string  `json:"lastError,omitempty"`
}

// Mount opens and serves the volume. It returns when the kernel's mount is up. A cache directory that another process
// holds is an error that names it.
func Mount(ctx context.Context, spec Spec) (*Volume, error) { panic("not built") }

// Drain returns when everything that was written before the call is in the bucket, or ctx ends: then the error says
// how many bytes are left and why.
func (v *Volume) Drain(ctx context.Context) error { panic("not built") }

// Close drains until ctx ends, unmounts, and closes the cache. What could not be drained stays in the journal for the
// next Mount, and the error says so. With lazy set the mount point is detached even while it is in use.
func (v *Volume) Close(ctx context.Context, lazy bool) error { panic("not built") }

// Status is cheap and never waits for S3.
func (v *Volume) Status() Status { panic("not built") }

// Usage is what the volume holds and may hold, in bytes and inodes, for NodeGetVolumeStats. Free is -1 when the volume
// has no limit.
func (v *Volume) Usage() (used, free int64, inodes uint64) { panic("not built") }

// Done is closed when the mount is gone, for whatever reason.
func (v *Volume) Done() <-chan struct{} { panic("not built") }
