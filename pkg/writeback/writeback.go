package writeback

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/csi-s3/csi-s3/pkg/cache"
	"github.com/csi-s3/csi-s3/pkg/fetch"
	"github.com/csi-s3/csi-s3/pkg/inode"
	"github.com/csi-s3/csi-s3/pkg/journal"
	"github.com/csi-s3/csi-s3/pkg/namespace"
	"github.com/csi-s3/csi-s3/pkg/s3"
)

// ErrConflict: somebody else wrote the object meanwhile; theirs keeps the name, ours was kept under another one.
var ErrConflict = errors.New("the file was changed by others in the bucket")

// ErrStopped: the Executor was stopped before the work was done. It goes on with the next start.
var ErrStopped = errors.New("write-back was stopped")

// ErrHalted: Halt has ended the Executor. What is not in the bucket does not get there from here any more.
var ErrHalted = errors.New("write-back has ended for good")

// Options of an Executor. The zero value works.
type Options struct {
	Uploads int // multipart uploads at once, 0 means 4
	Parts   int // parts in flight, of all uploads together, 0 means 8
	Meta    int // short requests at once, uploads of small files included, 0 means 16

	SinglePut int64   // the largest file, in bytes, that is sent by one PUT, 0 means 16 MiB
	Part      int64   // size of the first parts in bytes, 0 means 8 MiB; later ones are 8, 64 and 128 times as large
	MaxCopy   int64   // the largest object, in bytes, that one copy request may copy, 0 means 5 GiB
	HighWater float64 // part of the cache's capacity above which writers are slowed down, 0 means 0.8
	// Shared says that others write to the volume too: then an upload whose creation was not answered cannot be told from
	// theirs, and is left to the server.
	Shared bool
	// Patience is how long a writer waits at the cache's hard limit without any upload going on, 0 means for ever.
	Patience time.Duration

	// Conflict hears of a file whose name somebody else's object took: ours is now called kept. A Flush does not return
	// before it does. It is called without locks and must not wait for the Executor.
	Conflict func(ino inode.Ino, kept string)
	// Aside hears of somebody else's object that stood at key, where a directory moves to: it is now at kept. A failed move
	// may tell of one again. It is called as Conflict is, by several goroutines at once.
	Aside func(key, kept s3.Key)

	Log *slog.Logger     // nil: silent
	Now func() time.Time // nil: time.Now
}

// Executor carries out the tasks of one volume's tree.
type Executor struct {
	tree    *namespace.Tree
	store   *cache.Store
	fetcher *fetch.Fetcher
	bucket  s3.Bucket
	opt     Options
	log     *slog.Logger

	short, uploads, parts, trees slots

	stopping context.Context // ends when no new task may begin
	stop     context.CancelFunc
	ctx      context.Context // of the running tasks
	cancel   context.CancelFunc
	wg       sync.WaitGroup // the loop and the running tasks

	ledger ledger // of multipart uploads

	ended pulse // beats when a task has ended, and when the tree has looked what is left

	halted atomic.Pointer[error] // why nothing is sent any more, nil while it is

	steps   atomic.Uint64 // of uploads and other tasks: signs that the server takes what it is sent
	failing atomic.Bool   // the last request failed
	lists   atomic.Bool   // uploads could be listed

	tagsKept atomic.Bool // a copy had the ETag of its source
	tagsLost atomic.Bool // a copy in one piece, of an object in one piece, had another

	mu        sync.Mutex
	running   int               // guarded by mu: tasks
	frozen    int               // guarded by mu: of these, those that keep a file's bytes from being evicted
	done      uint64            // guarded by mu: tasks that succeeded
	failures  int               // guarded by mu: tasks in a row that found the server unavailable, or the keys not valid
	lastErr   error             // guarded by mu: of the last task that failed, nil after a success
	conflicts map[inode.Ino]int // guarded by mu: how many there were
	judged    map[inode.Ino]int // guarded by mu: tasks whose conflict is being told to the tree and to Options.Conflict
	relieved  uint64            // guarded by mu: changes and tasks done at the last relieve
}

// New makes an Executor. Replay, then Recover, then Start.
func New(tree *namespace.Tree, store *cache.Store, fetcher *fetch.Fetcher, bucket s3.Bucket, opt Options) *Executor {
	defaults(&opt.Uploads, 4)
	defaults(&opt.Parts, 8)
	defaults(&opt.Meta, 16)
	defaults(&opt.SinglePut, 16<<20)
	defaults(&opt.Part, 8<<20)
	defaults(&opt.MaxCopy, 5<<30)
	defaults(&opt.HighWater, 0.8)
	if opt.Log == nil {
		opt.Log = slog.New(slog.DiscardHandler)
	}
	if opt.Now == nil {
		opt.Now = time.Now
	}
	e := &Executor{
		tree: tree, store: store, fetcher: fetcher, bucket: bucket, opt: opt, log: opt.Log,
		short: newSlots(opt.Meta), uploads: newSlots(opt.Uploads), parts: newSlots(opt.Parts), trees: newSlots(2),
		conflicts: map[inode.Ino]int{}, judged: map[inode.Ino]int{}, ledger: ledger{open: map[uint64]*upload{}},
	}
	e.stopping, e.stop = context.WithCancel(context.Background())
	e.ctx, e.cancel = context.WithCancel(context.Background())
	return e
}

func defaults[T int | int64 | float64 | time.Duration](v *T, d T) {
	if *v <= 0 {
		*v = d
	}
}

// Replay takes one record of the write-back's kinds while the journal opens.
func (e *Executor) Replay(rec journal.Record) error { return e.ledger.replay(rec) }

// Recover ends the replay; j takes the Executor's records from here on.
func (e *Executor) Recover(j *journal.Journal) { e.ledger.j = j }

// Dump emits records that rebuild the present state, for a checkpoint of the journal.
func (e *Executor) Dump(emit func(...journal.Record) error) error { return e.ledger.dump(emit) }

// Start begins to carry out tasks. Call it once.
func (e *Executor) Start() {
	e.wg.Add(2)
	// Both end with Stop, which waits for them.
	go e.loop()
	go e.sweeper()
}

// Stop begins no new task and waits for the running ones. When ctx ends first, their requests are broken off; the error
// is then ctx's. What is not in the bucket stays in the journal and the cache.
func (e *Executor) Stop(ctx context.Context) error {
	e.stop()
	defer e.cancel()
	idle := make(chan struct{})
	// Ends with the last task, soon after its request was broken off.
	go func() {
		e.wg.Wait()
		close(idle)
	}()
	select {
	case <-idle:
		return nil
	case <-ctx.Done():
	}
	e.cancel()
	<-idle
	return ctx.Err()
}

// Halt ends the Executor for good, because of why: no task begins any more, running requests are broken off, and a Flush
// with something to wait for fails with ErrHalted and why. The tree, the cache and the journal stay as they are. Only the
// first why counts. Stop is still to be called.
func (e *Executor) Halt(why error) {
	err := fmt.Errorf("%w: %w", ErrHalted, why)
	if e.halted.CompareAndSwap(nil, &err) {
		e.stop()
		e.cancel()
	}
}

// Halted is ErrHalted with the reason of Halt, nil before it.
func (e *Executor) Halted() error {
	if err := e.halted.Load(); err != nil {
		return *err
	}
	return nil
}

// Status is what an Executor does.
type Status struct {
	Running    int       // tasks
	Queue      int       // inodes with changes that the bucket does not hold, running ones included
	Oldest     time.Time // of these changes, zero when there is none
	DirtyBytes int64
	DirtyFiles int
	Done       uint64 // tasks that succeeded since Start
	LastError  error  // Halted, or of the last task that failed, nil once one succeeded after it
}

// Status is cheap and waits for nothing.
func (e *Executor) Status() Status {
	t, u := e.tree.Stats(), e.store.Usage()
	e.mu.Lock()
	defer e.mu.Unlock()
	s := Status{
		Running: e.running, Queue: t.Unsettled, Oldest: t.Oldest, DirtyBytes: u.Dirty, DirtyFiles: u.DirtyFiles,
		Done: e.done, LastError: e.lastErr,
	}
	if s.LastError == nil {
		s.LastError = t.LastError
	}
	if halted := e.Halted(); halted != nil {
		s.LastError = halted
	}
	return s
}

// slots bounds how much of one kind is under way.
type slots struct{ free chan struct{} }

func newSlots(n int) slots { return slots{make(chan struct{}, n)} }

// acquire takes a slot, or returns ctx's error.
func (s slots) acquire(ctx context.Context) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	select {
	case s.free <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (s slots) release() { <-s.free }

// pulse wakes all who wait, again and again.
type pulse struct {
	mu sync.Mutex
	ch chan struct{} // guarded by mu
}

// next is closed at the next beat.
func (p *pulse) next() <-chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ch == nil {
		p.ch = make(chan struct{})
	}
	return p.ch
}

func (p *pulse) beat() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ch != nil {
		close(p.ch)
		p.ch = nil
	}
}
