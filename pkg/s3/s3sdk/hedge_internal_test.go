package s3sdk

import (
	"context"
	"errors"
	"io"
	"net/http"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/csi-s3/csi-s3/pkg/s3"
)

const usual = 10 * time.Millisecond

// late is a server that answers each GET after the time that wait says, and each other request after a minute.
type late struct {
	wait     func(n int64) time.Duration
	n        atomic.Int64
	finished atomic.Int64 // answers that somebody took
	fail     atomic.Int64 // the number of the GET that gets a 503
}

func (s *late) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	n, wait := int64(0), time.Minute
	if r.Method == http.MethodGet {
		n = s.n.Add(1)
		wait = s.wait(n)
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-r.Context().Done():
		return
	}
	s.finished.Add(1)
	if n != 0 && n == s.fail.Load() {
		w.WriteHeader(http.StatusServiceUnavailable)
		return
	}
	w.Header().Set("Etag", `"tag"`)
	w.Header().Set("Content-Length", "4")
	if r.Header.Get("Range") != "" {
		w.Header().Set("Content-Range", "bytes 0-3/4")
		w.WriteHeader(http.StatusPartialContent)
	}
	_, _ = io.WriteString(w, "body")
}

func read(t *testing.T, c *Client, end int64) (time.Duration, error) {
	t.Helper()
	start := time.Now()
	rc, _, err := c.Bucket("bkt").Get(t.Context(), "k", &s3.Range{End: end}, "tag")
	if err != nil {
		return time.Since(start), err
	}
	if data, err := io.ReadAll(rc); string(data) != "body" || err != nil {
		t.Errorf("%q, %v", data, err)
	}
	if err := rc.Close(); err != nil {
		t.Error(err)
	}
	return time.Since(start), nil
}

// One answer in forty hangs: no reader notices more than the patience, and the other request is broken off.
func TestLateAnswersAreAskedForAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &late{wait: func(n int64) time.Duration {
			if n > enoughReads && n%40 == 0 {
				return 10 * time.Second
			}
			return usual
		}}
		c := virtual(t, s.ServeHTTP)
		const calls = 1000
		worst := time.Duration(0)
		for range calls {
			d, err := read(t, c, 4)
			if err != nil {
				t.Fatal(err)
			}
			worst = max(worst, d)
		}
		if worst > minPatience+usual {
			t.Errorf("the slowest read took %v", worst)
		}
		hedged := c.Stats().Hedged
		if n := s.n.Load(); n != calls+hedged || hedged < 20 || hedged > calls/20 {
			t.Errorf("%d requests for %d reads, %d hedged", n, calls, hedged)
		}
		time.Sleep(time.Minute)
		if n := s.finished.Load(); n != calls {
			t.Errorf("%d answers taken, want %d", n, calls)
		}
		if load := c.Stats().Reads; load.Busy != 0 {
			t.Errorf("left behind: %+v", load)
		}
	})
}

// When all answers are late, a second request for each would be what it takes to make it worse.
func TestHedgesAreFew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &late{wait: func(n int64) time.Duration {
			if n > 200 {
				return time.Second
			}
			return usual
		}}
		c := virtual(t, s.ServeHTTP)
		const calls = 1000
		for range calls {
			if _, err := read(t, c, 4); err != nil {
				t.Fatal(err)
			}
		}
		// In time, late is what is usual: after 128 of them the patience is a second.
		if n := c.Stats().Hedged; n == 0 || n > maxHedges+calls/20 {
			t.Errorf("%d of %d hedged", n, calls)
		}
	})
}

func TestWhatIsNotAskedForAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var slow atomic.Bool
		s := &late{wait: func(int64) time.Duration {
			if slow.Load() {
				return time.Second
			}
			return usual
		}}
		c := virtual(t, s.ServeHTTP)
		slow.Store(true)
		if d, err := read(t, c, 4); d != time.Second || err != nil {
			t.Errorf("nothing is known yet: %v, %v", d, err)
		}
		slow.Store(false)
		for range 200 {
			if _, err := read(t, c, 4); err != nil {
				t.Fatal(err)
			}
		}
		slow.Store(true)
		before := s.n.Load()
		if d, err := read(t, c, smallRead+1); d != time.Second || err != nil {
			t.Errorf("a large read: %v, %v", d, err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		if err := c.Bucket("bkt").Delete(ctx, "k"); !errors.Is(err, s3.ErrUnavailable) {
			t.Error(err)
		}
		var full []*place
		for p := c.pool.limits[reads].try(c); p != nil; p = c.pool.limits[reads].try(c) {
			full = append(full, p)
		}
		full[0].leave(unjudged)
		if d, err := read(t, c, 4); d != time.Second || err != nil {
			t.Errorf("at the limit: %v, %v", d, err)
		}
		for _, p := range full {
			p.leave(unjudged)
		}
		if n := c.Stats().Hedged; n != 0 {
			t.Errorf("%d hedged, %d requests", n, s.n.Load()-before)
		}
		if d, err := read(t, c, 4); d <= minPatience || err != nil || c.Stats().Hedged != 1 {
			t.Errorf("a small read: %v, %v, %+v", d, err, c.Stats())
		}
	})
}

// The first good answer wins, not the first one; when none is good, the error is that of the first request.
func TestTheFirstGoodAnswerWins(t *testing.T) {
	for _, c := range []struct {
		name          string
		first, second time.Duration
		fails         int64 // which of the two
		want          time.Duration
	}{
		{"the second fails", time.Second, usual, 2, time.Second},
		{"the first fails", 100 * time.Millisecond, time.Second, 1, minPatience + time.Second},
	} {
		synctest.Test(t, func(t *testing.T) {
			var from atomic.Int64
			s := &late{wait: func(n int64) time.Duration {
				switch from.Load() {
				case n:
					return c.first
				case n - 1:
					return c.second
				}
				return usual
			}}
			client := virtual(t, s.ServeHTTP)
			for range 200 {
				if _, err := read(t, client, 4); err != nil {
					t.Fatal(err)
				}
			}
			from.Store(201)
			s.fail.Store(200 + c.fails)
			if d, err := read(t, client, 4); d != c.want || err != nil || s.n.Load() != 202 {
				t.Errorf("%s: %v, %v, %d requests", c.name, d, err, s.n.Load()-200)
			}
		})
	}
}
