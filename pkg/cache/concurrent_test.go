package cache_test

import (
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/csi-s3/csi-s3/pkg/cache"
	"github.com/csi-s3/csi-s3/pkg/disk/diskmem"
)

// A shared file is made of stripes. One writer owns each, and fills it with its version, in ascending order.
const (
	stripes    = 4
	stripeSize = 3000
	versions   = 150
)

type stripe struct{ started, acked, synced atomic.Int64 }

type shared struct {
	f       *cache.File
	stripes [stripes]stripe
	mu      sync.Mutex
	object  []byte // guarded by mu
}

func (s *shared) remote() []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.object
}

// floor are the versions that a reader from now on may not be behind.
func (s *shared) floor(of func(*stripe) *atomic.Int64) (v [stripes]int64) {
	for i := range v {
		v[i] = of(&s.stripes[i]).Load()
	}
	return v
}

func acked(s *stripe) *atomic.Int64  { return &s.acked }
func synced(s *stripe) *atomic.Int64 { return &s.synced }

// check compares content with the versions it may have. whole: a stripe may not be a mix.
func (s *shared) check(got []byte, floor [stripes]int64, whole bool) error {
	if len(got) != stripes*stripeSize {
		return fmt.Errorf("%d bytes", len(got))
	}
	for i := range stripes {
		top := s.stripes[i].started.Load()
		part := got[i*stripeSize : (i+1)*stripeSize]
		for _, c := range part {
			if int64(c) < floor[i] || int64(c) > top || whole && c != part[0] {
				return fmt.Errorf("stripe %d shows version %d beside %d, %d was there before and %d is the last", i, c, part[0], floor[i], top)
			}
		}
	}
	return nil
}

// TestConcurrent writes, reads, syncs, uploads, evicts, checkpoints and crashes at the same time.
func TestConcurrent(t *testing.T) {
	mem := diskmem.New()
	b := mustOpen(t, mem, false)
	var files []*shared
	for id := range cache.ID(3) {
		object := make([]byte, stripes*stripeSize)
		files = append(files, &shared{f: b.File(id+1, int64(len(object))), object: object})
	}
	var writers, others sync.WaitGroup
	var stop atomic.Bool
	loop := func(do func(rnd *rand.Rand) error) {
		seed := rand.Uint64()
		others.Go(func() {
			rnd := rand.New(rand.NewPCG(seed, 1))
			for !stop.Load() {
				if err := do(rnd); err != nil {
					t.Error(err)
					return
				}
				time.Sleep(time.Duration(rnd.IntN(1000)) * time.Microsecond)
			}
		})
	}
	var reads, commits, kills, cuts, checkpoints atomic.Int64
	for _, s := range files {
		for i := range stripes {
			writers.Go(func() {
				st := &s.stripes[i]
				for v := int64(1); v <= versions; v++ {
					p := make([]byte, stripeSize)
					for j := range p {
						p[j] = byte(v)
					}
					st.started.Store(v)
					if err := s.f.WriteAt(p, int64(i*stripeSize), stamp(int(v))); err != nil {
						t.Error(err)
						return
					}
					st.acked.Store(v)
					time.Sleep(2 * time.Millisecond)
				}
			})
		}
		loop(func(*rand.Rand) error { // a reader
			floor := s.floor(acked)
			got := make([]byte, stripes*stripeSize)
			n, missing, err := s.f.ReadAt(got, 0)
			if err != nil || n < len(got) && missing.Empty() {
				return fmt.Errorf("read: %d, %v, %w", n, missing, err)
			}
			if n < len(got) {
				generation := s.f.Generation()
				object := s.remote()
				if s.f.Generation() == generation {
					return s.f.Fill(object[missing.Off:missing.End], missing.Off, generation)
				}
				return nil
			}
			reads.Add(1)
			return s.check(got, floor, true)
		})
		loop(func(*rand.Rand) error { // fsync
			floor := s.floor(acked)
			if err := s.f.Sync(); err != nil {
				return err
			}
			for i := range stripes {
				for st := &s.stripes[i].synced; ; {
					if old := st.Load(); old >= floor[i] || st.CompareAndSwap(old, floor[i]) {
						break
					}
				}
			}
			return nil
		})
		loop(func(rnd *rand.Rand) error { // an upload
			floor := s.floor(acked)
			snap, err := s.f.Snapshot()
			if err != nil {
				return err
			}
			defer snap.Release()
			if err := s.f.Sync(); err != nil {
				return err
			}
			first, err := readSnap(s.f, snap, s.remote(), true)
			if err != nil {
				return err
			}
			if err := s.check(first, floor, true); err != nil {
				return fmt.Errorf("snapshot: %w", err)
			}
			time.Sleep(time.Duration(rnd.IntN(3000)) * time.Microsecond)
			second := make([]byte, snap.Size())
			if _, err := snap.ReadAt(second, 0); err != nil || difference(first, second) >= 0 {
				return fmt.Errorf("the snapshot changed at %d, %w", difference(first, second), err)
			}
			s.mu.Lock()
			s.object = first
			s.mu.Unlock()
			commits.Add(1)
			return snap.Commit()
		})
	}
	loop(func(rnd *rand.Rand) error {
		b.Evict(rnd.Int64N(1 << 15))
		return b.Reap()
	})
	loop(func(*rand.Rand) error {
		checkpoints.Add(1)
		time.Sleep(5 * time.Millisecond)
		return b.checkpoint()
	})
	loop(func(*rand.Rand) error {
		b.Usage()
		b.DirtyFiles()
		for _, s := range files {
			s.f.Dirty()
			s.f.Allocated()
			s.f.SeekData(0, true)
			s.f.Missing(0, 1<<20)
		}
		return nil
	})
	crash := func(rnd *rand.Rand, powerCut bool, of func(*stripe) *atomic.Int64) error {
		var floors [][stripes]int64
		for _, s := range files {
			floors = append(floors, s.floor(of))
		}
		clone := mem.Clone()
		if powerCut {
			clone = mem.CrashClone(rnd)
		}
		b, err := openBox(clone, cache.Options{}, powerCut)
		if err != nil {
			return err
		}
		for i, s := range files {
			// The object may have been replaced since the crash: its bytes are then newer, not older.
			got, err := readAll(b.File(cache.ID(i+1), stripes*stripeSize), s.remote())
			if err != nil {
				return err
			}
			if err := s.check(got, floors[i], false); err != nil {
				return fmt.Errorf("file %d after a crash, power cut %v: %w", i+1, powerCut, err)
			}
		}
		return b.Close()
	}
	loop(func(rnd *rand.Rand) error { kills.Add(1); return crash(rnd, false, acked) })
	loop(func(rnd *rand.Rand) error { cuts.Add(1); return crash(rnd, true, synced) })

	writers.Wait()
	stop.Store(true)
	others.Wait()
	for i, s := range files {
		got, err := readAll(s.f, s.object)
		if err == nil {
			err = s.check(got, s.floor(acked), true)
		}
		if err != nil {
			t.Errorf("file %d at the end: %v", i+1, err)
		}
	}
	u := b.Usage()
	dirty, clean, dirtyFiles := b.Recount()
	if total, reserved := b.Accounted(); u.Dirty != dirty || u.Clean != clean || u.DirtyFiles != dirtyFiles || reserved != 0 || total < dirty+clean {
		t.Errorf("%+v, recounted %d, %d, %d; %d accounted, %d reserved", u, dirty, clean, dirtyFiles, total, reserved)
	}
	t.Logf("%d whole reads, %d commits, %d kills, %d power cuts, %d checkpoints", reads.Load(), commits.Load(), kills.Load(), cuts.Load(), checkpoints.Load())
	if reads.Load() == 0 || commits.Load() < 10 || kills.Load() < 10 || cuts.Load() < 10 || checkpoints.Load() < 3 {
		t.Error("the test tested too little")
	}
}

// Writers of new files, a Remove of each, and a checkpoint that never stops.
func TestConcurrentFiles(t *testing.T) {
	mem := diskmem.New()
	b := mustOpen(t, &openFiles{FS: mem}, false)
	var wg, bg sync.WaitGroup
	var stop atomic.Bool
	bg.Go(func() {
		for !stop.Load() {
			if err := b.checkpoint(); err != nil {
				t.Error(err)
				return
			}
			b.Evict(1 << 20)
		}
	})
	for g := range 8 {
		wg.Go(func() {
			for i := range 40 {
				id := cache.ID(g*1000 + i + 1)
				f := b.File(id, 0)
				if err := f.WriteAt(pattern(int(id), 0, 5000), 0, stamp(i)); err != nil {
					t.Error(err)
				}
				if i%3 == 0 {
					if err := f.Sync(); err != nil {
						t.Error(err)
					}
				}
				if i%2 == 0 {
					if err := b.Remove(id); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
	wg.Wait()
	stop.Store(true)
	bg.Wait()
	if err := b.Reap(); err != nil {
		t.Error(err)
	}
	if u := b.Usage(); u.Files != 160 || u.DirtyFiles != 160 || u.Dirty != 160*5000 {
		t.Errorf("%+v", u)
	}
	if total, _ := b.Accounted(); total != 160*5000 {
		t.Errorf("%d bytes accounted", total)
	}
	again := mustOpen(t, mem.Clone(), false)
	if len(again.rec.Dirty) != 160 {
		t.Fatalf("%d files after a kill", len(again.rec.Dirty))
	}
	for _, d := range again.rec.Dirty {
		if got, err := readAll(again.Lookup(d.ID), nil); err != nil || difference(got, pattern(int(d.ID), 0, 5000)) >= 0 {
			t.Errorf("file %d: %v", d.ID, err)
		}
	}
}

// A write to a cache that is full of clean bytes of other files evicts them, from many goroutines at once.
func TestConcurrentEviction(t *testing.T) {
	const capacity = 256 << 10
	mem := diskmem.New()
	b, err := openBox(&openFiles{FS: mem}, cache.Options{Capacity: capacity}, false)
	must(t, err)
	var wg sync.WaitGroup
	for g := range 6 {
		wg.Go(func() {
			object := pattern(g, 0, 40<<10)
			f := b.File(cache.ID(g+1), int64(len(object)))
			rnd := rand.New(rand.NewPCG(uint64(g), 1))
			for i := range 150 {
				off := rnd.Int64N(36 << 10)
				if err := f.Fill(object[off:off+4096], off, f.Generation()); err != nil {
					t.Error(err)
					return
				}
				if got, err := readAll(f, object); err != nil || difference(got, object) >= 0 {
					t.Errorf("file %d differs at %d, %v", g, difference(got, object), err)
					return
				}
				if u := b.Usage(); u.Clean > capacity {
					t.Errorf("%+v", u)
				}
				if i%10 == 0 {
					b.Evict(rnd.Int64N(64 << 10))
				}
			}
		})
	}
	wg.Wait()
	if total, reserved := b.Accounted(); reserved != 0 || total != b.Usage().Clean {
		t.Errorf("%d accounted, %d reserved, %+v", total, reserved, b.Usage())
	}
}
