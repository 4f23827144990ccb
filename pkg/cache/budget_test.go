package cache_test

import (
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/csi-s3/csi-s3/pkg/cache"
	"github.com/csi-s3/csi-s3/pkg/disk/diskfault"
	"github.com/csi-s3/csi-s3/pkg/disk/diskmem"
)

const kib = 1 << 10

// sharing makes stores that share so many bytes.
func sharing(t *testing.T, n int, capacity int64) (stores []*box) {
	t.Helper()
	b := &cache.Budget{Capacity: capacity}
	for range n {
		stores = append(stores, joining(t, b))
	}
	return stores
}

func joining(t *testing.T, b *cache.Budget) *box {
	t.Helper()
	x, err := openBox(diskmem.New(), cache.Options{Budget: b}, false)
	must(t, err)
	return x
}

// dirty writes until the store refuses, or to the size, and returns how many bytes it took.
func dirty(t *testing.T, x *box, size int64) int64 {
	t.Helper()
	f := x.File(1, 0)
	for off := f.Size(); off < size; off += kib {
		err := f.WriteAt(pattern(1, off, kib), off, stamp(1))
		if errors.Is(err, cache.ErrFull) {
			return off
		}
		must(t, err)
	}
	return size
}

// clean fetches a file of so many bytes.
func clean(t *testing.T, x *box, id cache.ID, size int64) {
	t.Helper()
	f := x.File(id, size)
	for off := int64(0); off < size; off += kib {
		must(t, f.Fill(pattern(2, off, kib), off, f.Generation()))
	}
}

// A store whose changes go nowhere fills what is nobody's share; the others have theirs, and so has one that comes later.
func TestShareIsGuaranteed(t *testing.T) {
	b := &cache.Budget{Capacity: 1200 * kib}
	dead, other := joining(t, b), joining(t, b)
	if n := dirty(t, dead, 2000*kib); n != 800*kib { // half for all, and the shares of one that is here and one that is not: 200 each
		t.Errorf("a store took %d KiB of 1200 that three share", n/kib)
	}
	if n := dirty(t, other, 2000*kib); n != 200*kib {
		t.Errorf("the second store took %d KiB, its share is 200", n/kib)
	}
	if n := dirty(t, dead, 2000*kib); n != 800*kib {
		t.Errorf("the first store took more: %d KiB", n/kib)
	}
	late := joining(t, b)
	if n := dirty(t, late, 2000*kib); n != 150*kib {
		t.Errorf("a store that came later took %d KiB, its share is 150", n/kib)
	}
	// What is clean again is there for all.
	s, err := dead.Lookup(1).Snapshot()
	must(t, err)
	must(t, s.Commit())
	s.Release()
	if n := dirty(t, other, 2000*kib); n != 750*kib {
		t.Errorf("when the first store is clean, the second has %d KiB, want all but three shares of 150", n/kib)
	}
	if n := dirty(t, late, 2000*kib); n != 150*kib {
		t.Errorf("the late store has %d KiB, want its share", n/kib)
	}
}

// A store alone has all but the share of one that may come; without a Budget, all.
func TestAlone(t *testing.T) {
	if n := dirty(t, sharing(t, 1, 1000*kib)[0], 2000*kib); n != 750*kib {
		t.Errorf("a store that is alone took %d KiB of 1000", n/kib)
	}
	x, err := openBox(diskmem.New(), cache.Options{Capacity: 1000 * kib}, false)
	must(t, err)
	if n := dirty(t, x, 2000*kib); n != 1000*kib {
		t.Errorf("a store with a capacity of its own took %d KiB of 1000", n/kib)
	}
}

// Clean bytes fill the whole space, whoever has them, and go where one has more than its share before others lose any.
func TestCleanBytesGiveWay(t *testing.T) {
	x := sharing(t, 3, 1600*kib) // shares of 200
	clean(t, x[0], 1, 1300*kib)
	clean(t, x[1], 1, 150*kib)
	clean(t, x[2], 1, 150*kib)
	if u := x[0].Usage(); u.Clean != 1300*kib || u.Free != 0 {
		t.Fatalf("usage %+v", u)
	}
	if n := dirty(t, x[1], 300*kib); n != 300*kib {
		t.Errorf("a writer found room for %d KiB beside clean bytes", n/kib)
	}
	clean(t, x[2], 2, 40*kib)
	var u [3]cache.Usage
	for i := range x {
		u[i] = x[i].Usage()
	}
	if u[0].Clean > 1300*kib-340*kib || u[1].Clean != 0 && u[1].Clean != 150*kib || u[2].Clean != 190*kib {
		t.Errorf("clean bytes are left: %d, %d, %d KiB", u[0].Clean/kib, u[1].Clean/kib, u[2].Clean/kib)
	}
	if sum := u[0].Clean + u[1].Clean + u[1].Dirty + u[2].Clean; sum > 1600*kib {
		t.Errorf("all take %d KiB of 1600", sum/kib)
	}
}

// Of two stores above their shares the one that is further above loses bytes.
func TestFurthestAboveGivesFirst(t *testing.T) {
	x := sharing(t, 3, 1600*kib) // shares of 200
	clean(t, x[1], 1, 500*kib)
	clean(t, x[0], 1, 900*kib)
	clean(t, x[2], 2, 200*kib)
	dirty(t, x[2], 100*kib)
	if a, b, c := x[0].Usage().Clean, x[1].Usage().Clean, x[2].Usage().Clean; a > 800*kib || b != 500*kib || c != 200*kib {
		t.Errorf("clean bytes are left: %d, %d, %d KiB", a/kib, b/kib, c/kib)
	}
}

// A store is closed only when nobody evicts its bytes any more: what uses its directory next must not lose any.
func TestCloseWaitsForEviction(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		reached, open := make(chan struct{}), make(chan struct{})
		disk := diskfault.New(diskmem.New(), func(op diskfault.Op) error {
			if op.Name == "PunchHole" {
				close(reached)
				<-open
			}
			return nil
		})
		b := &cache.Budget{Capacity: 1000 * kib}
		victim, err := openBox(disk, cache.Options{Budget: b}, false)
		must(t, err)
		clean(t, victim, 1, 1000*kib)
		other := joining(t, b)
		go dirty(t, other, kib)
		<-reached
		closed := false
		go func() {
			_ = victim.Close() // nothing to fail
			closed = true
		}()
		synctest.Wait()
		if closed {
			t.Error("it was closed during an eviction")
		}
		close(open)
		synctest.Wait()
		if !closed {
			t.Error("it is never closed")
		}
	})
}

// What a store that is closed has on the disk counts no more, and its bytes are left alone.
func TestClosedStoreLeaves(t *testing.T) {
	x := sharing(t, 2, 1200*kib)
	clean(t, x[0], 1, 1000*kib)
	must(t, errors.Join(x[0].j.Close(), x[0].Close()))
	if n := dirty(t, x[1], 2000*kib); n != 900*kib {
		t.Errorf("the other store took %d KiB, want as much as one alone", n/kib)
	}
	if u := x[0].Usage(); u.Clean != 1000*kib {
		t.Errorf("the closed store has %d KiB left", u.Clean/kib)
	}
}

// Without a capacity the file system says what there is: what all stores have of it, and what is free.
func TestBudgetOfADisk(t *testing.T) {
	disk := diskmem.New()
	b, now := &cache.Budget{}, time.Unix(1_700_000_000, 0)
	x, err := openBox(disk, cache.Options{Budget: b, Now: func() time.Time { return now }}, false)
	must(t, err)
	for _, size := range []int64{1000 * kib, 1200 * kib, 900 * kib} {
		disk.SetCapacity(size)
		dirty(t, x, x.Usage().Dirty+20*kib)
		now = now.Add(time.Minute)
		total, free, err := disk.Space()
		must(t, err)
		u := x.Usage()
		// Less the reserve and the share of one that may come.
		if want := (u.Dirty + free - total/20) * 3 / 4; u.Capacity < want-1 || u.Capacity > want+1 {
			t.Errorf("a disk of %d KiB: capacity %d, want %d", size/kib, u.Capacity, want)
		}
	}
}

// Many stores at once never take more than there is, and never block each other for good.
func TestBudgetConcurrently(t *testing.T) {
	const capacity = 2000 * kib
	b := &cache.Budget{Capacity: capacity}
	var wg sync.WaitGroup
	for n := range 6 {
		wg.Go(func() {
			for round := range 3 {
				x, err := openBox(diskmem.New(), cache.Options{Budget: b}, false)
				if err != nil {
					t.Error(err)
					return
				}
				for i := range int64(200) {
					f := x.File(cache.ID(i%5+1), 0)
					if i%3 == 0 {
						f = x.File(cache.ID(i%5+10), 100*kib)
						err = f.Fill(pattern(n, i%100*kib, kib), i%100*kib, f.Generation())
					} else {
						err = f.WriteAt(pattern(n, i*kib, kib), i%50*kib, stamp(round))
					}
					if err != nil && !errors.Is(err, cache.ErrFull) {
						t.Error(fmt.Errorf("store %d: %w", n, err))
					}
					if u := x.Usage(); u.Dirty > u.Capacity && u.Dirty > capacity/2/7 {
						t.Errorf("store %d has %d KiB of changes, its limit is %d", n, u.Dirty/kib, u.Capacity/kib)
					}
				}
				if err := errors.Join(x.j.Close(), x.Close()); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	x := joining(t, b)
	if n := dirty(t, x, 3000*kib); n != capacity*3/4 {
		t.Errorf("when all are gone a store takes %d KiB, want 1500", n/kib)
	}
}
