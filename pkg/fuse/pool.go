package fuse

import (
	"errors"
	"fmt"
	"sync"

	"golang.org/x/sys/unix"
)

const (
	// maxIO is the payload of the largest READ and WRITE in bytes, the kernel's default limit.
	maxIO = 1 << 20
	// slotSize has room for the headers of a WRITE too, and for the largest other request.
	slotSize = maxIO + 8<<10
	slots    = 24
	// scarce is how many slots must be free for a request to keep its own while it is carried out.
	scarce = 8
)

// pool is the memory that requests are read into: one for the process, since it is dear and most mounts are idle. The
// garbage collector does not see it.
type pool struct {
	free  chan []byte
	large *arena // of the requests' answers
}

// sharedPool makes the pool with the first mount.
var sharedPool = sync.OnceValues(newPool)

func newPool() (*pool, error) {
	fd, err := unix.MemfdCreate("csi-s3-requests", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("memory for requests: %w", err)
	}
	defer unix.Close(fd) //nolint:errcheck // the mapping keeps the memory
	if err := unix.Ftruncate(fd, slots*slotSize); err != nil {
		return nil, fmt.Errorf("memory for requests: %w", err)
	}
	mem, err := unix.Mmap(fd, 0, slots*slotSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_POPULATE)
	if err != nil {
		return nil, fmt.Errorf("memory for requests: %w", err)
	}
	large, err := newArena()
	if err != nil {
		return nil, errors.Join(err, unix.Munmap(mem))
	}
	p := &pool{free: make(chan []byte, slots), large: large}
	for i := range slots {
		p.free <- mem[i*slotSize : (i+1)*slotSize : (i+1)*slotSize]
	}
	return p, nil
}

func (p *pool) get() []byte { return <-p.free }

func (p *pool) put(slot []byte) { p.free <- slot[:slotSize] }

// scarce says that a request should leave its slot to others.
func (p *pool) scarce() bool { return len(p.free) < scarce }

// buffers are for answers and for requests that left their slot. Small ones are on the heap, large ones in the
// arena, if there is one.
type buffers struct {
	small sync.Pool
	large *arena
}

const smallBuffer = 16 << 10

func (b *buffers) get(n int) []byte {
	if n <= smallBuffer {
		if p, ok := b.small.Get().(*[]byte); ok {
			return (*p)[:n]
		}
		return make([]byte, n, smallBuffer)
	}
	if b.large != nil && n <= largeBuffer {
		if p := b.large.get(); p != nil {
			return p[:n]
		}
	}
	return make([]byte, n)
}

func (b *buffers) put(p []byte) {
	switch {
	case b.large != nil && b.large.owns(p):
		b.large.put(p[:largeBuffer])
	case cap(p) == smallBuffer:
		p = p[:0]
		b.small.Put(&p)
	}
}
