package s3sdk

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/csi-s3/csi-s3/pkg/s3"
)

func enter(t *testing.T, l *limiter, c *Client) *place {
	t.Helper()
	p, err := l.enter(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// A round of successes adds one; however many requests of a round are too much, they halve the limit once.
func TestLimitMovesOnceARound(t *testing.T) {
	l, c := newLimiter(), new(Client)
	round := func(v verdict, n int) {
		t.Helper()
		var places []*place
		for range n {
			places = append(places, enter(t, l, c))
		}
		for _, p := range places {
			p.leave(v)
			p.leave(overloaded) // only the first counts
		}
	}
	for _, step := range []struct {
		v            verdict
		n, min, want int
	}{
		{answered, 4, 32, 32}, // nobody needs more
		{answered, 32, 32, 32},
		{answered, 32, 33, 33},
		{overloaded, 33, 16, 16},
		{unjudged, 16, 16, 16},
		{overloaded, 1, 8, 8},
		{overloaded, 8, 4, 4},
		{overloaded, 4, 2, 2},
		{overloaded, 2, 1, 1},
		{overloaded, 1, 1, 1},
	} {
		round(step.v, step.n)
		if got := l.load().Limit; got < step.min || got > step.want {
			t.Errorf("after %+v: limit %d", step, got)
		}
	}
	if s := l.load(); s.Throttled != 33+1+8+4+2+1 || s.Busy != 0 {
		t.Errorf("%+v", s)
	}
	for range 2 * maxLimit {
		round(answered, l.load().Limit)
	}
	if got := l.load().Limit; got != maxLimit {
		t.Errorf("limit %d", got)
	}
}

// Requests that were on their way when the limit was halved met the load of before.
func TestStragglersDoNotHalve(t *testing.T) {
	l, c := newLimiter(), new(Client)
	old, older := enter(t, l, c), enter(t, l, c)
	old.leave(overloaded)
	fresh := enter(t, l, c)
	older.leave(overloaded)
	if got := l.load().Limit; got != 16 {
		t.Errorf("limit %d, want 16", got)
	}
	fresh.leave(overloaded)
	if got := l.load().Limit; got != 8 {
		t.Errorf("limit %d, want 8", got)
	}
}

func TestPlacesInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, hog, other := newLimiter(), new(Client), new(Client)
		var held []*place
		for range firstLimit {
			held = append(held, enter(t, l, hog))
		}
		if l.try(hog) != nil {
			t.Error("tried a place beyond the limit")
		}
		var order []int
		var mu sync.Mutex
		ctx, cancel := context.WithCancel(t.Context())
		for i := range 4 {
			ctx := ctx
			if i != 1 {
				ctx = t.Context()
			}
			go func() { // ends with its turn or its context
				p, err := l.enter(ctx, hog)
				mu.Lock()
				defer mu.Unlock()
				if err != nil {
					order = append(order, -i)
					return
				}
				order = append(order, i)
				held = append(held, p)
			}()
			synctest.Wait()
		}
		// Another client has its floor, whoever waits, and no more.
		for range floorLimit {
			held = append(held, enter(t, l, other))
		}
		short, stop := context.WithTimeout(t.Context(), time.Second)
		defer stop()
		if _, err := l.enter(short, other); !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
		cancel()
		synctest.Wait()
		for range 3 + floorLimit { // the floor was beyond the limit
			mu.Lock()
			p := held[0]
			held = held[1:]
			mu.Unlock()
			p.leave(unjudged)
			synctest.Wait()
		}
		mu.Lock()
		defer mu.Unlock()
		if fmt.Sprint(order) != "[-1 0 2 3]" {
			t.Errorf("order %v", order)
		}
		for _, p := range held {
			p.leave(unjudged)
		}
		if s := l.load(); s.Busy != 0 || s.Waiting != 0 || len(l.busyOf) != 0 {
			t.Errorf("left behind: %+v, %d clients", s, len(l.busyOf))
		}
	})
}

// A client whose floor is free is served before others when one of its own requests ends above the limit.
func TestFloorOfAWaiter(t *testing.T) {
	l, a, b := newLimiter(), new(Client), new(Client)
	var held []*place
	for range firstLimit {
		held = append(held, enter(t, l, a))
	}
	one, two := enter(t, l, b), enter(t, l, b)
	granted := make(chan *place)
	for _, c := range []*Client{a, b} {
		go func() { // ends with its turn
			p, err := l.enter(context.Background(), c)
			if err != nil || c == a {
				return
			}
			granted <- p
		}()
	}
	for l.load().Waiting < 2 {
		time.Sleep(time.Millisecond)
	}
	one.leave(unjudged)
	p := <-granted
	if l.load().Waiting != 1 {
		t.Error("somebody else was served")
	}
	p.leave(unjudged)
	two.leave(unjudged)
	for _, p := range held {
		p.leave(unjudged)
	}
}

// A server that can do 8 requests at once, then 2, then 20, with forty at its door: it is used, and seldom asked for more.
func TestLimitFindsTheServersPace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const latency = 100 * time.Millisecond
		var capacity, busy, good, refused atomic.Int64
		capacity.Store(8)
		c := virtual(t, func(w http.ResponseWriter, r *http.Request) {
			defer busy.Add(-1)
			if busy.Add(1) > capacity.Load() {
				refused.Add(1)
				w.WriteHeader(http.StatusServiceUnavailable)
				return
			}
			time.Sleep(latency)
			good.Add(1)
			w.Header().Set("Etag", `"tag"`)
			w.Header().Set("Content-Length", "0")
		})
		ctx, cancel := context.WithCancel(t.Context())
		b := c.Bucket("bkt")
		var wg sync.WaitGroup
		for range 40 {
			wg.Go(func() {
				for ctx.Err() == nil {
					_, _ = b.Head(ctx, "k")
				}
			})
		}
		measure := func(d time.Duration) (pace, share float64) {
			g, r := good.Load(), refused.Load()
			time.Sleep(d)
			g, r = good.Load()-g, refused.Load()-r
			return float64(g) / (d.Seconds() / latency.Seconds()), float64(r) / float64(g+r)
		}
		time.Sleep(2 * time.Second)
		for _, step := range []struct {
			n    int64
			most float64 // of its requests refused; one in a round is many of a few
		}{{8, 0.1}, {2, 0.4}, {20, 0.05}} {
			n := step.n
			capacity.Store(n)
			time.Sleep(4 * time.Second) // the time it has to find the new pace
			pace, share := measure(4 * time.Second)
			t.Logf("a server of %d: %.1f at once, %.1f %% refused, %+v", n, pace, 100*share, c.Stats().Lookups)
			if pace < 0.6*float64(n) || share > step.most {
				t.Errorf("a server of %d: %.1f at once, %.1f %% refused", n, pace, 100*share)
			}
		}
		cancel()
		wg.Wait()
		if c.Stats().Lookups.Throttled == 0 {
			t.Error("nothing was counted")
		}
	})
}

// Uploads that do not move leave look-ups and reads alone, and so does another client whose requests hang.
func TestKindsDoNotWaitForEachOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := virtual(t, func(w http.ResponseWriter, r *http.Request) {
			if r.Method == http.MethodPut || r.URL.Path == "/dead/k" {
				<-r.Context().Done()
				return
			}
			w.Header().Set("Etag", `"tag"`)
			w.Header().Set("Content-Length", "4")
			_, _ = io.WriteString(w, "body")
		})
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		dead := &bucket{Client: &Client{api: c.api, cfg: c.cfg, pool: c.pool, redact: c.redact}, name: "dead", brakes: map[string]*brake{}}
		for range 2 * firstLimit {
			wg.Go(func() { _ = c.Bucket("bkt").Delete(ctx, "k") })
			wg.Go(func() { _, _ = c.Bucket("bkt").Copy(ctx, "a", "", "b", nil, s3.Condition{}) })
			wg.Go(func() { _, _ = dead.Head(ctx, "k") })
		}
		synctest.Wait()
		if s := c.Stats(); s.Lookups.Waiting == 0 || s.Writes.Waiting == 0 {
			t.Errorf("nobody waits: %+v", s)
		}
		start := time.Now()
		if _, err := c.Bucket("bkt").Head(t.Context(), "k"); err != nil {
			t.Error(err)
		}
		rc, _, err := c.Bucket("bkt").Get(t.Context(), "k", nil, "")
		if err != nil {
			t.Fatal(err)
		}
		if s := c.Stats(); s.Reads.Busy != 1 {
			t.Errorf("an open body: %+v", s.Reads)
		}
		if _, err := io.ReadAll(rc); err != nil {
			t.Error(err)
		}
		if s := c.Stats(); s.Reads.Busy != 0 {
			t.Errorf("a body that was read: %+v", s.Reads)
		}
		_ = rc.Close()
		if d := time.Since(start); d != 0 {
			t.Errorf("waited for %v", d)
		}
		cancel()
		wg.Wait()
		if s := c.Stats(); s.Lookups.Busy+s.Lookups.Waiting+s.Writes.Busy+s.Writes.Waiting != 0 {
			t.Errorf("left behind: %+v", s)
		}
	})
}

// While nothing succeeds, few requests are repeated: the caller, who knows what is worth it, does that.
func TestRetriesAreBudgeted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var healthy atomic.Bool
		var requests atomic.Int64
		c := virtual(t, func(w http.ResponseWriter, _ *http.Request) {
			requests.Add(1)
			if healthy.Load() {
				w.WriteHeader(http.StatusNoContent)
				return
			}
			w.WriteHeader(http.StatusInternalServerError)
		})
		const calls = 1000
		for range calls {
			if err := c.Bucket("bkt").Delete(t.Context(), "k"); !errors.Is(err, s3.ErrUnavailable) {
				t.Fatal(err)
			}
		}
		if n := requests.Load(); n != calls+maxTokens {
			t.Errorf("%d requests for %d calls", n, calls)
		}
		healthy.Store(true)
		for range calls / 10 {
			if err := c.Bucket("bkt").Delete(t.Context(), "k"); err != nil {
				t.Fatal(err)
			}
		}
		healthy.Store(false)
		requests.Store(0)
		for range calls {
			if err := c.Bucket("bkt").Delete(t.Context(), "k"); !errors.Is(err, s3.ErrUnavailable) {
				t.Fatal(err)
			}
		}
		if n := requests.Load(); n < calls+calls/10*perToken-1 || n > calls+calls/10*perToken {
			t.Errorf("%d requests for %d calls after %d successes", n, calls, calls/10)
		}
	})
}

// Connections that are not shared, as of clients that trust different CAs, are one endpoint all the same.
func TestStatsByEndpoint(t *testing.T) {
	var transports Transports
	for i, c := range []Config{{Endpoint: "https://a"}, {Endpoint: "https://a", Insecure: true}, {Endpoint: "https://b"}} {
		p, release := transports.open(c)
		defer release()
		p.corrupt.Add(int64(i + 1))
		enter(t, p.limits[writes], nil)
	}
	all := transports.Stats()
	a, b := all["https://a"], all["https://b"]
	if len(all) != 2 || a.Corrupt != 3 || b.Corrupt != 3 {
		t.Errorf("%+v", all)
	}
	if a.Writes != (Load{Limit: 2 * firstLimit, Busy: 2}) || b.Writes != (Load{Limit: firstLimit, Busy: 1}) {
		t.Errorf("%+v", all)
	}
}

func TestVerdicts(t *testing.T) {
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	timeout := &net.OpError{Op: "read", Err: os.ErrDeadlineExceeded}
	for _, c := range []struct {
		ctx  context.Context
		x    exchange
		want verdict
	}{
		{t.Context(), exchange{status: 429}, overloaded},
		{t.Context(), exchange{status: 503}, overloaded},
		{t.Context(), exchange{status: 504}, overloaded},
		{t.Context(), exchange{status: 408}, overloaded},
		{t.Context(), exchange{err: timeout}, overloaded},
		{ended, exchange{err: timeout}, unjudged},
		{t.Context(), exchange{err: io.ErrUnexpectedEOF}, unjudged},
		{t.Context(), exchange{status: 500}, unjudged},
		{t.Context(), exchange{status: 404}, answered},
		{t.Context(), exchange{status: 412}, answered},
		{t.Context(), exchange{status: 200}, answered},
	} {
		if got := c.x.verdict(c.ctx); got != c.want {
			t.Errorf("%d, %v: %v, want %v", c.x.status, c.x.err, got, c.want)
		}
	}
}

// Many removals under a condition at once leave the places of look-ups free.
func TestConditionalDeletesAreWrites(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := virtual(t, func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() { _ = c.Bucket("bkt").DeleteIf(ctx, "k", "tag") })
		synctest.Wait()
		if s := c.Stats(); s.Lookups.Busy != 0 || s.Writes.Busy != 1 {
			t.Errorf("%+v", s)
		}
		cancel()
		wg.Wait()
	})
}
