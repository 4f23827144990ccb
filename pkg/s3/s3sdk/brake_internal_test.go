package s3sdk

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/csi-s3/csi-s3/pkg/s3"
)

// Expired credentials make a few probes, not a storm; once they are good again, all goes on within a second or so.
func TestDeniedRequestsBrake(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var denied atomic.Bool
		var requests, deletes atomic.Int64
		denied.Store(true)
		c := virtual(t, func(w http.ResponseWriter, r *http.Request) {
			if r.Method == http.MethodDelete { // is allowed all the time
				deletes.Add(1)
				w.WriteHeader(http.StatusNoContent)
				return
			}
			requests.Add(1)
			if denied.Load() {
				w.WriteHeader(http.StatusForbidden)
				return
			}
			w.Header().Set("Etag", `"tag"`)
			w.Header().Set("Content-Length", "0")
		})
		b := c.Bucket("bkt")
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		var wg sync.WaitGroup
		var good atomic.Int64
		for range 20 {
			wg.Go(func() {
				for ctx.Err() == nil {
					_, err := b.Head(ctx, "k")
					if err == nil {
						good.Add(1)
						return
					}
					if !errors.Is(err, s3.ErrAuth) && ctx.Err() == nil {
						t.Error(err)
					}
					time.Sleep(time.Millisecond)
				}
			})
		}
		time.Sleep(time.Minute)
		// 20 at first, since none knows of the others; then the gaps grow to a second.
		if n := requests.Load(); n < 50 || n > 90 {
			t.Errorf("%d requests in a minute", n)
		}
		start := time.Now()
		for range 100 {
			if err := b.Delete(t.Context(), "k"); err != nil {
				t.Fatal(err)
			}
		}
		if d := time.Since(start); d != 0 {
			t.Errorf("what is allowed waited for %v", d)
		}
		denied.Store(false)
		wg.Wait()
		if d := time.Since(start); d > maxGap {
			t.Errorf("went on after %v", d)
		}
		if good.Load() != 20 {
			t.Errorf("%d of 20 went on", good.Load())
		}
	})
}

// A wait ends with its context, and says that nothing was sent.
func TestBrakedRequestsCanBeGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := virtual(t, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusForbidden) })
		b := c.Bucket("bkt")
		for range freeDenials + 5 {
			if err := b.Delete(t.Context(), "k"); !errors.Is(err, s3.ErrAuth) {
				t.Fatal(err)
			}
		}
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
		defer cancel()
		err := b.Delete(ctx, "k")
		if !errors.Is(err, s3.ErrUnavailable) || !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "its turn") {
			t.Error(err)
		}
		var e *Error
		if !errors.As(err, &e) || !e.refused {
			t.Error("may have been applied")
		}
	})
}

// Callers that give up while the keys are denied leave their turns behind: once the keys are good again nobody sends.
func TestBrakeTurnsOfTheGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var k brake
		for range 10 {
			k.note(true)
		}
		for range 600 { // a caller a second... ten a second for a minute, each with 10 s of patience
			go func() {
				ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
				defer cancel()
				if k.wait(ctx) == nil {
					k.note(true)
				}
			}()
			time.Sleep(100 * time.Millisecond)
		}
		time.Sleep(20 * time.Second) // all are gone; from here on the server would grant everything
		start := time.Now()
		_ = k.wait(context.Background())
		if d := time.Since(start); d > 5*time.Second {
			t.Errorf("the next request, the only one, waited %v", d)
		}
	})
}
