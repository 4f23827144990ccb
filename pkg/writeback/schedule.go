package writeback

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/csi-s3/csi-s3/pkg/cache"
	"github.com/csi-s3/csi-s3/pkg/disk"
	"github.com/csi-s3/csi-s3/pkg/extent"
	"github.com/csi-s3/csi-s3/pkg/journal"
	"github.com/csi-s3/csi-s3/pkg/namespace"
	"github.com/csi-s3/csi-s3/pkg/s3"
)

// Pauses between attempts of a task grow from the first to the last of these.
const (
	minPause = 100 * time.Millisecond
	maxPause = 30 * time.Second
)

// roomPoll is how often a disk without room is looked at again.
const roomPoll = time.Second

// idlePoll is how often a tree without work is asked without having said that it has some.
const idlePoll = time.Minute

// attempts is how often one request of a long task is tried before the whole task fails.
const attempts = 10

// room is what the records of all tasks that run may take in the journal, in bytes: less than what mutations ask for, so that
// a full disk can be emptied. evictForRoom is what is taken from the clean part of the cache when there is no room.
const (
	room         = 128 << 10
	evictForRoom = 4 << 20
)

// loop hands out tasks until Stop.
func (e *Executor) loop() {
	defer e.wg.Done()
	for {
		if e.brake() != nil || e.short.acquire(e.stopping) != nil {
			return
		}
		k := e.next()
		if k == nil {
			e.short.release()
			return
		}
		slot := e.slot(k)
		if slot != e.short {
			e.short.release()
		}
		e.wg.Add(1)
		// Ends with the task; Stop waits for it.
		go func() {
			defer e.wg.Done()
			defer e.ended.beat()
			if slot != e.short && slot.acquire(e.stopping) != nil {
				e.tree.Fail(k, ErrStopped, e.opt.Now())
				return
			}
			defer slot.release()
			e.run(k)
		}()
	}
}

// next waits for a task; nil means Stop.
func (e *Executor) next() *namespace.Task {
	for {
		if err := e.ledger.j.Room(room); errors.Is(err, disk.ErrNoSpace) && e.ledger.j.Err() == nil {
			e.crowded(err)
			if sleep(e.stopping, roomPoll) != nil {
				return nil
			}
			continue
		}
		now := e.opt.Now()
		k, at := e.tree.Next(now)
		e.ended.beat() // it may have found inodes that wait for nothing any more
		if k != nil {
			return k
		}
		wait := idlePoll
		if !at.IsZero() {
			wait = at.Sub(now)
		}
		timer := time.NewTimer(wait)
		select {
		case <-e.tree.Wake():
		case <-timer.C:
		case <-e.stopping.Done():
		}
		timer.Stop()
		if e.stopping.Err() != nil {
			return nil
		}
	}
}

// crowded handles a disk that has no room for the records of tasks: others filled it.
func (e *Executor) crowded(err error) {
	e.mu.Lock()
	e.lastErr = err
	e.mu.Unlock()
	if e.store.Evict(evictForRoom) == 0 {
		e.log.Error("the cache's disk is full: nothing can be noted, so nothing is uploaded", "err", err)
	}
}

// slot is what a task needs before it may run.
func (e *Executor) slot(k *namespace.Task) slots {
	switch k.Verb {
	case namespace.Move, namespace.Purge:
		return e.trees
	case namespace.Copy:
		if k.Source.Size > e.opt.MaxCopy {
			return e.uploads
		}
	case namespace.Spill:
		return e.uploads
	case namespace.Put:
		size := k.Source.Size
		if f := e.store.Lookup(cache.ID(k.Ino)); f != nil {
			size = f.Size()
		}
		if k.Content && size > e.opt.SinglePut {
			return e.uploads
		}
	}
	return e.short
}

// brake slows the loop down while the server is away or denies everything: a long queue must not become a storm of requests.
func (e *Executor) brake() error {
	e.mu.Lock()
	n := e.failures - e.opt.Meta
	e.mu.Unlock()
	if n < 0 || e.stopping.Err() != nil {
		return e.stopping.Err()
	}
	return sleep(e.stopping, rand.N(min(5*time.Second, minPause<<min(n, 10))))
}

// result is what a task did. Its snapshot, if any, is committed with it and then released.
type result struct {
	info  s3.Info
	moved map[s3.Key]s3.Info
	snap  *cache.Snapshot
	// spill is the part of a file that a Spill has sent.
	spill extent.Range
}

// run carries out a task and ends it.
func (e *Executor) run(k *namespace.Task) {
	freezes := 0
	if k.Content || k.Verb == namespace.Spill {
		freezes = 1
	}
	e.mu.Lock()
	e.running++
	e.frozen += freezes
	e.mu.Unlock()
	err := e.do(k)
	if err != nil {
		err = e.refuse(k, err)
	}
	if err == nil {
		e.stepped()
	} else {
		e.failing.Store(true)
	}
	e.mu.Lock()
	e.running--
	e.frozen -= freezes
	e.lastErr = err
	switch {
	case err == nil:
		e.done++
		e.failures = 0
	case errors.Is(err, s3.ErrUnavailable), errors.Is(err, s3.ErrKeys):
		e.failures++
	}
	e.mu.Unlock()
}

func (e *Executor) do(k *namespace.Task) error {
	var r result
	var err error
	// The bucket must not be ahead of the journal that a power cut leaves: a name would be seen beside the one that it
	// replaced, and the source of a copy that the journal still needs would be gone.
	if err := e.tree.Sync(); err != nil {
		return err
	}
	switch k.Verb {
	case namespace.Put:
		r, err = e.put(e.ctx, k)
	case namespace.Copy:
		r, err = e.copy(e.ctx, k)
	case namespace.Delete:
		r.info, err = e.delete(e.ctx, k)
	case namespace.Move:
		r.moved, err = e.move(e.ctx, k)
	case namespace.Purge:
		err = e.purge(e.ctx, k)
	case namespace.Spill:
		r, err = e.spill(e.ctx, k)
	default:
		err = fmt.Errorf("task of verb %d: %w", k.Verb, errors.ErrUnsupported)
	}
	if err != nil {
		return err
	}
	switch {
	case r.snap == nil:
		err = e.tree.Commit(k, r.info, r.moved, nil)
	case k.Verb == namespace.Spill:
		defer r.snap.Release()
		err = e.tree.Commit(k, r.info, nil, e.unlessPoisoned(func(recs ...journal.Record) error {
			return r.snap.Spill(k.Number, r.spill.Off, r.spill.End, recs...)
		}))
	default:
		defer r.snap.Release()
		err = e.tree.Commit(k, r.info, r.moved, e.unlessPoisoned(r.snap.Commit))
	}
	if err != nil {
		// The bucket has it, the journal does not: after a restart it is found by its write-id and done again.
		e.log.Error("commit was not journaled", "ino", k.Ino, "key", string(k.Key), "err", err)
		return endedError{err}
	}
	return nil
}

// unlessPoisoned writes the tree's records alone when the disk has failed the file since its snapshot was sent: the bucket has
// what it has, and a journal that is well is not to end all other files' work.
func (e *Executor) unlessPoisoned(write func(...journal.Record) error) func(...journal.Record) error {
	return func(recs ...journal.Record) error {
		err := write(recs...)
		if errors.Is(err, cache.ErrPoisoned) {
			return e.ledger.j.Append(recs...)
		}
		return err
	}
}

// delete removes the task's object. What it leaves, because it is not ours, is returned.
func (e *Executor) delete(ctx context.Context, k *namespace.Task) (s3.Info, error) {
	if !k.Unsure && k.Source.ETag != "" {
		if err := e.bucket.DeleteIf(ctx, k.Key, k.Source.ETag); !errors.Is(err, s3.ErrPrecondition) {
			return s3.Info{}, err
		}
	}
	info, err := e.bucket.Head(ctx, k.Key)
	switch {
	case errors.Is(err, s3.ErrNotExist):
		return s3.Info{}, nil
	case err != nil:
		return s3.Info{}, err
	case (k.Unsure || info.ETag != k.Source.ETag) && !e.tree.Ours(k, info):
		return info, nil
	}
	return s3.Info{}, e.bucket.DeleteIf(ctx, k.Key, info.ETag)
}

// endedError: the tree knows already that the task is over.
type endedError struct{ error }

func (e endedError) Unwrap() error { return e.error }

// refuse ends a task that did not succeed.
func (e *Executor) refuse(k *namespace.Task, err error) error {
	var taken *takenError
	var ended endedError
	switch {
	case errors.As(err, &ended):
		return err
	case errors.Is(err, errUnneeded):
		e.tree.Drop(k)
		return nil
	case k.SrcPrefix != "":
		// Of a directory. What others changed is one of its objects, and no reason to end it: the next attempt sees what is
		// there now.
		return e.retry(k, err)
	case errors.As(err, &taken) && taken.ours:
		e.tree.Adopt(k, *taken.found)
		return nil
	}
	if gone, found := e.recheck(k, &err); gone {
		return e.salvage(k, found, err)
	}
	if errors.As(err, &taken) {
		kept, cerr := e.told(k, func() (string, error) { return e.tree.Conflict(k, taken.found) })
		e.log.Warn("object was changed by others", "ino", k.Ino, "key", string(k.Key), "kept", kept, "err", err)
		return cerr
	}
	return e.retry(k, err)
}

// retry puts a task that failed back, for a while, and returns err.
func (e *Executor) retry(k *namespace.Task, err error) error {
	wait := backoff(k.Attempts)
	e.tree.Fail(k, err, e.opt.Now().Add(wait))
	e.log.Warn("write-back failed", "ino", k.Ino, "key", string(k.Key), "attempt", k.Attempts+1, "retry", wait, "err", err)
	return err
}

// told ends a task by tell. When the file has another name then, Options.Conflict hears of it and it is counted. The
// file may be in the bucket under that name before, so a Flush waits for the end of told.
func (e *Executor) told(k *namespace.Task, tell func() (kept string, err error)) (kept string, err error) {
	e.mu.Lock()
	e.judged[k.Ino]++
	e.mu.Unlock()
	kept, err = tell()
	if err == nil && kept != "" && e.opt.Conflict != nil {
		e.opt.Conflict(k.Ino, kept)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if kept != "" {
		e.conflicts[k.Ino]++
	}
	if e.judged[k.Ino]--; e.judged[k.Ino] == 0 {
		delete(e.judged, k.Ino)
	}
	return kept, err
}

// backoff is the pause after so many failures: random, so that the tasks of many nodes do not come back together.
func backoff(failures int) time.Duration {
	limit := min(maxPause, minPause<<min(failures, 16))
	return minPause + rand.N(limit)
}

// sleep waits for d, or returns ctx's error.
func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// transient says that the same request may succeed later, without anything else being done.
func transient(err error) bool {
	for _, t := range []error{s3.ErrUnavailable, s3.ErrCorrupt, s3.ErrAuth, s3.ErrFull, s3.ErrNoBucket} {
		if errors.Is(err, t) {
			return true
		}
	}
	return false
}

// persist repeats one request of a long task while its error is transient.
func persist[T any](ctx context.Context, request func() (T, error)) (T, error) {
	for failures := 0; ; failures++ {
		v, err := request()
		if err == nil || !transient(err) || failures+1 >= attempts {
			return v, err
		}
		if serr := sleep(ctx, backoff(failures)); serr != nil {
			return v, errors.Join(serr, err)
		}
	}
}
