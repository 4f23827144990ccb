package chaos_test

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/csi-s3/csi-s3/pkg/s3"
)

// statLimit bounds the 99th percentile of stat beside a dead server. It is generous: a busy machine is no dead server.
const statLimit = 250 * time.Millisecond

// stream writes large files at once, and remembers what it was told.
type stream struct {
	dir     string
	written atomic.Int64 // bytes whose write returned
	mu      sync.Mutex
	sums    map[string][sha256.Size]byte // guarded by mu: of the files whose close returned
}

const streamWrite = 1 << 20

// run writes so many files of a size.
func (x *stream) run(files int, size int64) error {
	var group sync.WaitGroup
	errs := make([]error, files)
	for i := range errs {
		// Ends with the file.
		group.Go(func() { errs[i] = x.file(fmt.Sprint("file", i), uint64(i+1), size) })
	}
	group.Wait()
	return errors.Join(errs...)
}

func (x *stream) file(name string, gen uint64, size int64) error {
	f, err := os.Create(filepath.Join(x.dir, name))
	if err != nil {
		return err
	}
	defer f.Close()
	sum, p := sha256.New(), make([]byte, streamWrite)
	for off := int64(0); off < size; off += streamWrite {
		part{gen: gen}.fill(p, off)
		if _, err := f.Write(p); err != nil {
			return err
		}
		sum.Write(p)
		x.written.Add(streamWrite)
	}
	if err := f.Close(); err != nil {
		return err
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	x.sums[name] = [sha256.Size]byte(sum.Sum(nil))
	return nil
}

// stalled returns when the writers wait.
func (x *stream) stalled(t *testing.T) {
	t.Helper()
	last, since := x.written.Load(), time.Now()
	for begin := since; time.Since(since) < 3*time.Second; time.Sleep(10 * time.Millisecond) {
		if now := x.written.Load(); now != last {
			last, since = now, time.Now()
		}
		if time.Since(begin) > time.Minute {
			t.Fatal("the writers do not wait")
		}
	}
}

// verify compares the bucket, and nothing else, with what was written.
func (x *stream) verify(t *testing.T, bucket s3.Bucket) {
	t.Helper()
	for name, want := range x.sums {
		body, _, err := bucket.Get(t.Context(), s3.Key(name), nil, "")
		if err != nil {
			t.Error(err)
			continue
		}
		sum := sha256.New()
		_, err = io.Copy(sum, body)
		_ = body.Close() // it was read
		if err != nil || [sha256.Size]byte(sum.Sum(nil)) != want {
			t.Errorf("the object of %s is not what was written: %v", name, err)
		}
	}
}

// drained waits until a mount says that the bucket has everything, and helps it with nothing.
func (m *mounted) drained(most time.Duration) time.Duration {
	m.t.Helper()
	begin := time.Now()
	for {
		if s := m.status(); s.CacheLimit > 0 && s.Dirty == 0 && s.Queue == 0 {
			return time.Since(begin)
		}
		if time.Since(begin) > most {
			m.t.Fatalf("not drained after %v: %+v", most, m.status())
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// latencies are how long a call took, many times.
type latencies []time.Duration

// measure calls again and again until stop is closed. Ends with it, or with an error.
func measure(stop <-chan struct{}, call func(n int) error) (all latencies, err error) {
	for n := 0; ; n++ {
		select {
		case <-stop:
			return all, nil
		default:
		}
		begin := time.Now()
		if err := call(n); err != nil {
			return all, err
		}
		all = append(all, time.Since(begin))
		time.Sleep(2 * time.Millisecond)
	}
}

// at is a percentile.
func (l latencies) at(percent int) time.Duration {
	sorted := slices.Sorted(slices.Values(l))
	if len(sorted) == 0 {
		return 0
	}
	return sorted[(len(sorted)-1)*percent/100]
}

func (l latencies) String() string {
	return fmt.Sprintf("%d calls, p50 %v, p99 %v, worst %v", len(l), l.at(50), l.at(99), l.at(100))
}

// stats measures stat of files of a mount in the background, past what the kernel remembers. The function that it returns ends that and judges.
func stats(t *testing.T, what string, names []string) (end func() latencies) {
	t.Helper()
	stop := make(chan struct{})
	var got latencies
	var err error
	var group sync.WaitGroup
	// Ends with stop.
	group.Go(func() {
		got, err = measure(stop, func(n int) error {
			var st unix.Statx_t
			return unix.Statx(unix.AT_FDCWD, names[n%len(names)], unix.AT_STATX_FORCE_SYNC, unix.STATX_BASIC_STATS, &st)
		})
	})
	return func() latencies {
		t.Helper()
		close(stop)
		group.Wait()
		t.Logf("stat, %s: %v", what, got)
		if err != nil {
			t.Errorf("stat, %s: %v", what, err)
		}
		if len(got) < 100 {
			t.Errorf("the suite proved nothing: %d calls of stat, %s", len(got), what)
		}
		if p := got.at(99); p > statLimit {
			t.Errorf("stat, %s: the 99th percentile is %v, should be below %v", what, p, statLimit)
		}
		return got
	}
}

// some makes files in a mount, and returns their paths.
func (m *mounted) some(n int) (paths []string) {
	m.t.Helper()
	for i := range n {
		path := filepath.Join(m.dir, fmt.Sprint("some", i))
		if err := os.WriteFile(path, []byte(path), 0o644); err != nil {
			m.t.Fatal(err)
		}
		paths = append(paths, path)
	}
	m.flush()
	return paths
}

// TestEndpointDown: the server is away for long, and much more is written than the cache holds. Writers go on while there is
// room, then wait, and never fail; stat is as fast as ever; when the server is back all is uploaded without help.
func TestEndpointDown(t *testing.T) {
	if !ownMounts(t) {
		return
	}
	nothingLeft(t)
	const writers = 4
	cache, total, away := int64(64<<20), int64(160<<20), 20*time.Second
	if soak() {
		cache, total, away = 256<<20, 1<<30, time.Duration(figure("CSI_S3_CHAOS_SECONDS", 600))*time.Second
	}
	wire := newWire(t)
	defer wire.clear() // the mount ends in order also when the test failed
	// As in Kubernetes nobody else writes: what was learned of names holds while nobody can be asked.
	m := newMounted(t, "exclusive")
	m.cache, m.endpoint = smallDisk(t, cache), wire.url
	wire.lead(t, m.server.Endpoint, seedFrom(t))
	other := m.beside("other", "", t.TempDir())
	other.endpoint = m.server.Endpoint // a healthy path
	m.start()
	other.start()
	here, there := m.some(50), other.some(50)

	before := stats(t, "of another mount, before", there)
	time.Sleep(3 * time.Second)
	before()

	x := &stream{dir: m.dir, sums: map[string][sha256.Size]byte{}}
	done := make(chan error, 1)
	// Ends when all is written; waited for below.
	go func() { done <- x.run(writers, total/writers) }()
	for end := time.Now().Add(time.Minute); x.written.Load() < total/20; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("nothing is written")
		}
	}
	wire.fail(refused, "")
	begin, first := time.Now(), x.written.Load()
	mine, theirs := stats(t, "of the mount without a server", here), stats(t, "of another mount, meanwhile", there)
	time.Sleep(away / 2)
	wire.fail(silent, "")
	time.Sleep(away / 4)
	limit := m.status().CacheLimit
	half := x.written.Load()
	time.Sleep(away / 4)
	full := x.written.Load()
	mine()
	theirs()
	t.Logf("away for %v: %d MiB of %d were written, %d before, the cache has room for %d", time.Since(begin).Round(time.Second), full>>20, total>>20, first>>20, limit>>20)
	select {
	case err := <-done:
		t.Fatalf("the writers ended while the server was away: %v", err)
	default:
	}
	// What the server had already taken before is room, too.
	if full-first < limit/2 || full-first > limit+writers*streamWrite {
		t.Errorf("%d bytes were written while the server was away, the cache has room for %d", full-first, limit)
	}
	if full-half > limit/50 {
		t.Errorf("%d bytes more were written to a full cache", full-half)
	}

	back := time.Now()
	wire.clear()
	if err := <-done; err != nil {
		t.Errorf("a writer: %v", err)
	}
	wrote := time.Since(back)
	m.drained(5 * time.Minute)
	took := time.Since(back)
	t.Logf("after the server was back the writers were done in %v, and all was uploaded in %v: %.1f MiB a second",
		wrote.Round(time.Millisecond), took.Round(time.Millisecond), float64(total)/(1<<20)/took.Seconds())
	if len(x.sums) != writers || x.written.Load() != total {
		t.Errorf("%d files with %d bytes were written, should be %d with %d", len(x.sums), x.written.Load(), writers, total)
	}
	x.verify(t, m.objects())
	other.stop()
	m.stop()
	wire.report(t, refused, silent)
}
