package fetch

import (
	"math/rand/v2"
	"testing"

	"github.com/csi-s3/csi-s3/pkg/cache"
)

// reads feeds reads of n bytes at these offsets to a fetcher's eye and returns what it wants ahead after the last.
func reads(x *Fetcher, n int64, offs ...int64) (from, to int64) {
	for _, off := range offs {
		_, from, to = x.observe(1, off, off+n)
	}
	return from, to
}

// From the start of a file the first read is a stream, elsewhere the second one.
func TestPatternStarts(t *testing.T) {
	x := New(nil, Options{})
	defer x.Close()
	if from, to := reads(x, 4096, 0); from != 4096 || to != 4096+firstWindow {
		t.Errorf("at the start: [%d, %d)", from, to)
	}
	x.Forget(1)
	const far = 100 << 20
	if from, to := reads(x, 4096, far); from != to {
		t.Errorf("one read in the middle: [%d, %d)", from, to)
	}
	if from, to := reads(x, 4096, far+4096); from != far+8192 || to != far+8192+firstWindow {
		t.Errorf("two reads in the middle: [%d, %d)", from, to)
	}
	x.Forget(1)
	if from, to := reads(x, 4096, far+8192); from != to {
		t.Errorf("after Forget: [%d, %d)", from, to)
	}
}

// The window doubles to its limit and no byte is asked for twice.
func TestPatternGrows(t *testing.T) {
	x := New(nil, Options{})
	defer x.Close()
	const n = 128 << 10
	last, widest := int64(n), int64(0)
	for off := int64(0); off < 512<<20; off += n {
		_, from, to := x.observe(1, off, off+n)
		if from >= to {
			continue
		}
		if from != last {
			t.Fatalf("at %d: from %d, the last one ended at %d", off, from, last)
		}
		last = to
		widest = max(widest, to-(off+n))
	}
	if widest != maxWindow {
		t.Errorf("at most %d ahead, want %d", widest, int64(maxWindow))
	}
}

// Four readers of one file are told apart, also when their reads come a little out of order; jumps are none.
func TestPatternStreams(t *testing.T) {
	x := New(nil, Options{})
	defer x.Close()
	const n = 64 << 10
	var ahead [maxStreams]int64
	for i := range int64(64) {
		for s := range int64(maxStreams) {
			off := s<<30 + (i^1)*n // pairs are swapped
			_, from, to := x.observe(1, off, off+n)
			ahead[s] += to - from
		}
	}
	for s, sum := range ahead {
		if sum < 64*n {
			t.Errorf("stream %d: %d bytes ahead of %d", s, sum, 64*n)
		}
	}
	random := rand.New(rand.NewPCG(1, 2))
	for range 1000 {
		off := 1<<20 + random.Int64N(1<<45)
		if _, from, to := x.observe(2, off, off+n); from < to {
			t.Fatalf("[%d, %d) ahead of a jump", from, to)
		}
	}
}

// What could not be started is asked for again.
func TestPatternCutShort(t *testing.T) {
	x := New(nil, Options{})
	defer x.Close()
	const n = 128 << 10
	s, from, to := x.observe(1, 0, n)
	x.cameTo(1, s, to, from+n)
	if _, again, _ := x.observe(1, n, 2*n); again != from+n {
		t.Errorf("from %d, want %d", again, from+n)
	}
	x.cameTo(2, 0, 1, 1) // of nobody
}

// However many files are read, little is kept of them.
func TestPatternsAreBounded(t *testing.T) {
	x := New(nil, Options{})
	defer x.Close()
	for id := range 3 * maxPatterns {
		x.observe(cache.ID(id), 0, 1)
	}
	if n := len(x.patterns); n != maxPatterns {
		t.Errorf("%d patterns", n)
	}
}
