package fuse

import (
	"testing"

	"golang.org/x/sys/unix"
)

// resident is how many bytes of memory the arena has.
func resident(t *testing.T, a *arena) int {
	t.Helper()
	page := unix.Getpagesize()
	pages := make([]byte, len(a.mem)/page)
	if _, _, errno := unix.Syscall(unix.SYS_MINCORE, addressOf(a.mem), uintptr(len(a.mem)), addressOf(pages)); errno != 0 {
		t.Fatal(errno)
	}
	n := 0
	for _, p := range pages {
		n += int(p&1) * page
	}
	return n
}

// Buffers take memory when they are filled, and only a few keep it.
func TestArenaMemory(t *testing.T) {
	a, err := newArena()
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Munmap(a.mem)
	b := buffers{large: a}
	const n = 4 * warmBuffers
	var taken [][]byte
	for range n {
		p := b.get(maxIO)
		p[0] = 1
		taken = append(taken, p)
	}
	if got := resident(t, a); got > n*64<<10 {
		t.Errorf("%d buffers with one byte each have %d bytes of memory", n, got)
	}
	for i, p := range taken {
		for j := range p {
			p[j] = byte(i)
		}
	}
	if got := resident(t, a); got < n*maxIO {
		t.Errorf("full buffers have %d bytes of memory", got)
	}
	for i, p := range taken {
		if p[0] != byte(i) || p[maxIO-1] != byte(i) {
			t.Errorf("buffer %d shares its memory", i)
		}
		b.put(p)
	}
	if got := resident(t, a); got > warmBuffers*largeBuffer {
		t.Errorf("free buffers have %d bytes of memory, want at most %d", got, warmBuffers*largeBuffer)
	}
}

// When the arena has no more, the heap helps out, and what is the heap's never gets into the arena.
func TestArenaExhausted(t *testing.T) {
	a, err := newArena()
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Munmap(a.mem)
	b := buffers{large: a}
	var taken [][]byte
	for i := range arenaBuffers + 10 {
		p := b.get(largeBuffer)
		if a.owns(p) != (i < arenaBuffers) {
			t.Fatalf("buffer %d: of the arena %v", i, a.owns(p))
		}
		taken = append(taken, p)
	}
	for _, p := range taken {
		b.put(p[:1])
	}
	if got := len(a.warm) + len(a.fresh); got != arenaBuffers {
		t.Errorf("the arena has %d buffers, want %d", got, arenaBuffers)
	}
	for _, p := range [][]byte{nil, {}, make([]byte, largeBuffer), b.get(10)} {
		if a.owns(p) {
			t.Errorf("the arena owns %d bytes of the heap", len(p))
		}
		b.put(p)
	}
	if p := b.get(largeBuffer + 1); a.owns(p) {
		t.Error("a buffer larger than the arena's is the arena's")
	}
}
