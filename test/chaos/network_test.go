package chaos_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/csi-s3/csi-s3/pkg/s3"
)

// beside is another mount of the same server, with a cache of its own in dir. It starts when the caller says so, and ends in
// order when the test ends.
func (m *mounted) beside(bucket, options, cache string) *mounted {
	m.t.Helper()
	n := *m
	n.bucket, n.options, n.cache, n.log, n.cmd = bucket, options, cache, &buffer{}, nil
	n.dir = filepath.Join(m.t.TempDir(), bucket)
	if err := os.Mkdir(n.dir, 0o755); err != nil {
		m.t.Fatal(err)
	}
	if err := n.objects().CreateBucket(m.t.Context()); err != nil && !errors.Is(err, s3.ErrBucketExists) {
		m.t.Fatal(err)
	}
	m.t.Cleanup(func() {
		if n.cmd != nil {
			n.stop()
		}
		if m.t.Failed() {
			m.t.Logf("log of the mount of %s:\n%s", bucket, n.log)
		}
	})
	return &n
}

// smallDisk is a file system of so many bytes for a cache.
func smallDisk(t *testing.T, size int64) string {
	t.Helper()
	dir := t.TempDir()
	if err := syscall.Mount("cache", dir, "tmpfs", 0, fmt.Sprintf("size=%d", size)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		// A mount that has it open ends later, when the test failed.
		if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// book is an object whose bytes follow from its number.
type book struct {
	key  s3.Key
	size int64
	gen  uint64
}

// ReadAt implements io.ReaderAt.
func (b book) ReadAt(p []byte, off int64) (int, error) {
	if off >= b.size {
		return 0, io.EOF
	}
	n := int(min(int64(len(p)), b.size-off))
	part{gen: b.gen}.fill(p[:n], off)
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// shelf is a bucket of objects that readers know, behind a mount whose cache has no room for them all.
type shelf struct {
	*mounted
	books []book
	read  atomic.Int64 // bytes, all of them right
}

const (
	shelfCache = 48 << 20
	smallBooks = 60
	largeBooks = 4
	largeBook  = 20 << 20 // in parts
	bookPart   = 8 << 20
)

// newShelf fills the bucket, past all mounts.
func newShelf(t *testing.T, m *mounted, seed uint64) *shelf {
	t.Helper()
	s := &shelf{mounted: m.beside("shelf", "access=rox", smallDisk(t, shelfCache))}
	rnd := rand.New(rand.NewPCG(seed, 2))
	for i := range smallBooks + largeBooks {
		b := book{key: s3.Key(fmt.Sprint("book", i)), size: 1 + rnd.Int64N(512<<10), gen: uint64(i + 1)}
		if i >= smallBooks {
			b.size = largeBook + rnd.Int64N(1<<20)
		}
		if err := s.put(b); err != nil {
			t.Fatal(err)
		}
		s.books = append(s.books, b)
	}
	return s
}

func (s *shelf) put(b book) error {
	ctx, bucket := s.t.Context(), s.objects()
	if b.size < largeBook {
		_, err := bucket.Put(ctx, b.key, s3.Body{R: b, Size: b.size}, s3.Attributes{}, s3.Condition{})
		return err
	}
	id, err := bucket.CreateUpload(ctx, b.key, s3.Attributes{})
	if err != nil {
		return err
	}
	var parts []s3.Part
	for off := int64(0); off < b.size; off += bookPart {
		n := min(bookPart, b.size-off)
		p, err := bucket.UploadPart(ctx, b.key, id, len(parts)+1, s3.Body{R: io.NewSectionReader(b, off, n), Size: n})
		if err != nil {
			return err
		}
		parts = append(parts, p)
	}
	_, err = bucket.CompleteUpload(ctx, b.key, id, parts, s3.Condition{})
	return err
}

// readOne reads a range of a book, or all of it, past the kernel's cache, and compares.
func (s *shelf) readOne(rnd *rand.Rand) error {
	b := s.books[rnd.IntN(len(s.books))]
	off, n := int64(0), b.size
	if b.size > 1<<20 {
		off, n = rnd.Int64N(b.size-1<<20), 1+rnd.Int64N(1<<20)
	}
	f, err := os.Open(filepath.Join(s.dir, string(b.key)))
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED); err != nil {
		return err
	}
	got, want := make([]byte, n), make([]byte, n)
	if _, err := f.ReadAt(got, off); err != nil {
		return fmt.Errorf("%s, %d bytes at %d: %w", b.key, n, off, err)
	}
	if _, err := b.ReadAt(want, off); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	if !bytes.Equal(got, want) {
		return fmt.Errorf("%s, %d bytes at %d: %w", b.key, n, off, errContent)
	}
	s.read.Add(n)
	return nil
}

// readers read until ctx ends. The caller waits for the group.
func (s *shelf) readers(ctx context.Context, group *sync.WaitGroup, n int, seed uint64) {
	for i := range n {
		rnd := rand.New(rand.NewPCG(seed, uint64(i)))
		// Ends with ctx.
		group.Go(func() {
			for ctx.Err() == nil {
				if err := s.readOne(rnd); err != nil {
					s.t.Errorf("reader %d: %v", i, err)
					return
				}
			}
		})
	}
}

// rate is what a load has done.
type rate struct {
	took          time.Duration // until all was in the bucket
	ops           int
	written, read int64
}

func (x rate) String() string {
	s := x.took.Seconds()
	return fmt.Sprintf("%d changes, %.1f MiB written, %.1f MiB read in %.1f s: %.0f changes and %.1f MiB a second",
		x.ops, float64(x.written)/(1<<20), float64(x.read)/(1<<20), s, float64(x.ops)/s, x.bytes()/(1<<20))
}

// bytes that were written or read in a second.
func (x rate) bytes() float64 { return float64(x.written+x.read) / x.took.Seconds() }

// loadRound is after how long the workers of a load rest and all is compared.
const loadRound = 5 * time.Second

// load lets writers work in the worlds, and readers with the shelf, for so long. Not one operation may fail.
func (r *rig) load(s *shelf, d time.Duration) (x rate) {
	r.t.Helper()
	before := r.sum()
	read := s.read.Load()
	for x.took < d && !r.t.Failed() {
		r.round++
		begin := time.Now()
		ctx, stop := context.WithCancel(r.t.Context())
		var readers sync.WaitGroup
		s.readers(ctx, &readers, 3, r.seed^uint64(r.round))
		large := func(w *world) error {
			return errors.Join(w.removeBig(), w.newBig(false), r.flushed(), w.changeBig(lastPart))
		}
		r.work(func() {}, large, func() { time.Sleep(min(loadRound, d-x.took)) })
		stop()
		readers.Wait()
		r.flush()
		x.took += time.Since(begin)
		for _, w := range r.worlds {
			for len(w.open) > 0 {
				if err := w.closeAny(); err != nil {
					r.t.Errorf("close: %v", err)
				}
			}
		}
		r.compare(false)
	}
	after := r.sum()
	x.ops, x.written, x.read = after.ops-before.ops, after.bytes-before.bytes, s.read.Load()-read
	return x
}

// spells are how long a load runs in calm and in bad weather.
func spells() (calm, bad time.Duration) {
	if soak() {
		seconds := figure("CSI_S3_CHAOS_SECONDS", 600)
		return time.Duration(seconds) * time.Second / 4, time.Duration(seconds) * time.Second
	}
	return 8 * time.Second, 24 * time.Second
}

// TestNetworkFaults: no program notices a network that refuses, resets, loses and falsifies, and all that was written is in
// the bucket in the end.
func TestNetworkFaults(t *testing.T) {
	if !ownMounts(t) {
		return
	}
	nothingLeft(t)
	wire := newWire(t)
	r := newRig(t, "")
	r.endpoint = wire.url
	wire.lead(t, r.server.Endpoint, r.seed)
	s := newShelf(t, r.mounted, r.seed)
	r.begin()
	s.start()
	calm, bad := spells()
	was := r.load(s, calm)
	t.Logf("calm: %v", was)

	x := weather{slowed: 0.1, reset: 0.02, lost: 0.01, truncated: 0.005, corrupted: 0.001}
	if !soak() {
		x.corrupted = 0.05 // a short run has few bodies
	}
	wire.set(x)
	is := r.load(s, bad)
	t.Logf("bad weather: %v", is)
	ratio := is.bytes() / was.bytes()
	t.Logf("throughput in bad weather: %.2f of that in calm", ratio)
	r.checkEmptyCache()
	wire.set(weather{})
	r.checkBucket()
	s.stop()
	wire.report(t, slowed, reset, lost, truncated, flipped, misread,
		"Put", "Get", "Head", "List", "Copy", "Delete", "CreateUpload", "UploadPart", "CompleteUpload")
	if is.ops == 0 || is.written == 0 || is.read == 0 || wire.down.passed() < 2*shelfCache {
		t.Error("the suite proved nothing: too little was changed or read")
	}
	if soak() && ratio < 0.6 {
		t.Errorf("throughput in bad weather is %.2f of that in calm, should be 0.6", ratio)
	}
}
