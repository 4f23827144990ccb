package s3sdk

import (
	"context"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	sdk "github.com/aws/aws-sdk-go-v2/service/s3"

	"github.com/csi-s3/csi-s3/pkg/s3"
)

const (
	smallRead   = 256 << 10 // bytes: what a reader waits for, not what is fetched ahead
	recentReads = 128
	enoughReads = 32   // before which nothing is known about the endpoint
	perHedge    = 0.05 // of a second request, for each first one
	maxHedges   = 5    // second requests at once after a quiet time
	minPatience = 50 * time.Millisecond
	maxPatience = 2 * time.Second
)

// pace is how long recent small reads of an endpoint waited for their first byte.
type pace struct {
	mu        sync.Mutex
	waits     [recentReads]time.Duration // guarded by mu: a ring
	n         int                        // guarded by mu: how many there were
	patience  time.Duration              // guarded by mu: the 95th percentile, 0 while it is not known
	allowance float64                    // guarded by mu: second requests that may be sent
	hedged    int64                      // guarded by mu
}

// note takes a read's wait to account.
func (p *pace) note(d time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.waits[p.n%recentReads] = d
	p.n++
	p.allowance = min(maxHedges, p.allowance+perHedge)
	if p.n%(enoughReads/2) != 0 || p.n < enoughReads { // sorting costs
		return
	}
	known := p.waits
	recent := known[:min(p.n, recentReads)]
	slices.Sort(recent)
	p.patience = min(max(recent[len(recent)*95/100], minPatience), maxPatience)
}

// wait is how long to wait for a first byte before asking again, false while nothing is known.
func (p *pace) wait() (time.Duration, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.patience, p.patience > 0
}

func (p *pace) spend() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.allowance < 1 {
		return false
	}
	p.allowance--
	p.hedged++
	return true
}

func (p *pace) count() int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.hedged
}

// leg is one of up to two requests for the same bytes.
type leg struct {
	x      *exchange
	cancel context.CancelFunc
	out    *sdk.GetObjectOutput
	err    error
}

// ask opens what in names. A small read whose first byte is late, compared with recent ones, is asked for a second
// time; the first good answer wins and the other request is broken off. The caller calls release when it is done with
// the answer.
func (b *bucket) ask(ctx context.Context, api *sdk.Client, in *sdk.GetObjectInput, r *s3.Range, opts ...func(*sdk.Options)) (out *sdk.GetObjectOutput, release func(), err error) {
	if r != nil && r.End-r.Off > smallRead {
		out, err = api.GetObject(ctx, in, opts...)
		return out, func() {}, err
	}
	var won atomic.Pointer[leg]
	ends := make(chan *leg, 2)
	send := func() *leg {
		l, in := &leg{x: new(exchange)}, *in
		lctx, cancel := context.WithCancel(withExchange(ctx, l.x))
		l.cancel = cancel
		// Ends with its request, or soon after cancel.
		go func() {
			l.out, l.err = api.GetObject(lctx, &in, opts...)
			if l.err == nil && !won.CompareAndSwap(nil, l) {
				l.err = l.out.Body.Close() // too late
				l.out = nil
			}
			ends <- l
		}()
		return l
	}
	start := time.Now()
	legs := []*leg{send()}
	var late <-chan time.Time
	if patience, known := b.pool.pace.wait(); known {
		timer := time.NewTimer(patience)
		defer timer.Stop()
		late = timer.C
	}
	for failed := 0; ; {
		select {
		case <-late:
			late = nil
			if extra := b.pool.limits[reads].try(b.Client); extra == nil || !b.pool.pace.spend() {
				extra.leave(unjudged)
			} else {
				defer extra.leave(unjudged) // of two requests one is left then
				legs = append(legs, send())
			}
			continue
		case <-ends:
		}
		l := won.Load()
		if l == nil {
			if failed++; failed < len(legs) {
				continue
			}
			l = legs[0]
		}
		for _, other := range legs {
			if other != l {
				other.cancel()
			}
		}
		exchangeOf(ctx).take(l.x)
		if l.err != nil {
			l.cancel()
			return nil, nil, l.err
		}
		b.pool.pace.note(time.Since(start))
		return l.out, l.cancel, nil
	}
}
