package fetch_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/csi-s3/csi-s3/pkg/cache"
	"github.com/csi-s3/csi-s3/pkg/fetch"
	"github.com/csi-s3/csi-s3/pkg/s3"
	"github.com/csi-s3/csi-s3/pkg/s3/s3fault"
)

// living is a file that is written, uploaded, evicted and read at the same time.
type living struct {
	*rig
	f *cache.File

	mu   sync.RWMutex // of the source, as the tree's lock
	src  fetch.Source
	bmu  sync.RWMutex
	body []byte // guarded by bmu: what the file holds
}

func (l *living) locate(int64) (fetch.Source, int64, error) {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return l.src, math.MaxInt64, nil
}

func (l *living) change(random *rand.Rand, most int) error {
	l.bmu.Lock()
	defer l.bmu.Unlock()
	now := time.Now()
	switch random.IntN(4) {
	case 0:
		size := random.IntN(most)
		if err := l.f.Truncate(int64(size), now); err != nil {
			return err
		}
		body := make([]byte, size)
		copy(body, l.body)
		l.body = body
	default:
		off := random.IntN(len(l.body) + 1000)
		p := make([]byte, 1+random.IntN(3000))
		for i := range p {
			p[i] = byte(random.Uint32())
		}
		if err := l.f.WriteAt(p, int64(off), now); err != nil {
			return err
		}
		if n := off + len(p); n > len(l.body) {
			l.body = append(l.body, make([]byte, n-len(l.body))...)
		}
		copy(l.body[off:], p)
	}
	return nil
}

// upload does what the executor does: another object every time, the old one is removed.
func (l *living) upload(n int) error {
	snap, err := l.f.Snapshot()
	if err != nil {
		return err
	}
	defer snap.Release()
	l.mu.RLock()
	src := l.src
	l.mu.RUnlock()
	locate := func(int64) (fetch.Source, int64, error) { return src, math.MaxInt64, nil }
	body := make([]byte, snap.Size())
	for {
		if err := l.fetcher.EnsureSnapshot(l.t.Context(), l.f, snap, locate, 0, snap.Size()); err != nil {
			return err
		}
		if _, err := snap.ReadAt(body, 0); err == nil || errors.Is(err, io.EOF) {
			break
		} else if !errors.Is(err, cache.ErrMissing) {
			return err
		}
	}
	key := s3.Key("key")
	if n%3 == 0 {
		key = s3.Key(fmt.Sprint("key-", n)) // it was renamed
	}
	info, err := l.bucket.Put(l.t.Context(), key, s3.Body{R: bytes.NewReader(body), Size: int64(len(body))}, s3.Attributes{}, s3.Condition{})
	if err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := snap.Commit(); err != nil {
		return err
	}
	l.src = fetch.Source{Key: key, ETag: info.ETag, Size: int64(len(body))}
	if src.Key != key {
		return l.bucket.Delete(l.t.Context(), src.Key)
	}
	return nil
}

// check reads a range as the core does and compares it with what the file holds at that moment.
func (l *living) check(random *rand.Rand) error {
	l.bmu.RLock()
	size := len(l.body)
	l.bmu.RUnlock()
	off := int64(random.IntN(size + 1))
	p := make([]byte, random.IntN(30<<10))
	for {
		err := l.fetcher.Read(l.t.Context(), 1, l.f, l.locate, off, off+int64(len(p)))
		if err != nil {
			return err
		}
		l.bmu.RLock()
		n, missing, err := l.f.ReadAt(p, off)
		want := l.body[min(off, int64(len(l.body))):]
		want = want[:min(len(want), len(p))]
		same := n <= len(want) && bytes.Equal(p[:n], want[:n])
		whole := missing.Len() > 0 || n == len(want)
		l.bmu.RUnlock()
		switch {
		case err != nil:
			return err
		case !same || !whole:
			return fmt.Errorf("[%d, %d): %d bytes that are not the file's %d", off, off+int64(len(p)), n, len(want))
		case missing.Len() == 0:
			return nil
		}
	}
}

// While a file is written, uploaded under changing names, evicted and fetched, every read finds exactly what was
// written: no byte of an older object gets in, nor one of a newer object that the file does not know yet.
func TestLivingFile(t *testing.T) {
	for seed := range uint64(6) {
		synctest.Test(t, func(t *testing.T) {
			r := newRig(t, fetch.Options{Parallel: 8, Memory: 8 * chunk}, 1<<30)
			const most = 200 << 10
			body := noise(most)
			r.put("key", body)
			l := &living{rig: r, f: r.store.File(1, most), src: *r.source.Load(), body: bytes.Clone(body)}
			var mu sync.Mutex
			faults := rand.New(rand.NewPCG(seed, 1))
			r.faults.Fault = func(s3fault.Op) s3fault.Action {
				mu.Lock()
				defer mu.Unlock()
				switch faults.IntN(12) {
				case 0:
					return s3fault.FailBefore(nil)
				case 1:
					return s3fault.ShortBody(int64(faults.IntN(chunk)))
				case 2:
					return s3fault.CorruptBody()
				}
				return s3fault.Delay(time.Duration(faults.IntN(20)) * time.Millisecond)
			}
			var wg sync.WaitGroup
			role := func(n int, pause time.Duration, do func(random *rand.Rand, i int) error) {
				random := rand.New(rand.NewPCG(seed, uint64(pause)))
				wg.Go(func() {
					for i := range n {
						if err := do(random, i); err != nil {
							t.Errorf("seed %d: %v", seed, err)
							return
						}
						time.Sleep(time.Duration(random.Int64N(int64(pause))))
					}
				})
			}
			role(150, 11*time.Millisecond, func(random *rand.Rand, _ int) error { return l.change(random, most) })
			role(30, 51*time.Millisecond, func(_ *rand.Rand, i int) error { return l.upload(i + 1) })
			role(100, 13*time.Millisecond, func(*rand.Rand, int) error { r.store.Evict(50 << 10); return nil })
			role(80, 17*time.Millisecond, func(random *rand.Rand, _ int) error { return l.check(random) })
			role(80, 19*time.Millisecond, func(random *rand.Rand, _ int) error { return l.check(random) })
			wg.Wait()
			r.faults.Fault = nil
			r.ok(l.upload(100))
			p := make([]byte, len(l.body))
			r.ok(r.fetcher.Ensure(t.Context(), l.f, l.locate, 0, int64(len(p))))
			r.reads(l.f, 0, l.body)
		})
	}
}

// Direct follows the object as Ensure does, and says what Ensure says.
func TestDirect(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, fetch.Options{}, 1<<30)
		body := noise(40 << 10)
		r.put("old", body)
		f := r.store.File(1, int64(len(body)))
		var once sync.Once
		r.faults.Fault = func(op s3fault.Op) s3fault.Action {
			once.Do(func() {
				r.put("new", body)
				r.ok(r.bucket.Delete(t.Context(), "old"))
			})
			return s3fault.Action{}
		}
		p := make([]byte, 1000)
		direct := func() error { return r.fetcher.Direct(t.Context(), f, r.locate, p, 2000) }
		r.ok(direct())
		if !bytes.Equal(p, body[2000:3000]) {
			t.Error("not the object's bytes")
		}
		// A commit in between: the bytes are those of the new object.
		fresh := bytes.Clone(body)
		copy(fresh[2000:], "new")
		r.ok(f.WriteAt([]byte("x"), 0, time.Now()))
		once = sync.Once{}
		r.faults.Fault = func(op s3fault.Op) s3fault.Action {
			once.Do(func() {
				snap, err := f.Snapshot()
				r.ok(err)
				r.put("new", fresh)
				r.ok(snap.Commit())
				snap.Release()
			})
			return s3fault.Action{}
		}
		r.ok(direct())
		if !bytes.Equal(p, fresh[2000:3000]) {
			t.Error("bytes of the object before the commit")
		}
		r.faults.Fault = nil
		// Replaced by others, removed by others.
		old := *r.source.Load()
		r.put("new", body)
		r.source.Store(&old)
		if err := direct(); !errors.Is(err, s3.ErrPrecondition) {
			t.Errorf("replaced: %v", err)
		}
		r.ok(r.bucket.Delete(t.Context(), "new"))
		if err := direct(); !errors.Is(err, s3.ErrNotExist) {
			t.Errorf("removed: %v", err)
		}
		// The server is away for as long as the reader waits.
		r.faults.Fault = func(s3fault.Op) s3fault.Action { return s3fault.FailBefore(nil) }
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		err := r.fetcher.Direct(ctx, f, r.locate, p, 0)
		if !errors.Is(err, context.DeadlineExceeded) || !errors.Is(err, s3.ErrUnavailable) {
			t.Errorf("away: %v", err)
		}
		broken := errors.New("broken")
		if err := r.fetcher.Direct(t.Context(), f, func(int64) (fetch.Source, int64, error) { return fetch.Source{}, 0, broken }, p, 0); !errors.Is(err, broken) {
			t.Errorf("locate: %v", err)
		}
	})
}

// Close ends reads past the cache, too.
func TestCloseEndsDirect(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, fetch.Options{}, 1<<30)
		r.put("key", noise(1000))
		f := r.store.File(1, 1000)
		for _, action := range []s3fault.Action{s3fault.Delay(time.Hour), s3fault.FailBefore(nil)} {
			x := fetch.New(r.faults, fetch.Options{})
			r.faults.Fault = func(s3fault.Op) s3fault.Action { return action }
			result := make(chan error, 1)
			go func() { result <- x.Direct(t.Context(), f, r.locate, make([]byte, 100), 0) }()
			time.Sleep(10 * time.Minute)
			start := time.Now()
			x.Close()
			if err := <-result; !errors.Is(err, fetch.ErrClosed) || time.Since(start) > 0 {
				t.Errorf("%v after %v", err, time.Since(start))
			}
			if err := x.Direct(t.Context(), f, r.locate, make([]byte, 100), 0); !errors.Is(err, fetch.ErrClosed) {
				t.Errorf("after Close: %v", err)
			}
		}
		r.faults.Fault = nil
	})
}

// Readahead is not repeated when it fails, and a reader who needs the bytes gets them all the same.
func TestFailedReadahead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, fetch.Options{}, 1<<30)
		body := noise(512 << 10)
		r.put("key", body)
		f := r.store.File(1, int64(len(body)))
		r.ok(r.ensure(f, 0, 128<<10))
		var failed atomic.Int32
		r.faults.Fault = func(s3fault.Op) s3fault.Action {
			failed.Add(1)
			return s3fault.FailBefore(nil)
		}
		r.ok(r.fetcher.Read(t.Context(), 1, f, r.locate, 0, 4096))
		time.Sleep(time.Hour)
		if n := failed.Load(); n == 0 || n > 24 {
			t.Errorf("%d requests ahead failed, each is for %d bytes", n, chunk)
		}
		if s := r.fetcher.Stats(); s.Ahead != 0 {
			t.Errorf("%+v", s)
		}
		r.faults.Fault = nil
		for off := int64(0); off < int64(len(body)); off += 64 << 10 {
			r.ok(r.fetcher.Read(t.Context(), 1, f, r.locate, off, off+64<<10))
			r.reads(f, off, body[off:off+64<<10])
		}
		synctest.Wait()
	})
}

// A reader who arrives while readahead fails does not hear of it.
func TestReaderJoinsFailingReadahead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, fetch.Options{}, 1<<30)
		body := noise(512 << 10)
		r.put("key", body)
		f := r.store.File(1, int64(len(body)))
		var calls atomic.Int32
		r.faults.Fault = func(op s3fault.Op) s3fault.Action {
			switch n := calls.Add(1); {
			case n > 8 && n <= 16:
				return s3fault.ShortBody(5)
			case n > 16 && n <= 30:
				return s3fault.Delay(time.Minute)
			}
			return s3fault.Action{}
		}
		var wg sync.WaitGroup
		for i := range int64(8) {
			wg.Go(func() {
				off := i * 64 << 10
				if err := r.fetcher.Read(t.Context(), 1, f, r.locate, off, off+64<<10); err != nil {
					t.Error(err)
				}
				r.reads(f, off, body[off:off+64<<10])
			})
		}
		wg.Wait()
	})
}

// An error that no repetition mends is told at once.
func TestErrorsThatAreTold(t *testing.T) {
	for _, cause := range []error{s3.ErrAuth, s3.ErrNoBucket, s3.ErrInvalid} {
		synctest.Test(t, func(t *testing.T) {
			r := newRig(t, fetch.Options{}, 1<<30)
			r.put("key", noise(1000))
			f := r.store.File(1, 1000)
			r.faults.Fault = func(s3fault.Op) s3fault.Action { return s3fault.FailBefore(cause) }
			start := time.Now()
			if err := r.ensure(f, 0, 1000); !errors.Is(err, cause) || time.Since(start) > 0 {
				t.Errorf("%v after %v", err, time.Since(start))
			}
			r.faults.Fault = nil
			r.ok(r.ensure(f, 0, 1000))
		})
	}
}
