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

// wait returns when a request may be sent, or ctx's error.
func (k *brake) wait(ctx context.Context) error {
	k.mu.Lock()
	if k.denied < freeDenials {
		k.mu.Unlock()
		return nil
	}
	now := time.Now()
	at := k.next
	if at.Before(now) {
		at = now
	}
	k.next = at.Add(min(maxGap, firstGap<<min(k.denied-freeDenials, 8)))
	if k.free == nil {
		k.free = make(chan struct{})
	}
	free := k.free
	k.mu.Unlock()
	timer := time.NewTimer(at.Sub(now))
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-free:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
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
