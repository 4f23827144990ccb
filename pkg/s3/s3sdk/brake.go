package s3sdk

import (
	"context"
	"sync"
	"time"
)

const (
	freeDenials = 3 // in a row, before the brake is felt
	firstGap    = 100 * time.Millisecond
	maxGap      = time.Second
)

// brake keeps requests apart that one after the other are denied: credentials that expired are not worth a storm. A
// single success lets all go that wait. Each still gets its own answer, since what is denied for one key may be allowed
// for another. The zero value is a brake that is not felt.
type brake struct {
	mu     sync.Mutex
	denied int           // guarded by mu: in a row
	next   time.Time     // guarded by mu: when the next request may go
	free   chan struct{} // guarded by mu: closed by a success; nil when nobody waits
}

// wait returns when a request may be sent, or ctx's error. A turn is taken when it has come, never ahead: who gives up
// leaves none behind.
func (k *brake) wait(ctx context.Context) error {
	for {
		free, rest := k.turn()
		if rest <= 0 {
			return nil
		}
		timer := time.NewTimer(rest)
		select {
		case <-timer.C:
		case <-free:
			timer.Stop()
			return nil
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		}
	}
}

// turn takes the next turn if it has come, and else returns how long it is until then and what a success closes.
func (k *brake) turn() (<-chan struct{}, time.Duration) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.denied < freeDenials {
		return nil, 0
	}
	now := time.Now()
	if rest := k.next.Sub(now); rest > 0 {
		if k.free == nil {
			k.free = make(chan struct{})
		}
		return k.free, rest
	}
	k.next = now.Add(min(maxGap, firstGap<<min(k.denied-freeDenials, 8)))
	return nil, 0
}

// note takes an answer to account.
func (k *brake) note(denied bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if denied {
		if k.denied++; k.denied == freeDenials {
			k.next = time.Now().Add(firstGap)
		}
		return
	}
	k.denied, k.next = 0, time.Time{}
	if k.free != nil {
		close(k.free)
		k.free = nil
	}
}
