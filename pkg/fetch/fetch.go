package fetch

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"

	"github.com/csi-s3/csi-s3/pkg/cache"
	"github.com/csi-s3/csi-s3/pkg/s3"
)

// ErrClosed: the Fetcher was closed.
var ErrClosed = errors.New("fetcher is closed")

// Source is a remote object that holds bytes of a file.
type Source struct {
	Key  s3.Key
	ETag s3.ETag // requests are pinned to it; empty pins nothing
	Size int64   // bytes
	Off  int64   // where in the file its first byte is
}

// Locate tells which object is behind the missing byte of a file at off, and up to where it is behind all that is
// missing, at the moment of the call. It must ask whoever owns that knowledge and not return a remembered answer, except
// when the caller knows that it cannot change.
type Locate func(off int64) (src Source, end int64, err error)

// Options of a Fetcher. The zero value works.
type Options struct {
	Parallel int   // GETs at once, 0 means 16
	Memory   int64 // bytes of buffers in flight, 0 means 32 MiB
	Chunk    int64 // bytes that one GET asks for at most, 0 means 1 MiB
}

// Fetcher fills the files of one volume. Safe for concurrent use.
type Fetcher struct {
	bucket s3.Bucket
	chunk  int64
	budget *budget
	bufs   buffers

	ctx    context.Context // ends with Close: flights outlive the readers that started them
	cancel context.CancelFunc
	wg     sync.WaitGroup // running flights and calls of Direct

	mu       sync.Mutex
	closed   bool                   // guarded by mu
	queues   map[*cache.File]*queue // guarded by mu: files with flights or callers
	patterns map[cache.ID]*pattern  // guarded by mu

	requests, bytes, ahead atomic.Int64
}

// New makes a Fetcher on bucket. The caller closes it.
func New(bucket s3.Bucket, opt Options) *Fetcher {
	if opt.Parallel <= 0 {
		opt.Parallel = 16
	}
	if opt.Memory <= 0 {
		opt.Memory = 32 << 20
	}
	if opt.Chunk <= 0 {
		opt.Chunk = 1 << 20
	}
	opt.Memory = max(opt.Memory, bufferSize(opt.Chunk))
	x := &Fetcher{
		bucket: bucket, chunk: opt.Chunk, budget: newBudget(opt.Parallel, opt.Memory),
		queues: map[*cache.File]*queue{}, patterns: map[cache.ID]*pattern{},
	}
	x.ctx, x.cancel = context.WithCancel(context.Background())
	return x
}

// Close breaks all requests off and waits for them. Callers that wait get ErrClosed.
func (x *Fetcher) Close() {
	x.mu.Lock()
	x.closed = true
	x.mu.Unlock()
	x.cancel()
	x.wg.Wait()
}

// Stats counts since New.
type Stats struct {
	Requests int64 // GETs
	Bytes    int64 // bytes received
	Ahead    int64 // of these, bytes that nobody had asked for yet
}

// Stats is O(1).
func (x *Fetcher) Stats() Stats {
	return Stats{Requests: x.requests.Load(), Bytes: x.bytes.Load(), Ahead: x.ahead.Load()}
}
