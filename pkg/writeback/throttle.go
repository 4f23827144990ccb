package writeback

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/csi-s3/csi-s3/pkg/cache"
)

const (
	// maxDelay is how long a writer is held up just below the hard limit.
	maxDelay = 2 * time.Second
	// A writer that is held up looks again whether there is room when a task ended, but not after less than the first of
	// these, and after the second at the latest.
	restWriter = 50 * time.Millisecond
	pollWriter = time.Second
)

// Throttle runs a change that puts bytes into the cache, and holds the writer up before it according to how full the
// cache is; call it without locks. Below the high watermark, and wherever evicting clean bytes gets there, it does not.
// Above, it waits for uploads, the longer the fuller the cache is. At the hard limit it waits until there is room, however
// long the server is away; so it does when change is a cache.ErrFull, and then runs it again.
//
// It is cache.ErrNoSpace when nothing that could make room is to be uploaded, or when no upload went on for
// Options.Patience. It returns ctx's error when ctx ends, ErrStopped after Stop, and the journal's error when that failed.
func (e *Executor) Throttle(ctx context.Context, change func() error) error {
	start := time.Now()
	moved, steps := start, e.steps.Load()
	hopeless := false // what could make room is in the bucket now: the next refusal is the last
	for {
		beat := e.ended.next()
		fill := e.fill()
		wait := time.Duration(fill*float64(maxDelay)) - time.Since(start)
		if fill < 1 && wait <= 0 {
			err := change()
			if !errors.Is(err, cache.ErrFull) {
				return err
			}
			e.relieve()
			fill = 1
		}
		if now := e.steps.Load(); now != steps {
			moved, steps = time.Now(), now
		}
		if fill >= 1 {
			nothing := !e.sends()
			if err := e.stuck(hopeless && nothing, time.Since(moved)); err != nil {
				return err
			}
			if hopeless = nothing; hopeless {
				continue
			}
			wait = pollWriter
		}
		if err := e.pause(ctx, beat, wait); err != nil {
			return err
		}
	}
}

// fill is how far above the high watermark the cache is: 0 below it, 1 and more at the hard limit. It evicts what can be,
// and if that is not enough lets uploads begin.
func (e *Executor) fill() float64 {
	u := e.store.Usage()
	high := int64(e.opt.HighWater * float64(u.Capacity))
	if u.Dirty+u.Clean < high {
		return 0
	}
	if u.Clean > 0 {
		// A little more than needed, so that not every write evicts.
		e.store.Evict(u.Dirty + u.Clean - high + u.Capacity/100)
		if u = e.store.Usage(); u.Dirty+u.Clean < high {
			return 0
		}
	}
	used := u.Dirty + u.Clean
	if used == 0 {
		return 0 // there is no limit yet, or no room for anything: the cache knows
	}
	e.relieve()
	if used >= u.Capacity {
		return 1
	}
	return float64(used-high) / float64(u.Capacity-high)
}

// sends says whether an upload is to come or under way, or has just ended, that makes room.
func (e *Executor) sends() bool {
	if e.tree.Sends(poisoned) {
		return true
	}
	// The tree has done with an upload before its file may be evicted.
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.frozen > 0
}

// stuck is why a writer at the hard limit need not wait any longer, if it need not. idle is for how long no upload has
// gone on.
func (e *Executor) stuck(hopeless bool, idle time.Duration) error {
	// What cannot be noted is not uploaded.
	if err := errors.Join(e.tree.Err(), e.ledger.j.Room(room)); err != nil {
		return err
	}
	u := e.store.Usage()
	switch {
	case hopeless:
		return fmt.Errorf("nothing that is uploaded can make room in the cache, %d of %d bytes are changes: %w", u.Dirty, u.Capacity, cache.ErrNoSpace)
	case e.opt.Patience > 0 && idle >= e.opt.Patience:
		return fmt.Errorf("%d bytes wait for upload, the cache has room for %d: %w", u.Dirty, u.Capacity, cache.ErrNoSpace)
	}
	return nil
}

// pause is how long a writer is held up before it looks again: until the beat, but not longer than most.
func (e *Executor) pause(ctx context.Context, beat <-chan struct{}, most time.Duration) error {
	most = min(most, pollWriter)
	if e.opt.Patience > 0 {
		most = min(most, e.opt.Patience)
	}
	rest := min(restWriter, most)
	if err := sleep(ctx, rest); err != nil {
		return err
	}
	timer := time.NewTimer(most - rest)
	defer timer.Stop()
	select {
	case <-beat:
	case <-timer.C:
	case <-ctx.Done():
		return ctx.Err()
	case <-e.stopping.Done():
		return ErrStopped
	}
	return nil
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
