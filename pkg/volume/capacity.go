package volume

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/csi-s3/csi-s3/pkg/namespace"
	"github.com/csi-s3/csi-s3/pkg/s3"
	"github.com/csi-s3/csi-s3/pkg/vfs"
)

// What the bucket holds is counted once at the start, which takes a while, and again when that was not exact.
const (
	firstRecount = time.Minute // doubled each time
	lastRecount  = time.Hour   // and with others who write, for ever at this pace
)

// hold counts what the tree alone says of the volume: what a process left that died, and the bucket does not have yet.
// From then on the file system adds its own changes. It is called before the first of them.
func (c *core) hold() namespace.Held {
	held := c.tree.Held()
	c.usage.Add(held.Bytes, held.Inodes)
	return held
}

// count adds what the bucket holds beside held, and corrects the sum later where changes fell into the listing.
func (c *core) count(ctx context.Context, held namespace.Held) {
	seq := c.tree.Seq()
	bytes, objects, err := c.list(ctx, held.Has)
	if err == nil {
		c.usage.Add(bytes, objects)
	} else if ctx.Err() == nil {
		c.log.Warn("cannot count what the volume holds: its capacity is not enforced for what was there before", "volume", c.id, "err", err)
	}
	exact := err == nil && c.tree.Seq() == seq && c.executor.Status().Queue == 0
	for pause := firstRecount; !exact || c.policy.Access == vfs.ReadWriteMany; pause = min(2*pause, lastRecount) {
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
		if exact, err = c.recount(ctx); err != nil && ctx.Err() == nil {
			c.log.Warn("cannot count what the volume holds", "volume", c.id, "err", err)
		}
	}
}

// recount makes the count what the bucket holds, if the bucket has all and nothing changes meanwhile.
func (c *core) recount(ctx context.Context) (exact bool, err error) {
	seq := c.tree.Seq()
	before, inodes := c.usage.Sum()
	if c.executor.Status().Queue > 0 {
		return false, nil
	}
	bytes, objects, err := c.list(ctx, namespace.Held{}.Has)
	if err != nil || c.tree.Seq() != seq || c.executor.Status().Queue > 0 {
		return false, err
	}
	c.usage.Add(bytes-before, objects-inodes)
	return true, nil
}

// list sums up the volume's objects, without its own and those that skip names.
func (c *core) list(ctx context.Context, skip func(s3.Key) bool) (bytes, objects int64, err error) {
	own := string(c.prefix) + ".csi-s3/"
	in := s3.ListInput{Prefix: c.prefix}
	for {
		page, err := c.bucket.List(ctx, in)
		if err != nil {
			return 0, 0, fmt.Errorf("list %s: %w", c.prefix, err)
		}
		for _, o := range page.Objects {
			if !skip(o.Key) && !strings.HasPrefix(string(o.Key), own) {
				bytes += o.Size
				objects++
			}
		}
		if page.Token == "" {
			return bytes, objects, nil
		}
		in.Token = page.Token
	}
}
