package s3probe_test

import (
	"context"
	"log/slog"
	"maps"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/csi-s3/csi-s3/pkg/s3"
	"github.com/csi-s3/csi-s3/pkg/s3/s3fault"
	"github.com/csi-s3/csi-s3/pkg/s3/s3mem"
	"github.com/csi-s3/csi-s3/pkg/s3/s3probe"
)

// later is two hours after now.
func later() time.Time { return time.Now().Add(2 * time.Hour) }

const (
	own    = s3.Key("volume/.csi-s3/")
	server = "http://server"
)

// learner is a Guard that learns, on a server whose requests are counted.
type learner struct {
	*s3probe.Guard
	sent *atomic.Int32
	stop func()
}

func learn(t *testing.T, mem *s3mem.Bucket, url string, fault func(s3fault.Op) s3fault.Action) *learner {
	ctx, cancel := context.WithCancel(t.Context())
	b, n := counted(mem)
	if fault != nil {
		b.Fault = func(op s3fault.Op) s3fault.Action {
			n.Add(1)
			return fault(op)
		}
	}
	l := &learner{Guard: s3probe.NewGuard(b), sent: n}
	done := make(chan struct{})
	// Ends with stop, which waits for it.
	go func() {
		defer close(done)
		l.Learn(ctx, b, own, url, slog.New(slog.DiscardHandler))
	}()
	l.stop = func() {
		cancel()
		<-done
	}
	synctest.Wait()
	return l
}

// TestLearn: one probe for all mounts of a day; another server's record does not count, and neither does an old one.
func TestLearn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		mem := s3mem.New("bucket")
		mem.Quirks = s3mem.NoCopyConditions()
		want := s3probe.All(s3probe.Honoured)
		want[s3.CopyIfMatch], want[s3.CopyIfNoneMatch] = s3probe.Ignored, s3probe.Ignored

		first := learn(t, mem, server, nil)
		if got := first.Answers(); !maps.Equal(got, want) {
			t.Errorf("%v", got)
		}
		first.stop()

		time.Sleep(time.Hour)
		second := learn(t, mem, server, nil)
		if got, n := second.Answers(), second.sent.Load(); !maps.Equal(got, want) || n != 1 {
			t.Errorf("%v, %d requests", got, n)
		}
		time.Sleep(22 * time.Hour)
		synctest.Wait()
		if n := second.sent.Load(); n != 1 {
			t.Errorf("%d requests on the same day", n)
		}
		time.Sleep(8 * time.Hour)
		synctest.Wait()
		if got, n := second.Answers(), second.sent.Load(); !maps.Equal(got, want) || n < 10 {
			t.Errorf("a day later: %v, %d requests", got, n)
		}
		second.stop()

		elsewhere := learn(t, mem, "http://another", nil)
		if n := elsewhere.sent.Load(); n < 10 {
			t.Errorf("%d requests: the record of another server was believed", n)
		}
		elsewhere.stop()
	})
}

// TestLearnFromRubbish: what is no record is not believed.
func TestLearnFromRubbish(t *testing.T) {
	for _, text := range []string{
		"", "null", "{}", "rubbish", strings.Repeat("x", 1<<20),
		`{"version":2,"server":"http://server","bucket":"bucket","made":"2000-01-01T00:00:00Z","answers":{"put if-match":"yes"}}`,
		`{"version":1,"server":"http://server","bucket":"bucket","made":"2000-01-01T00:00:00Z","answers":{"put if-match":"perhaps"}}`,
		`{"version":1,"server":"http://server","bucket":"other","made":"2000-01-01T00:00:00Z","answers":{"put if-match":"yes"}}`,
		`{"version":1,"server":"http://server","bucket":"bucket","made":"2999-01-01T00:00:00Z","answers":{"put if-match":"yes"}}`,
	} {
		synctest.Test(t, func(t *testing.T) {
			mem := s3mem.New("bucket")
			mem.Quirks = s3mem.Quirks{s3.PutIfMatch: s3mem.Ignores}
			put(t, mem, own+"probe.json", text, s3.Condition{})
			l := learn(t, mem, server, nil)
			defer l.stop()
			if a := l.Answers()[s3.PutIfMatch]; a != s3probe.Ignored {
				t.Errorf("%.40q: %q", text, a)
			}
		})
	}
}

// TestLearnWhenTheServerIsAway: nothing is known meanwhile, nothing is taken for absent, and it is asked again.
func TestLearnWhenTheServerIsAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		mem := s3mem.New("bucket")
		var away atomic.Bool
		away.Store(true)
		l := learn(t, mem, server, func(s3fault.Op) s3fault.Action {
			if away.Load() {
				return s3fault.FailBefore(nil)
			}
			return s3fault.Action{}
		})
		defer l.stop()
		time.Sleep(10 * time.Hour)
		synctest.Wait()
		if got := l.Answers(); len(got) > 0 {
			t.Errorf("%v", got)
		}
		if n := l.sent.Load(); n < 5 || n > 100 {
			t.Errorf("%d requests in ten hours", n)
		}
		away.Store(false)
		time.Sleep(2 * time.Hour)
		synctest.Wait()
		if got := l.Answers(); !maps.Equal(got, s3probe.All(s3probe.Honoured)) {
			t.Errorf("%v", got)
		}
	})
}
