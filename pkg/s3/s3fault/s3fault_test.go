package s3fault_test

import (
	"context"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/csi-s3/csi-s3/pkg/s3"
	"github.com/csi-s3/csi-s3/pkg/s3/s3fault"
	"github.com/csi-s3/csi-s3/pkg/s3/s3mem"
)

func put(ctx context.Context, b s3.Bucket, key s3.Key, s string) error {
	_, err := b.Put(ctx, key, s3.Body{R: strings.NewReader(s), Size: int64(len(s))}, s3.Attributes{}, s3.Condition{})
	return err
}

func script(name string, n int, a s3fault.Action) (*s3fault.Bucket, *s3mem.Bucket) {
	mem := s3mem.New("b")
	b := s3fault.New(mem)
	b.Fault = func(op s3fault.Op) s3fault.Action {
		if op.Name == name && op.N == n {
			return a
		}
		return s3fault.Action{}
	}
	return b, mem
}

func TestFailures(t *testing.T) {
	boom := errors.New("boom")
	for _, c := range []struct {
		name    string
		action  s3fault.Action
		want    error
		applied bool
	}{
		{"before", s3fault.FailBefore(boom), boom, false},
		{"before, nil", s3fault.FailBefore(nil), s3.ErrUnavailable, false},
		{"after", s3fault.FailAfter(boom), boom, true},
		{"after, nil", s3fault.FailAfter(nil), s3.ErrUnavailable, true},
		{"200", s3fault.Error200(), s3.ErrUnavailable, false},
		{"short", s3fault.ShortBody(1), s3.ErrUnavailable, false},
		{"corrupt", s3fault.CorruptBody(), s3.ErrCorrupt, false},
		{"none", s3fault.Action{}, nil, true},
	} {
		b, mem := script("Put", 2, c.action)
		if err := put(t.Context(), b, "first", "x"); err != nil {
			t.Fatal(err)
		}
		err := put(t.Context(), b, "k", "x")
		if !errors.Is(err, c.want) || err != nil && !strings.Contains(err.Error(), `"k", call 2`) {
			t.Errorf("%s: %v, want %v", c.name, err, c.want)
		}
		_, err = mem.Head(t.Context(), "k")
		if c.applied != (err == nil) {
			t.Errorf("%s: applied %v", c.name, err == nil)
		}
		if n := b.Count("Put"); n != 2 {
			t.Errorf("%s: %d calls counted", c.name, n)
		}
	}
}

func TestBodies(t *testing.T) {
	for _, c := range []struct {
		action s3fault.Action
		bytes  string
		want   error
	}{
		{s3fault.ShortBody(3), "abc", s3.ErrUnavailable},
		{s3fault.ShortBody(0), "", s3.ErrUnavailable},
		{s3fault.CorruptBody(), "abb", s3.ErrCorrupt},
		{s3fault.Action{}, "abcdef", nil},
	} {
		b, _ := script("Get", 1, c.action)
		if err := put(t.Context(), b, "k", "abcdef"); err != nil {
			t.Fatal(err)
		}
		rc, info, err := b.Get(t.Context(), "k", nil, "")
		if err != nil || info.Size != 6 {
			t.Fatal(info, err)
		}
		got, err := io.ReadAll(byThree{rc})
		if string(got) != c.bytes || !errors.Is(err, c.want) {
			t.Errorf("%+v: %q, %v", c.action, got, err)
		}
		if err := rc.Close(); err != nil {
			t.Error(err)
		}
	}
}

func TestGetFailsBeforeAndAfter(t *testing.T) {
	for _, a := range []s3fault.Action{s3fault.FailBefore(nil), s3fault.FailAfter(nil)} {
		b, mem := script("Get", 1, a)
		if err := put(t.Context(), mem, "k", "x"); err != nil {
			t.Fatal(err)
		}
		if rc, _, err := b.Get(t.Context(), "k", nil, ""); rc != nil || !errors.Is(err, s3.ErrUnavailable) {
			t.Fatal(rc, err)
		}
	}
}

func TestDelay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, _ := script("Put", 1, s3fault.Delay(time.Minute))
		start := time.Now()
		if err := put(t.Context(), b, "k", "x"); err != nil || time.Since(start) != time.Minute {
			t.Fatal(err, time.Since(start))
		}
		b, mem := script("Put", 1, s3fault.Delay(time.Hour))
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		err := put(ctx, b, "k", "x")
		if !errors.Is(err, s3.ErrUnavailable) || !errors.Is(err, context.DeadlineExceeded) {
			t.Fatal(err)
		}
		if _, err := mem.Head(t.Context(), "k"); !errors.Is(err, s3.ErrNotExist) {
			t.Fatal("applied:", err)
		}
	})
}

// byThree reads at most three bytes at a time.
type byThree struct{ io.Reader }

func (r byThree) Read(p []byte) (int, error) { return r.Reader.Read(p[:min(3, len(p))]) }
