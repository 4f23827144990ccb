package fetch_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/csi-s3/csi-s3/pkg/cache"
	"github.com/csi-s3/csi-s3/pkg/disk/diskmem"
	"github.com/csi-s3/csi-s3/pkg/extent"
	"github.com/csi-s3/csi-s3/pkg/fetch"
	"github.com/csi-s3/csi-s3/pkg/journal"
	"github.com/csi-s3/csi-s3/pkg/s3"
	"github.com/csi-s3/csi-s3/pkg/s3/s3fault"
	"github.com/csi-s3/csi-s3/pkg/s3/s3mem"
)

const chunk = 16 << 10 // bytes of one GET in these tests

// rig is a Fetcher on a bucket in memory, and the cache that it fills.
type rig struct {
	t       *testing.T
	bucket  *s3mem.Bucket
	faults  *s3fault.Bucket
	store   *cache.Store
	fetcher *fetch.Fetcher
	source  atomic.Pointer[fetch.Source] // what locate answers
}

func newRig(t *testing.T, opt fetch.Options, capacity int64) *rig {
	t.Helper()
	r := &rig{t: t, bucket: s3mem.New("bucket"), store: cache.New(diskmem.New(), cache.Options{Capacity: capacity})}
	r.faults = s3fault.New(r.bucket)
	if opt.Chunk == 0 {
		opt.Chunk = chunk
	}
	r.fetcher = fetch.New(r.faults, opt)
	d := diskmem.New()
	r.store = cache.New(d, cache.Options{Capacity: capacity})
	j, err := journal.Open(d, "journal", journal.Options{}, func([]journal.Record) error { return nil })
	r.ok(err)
	_, err = r.store.Recover(j, false)
	r.ok(err)
	t.Cleanup(func() {
		r.fetcher.Close()
		if err := errors.Join(j.Close(), r.store.Close()); err != nil {
			t.Error(err)
		}
	})
	return r
}

func (r *rig) ok(err error) {
	r.t.Helper()
	if err != nil {
		r.t.Fatal(err)
	}
}

// put stores the object that locate names from now on.
func (r *rig) put(key string, body []byte) {
	r.t.Helper()
	info, err := r.bucket.Put(r.t.Context(), s3.Key(key), s3.Body{R: bytes.NewReader(body), Size: int64(len(body))}, s3.Attributes{}, s3.Condition{})
	r.ok(err)
	r.source.Store(&fetch.Source{Key: s3.Key(key), ETag: info.ETag, Size: int64(len(body))})
}

func (r *rig) locate(int64) (fetch.Source, int64, error) {
	return *r.source.Load(), math.MaxInt64, nil
}

func (r *rig) ensure(f *cache.File, off, end int64) error {
	return r.fetcher.Ensure(r.t.Context(), f, r.locate, off, end)
}

// reads says that the cache has these bytes.
func (r *rig) reads(f *cache.File, off int64, want []byte) {
	r.t.Helper()
	p := make([]byte, len(want))
	n, missing, err := f.ReadAt(p, off)
	if err != nil || n != len(want) || !bytes.Equal(p, want) {
		r.t.Fatalf("%d of %d bytes at %d, missing %v, %v", n, len(want), off, missing, err)
	}
}

func noise(n int) []byte {
	p := make([]byte, n)
	random := rand.NewChaCha8([32]byte{byte(n), byte(n >> 8), byte(n >> 16)})
	_, _ = random.Read(p) // never fails
	return p
}

// What is missing is fetched, and nothing else: not what is here, not what is dirty, not beyond the end.
func TestEnsure(t *testing.T) {
	r := newRig(t, fetch.Options{}, 1<<30)
	body := noise(100 << 10)
	r.put("key", body)
	f := r.store.File(1, int64(len(body)))
	r.ok(f.WriteAt([]byte("dirty"), 20<<10, time.Now()))
	copy(body[20<<10:], "dirty")
	r.ok(r.ensure(f, 0, 1<<30))
	r.reads(f, 0, body)
	s := r.fetcher.Stats()
	if s.Bytes != int64(len(body)-5) || s.Ahead != 0 {
		t.Errorf("%+v", s)
	}
	// 7 chunks, one of them in two pieces around the dirty bytes.
	if s.Requests != 8 {
		t.Errorf("%d requests, want 8", s.Requests)
	}
	r.ok(r.ensure(f, 0, 1<<30))
	if again := r.fetcher.Stats(); again != s {
		t.Errorf("fetched again: %+v, before %+v", again, s)
	}
}

// However many readers want the same bytes, they come once.
func TestSingleFlight(t *testing.T) {
	r := newRig(t, fetch.Options{}, 1<<30)
	body := noise(64 << 10)
	r.put("key", body)
	r.faults.Fault = func(s3fault.Op) s3fault.Action { return s3fault.Delay(20 * time.Millisecond) }
	f := r.store.File(1, int64(len(body)))
	var wg sync.WaitGroup
	for i := range 50 {
		wg.Go(func() {
			off := int64(i * 1000)
			if err := r.ensure(f, off, off+5000); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	r.reads(f, 0, body[:54000])
	if s := r.fetcher.Stats(); s.Bytes > 64<<10 {
		t.Errorf("%d bytes came for 54000", s.Bytes)
	}
}

// Requests are pinned to the object: one that somebody else replaced or removed is an error, never a mix.
func TestPinned(t *testing.T) {
	r := newRig(t, fetch.Options{}, 1<<30)
	body := noise(64 << 10)
	r.put("key", body)
	f := r.store.File(1, int64(len(body)))
	r.ok(r.ensure(f, 0, chunk))
	old := *r.source.Load()
	r.put("key", noise(64<<10 + 1)[:64<<10])
	r.source.Store(&old) // the tree has not heard of it
	if err := r.ensure(f, 0, 64<<10); !errors.Is(err, s3.ErrPrecondition) {
		t.Errorf("replaced: %v", err)
	}
	r.reads(f, 0, body[:chunk])
	if m := f.Missing(0, 64<<10); len(m) != 1 || m[0] != (extent.Range{Off: chunk, End: 64 << 10}) {
		t.Errorf("missing %v", m)
	}
	r.ok(r.bucket.Delete(t.Context(), "key"))
	if err := r.ensure(f, 0, 64<<10); !errors.Is(err, s3.ErrNotExist) {
		t.Errorf("removed: %v", err)
	}
	// An object without an ETag to pin it to, that became shorter.
	r.put("key", noise(10))
	r.source.Store(&fetch.Source{Key: "key", Size: 64 << 10})
	if err := r.ensure(f, chunk, 64<<10); !errors.Is(err, s3.ErrPrecondition) {
		t.Errorf("shorter: %v", err)
	}
}

// When the file's own object moves during a request, the request is done again where it is now.
func TestSourceMoves(t *testing.T) {
	r := newRig(t, fetch.Options{}, 1<<30)
	body := noise(40 << 10)
	r.put("old", body)
	f := r.store.File(1, int64(len(body)))
	var once sync.Once
	r.faults.Fault = func(op s3fault.Op) s3fault.Action {
		if op.Name == "Get" {
			once.Do(func() {
				r.put("new", body)
				r.ok(r.bucket.Delete(t.Context(), "old"))
			})
		}
		return s3fault.Action{}
	}
	r.ok(r.ensure(f, 0, 40<<10))
	r.reads(f, 0, body)
	// A locate that fails ends it.
	broken := errors.New("broken")
	g := r.store.File(2, 100)
	if err := r.fetcher.Ensure(t.Context(), g, func(int64) (fetch.Source, int64, error) { return fetch.Source{}, 0, broken }, 0, 100); !errors.Is(err, broken) {
		t.Error(err)
	}
}

// An upload that is committed during a request makes its bytes old: they are not taken.
func TestCommitDuringGet(t *testing.T) {
	r := newRig(t, fetch.Options{}, 1<<30)
	old := noise(32 << 10)
	r.put("key", old)
	f := r.store.File(1, int64(len(old)))
	r.ok(f.WriteAt([]byte("changed"), 0, time.Now()))
	fresh := bytes.Clone(old)
	copy(fresh, "changed")
	copy(fresh[20<<10:], "and what the server made of it")
	var once sync.Once
	r.faults.Fault = func(op s3fault.Op) s3fault.Action {
		if op.Name == "Get" {
			once.Do(func() {
				snap, err := f.Snapshot()
				r.ok(err)
				r.put("key", fresh)
				r.ok(snap.Commit())
				snap.Release()
			})
		}
		return s3fault.Action{}
	}
	r.ok(r.ensure(f, 0, 32<<10))
	r.reads(f, 0, fresh)
}

// Failures that pass are not seen by the reader.
func TestFaults(t *testing.T) {
	for _, action := range []s3fault.Action{
		s3fault.FailBefore(nil), s3fault.FailAfter(nil), s3fault.ShortBody(100), s3fault.ShortBody(0), s3fault.CorruptBody(), s3fault.Delay(time.Minute),
	} {
		synctest.Test(t, func(t *testing.T) {
			r := newRig(t, fetch.Options{}, 1<<30)
			body := noise(50 << 10)
			r.put("key", body)
			var calls atomic.Int32
			r.faults.Fault = func(op s3fault.Op) s3fault.Action {
				if op.Name == "Get" && calls.Add(1) <= 7 {
					return action
				}
				return s3fault.Action{}
			}
			f := r.store.File(1, int64(len(body)))
			r.ok(r.ensure(f, 100, 50<<10))
			r.reads(f, 100, body[100:])
			p := make([]byte, 1000)
			calls.Store(0)
			g := r.store.File(2, int64(len(body)))
			r.ok(r.fetcher.Direct(t.Context(), g, r.locate, p, 500))
			if !bytes.Equal(p, body[500:1500]) {
				t.Error("Direct read something else")
			}
			if m := g.Missing(0, 1<<20); len(m) != 1 {
				t.Errorf("Direct filled the cache: %v", m)
			}
		})
	}
}

// Failures that stay last as long as the reader's patience; the error says both.
func TestPatience(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, fetch.Options{}, 1<<30)
		body := noise(chunk)
		r.put("key", body)
		down := atomic.Bool{}
		down.Store(true)
		r.faults.Fault = func(s3fault.Op) s3fault.Action {
			if down.Load() {
				return s3fault.FailBefore(nil)
			}
			return s3fault.Action{}
		}
		f := r.store.File(1, chunk)
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		start := time.Now()
		err := r.fetcher.Ensure(ctx, f, r.locate, 0, chunk)
		if !errors.Is(err, context.DeadlineExceeded) || !errors.Is(err, s3.ErrUnavailable) || time.Since(start) != time.Hour {
			t.Errorf("%v after %v", err, time.Since(start))
		}
		if n := r.fetcher.Stats().Requests; n < 300 || n > 2000 {
			t.Errorf("%d requests in an hour", n)
		}
		// Another reader who comes after one gave up is served when the server is back.
		time.AfterFunc(time.Minute, func() { down.Store(false) })
		r.ok(r.ensure(f, 0, chunk))
		r.reads(f, 0, body)
		synctest.Wait()
	})
}

// One reader that gives up does not take the bytes from another.
func TestOneOfTwoGivesUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, fetch.Options{}, 1<<30)
		body := noise(chunk)
		r.put("key", body)
		r.faults.Fault = func(s3fault.Op) s3fault.Action { return s3fault.Delay(time.Minute) }
		f := r.store.File(1, chunk)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		var wg sync.WaitGroup
		wg.Go(func() {
			if err := r.fetcher.Ensure(ctx, f, r.locate, 0, chunk); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("the impatient one: %v", err)
			}
		})
		wg.Go(func() {
			if err := r.ensure(f, 0, chunk); err != nil {
				t.Errorf("the patient one: %v", err)
			}
		})
		wg.Wait()
		if n := r.fetcher.Stats().Requests; n != 1 {
			t.Errorf("%d requests", n)
		}
	})
}

func TestClose(t *testing.T) {
	r := newRig(t, fetch.Options{}, 1<<30)
	r.put("key", noise(64<<10))
	r.faults.Fault = func(s3fault.Op) s3fault.Action { return s3fault.Delay(time.Hour) }
	f := r.store.File(1, 64<<10)
	result := make(chan error, 1)
	go func() { result <- r.ensure(f, 0, 64<<10) }()
	for r.fetcher.Stats().Requests == 0 {
		time.Sleep(time.Millisecond)
	}
	start := time.Now()
	r.fetcher.Close()
	if err := <-result; !errors.Is(err, fetch.ErrClosed) {
		t.Errorf("the reader: %v", err)
	}
	if took := time.Since(start); took > 10*time.Second {
		t.Errorf("close took %v", took)
	}
	if err := r.ensure(f, 0, 100); !errors.Is(err, fetch.ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
	if err := r.fetcher.Read(t.Context(), 1, f, r.locate, 0, 100); !errors.Is(err, fetch.ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
	r.fetcher.Close()
}

// Who reads on is read ahead for, ever farther; who jumps is not.
func TestReadahead(t *testing.T) {
	r := newRig(t, fetch.Options{Chunk: 128 << 10, Memory: 64 << 20, Parallel: 64}, 1<<30)
	const size = 48 << 20
	body := noise(size)
	r.put("key", body)
	f := r.store.File(1, size)
	var far int64
	for off := int64(0); off < size; off += 64 << 10 {
		r.ok(r.fetcher.Read(t.Context(), 1, f, r.locate, off, off+64<<10))
		r.reads(f, off, body[off:off+64<<10])
		far = max(far, r.fetcher.Stats().Bytes-off)
	}
	s := r.fetcher.Stats()
	if s.Bytes != size {
		t.Errorf("%d bytes came for %d", s.Bytes, size)
	}
	if s.Ahead < size*8/10 {
		t.Errorf("only %d of %d bytes were ahead of the reader", s.Ahead, size)
	}
	if far > 34<<20 {
		t.Errorf("%d bytes ahead of the reader", far)
	}

	r.fetcher.Forget(1)
	g := r.store.File(2, size)
	before := r.fetcher.Stats()
	random := rand.New(rand.NewPCG(1, 2))
	for range 50 {
		off := random.Int64N(size-8192) / 4096 * 4096
		r.ok(r.fetcher.Read(t.Context(), 2, g, r.locate, off, off+4096))
		r.reads(g, off, body[off:off+4096])
	}
	s = r.fetcher.Stats()
	if n := s.Bytes - before.Bytes; n > 50*2*(128<<10) {
		t.Errorf("%d bytes for 50 random reads of 4 KiB", n)
	}
	if s.Ahead-before.Ahead > 4<<20 {
		t.Errorf("%d bytes ahead of random reads", s.Ahead-before.Ahead)
	}
}

// The memory and the requests of all readers together are bounded.
func TestBudget(t *testing.T) {
	r := newRig(t, fetch.Options{Parallel: 5, Memory: 4 * chunk}, 1<<30)
	body := noise(1 << 20)
	r.put("key", body)
	var now, most atomic.Int32
	r.faults.Fault = func(op s3fault.Op) s3fault.Action {
		n := now.Add(1)
		defer now.Add(-1)
		for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
		}
		time.Sleep(200 * time.Microsecond)
		return s3fault.Action{}
	}
	var wg sync.WaitGroup
	for id := range 6 {
		wg.Go(func() {
			f := r.store.File(cache.ID(id+1), 1<<20)
			for off := int64(0); off < 1<<20; off += 100 << 10 {
				if err := r.fetcher.Read(t.Context(), cache.ID(id+1), f, r.locate, off, min(off+100<<10, 1<<20)); err != nil {
					t.Error(err)
				}
			}
			r.reads(f, 0, body)
		})
	}
	wg.Wait()
	if m := most.Load(); m > 4 || m < 2 {
		t.Errorf("%d requests at once, memory is for 4", m)
	}
}

// A full cache is told, and Direct is the way past it.
func TestFullCache(t *testing.T) {
	r := newRig(t, fetch.Options{}, 64<<10)
	body := noise(100 << 10)
	r.put("key", body)
	g := r.store.File(2, 0)
	r.ok(g.WriteAt(noise(60<<10), 0, time.Now()))
	f := r.store.File(1, int64(len(body)))
	if err := r.ensure(f, 0, 100<<10); !errors.Is(err, cache.ErrNoSpace) {
		t.Fatal(err)
	}
	p := make([]byte, 50<<10)
	r.ok(r.fetcher.Direct(t.Context(), f, r.locate, p, 50<<10))
	if !bytes.Equal(p, body[50<<10:]) {
		t.Error("Direct read something else")
	}
}

// A snapshot gets the bytes that the file has overwritten since.
func TestEnsureSnapshot(t *testing.T) {
	r := newRig(t, fetch.Options{}, 1<<30)
	body := noise(40 << 10)
	r.put("key", body)
	f := r.store.File(1, int64(len(body)))
	r.ok(f.WriteAt([]byte("first"), 0, time.Now()))
	snap, err := f.Snapshot()
	r.ok(err)
	defer snap.Release()
	r.ok(f.WriteAt(noise(10<<10), 10<<10, time.Now()))
	r.ok(r.fetcher.EnsureSnapshot(t.Context(), f, snap, r.locate, 0, 40<<10))
	got := make([]byte, 40<<10)
	n, err := snap.ReadAt(got, 0)
	want := bytes.Clone(body)
	copy(want, "first")
	if err != nil || n != len(want) || !bytes.Equal(got, want) {
		t.Errorf("%d bytes, %v", n, err)
	}
	want = bytes.Clone(want)
	copy(want[10<<10:], noise(10<<10))
	r.ok(r.ensure(f, 0, 40<<10))
	r.reads(f, 0, want)
}

// Readers, evictions, faults and writers at once: nobody ever reads anything else than what is there.
func TestStorm(t *testing.T) { synctest.Test(t, storm) }

func storm(t *testing.T) {
	r := newRig(t, fetch.Options{Parallel: 8, Memory: 8 * chunk}, 300<<10)
	body := noise(256 << 10)
	r.put("key", body)
	var calls atomic.Int32
	r.faults.Fault = func(op s3fault.Op) s3fault.Action {
		switch n := calls.Add(1); {
		case n%11 == 0:
			return s3fault.FailBefore(nil)
		case n%13 == 0:
			return s3fault.ShortBody(int64(n % 5000))
		}
		return s3fault.Action{}
	}
	var wg sync.WaitGroup
	for id := range 3 {
		f := r.store.File(cache.ID(id+1), int64(len(body)))
		for reader := range 2 {
			wg.Go(func() {
				random := rand.New(rand.NewPCG(uint64(id), uint64(reader)))
				for range 12 {
					off := random.Int64N(int64(len(body)))
					end := min(off+random.Int64N(40<<10), int64(len(body)))
					if err := r.readRange(cache.ID(id+1), f, off, end, body); err != nil {
						t.Error(err)
						return
					}
				}
			})
		}
	}
	stop := make(chan struct{})
	var evictor sync.WaitGroup
	evictor.Go(func() {
		for {
			select {
			case <-stop:
				return
			case <-time.After(time.Millisecond):
				r.store.Evict(64 << 10)
			}
		}
	})
	wg.Wait()
	close(stop)
	evictor.Wait()
}

// readRange reads as the core does: fetch, read, and again what was evicted between the two.
func (r *rig) readRange(id cache.ID, f *cache.File, off, end int64, body []byte) error {
	p := make([]byte, end-off)
	for n := 0; n < len(p); {
		err := r.fetcher.Read(r.t.Context(), id, f, r.locate, off+int64(n), end)
		if err != nil && !errors.Is(err, cache.ErrNoSpace) {
			return err
		}
		m, _, err := f.ReadAt(p[n:], off+int64(n))
		if err != nil {
			return err
		}
		n += m
	}
	if !bytes.Equal(p, body[off:end]) {
		return fmt.Errorf("[%d, %d) of file %d is not what the object holds", off, end, id)
	}
	return nil
}
