package fetch

import (
	"container/list"
	"context"
	"math/bits"
	"sync"
)

// budget bounds the requests in flight and the memory of their buffers. Those who wait are served in their order.
type budget struct {
	keepSlots int   // what attempts of try leave free
	keepBytes int64 // in bytes

	mu    sync.Mutex
	slots int        // guarded by mu: free
	bytes int64      // guarded by mu: free
	queue *list.List // guarded by mu: of *claim
}

type claim struct {
	bytes   int64
	granted chan struct{}
}

func newBudget(slots int, bytes int64) *budget {
	return &budget{slots: slots, bytes: bytes, keepSlots: slots / 4, keepBytes: bytes / 4, queue: list.New()}
}

// acquire takes one slot and n bytes, or returns ctx's error.
func (b *budget) acquire(ctx context.Context, n int64) error {
	b.mu.Lock()
	if b.queue.Len() == 0 && b.slots > 0 && b.bytes >= n {
		b.slots--
		b.bytes -= n
		b.mu.Unlock()
		return nil
	}
	c := &claim{n, make(chan struct{})}
	e := b.queue.PushBack(c)
	b.mu.Unlock()
	select {
	case <-c.granted:
		return nil
	case <-ctx.Done():
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	select {
	case <-c.granted:
		b.giveLocked(n)
	default:
		b.queue.Remove(e)
		b.grantLocked() // those behind may want less
	}
	return ctx.Err()
}

// try takes one slot and n bytes if a quarter of all stays free after that and nobody waits.
func (b *budget) try(n int64) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.queue.Len() > 0 || b.slots-1 < b.keepSlots || b.bytes-n < b.keepBytes {
		return false
	}
	b.slots--
	b.bytes -= n
	return true
}

// release gives back what acquire or try took.
func (b *budget) release(n int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.giveLocked(n)
}

func (b *budget) giveLocked(n int64) {
	b.slots++
	b.bytes += n
	b.grantLocked()
}

func (b *budget) grantLocked() {
	for e := b.queue.Front(); e != nil; e = b.queue.Front() {
		c := e.Value.(*claim)
		if b.slots == 0 || b.bytes < c.bytes {
			return
		}
		b.slots--
		b.bytes -= c.bytes
		close(c.granted)
		b.queue.Remove(e)
	}
}

// buffers recycles buffers of powers of two.
type buffers struct{ pools [48]sync.Pool }

// minBuffer is the smallest buffer, in bytes.
const minBuffer = 4 << 10

// bufferSize is how many bytes a buffer for n bytes takes.
func bufferSize(n int64) int64 {
	if n <= minBuffer {
		return minBuffer
	}
	return 1 << bits.Len64(uint64(n-1))
}

func (b *buffers) get(n int64) *[]byte {
	size := bufferSize(n)
	if v, ok := b.pools[bits.Len64(uint64(size))].Get().(*[]byte); ok {
		return v
	}
	p := make([]byte, size)
	return &p
}

func (b *buffers) put(p *[]byte) { b.pools[bits.Len(uint(len(*p)))].Put(p) }
