package fuse

import (
	"fmt"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	// largeBuffer has room for the largest answer and request, and is whole pages whatever their size.
	largeBuffer = maxIO + 64<<10
	// arenaBuffers is how many large buffers there are before the heap must help out.
	arenaBuffers = 512
	// warmBuffers is how many free ones keep their memory.
	warmBuffers = 8
)

// arena is the memory of large answers, and of large requests that left their slot: one for the process. The room for
// an answer is needed before its request is carried out, and a read may wait for S3 for hours. On the heap, a hundred
// such reads would make the garbage collector run for ever to get back what it cannot. Here a buffer takes up memory
// only when it is filled, and gives it back.
type arena struct {
	mem []byte

	mu    sync.Mutex
	warm  [][]byte // free, with memory
	fresh [][]byte // free, without
}

func newArena() (*arena, error) {
	mem, err := unix.Mmap(-1, 0, arenaBuffers*largeBuffer, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE)
	if err != nil {
		return nil, fmt.Errorf("address space for answers: %w", err)
	}
	// A huge page would give memory to buffers that are not filled. A kernel without huge pages refuses, and need not
	// be told.
	_ = unix.Madvise(mem, unix.MADV_NOHUGEPAGE)
	a := &arena{mem: mem}
	for i := range arenaBuffers {
		a.fresh = append(a.fresh, mem[i*largeBuffer:(i+1)*largeBuffer:(i+1)*largeBuffer])
	}
	return a, nil
}

// get returns a buffer with any content, nil when none is free.
func (a *arena) get() []byte {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, free := range []*[][]byte{&a.warm, &a.fresh} {
		if last := len(*free) - 1; last >= 0 {
			p := (*free)[last]
			*free = (*free)[:last]
			return p
		}
	}
	return nil
}

// put takes a buffer of get back.
func (a *arena) put(p []byte) {
	a.mu.Lock()
	if len(a.warm) < warmBuffers {
		a.warm = append(a.warm, p)
		a.mu.Unlock()
		return
	}
	a.mu.Unlock()
	_ = unix.Madvise(p, unix.MADV_DONTNEED) // at worst it keeps its memory
	a.mu.Lock()
	a.fresh = append(a.fresh, p)
	a.mu.Unlock()
}

// owns says whether p came from get.
func (a *arena) owns(p []byte) bool {
	from := uintptr(unsafe.Pointer(unsafe.SliceData(a.mem)))
	at := uintptr(unsafe.Pointer(unsafe.SliceData(p)))
	return at >= from && at < from+uintptr(len(a.mem))
}
