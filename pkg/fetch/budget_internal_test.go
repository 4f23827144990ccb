package fetch

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// whole fails unless everything was given back.
func whole(t *testing.T, b *budget, slots int, bytes int64) {
	t.Helper()
	if b.slots != slots || b.bytes != bytes || b.queue.Len() != 0 {
		t.Errorf("%d slots and %d bytes are free, %d wait", b.slots, b.bytes, b.queue.Len())
	}
}

// Who asks for much is not passed for ever by those who ask for little.
func TestBudgetIsInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBudget(10, 100)
		ctx := t.Context()
		if err := b.acquire(ctx, 60); err != nil {
			t.Fatal(err)
		}
		var order []int64
		var mu sync.Mutex
		want := func(n int64) {
			go func() {
				if err := b.acquire(ctx, n); err != nil {
					t.Error(err)
				}
				mu.Lock()
				defer mu.Unlock()
				order = append(order, n)
			}()
			synctest.Wait()
		}
		want(90)
		want(10) // there is room for it, but not its turn
		mu.Lock()
		if len(order) != 0 {
			t.Errorf("%v did not wait", order)
		}
		mu.Unlock()
		if b.try(1) {
			t.Error("readahead passed those who wait")
		}
		b.release(60)
		synctest.Wait()
		mu.Lock()
		if len(order) != 2 {
			t.Errorf("%v", order)
		}
		mu.Unlock()
		b.release(90)
		b.release(10)
		whole(t, b, 10, 100)
	})
}

// Who gives up frees the way for those behind, and what was granted in the same moment goes back.
func TestBudgetGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBudget(10, 100)
		if err := b.acquire(t.Context(), 60); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		var failed error
		go func() { failed = b.acquire(ctx, 90) }()
		synctest.Wait()
		var served atomic.Bool
		go func() {
			if err := b.acquire(t.Context(), 40); err != nil {
				t.Error(err)
			}
			served.Store(true)
		}()
		synctest.Wait()
		if served.Load() {
			t.Error("passed")
		}
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if !errors.Is(failed, context.DeadlineExceeded) || !served.Load() {
			t.Errorf("the first: %v, the second served: %v", failed, served.Load())
		}
		b.release(60)
		b.release(40)
		whole(t, b, 10, 100)
	})
	// Grants and ends of contexts at the same moment.
	b := newBudget(3, 30)
	var now, most atomic.Int64
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			random := rand.New(rand.NewPCG(uint64(i), 5))
			for range 300 {
				n := random.Int64N(31)
				ctx, cancel := context.WithTimeout(t.Context(), time.Duration(random.IntN(200))*time.Microsecond)
				if i == 7 {
					if b.try(n) {
						b.release(n)
					}
				} else if b.acquire(ctx, n) == nil {
					if m := now.Add(n); m > most.Load() {
						most.Store(m)
					}
					time.Sleep(time.Duration(random.IntN(50)) * time.Microsecond)
					now.Add(-n)
					b.release(n)
				}
				cancel()
			}
		})
	}
	wg.Wait()
	if m := most.Load(); m > 30 {
		t.Errorf("%d bytes at once", m)
	}
	whole(t, b, 3, 30)
}

// Readahead leaves a quarter of everything to readers.
func TestBudgetForReadahead(t *testing.T) {
	b := newBudget(8, 1000)
	n := 0
	for b.try(10) {
		n++
	}
	if n != 6 {
		t.Errorf("%d of 8 slots were taken", n)
	}
	for range n {
		b.release(10)
	}
	if b.try(751) || !b.try(750) {
		t.Error("bytes: three quarters and no more")
	}
	b.release(750)
	whole(t, b, 8, 1000)
}

func TestBuffers(t *testing.T) {
	var bufs buffers
	for n, want := range map[int64]int64{0: 4096, 1: 4096, 4096: 4096, 4097: 8192, 1 << 20: 1 << 20, 1<<20 + 1: 2 << 20} {
		if size := bufferSize(n); size != want {
			t.Errorf("%d bytes take %d, want %d", n, size, want)
		}
		p := bufs.get(n)
		if int64(len(*p)) != want {
			t.Errorf("buffer of %d for %d", len(*p), n)
		}
		bufs.put(p)
		if q := bufs.get(n); int64(len(*q)) != want {
			t.Errorf("recycled buffer of %d for %d", len(*q), n)
		}
	}
}
