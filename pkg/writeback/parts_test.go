package writeback

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/csi-s3/csi-s3/pkg/extent"
	"github.com/csi-s3/csi-s3/pkg/namespace"
	"github.com/csi-s3/csi-s3/pkg/s3"
)

const defaultPart = 8 << 20

// The parts of any size cover it without gap or overlap, within what S3 takes.
func TestLayout(t *testing.T) {
	const gib = 1 << 30
	for _, size := range []int64{0, 1, defaultPart - 1, defaultPart, defaultPart + 1, 100 << 20, 8000 << 20, 8000<<20 + 1, 133 * gib, 2 << 40, 5 << 40} {
		parts, err := layout(size, defaultPart)
		if err != nil {
			t.Fatal(size, err)
		}
		if len(parts) > 10000 {
			t.Errorf("%d bytes in %d parts", size, len(parts))
		}
		var at int64
		for i, p := range parts {
			if p.number != i+1 || p.off != at || p.end <= p.off || p.end-p.off > 5*gib || p.copied {
				t.Fatalf("part %d of %d bytes: %+v", i, size, p)
			}
			if i < len(parts)-1 && p.end-p.off < 5<<20 {
				t.Fatalf("part %d has %d bytes", i, p.end-p.off)
			}
			at = p.end
		}
		if at != size {
			t.Errorf("parts of %d bytes end at %d", size, at)
		}
	}
	if _, err := layout(6<<40, defaultPart); !errors.Is(err, s3.ErrInvalid) {
		t.Errorf("6 TiB: %v", err)
	}
}

// A part of a file that grew is the same part as before, so that it can be copied.
func TestLayoutIsStable(t *testing.T) {
	small, err := layout(9000<<20, defaultPart)
	if err != nil {
		t.Fatal(err)
	}
	large, err := layout(1<<40, defaultPart)
	if err != nil {
		t.Fatal(err)
	}
	for i, p := range small[:len(small)-1] {
		if p != large[i] {
			t.Fatalf("part %d is %+v, in a larger file %+v", i, p, large[i])
		}
	}
}

// Only whole clean parts of the source are copied.
func TestPlanOfParts(t *testing.T) {
	e := &Executor{opt: Options{Part: defaultPart}}
	src := namespace.Source{Key: "k", ETag: "e", Size: 40 << 20}
	var dirty extent.Set
	dirty.Add(17<<20, 17<<20+1)
	parts, err := e.plan(50<<20, dirty, src)
	if err != nil {
		t.Fatal(err)
	}
	got := ""
	for _, p := range parts {
		if p.copied {
			got += "c"
		} else {
			got += "u"
		}
	}
	if got != "ccuccuu" {
		t.Errorf("%s, want the dirty part and what lies beyond the source sent", got)
	}
	// Without a source nothing is copied, nor is a part that is too small for a copy.
	for _, src := range []namespace.Source{{}, {Key: "k", Size: 100 << 20}} {
		parts, err = e.plan(8<<20+100, extent.Set{}, src)
		if err != nil || parts[1].copied || parts[0].copied != (src.Key != "") {
			t.Errorf("%+v, %v", parts, err)
		}
	}
}

func TestRanges(t *testing.T) {
	for size := int64(0); size < 50; size++ {
		var at int64
		for i, p := range ranges(size, 7) {
			if p.number != i+1 || p.off != at || p.end <= at || !p.copied {
				t.Fatalf("%d: %+v", size, p)
			}
			at = p.end
		}
		if at != size {
			t.Fatalf("%d ends at %d", size, at)
		}
	}
}

func TestReachable(t *testing.T) {
	for rest, want := range map[string]bool{
		"": true, "a": true, "a/": true, "a/b": true, "a/b/": true,
		"/": false, "//": false, "a//b": false, "./a": false, "a/..": false, "a/../": false, "a\x00": false,
	} {
		if got := reachable(rest); got != want {
			t.Errorf("%q: %v", rest, got)
		}
	}
}

func TestPrefixes(t *testing.T) {
	for _, c := range []struct {
		a, b s3.Key
		want bool
	}{{"a/", "b/", false}, {"a/", "a/b/", true}, {"a/b/", "a/", true}, {"a/", "a/", true}, {"a/", "ab/", false}} {
		if overlap(c.a, c.b) != c.want {
			t.Errorf("%q and %q", c.a, c.b)
		}
	}
	k := &namespace.Task{SrcPrefix: "old/", DstPrefix: "new/place/"}
	if d := destination(k, "old/a/b"); d != "new/place/a/b" {
		t.Errorf("%q", d)
	}
	for _, key := range []s3.Key{"a", "ab", "a/b"} {
		if b := before(key); b >= key {
			t.Errorf("%q is not before %q", b, key)
		}
	}
	if before("") != "" {
		t.Error("something is before everything")
	}
}

// Pauses grow, are never too long, and differ.
func TestBackoff(t *testing.T) {
	for failures := range 100 {
		limit := minPause + min(maxPause, minPause<<min(failures, 16))
		seen := map[time.Duration]bool{}
		for range 50 {
			d := backoff(failures)
			if d < minPause || d > limit {
				t.Fatalf("after %d failures %v, the most is %v", failures, d, limit)
			}
			seen[d] = true
		}
		if len(seen) < 10 {
			t.Errorf("after %d failures always the same", failures)
		}
	}
}

// A request of a long task is repeated while that may help, and no longer.
func TestPersist(t *testing.T) {
	for _, c := range []struct {
		err   error
		calls int
	}{
		{s3.ErrUnavailable, attempts}, {s3.ErrCorrupt, attempts}, {s3.ErrAuth, attempts}, {s3.ErrFull, attempts}, {s3.ErrNoBucket, attempts},
		{s3.ErrNotExist, 1}, {s3.ErrPrecondition, 1}, {s3.ErrInvalid, 1}, {nil, 1},
	} {
		synctest.Test(t, func(t *testing.T) {
			calls := 0
			_, err := persist(t.Context(), func() (int, error) { calls++; return 0, c.err })
			if calls != c.calls || !errors.Is(err, c.err) {
				t.Errorf("%v: %d calls, %v", c.err, calls, err)
			}
		})
	}
	synctest.Test(t, func(t *testing.T) {
		calls := 0
		v, err := persist(t.Context(), func() (int, error) {
			if calls++; calls < 4 {
				return 0, s3.ErrUnavailable
			}
			return 7, nil
		})
		if v != 7 || err != nil {
			t.Error(v, err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		start := time.Now()
		_, err = persist(ctx, func() (int, error) { return 0, s3.ErrUnavailable })
		if !errors.Is(err, context.DeadlineExceeded) || !errors.Is(err, s3.ErrUnavailable) || time.Since(start) > time.Second {
			t.Error(err, time.Since(start))
		}
	})
}

// While the server is away the loop slows down, and Stop does not wait for it.
func TestBrake(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := New(nil, nil, nil, nil, Options{Meta: 4})
		wait := func(failures int) time.Duration {
			e.failures = failures
			start := time.Now()
			if err := e.brake(); err != nil {
				t.Fatal(err)
			}
			return time.Since(start)
		}
		if d := wait(3); d != 0 {
			t.Errorf("%v after a few failures", d)
		}
		for range 20 {
			if d := wait(1000); d > 5*time.Second {
				t.Errorf("%v after many", d)
			}
		}
		e.failures = 1000
		e.stop()
		if err := e.brake(); !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	})
}

// All who wait for a pulse hear the next one, once.
func TestPulse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var p pulse
		p.beat() // nobody waits
		var heard atomic.Int32
		for range 10 {
			go func() {
				<-p.next()
				heard.Add(1)
			}()
		}
		synctest.Wait()
		if heard.Load() != 0 {
			t.Error("a beat that was over is heard")
		}
		p.beat()
		synctest.Wait()
		if heard.Load() != 10 {
			t.Errorf("%d of 10 heard it", heard.Load())
		}
	})
}

func TestSlots(t *testing.T) {
	s := newSlots(2)
	for range 2 {
		if err := s.acquire(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if err := s.acquire(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
	s.release()
	if err := s.acquire(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Error("an ended context got a slot")
	}
	if err := s.acquire(t.Context()); err != nil {
		t.Error(err)
	}
}

// Errors tell what happened to the object, and keep their cause.
func TestTakenError(t *testing.T) {
	cause := fmt.Errorf("put: %w", s3.ErrPrecondition)
	seen := map[string]bool{}
	for _, e := range []*takenError{{cause: cause}, {found: &s3.Info{ETag: "x"}, cause: cause}, {found: &s3.Info{ETag: "x"}, ours: true, cause: cause}} {
		if !errors.Is(e, s3.ErrPrecondition) || seen[e.Error()] {
			t.Errorf("%v", e)
		}
		seen[e.Error()] = true
	}
}
