package s3sdk

import (
	"container/list"
	"context"
	"sync"
)

// kind is what a request is for. Each has a limiter of its own, so that a look-up never waits for uploads.
type kind int

const (
	lookups kind = iota // HEAD, LIST and other questions about names
	reads               // GET
	writes              // whatever changes the bucket
	kinds
)

// Requests under way to one endpoint, of each kind.
const (
	firstLimit = 32
	maxLimit   = 256
	// A client has as many whatever the limit is: one whose bucket hangs leaves others their share.
	floorLimit = 2
)

// limiter bounds the requests of one kind that are under way to one endpoint: one more after each round of successes,
// half of them after a round in which the server had too much to do. Those who wait are served in their order, save that
// a client below its floor never waits. A request holds its place until its body has been read.
type limiter struct {
	mu        sync.Mutex
	limit     float64         // guarded by mu: from 1 to maxLimit
	busy      int             // guarded by mu: under way
	busyOf    map[*Client]int // guarded by mu: of these, by client
	queue     *list.List      // guarded by mu: of *place, not granted; empty while busy is below limit
	round     int             // guarded by mu: how often the limit was halved
	throttled int64           // guarded by mu: requests for which the server had too much to do
}

// place is a request's in a limiter. A nil place belongs to nobody: it is free of charge.
type place struct {
	limiter *limiter
	client  *Client
	granted chan struct{}
	round   int  // guarded by limiter.mu: of the limiter, when it was granted
	left    bool // guarded by limiter.mu
}

func newLimiter() *limiter {
	return &limiter{limit: firstLimit, busyOf: map[*Client]int{}, queue: list.New()}
}

// enter waits for a place, or returns ctx's error. The caller leaves it.
func (l *limiter) enter(ctx context.Context, c *Client) (*place, error) {
	p := &place{limiter: l, client: c, granted: make(chan struct{})}
	l.mu.Lock()
	if l.busy < int(l.limit) || l.busyOf[c] < floorLimit {
		l.grantLocked(p)
		l.mu.Unlock()
		return p, nil
	}
	e := l.queue.PushBack(p)
	l.mu.Unlock()
	select {
	case <-p.granted:
		return p, nil
	case <-ctx.Done():
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	select {
	case <-p.granted:
		p.leaveLocked(unjudged)
	default:
		l.queue.Remove(e)
	}
	return nil, ctx.Err()
}

// try returns a place if one is free, else nil.
func (l *limiter) try(c *Client) *place {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.busy >= int(l.limit) {
		return nil
	}
	p := &place{limiter: l, client: c, granted: make(chan struct{})}
	l.grantLocked(p)
	return p
}

func (l *limiter) grantLocked(p *place) {
	l.busy++
	l.busyOf[p.client]++
	p.round = l.round
	close(p.granted)
}

// verdict is what the end of a request says about the load of its server.
type verdict int

const (
	unjudged verdict = iota
	answered
	overloaded // it answered 503 or 429, or not in time
)

// leave gives the place up. Only the first call counts.
func (p *place) leave(v verdict) {
	if p == nil {
		return
	}
	p.limiter.mu.Lock()
	defer p.limiter.mu.Unlock()
	p.leaveLocked(v)
}

func (p *place) leaveLocked(v verdict) {
	l := p.limiter
	if p.left {
		return
	}
	p.left = true
	switch v {
	case answered:
		// A limit that nobody reaches says nothing about the server.
		if 2*l.busy >= int(l.limit) {
			l.limit = min(maxLimit, l.limit+1/l.limit)
		}
	case overloaded:
		l.throttled++
		// What was under way when the limit was halved met the load of before.
		if p.round == l.round {
			l.limit = max(1, l.limit/2)
			l.round++
		}
	}
	l.busy--
	if l.busyOf[p.client]--; l.busyOf[p.client] == 0 {
		delete(l.busyOf, p.client)
	}
	for e := l.queue.Front(); e != nil; {
		next := e.Next()
		if w := e.Value.(*place); l.busy < int(l.limit) || w.client == p.client && l.busyOf[p.client] < floorLimit {
			l.queue.Remove(e)
			l.grantLocked(w)
		} else if l.busyOf[p.client] >= floorLimit {
			break
		}
		e = next
	}
}

// Load is how busy the requests of one kind are.
type Load struct {
	Limit     int   // requests that may be under way at once
	Busy      int   // requests under way
	Waiting   int   // requests that wait for others to end
	Throttled int64 // requests that the server answered with 503 or 429 or not in time, since the start
}

func (l *limiter) load() Load {
	l.mu.Lock()
	defer l.mu.Unlock()
	return Load{Limit: int(l.limit), Busy: l.busy, Waiting: l.queue.Len(), Throttled: l.throttled}
}
