package journal_test

import (
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/csi-s3/csi-s3/pkg/disk/diskfault"
	"github.com/csi-s3/csi-s3/pkg/disk/diskmem"
	"github.com/csi-s3/csi-s3/pkg/journal"
)

// Callers of Sync who come while the disk is busy share its next fdatasync: a hundred cost two, not a hundred.
func TestGroupCommit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const callers = 100
		var syncs atomic.Int64
		var slow atomic.Bool
		mem := diskmem.New()
		j, _ := open(t, diskfault.New(mem, func(op diskfault.Op) error {
			if op.Name == "Sync" && slow.Load() {
				syncs.Add(1)
				time.Sleep(time.Second)
			}
			return nil
		}))
		slow.Store(true)
		begin := time.Now()
		var wg sync.WaitGroup
		for n := range uint64(callers) {
			wg.Go(func() {
				if err := errors.Join(j.Append(pair(n+1, 0)...), j.Sync()); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if n, took := syncs.Load(), time.Since(begin); n > 2 || took > 2*time.Second {
			t.Errorf("%d callers of Sync cost %d of the disk and took %v", callers, n, took)
		}
		slow.Store(false)
		if _, s := open(t, mem.CrashClone(rnd(1))); len(s.seen) != callers {
			t.Errorf("%d of %d synced frames survived", len(s.seen), callers)
		}
		// What is durable already costs nothing.
		slow.Store(true)
		before := syncs.Load()
		if err := j.Sync(); err != nil || syncs.Load() != before {
			t.Errorf("sync of nothing new: %v, %d syncs of the disk", err, syncs.Load()-before)
		}
		slow.Store(false)
	})
}

// A frame that is appended while an fdatasync runs is not covered by it: its own Sync waits for the next one.
func TestSyncCoversOnlyWhatWasThere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		mem := diskmem.New()
		var syncs atomic.Int64
		var slow atomic.Bool
		j, _ := open(t, diskfault.New(mem, func(op diskfault.Op) error {
			if op.Name == "Sync" && slow.Load() {
				syncs.Add(1)
				time.Sleep(time.Second)
			}
			return nil
		}))
		slow.Store(true)
		if err := j.Append(pair(1, 0)...); err != nil {
			t.Fatal(err)
		}
		first := make(chan error)
		go func() { first <- j.Sync() }()
		synctest.Wait()
		if err := j.Append(pair(2, 0)...); err != nil {
			t.Fatal(err)
		}
		second := make(chan error)
		go func() { second <- j.Sync() }()
		if err := <-first; err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		select {
		case <-second:
			t.Fatal("the second Sync returned with the first one's fdatasync")
		default:
		}
		if err := <-second; err != nil || syncs.Load() != 2 {
			t.Fatalf("%v after %d syncs", err, syncs.Load())
		}
	})
}

// Appends and Syncs go on while checkpoints run: nothing that was acknowledged is lost, nothing comes twice, and the
// dump is a state between two appends.
func TestCheckpointDuringAppends(t *testing.T) {
	mem := diskmem.New()
	j, _ := open(t, mem)
	const writers, each = 6, 200
	// The record is appended before the state shows it; a dump must not come between the two.
	var seen state
	var mu sync.RWMutex // held for reading across Append and the change of the state
	var list sync.Mutex // guards seen among those who hold mu for reading
	add := func(n uint64) error {
		mu.RLock()
		defer mu.RUnlock()
		if err := j.Append(pair(n, 20)...); err != nil {
			return err
		}
		list.Lock()
		defer list.Unlock()
		seen.seen = append(seen.seen, n)
		return nil
	}
	var wg sync.WaitGroup
	for w := range uint64(writers) {
		wg.Go(func() {
			for i := range uint64(each) {
				if err := add(w*each + i); err != nil {
					t.Error(err)
					return
				}
				if i%16 == 0 {
					if err := j.Sync(); err != nil {
						t.Error(err)
						return
					}
				}
			}
		})
	}
	stop := make(chan struct{})
	var checkpoints atomic.Int64
	// Two at once: they take turns.
	var both sync.WaitGroup
	for range 2 {
		both.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				before := j.Size()
				mu.Lock() // lets the appends that began come to their end
				err := j.Checkpoint(seen.dump)
				mu.Unlock()
				if err != nil {
					t.Errorf("checkpoint of %d bytes: %v", before, err)
					return
				}
				checkpoints.Add(1)
			}
		})
	}
	wg.Wait()
	close(stop)
	both.Wait()
	if checkpoints.Load() == 0 {
		t.Fatal("no checkpoint ran")
	}
	if err := j.Sync(); err != nil {
		t.Fatal(err)
	}
	_, s := open(t, mem.CrashClone(rnd(2)))
	slices.Sort(s.seen)
	if len(s.seen) != writers*each || len(slices.Compact(s.seen)) != writers*each {
		t.Fatalf("%d frames after %d checkpoints, want %d", len(s.seen), checkpoints.Load(), writers*each)
	}
}

// An Append that comes during a checkpoint waits, and is found behind the dump.
func TestAppendWaitsForCheckpoint(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		mem := diskmem.New()
		j, _ := open(t, mem)
		appended, closed := make(chan error, 1), make(chan error, 1)
		err := j.Checkpoint(func(emit func(...journal.Record) error) error {
			go func() {
				appended <- j.Append(pair(2, 0)...)
				closed <- j.Close()
			}()
			synctest.Wait()
			if len(appended) > 0 {
				t.Error("an append went through a checkpoint")
			}
			return emit(pair(1, 0)...)
		})
		if err := errors.Join(err, <-appended, <-closed); err != nil {
			t.Fatal(err)
		}
		if _, s := open(t, mem); !slices.Equal(s.seen, []uint64{1, 2}) {
			t.Fatalf("replayed %v", s.seen)
		}
	})
}

// A Close that comes during a checkpoint waits for it.
func TestCloseWaitsForCheckpoint(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		mem := diskmem.New()
		j, _ := open(t, mem)
		closed := make(chan error, 1)
		if err := j.Checkpoint(func(emit func(...journal.Record) error) error {
			go func() { closed <- j.Close() }()
			synctest.Wait()
			if len(closed) > 0 {
				t.Error("closed during a checkpoint")
			}
			return emit(pair(1, 0)...)
		}); err != nil {
			t.Fatal(err)
		}
		if err := <-closed; err != nil {
			t.Fatal(err)
		}
		if _, s := open(t, mem); !slices.Equal(s.seen, []uint64{1}) {
			t.Fatalf("replayed %v", s.seen)
		}
	})
}
