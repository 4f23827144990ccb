package fuse

import (
	"bytes"
	"context"
	"errors"
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
	// exitGrace is how long the end of a program waits for what the kernel closes for it. Nothing can interrupt that.
	exitGrace = 30 * time.Second
)

// wait says what ends the wait of a request besides its answer and the mount's end.
type wait int

const (
	// untilDeath: a deadly signal.
	untilDeath wait = iota
	// untilExit: that, or some time after the program ended by itself. It is for what the kernel closes.
	untilExit
	// untilSignal: any signal.
	untilSignal
)

// requestContext is the context of a request: it ends with the death of the program that waits, or with the mount. Most
// requests never look at it, so the goroutine behind it is started by the first who does.
type requestContext struct {
	interrupt <-chan struct{}
	tid       uint32 // the thread that waits; 0: not seen from here
	wait      wait
	mount     context.Context
	once      sync.Once
	done      chan struct{}
	end       chan struct{}
}

func (s *Server) context(interrupt <-chan struct{}, tid uint32, w wait) *requestContext {
	return &requestContext{
		interrupt: interrupt, tid: tid, wait: w, mount: s.ctx,
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
			c.abide()
		}()
	})
	return c.done
}

// abide returns when nobody wants the request's answer any more.
func (c *requestContext) abide() {
	interrupt := c.interrupt
	var look, limit <-chan time.Time
	if c.wait == untilExit && c.tid != 0 {
		look = time.Tick(deathEvery)
	}
	for {
		select {
		case <-interrupt:
			if c.wait == untilSignal {
				return
			}
			interrupt, look = nil, time.Tick(deathEvery)
		case <-look:
		case <-limit:
			return
		case <-c.mount.Done():
			return
		case <-c.end:
			return
		}
		signalled := interrupt == nil
		killed, exiting, err := fate(c.tid)
		switch {
		case killed, exiting && signalled:
			return
		case exiting && limit == nil:
			limit = time.After(exitGrace)
		case err != nil && signalled && limit == nil:
			limit = time.After(unseenGrace)
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

// fate says whether a thread has a deadly signal, and whether it is on its way out. Whatever the signal is, the kernel
// marks each thread of the process with SIGKILL (complete_signal in the kernel's signal.c). See proc_pid_stat(5), signal
// and flags.
func fate(tid uint32) (killed, exiting bool, err error) {
	text, err := os.ReadFile("/proc/" + strconv.FormatUint(uint64(tid), 10) + "/stat")
	if err != nil {
		return false, false, err
	}
	// The second field, the name, is in parentheses and may hold anything; the third follows its end.
	fields := bytes.Fields(text[bytes.LastIndexByte(text, ')')+1:])
	if len(fields) < 29 {
		return false, false, fmt.Errorf("thread %d: %d fields in its stat", tid, len(fields))
	}
	flags, err := strconv.ParseUint(string(fields[9-3]), 10, 64)
	signals, err2 := strconv.ParseUint(string(fields[31-3]), 10, 64)
	if err := errors.Join(err, err2); err != nil {
		return false, false, fmt.Errorf("stat of thread %d: %w", tid, err)
	}
	const pfExiting = 0x4 // PF_EXITING of the kernel's sched.h
	return signals&(1<<(unix.SIGKILL-1)) != 0, flags&pfExiting != 0, nil
}
