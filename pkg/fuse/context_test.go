package fuse

import (
	"context"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"
)

// The core may keep a context beyond the request.
func TestRequestContext(t *testing.T) {
	mount, end := context.WithCancel(t.Context())
	defer end()
	s := &Server{ctx: mount}
	ended := func(what string, ctx context.Context) {
		t.Helper()
		select {
		case <-ctx.Done():
		case <-time.After(patience):
			t.Fatalf("%s: the context goes on", what)
		}
		if ctx.Err() == nil {
			t.Errorf("%s: no error", what)
		}
	}
	for _, early := range []bool{true, false} { // whether somebody looks before the end
		what := fmt.Sprint("early ", early)
		begin := func() (chan struct{}, *requestContext, context.Context) {
			interrupt := make(chan struct{})
			c := s.context(interrupt, 0, untilSignal)
			if !early {
				return interrupt, c, c
			}
			child, cancel := context.WithTimeout(context.WithValue(c, t, t), time.Hour)
			t.Cleanup(cancel)
			if c.Err() != nil || child.Err() != nil || c.Value(t) != nil {
				t.Fatal("the context ended before it began")
			}
			return interrupt, c, child
		}
		_, c, child := begin()
		c.finish()
		ended(what+", answered", c)
		ended(what+", answered, child", child)

		interrupt, c, child := begin()
		close(interrupt)
		ended(what+", interrupted", c)
		ended(what+", interrupted, child", child)
		c.finish()
		ended(what+", interrupted and answered", c)
	}
	c := s.context(make(chan struct{}), 0, untilDeath)
	end()
	ended("unmounted", c)
	if _, ok := c.Deadline(); ok {
		t.Error("a deadline")
	}
	c.finish()
}

// Of a program that cannot be seen an interrupted request lives for a grace, and not beyond the request or the mount.
func TestInterruptUnseen(t *testing.T) {
	const nobody = 1 << 30 // above the kernel's largest process ID
	for _, w := range []wait{untilDeath, untilExit} {
		for _, tid := range []uint32{0, nobody} {
			for _, how := range []string{"grace", "answered", "unmounted"} {
				synctest.Test(t, func(t *testing.T) {
					mount, end := context.WithCancel(t.Context())
					defer end()
					interrupt := make(chan struct{})
					c := (&Server{ctx: mount}).context(interrupt, tid, w)
					close(interrupt)
					begin, want := time.Now(), unseenGrace
					go func() {
						<-time.After(time.Second)
						switch how {
						case "answered":
							c.finish()
						case "unmounted":
							end()
						}
					}()
					if c.Err() != nil {
						t.Error("the interruption ended it at once")
					}
					if how != "grace" {
						want = time.Second
					}
					<-c.Done()
					if got := time.Since(begin); got != want {
						t.Errorf("%s of %d: ended after %v, want %v", how, tid, got, want)
					}
					if how != "answered" {
						c.finish()
					}
				})
			}
		}
	}
}

// A thread that nobody killed is not dying; TestSignal has one that is.
func TestFate(t *testing.T) {
	if _, _, err := fate(1 << 30); err == nil {
		t.Error("no error for a thread that does not exist")
	}
	if killed, exiting, err := fate(uint32(unix.Gettid())); killed || exiting || err != nil {
		t.Errorf("dying before its time: killed %v, exiting %v, %v", killed, exiting, err)
	}
}
