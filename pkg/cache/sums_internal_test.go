package cache

import (
	"hash/crc32"
	"math/rand/v2"
	"testing"
)

// Whatever is stored and dropped, each sum is that of the bytes that are there.
func TestSumsAgainstBytes(t *testing.T) {
	const size = 40 * block
	for seed := range uint64(15) {
		rnd := rand.New(rand.NewPCG(seed, 31))
		data := make([]byte, size)
		s := sums{}
		for step := range 60 {
			off := rnd.Int64N(size)
			if rnd.IntN(2) == 0 {
				off -= off % block
			}
			end := min(size, off+1+rnd.Int64N([]int64{100, block, 5 * block, size}[rnd.IntN(4)]))
			s.forget(off, end)
			if rnd.IntN(3) > 0 {
				for i := off; i < end; i++ {
					data[i] = byte(rnd.Uint32())
				}
				for pos := off; pos < end; { // in pieces
					to := min(end, pos+1+rnd.Int64N(2*block))
					s.note(data[pos:to], pos)
					pos = to
				}
			}
			for b := range int64(size / block) {
				at := s.at(b)
				if at == nil || at.Load() == 0 {
					continue
				}
				x := sum(at.Load())
				if x.len() > block || crc32.Checksum(data[b*block:b*block+x.len()], castagnoli) != x.crc() {
					t.Fatalf("seed %d step %d: block %d has a wrong sum of %d bytes", seed, step, b, x.len())
				}
			}
		}
	}
}

// A range that is dropped has no sums, and nothing else loses its own.
func TestSumsForget(t *testing.T) {
	data := make([]byte, 40*block)
	for i := range data {
		data[i] = byte(i * 7)
	}
	for _, c := range []struct{ off, end int64 }{
		{0, 1}, {0, block}, {block - 1, block + 1}, {16 * block, 32 * block}, {15*block + 5, 33*block + 5}, {0, 40 * block}, {5, 5}, {1 << 40, 1 << 50},
	} {
		s := sums{}
		s.note(data, 0)
		s.forget(c.off, c.end)
		for b := range int64(40) {
			at := s.at(b)
			has := at != nil && at.Load() != 0
			if gone := c.off < c.end && b*block < c.end && c.off < (b+1)*block; has == gone {
				t.Errorf("[%d, %d): block %d has a sum: %v", c.off, c.end, b, has)
			}
		}
	}
	// The start of a block keeps its sum when only what follows is dropped.
	s := sums{}
	s.note(data[:100], 0)
	s.forget(100, block)
	if x := sum(s.at(0).Load()); x.len() != 100 {
		t.Errorf("the sum is of %d bytes, want 100", x.len())
	}
	s.note(data[100:block], 100)
	if x := sum(s.at(0).Load()); x.len() != block || x.crc() != crc32.Checksum(data[:block], castagnoli) {
		t.Errorf("stored in two pieces, the sum is of %d bytes", x.len())
	}
}
