package vfs

import "sync"

// notices tells the kernel of changes that no request of its own made. The calls come from one goroutine, because a
// handler that waits for the kernel can be what the kernel waits for.
type notices struct {
	mu      sync.Mutex
	queue   []func(Invalidator) // guarded by mu
	wake    chan struct{}       // nil before SetInvalidator
	stopped bool                // guarded by mu
	done    chan struct{}
}

// SetInvalidator is called once, before the first request.
func (fs *FS) SetInvalidator(inv Invalidator) {
	n := &fs.notices
	n.wake, n.done = make(chan struct{}, 1), make(chan struct{})
	// Ends with FS.Close, which waits for it.
	go n.run(inv)
}

func (n *notices) run(inv Invalidator) {
	defer close(n.done)
	for range n.wake {
		n.mu.Lock()
		queue, stopped := n.queue, n.stopped
		n.queue = nil
		n.mu.Unlock()
		if stopped {
			return
		}
		for _, f := range queue {
			f(inv)
		}
	}
}

func (n *notices) add(f func(Invalidator)) {
	if n.wake == nil {
		return
	}
	n.mu.Lock()
	if !n.stopped {
		n.queue = append(n.queue, f)
	}
	n.mu.Unlock()
	n.signal()
}

func (n *notices) signal() {
	select {
	case n.wake <- struct{}{}:
	default:
	}
}

func (n *notices) close() {
	if n.wake == nil {
		return
	}
	n.mu.Lock()
	n.stopped = true
	n.mu.Unlock()
	n.signal()
	<-n.done
}
