package s3sdk

import (
	"context"
	"errors"
	"math/rand/v2"
	"strconv"
	"sync"
	"time"

	sdk "github.com/aws/aws-sdk-go-v2/service/s3"

	"github.com/csi-s3/csi-s3/pkg/s3"
)

const (
	firstBackoff  = 100 * time.Millisecond
	maxBackoff    = 5 * time.Second
	maxRetryAfter = 5 * time.Second
)

// call is what a request's error and its retries need to know of it.
type call struct {
	op  string
	key s3.Key
	// kind says whose place the request takes.
	kind kind
	// rides: the request belongs to one that has a place and waits for this one.
	rides bool
	// long: the server works before it answers.
	long bool
	// adds: each attempt that is applied adds something, so one that may have been is not repeated here.
	adds bool
	// settle turns the error of an attempt into a better one, or into nil. Optional.
	settle func(ctx context.Context, x *exchange, err *Error) *Error
	// echo is the sentinel that a second attempt meets when the first was applied and its answer lost. Optional.
	echo error
}

// do runs attempts until one succeeds, fails for good, or is the last.
func (b *bucket) do(ctx context.Context, c call, attempt func(ctx context.Context, api *sdk.Client) error) error {
	ambiguous := false
	var last *Error
	for n := 1; ; n++ {
		e := b.once(ctx, c, attempt)
		if e == nil {
			return nil
		}
		if ctx.Err() != nil && last != nil {
			e.cause = errors.Join(e.cause, last) // why there was a next attempt for the context to end
		}
		last = e
		if ambiguous && c.echo != nil && errors.Is(e, c.echo) {
			e.kind, e.Detail = s3.ErrUnavailable, "an earlier attempt may have been applied"
			return e
		}
		if !errors.Is(e.kind, s3.ErrUnavailable) && !errors.Is(e.kind, s3.ErrCorrupt) || n >= b.cfg.Attempts || ctx.Err() != nil {
			return e
		}
		if c.adds && e.Status == 0 && !e.refused {
			return e
		}
		if !b.pool.budget.spend() {
			return e
		}
		ambiguous = ambiguous || !e.refused
		if !pause(ctx, backoff(n, e.after)) {
			e.cause = errors.Join(e.cause, ctx.Err())
			return e
		}
	}
}

func (b *bucket) once(ctx context.Context, c call, attempt func(ctx context.Context, api *sdk.Client) error) *Error {
	x := &exchange{long: c.long}
	k := b.brake(c.op)
	err := k.wait(ctx)
	if err == nil && !c.rides {
		x.place, err = b.pool.limits[c.kind].enter(ctx, b.Client)
	}
	if err != nil {
		e := b.fail(c.op, c.key, s3.ErrUnavailable, "the context ended before its turn came")
		e.cause, e.refused = err, true
		return e
	}
	err = attempt(withExchange(ctx, x), b.api)
	if err == nil {
		if !x.kept {
			x.place.leave(answered)
		}
		k.note(false)
		b.pool.budget.earn()
		b.exists(true)
		return nil
	}
	e := b.failure(ctx, c.op, c.key, x, err)
	x.place.leave(x.verdict(ctx))
	if x.status != 0 && x.status < 500 {
		k.note(errors.Is(e, s3.ErrAuth))
	}
	if c.settle != nil {
		if e = c.settle(ctx, x, e); e == nil {
			return nil
		}
	}
	switch {
	case errors.Is(e, s3.ErrNoBucket):
		b.exists(false)
	case errors.Is(e, s3.ErrNotExist):
		b.exists(true)
	}
	return e
}

// budget keeps repetitions from making an overload worse: over time, one for every few requests that succeed. What it
// refuses is left to the caller, whose pauses are longer.
type budget struct {
	mu     sync.Mutex
	tokens float64 // guarded by mu
}

const (
	maxTokens = 100
	perToken  = 0.2 // of a token, for each success
)

func (g *budget) earn() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.tokens = min(maxTokens, g.tokens+perToken)
}

func (g *budget) spend() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.tokens < 1 {
		return false
	}
	g.tokens--
	return true
}

// backoff is full jitter over a doubling window, or what the server asks for.
func backoff(n int, retryAfter string) time.Duration {
	window := min(firstBackoff<<n, maxBackoff)
	d := rand.N(window)
	if seconds, err := strconv.Atoi(retryAfter); err == nil && seconds > 0 {
		d += min(time.Duration(seconds)*time.Second, maxRetryAfter)
	}
	return d
}

// pause reports whether it lasted d. It does not begin a pause that the context would cut short.
func pause(ctx context.Context, d time.Duration) bool {
	if deadline, ok := ctx.Deadline(); ok && time.Until(deadline) < d {
		return false
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
