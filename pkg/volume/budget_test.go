package volume

import (
	"context"
	"errors"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/csi-s3/csi-s3/pkg/cache"
	"github.com/csi-s3/csi-s3/pkg/disk/diskmem"
	"github.com/csi-s3/csi-s3/pkg/inode"
	"github.com/csi-s3/csi-s3/pkg/s3/s3fault"
	"github.com/csi-s3/csi-s3/pkg/s3/s3mem"
)

// A volume whose bucket is dead fills its part of the cache and waits there; the writers of another one, mounted before or
// after, have theirs and wait for nothing.
func TestDeadBucketLeavesRoom(t *testing.T) {
	t.Parallel()
	budget := &cache.Budget{Capacity: 6 << 20}
	start := func(dead bool) *core {
		b := s3fault.New(s3mem.New("bucket"))
		s := spec(b)
		if dead {
			s.tuning.writeback.HighWater = 0.99 // it is there soon
			b.Fault = func(op s3fault.Op) s3fault.Action {
				if op.Name == "Put" || op.Name == "UploadPart" {
					return s3fault.FailBefore(nil)
				}
				return s3fault.Action{}
			}
		}
		s.Budget = budget
		return running(t, diskmem.New(), "first", s)
	}
	const piece = 64 << 10
	fill := func(ctx context.Context, c *core, name string, size int) error {
		e, h, err := c.fs.Create(ctx, who, inode.Root, name, 0o644, syscall.O_RDWR)
		if err != nil {
			return err
		}
		defer c.fs.Release(e.Attr.Ino, h)
		for off := 0; off < size && err == nil; off += piece {
			_, err = c.fs.Write(ctx, who, e.Attr.Ino, h, []byte(strings.Repeat("x", piece)), int64(off))
		}
		return err
	}
	before := start(false)
	defer closed(t, before)
	dead := start(true)
	defer abandoned(dead)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- fill(ctx, dead, "much", 20<<20) }()
	eventually(t, "the dead volume is full", func() bool {
		u := dead.store.Usage()
		return u.Dirty+2*piece > u.Capacity
	})
	after := start(false)
	defer closed(t, after)
	for _, c := range []*core{before, after} {
		wait, stop := context.WithTimeout(t.Context(), 20*time.Second)
		if err := fill(wait, c, "some", 512<<10); err != nil { // below the high watermark of a share of 768 KiB
			t.Errorf("a writer beside a dead bucket: %v", err)
		}
		stop()
		drained(t, c)
	}
	select {
	case err := <-ended:
		t.Errorf("the writer to the dead bucket did not wait: %v", err)
	default:
	}
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("the writer to the dead bucket: %v", err)
	}
}
