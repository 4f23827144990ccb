package writeback

import (
	"context"
	"fmt"
	"time"

	"github.com/csi-s3/csi-s3/pkg/cache"
)

// maxDelay is how long a writer is held up just below the hard limit.
const maxDelay = 2 * time.Second

// Throttle holds a writer up according to how full the cache is; call it before each write, without locks. Below the
// high watermark, and wherever evicting clean bytes gets there, it returns at once. Above, it waits for uploads, the
// longer the fuller the cache is. At the hard limit it goes on waiting as long as uploads go on, and returns
// cache.ErrNoSpace when none did for Options.Patience. It returns ctx's error when ctx ends.
func (e *Executor) Throttle(ctx context.Context) error {
	var waited, idle time.Duration
	for {
		u := e.store.Usage()
		high := int64(e.opt.HighWater * float64(u.Capacity))
		if u.Capacity <= 0 || u.Dirty+u.Clean < high {
			return nil
		}
		if u.Clean > 0 {
			// A little more than needed, so that not every write evicts.
			e.store.Evict(u.Dirty + u.Clean - high + u.Capacity/100)
			if u = e.store.Usage(); u.Dirty+u.Clean < high {
				return nil
			}
		}
		e.relieve()
		used := u.Dirty + u.Clean
		full := used >= u.Capacity
		var fill float64
		if u.Capacity > high {
			fill = float64(used-high) / float64(u.Capacity-high)
		}
		if delay := time.Duration(min(1, fill) * float64(maxDelay)); !full && waited >= delay {
			return nil
		}
		if full && idle >= e.opt.Patience {
			return fmt.Errorf("%d bytes wait for upload, the cache has room for %d: %w", u.Dirty, u.Capacity, cache.ErrNoSpace)
		}
		before := e.steps.Load()
		step := min(50*time.Millisecond, e.opt.Patience)
		if err := sleep(ctx, step); err != nil {
			return err
		}
		waited += step
		if idle += step; e.steps.Load() != before {
			idle = 0
		}
	}
}

// stepped notes that a request succeeded.
func (e *Executor) stepped() {
	e.failing.Store(false)
	e.steps.Add(1)
}

// sending notes that a piece of a body was asked for. After a failure that may be for nothing: only a success tells.
func (e *Executor) sending() {
	if !e.failing.Load() {
		e.steps.Add(1)
	}
}
