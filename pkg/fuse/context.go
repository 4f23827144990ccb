package fuse

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// The kernel reports any signal to a program that waits, once, and does not say which (FUSE_INTERRUPT). On a disk's file
// system only a deadly one ends a wait, and programs rely on it: few expect EINTR of open or rename, and Go's runtime
// sends itself signals all the time. So an interrupted request goes on until its program is dying.
const (
	// deathEvery is how often an interrupted request that still waits looks.
	deathEvery = 50 * time.Millisecond
	// unseenGrace is how long an interrupted request goes on whose program cannot be looked at, because it lives in
	// a process namespace that is not below ours. It is the time that killing such a program takes, and the wait
	// for S3 after which one that merely had a signal sees EINTR.
	unseenGrace = 5 * time.Second
)

// requestContext is the context of a request: it ends with the death of the program that waits, or with the mount. Most
// requests never look at it, so the goroutine behind it is started by the first who does.
type requestContext struct {
	interrupt <-chan struct{}
	tid       uint32 // the thread that waits; 0: not seen from here
	prompt    bool   // any signal ends it
	mount     context.Context
	once      sync.Once
	done      chan struct{}
	end       chan struct{}
}

func (s *Server) context(interrupt <-chan struct{}, tid uint32, prompt bool) *requestContext {
	return &requestContext{
		interrupt: interrupt, tid: tid, prompt: prompt, mount: s.ctx,
		done: make(chan struct{}), end: make(chan struct{}),
	}
}

// finish ends the context's goroutine.
func (c *requestContext) finish() { close(c.end) }

// Done implements context.Context.
func (c *requestContext) Done() <-chan struct{} {
	c.once.Do(func() {
		// Ends with the request.
		go func() {
			defer close(c.done)
			select {
			case <-c.interrupt:
			case <-c.mount.Done():
				return
			case <-c.end:
				return
			}
			if !c.prompt {
				c.outlast()
			}
		}()
	})
	return c.done
}

// outlast waits until an interrupted request has no one who wants its answer.
func (c *requestContext) outlast() {
	grace := time.NewTimer(unseenGrace)
	defer grace.Stop()
	look := time.NewTicker(deathEvery)
	defer look.Stop()
	for {
		limit := grace.C
		if c.tid != 0 {
			switch dead, err := dying(c.tid); {
			case err != nil: // as if it were not seen
			case dead:
				return
			default:
				limit = nil
			}
		}
		select {
		case <-look.C:
		case <-limit:
			return
		case <-c.mount.Done():
			return
		case <-c.end:
			return
		}
	}
}

// Err implements context.Context.
func (c *requestContext) Err() error {
	select {
	case <-c.Done():
		return context.Canceled
	case <-c.end: // what was derived from it and outlives the request
		return context.Canceled
	default:
		return c.mount.Err()
	}
}

// Deadline implements context.Context.
func (c *requestContext) Deadline() (time.Time, bool) { return time.Time{}, false }

// Value implements context.Context.
func (c *requestContext) Value(any) any { return nil }

// dying says whether a thread has a deadly signal: whatever the signal is, the kernel then marks each thread of the
// process with SIGKILL (complete_signal in the kernel's signal.c; see proc_pid_status(5)).
func dying(tid uint32) (bool, error) {
	text, err := os.ReadFile("/proc/" + strconv.FormatUint(uint64(tid), 10) + "/status")
	if err != nil {
		return false, err
	}
	const kill = 1 << (unix.SIGKILL - 1)
	for _, field := range []string{"\nSigPnd:\t", "\nShdPnd:\t"} {
		_, rest, ok := bytes.Cut(text, []byte(field))
		value, _, _ := bytes.Cut(rest, []byte("\n"))
		set, err := strconv.ParseUint(string(value), 16, 64)
		if !ok || err != nil {
			return false, fmt.Errorf("thread %d: no pending signals in its status", tid)
		}
		if set&kill != 0 {
			return true, nil
		}
	}
	return false, nil
}
