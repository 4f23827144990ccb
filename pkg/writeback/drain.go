package writeback

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/csi-s3/csi-s3/pkg/cache"
	"github.com/csi-s3/csi-s3/pkg/inode"
)

// poll is how often a wait looks again without having been woken; restLong is the least pause between two looks at a
// long queue, each of which costs the tree a walk over it.
const (
	poll     = time.Second
	restLong = 50 * time.Millisecond
	long     = 64
)

// Progress says how much a Flush still waits for.
type Progress struct {
	Changes int   // inodes
	Bytes   int64 // dirty bytes
}

// Flush returns when everything that was changed before the call is in the bucket: of one inode, or of all when ino is
// 0. What is changed later is not waited for. progress, if not nil, is called now and then. When ctx ends first, the
// error wraps ctx's and the last failure and says what is left. ErrConflict (with an ino only): somebody else's object
// took the name meanwhile. What cannot end in this process is not waited for: a journal that failed, an Executor that is
// ErrHalted, and files that are cache.ErrPoisoned when nothing else is left.
func (e *Executor) Flush(ctx context.Context, ino inode.Ino, progress func(Progress)) error {
	seq := e.tree.Seq()
	e.mu.Lock()
	conflicts := e.conflicts[ino]
	e.mu.Unlock()
	urge := func() {
		if ino == 0 {
			e.tree.Urge()
		} else {
			e.tree.UrgeInode(ino)
		}
	}
	urge()
	again := time.NewTicker(poll)
	defer again.Stop()
	for {
		beat := e.ended.next()
		n, last := e.tree.Pending(ino, seq)
		e.mu.Lock()
		conflict := ino != 0 && e.conflicts[ino] != conflicts
		for of, judged := range e.judged {
			if ino == 0 || ino == of {
				n += judged
			}
		}
		if last == nil {
			last = e.lastErr
		}
		e.mu.Unlock()
		if conflict {
			return fmt.Errorf("inode %d: %w", ino, ErrConflict)
		}
		if n == 0 {
			if ino == 0 {
				e.sweep(ctx)
			}
			// What the bucket is not told yet, such as the end of a file that is open, is safe here.
			return e.tree.Sync()
		}
		left := Progress{Changes: n, Bytes: e.dirty(ino)}
		if err := e.tree.Err(); err != nil {
			return unflushed(left, err, last)
		}
		if errors.Is(last, cache.ErrPoisoned) && e.tree.Failed(ino, seq, poisoned) >= n {
			return unflushed(left, last, nil)
		}
		if halted := e.Halted(); halted != nil {
			return unflushed(left, halted, nil)
		}
		if progress != nil {
			progress(left)
		}
		select {
		case <-beat:
			if n > long {
				_ = sleep(ctx, restLong) // the next round sees that ctx ended
			}
		case <-again.C:
			urge() // a change may have been put back into the queue
		case <-ctx.Done():
			return unflushed(left, ctx.Err(), last)
		case <-e.stopping.Done():
			if halted := e.Halted(); halted != nil {
				return unflushed(left, halted, nil)
			}
			return unflushed(left, ErrStopped, last)
		}
	}
}

func poisoned(err error) bool { return errors.Is(err, cache.ErrPoisoned) }

func unflushed(left Progress, err, last error) error {
	return fmt.Errorf("%d changes with %d bytes are not in the bucket yet: %w", left.Changes, left.Bytes, errors.Join(err, last))
}

// dirty counts the bytes that only the cache has.
func (e *Executor) dirty(ino inode.Ino) int64 {
	if ino == 0 {
		return e.store.Usage().Dirty
	}
	if f := e.store.Lookup(cache.ID(ino)); f != nil {
		return f.Dirty().Bytes
	}
	return 0
}
