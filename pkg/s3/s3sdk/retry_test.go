package s3sdk_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/csi-s3/csi-s3/pkg/s3"
)

func TestTransientErrorsAreRetried(t *testing.T) {
	for name, fail := range map[string]func(w http.ResponseWriter){
		"503":     func(w http.ResponseWriter) { fault(w, 503, "SlowDown") },
		"429":     func(w http.ResponseWriter) { w.WriteHeader(429) },
		"502":     func(w http.ResponseWriter) { w.WriteHeader(502); fmt.Fprint(w, "<html>bad gateway") },
		"hang up": hang,
		"digest":  func(w http.ResponseWriter) { fault(w, 400, "XAmzContentChecksumMismatch") },
	} {
		data := strings.Repeat(name, 10_000)
		s := serve(t, func(w http.ResponseWriter, _ request, n int) {
			if n < 3 {
				fail(w)
				return
			}
			tagged(w)
		})
		_, err := open(t, config(s.URL)).Put(t.Context(), "k", body(data), s3.Attributes{}, s3.Condition{})
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		seen := s.seen()
		if len(seen) != 3 {
			t.Errorf("%s: %d requests, want 3", name, len(seen))
		}
		for i, r := range seen {
			if string(r.body) != data {
				t.Errorf("%s: attempt %d sent %d bytes, want %d", name, i+1, len(r.body), len(data))
			}
		}
	}
}

// An upload whose creation was not answered may be open: a second one would leave it for ever. A refusal is repeated.
func TestCreateUploadIsNotRepeatedBlindly(t *testing.T) {
	for name, c := range map[string]struct {
		fail func(w http.ResponseWriter)
		want int
	}{"hang up": {hang, 1}, "503": {func(w http.ResponseWriter) { fault(w, 503, "SlowDown") }, 4}} {
		s := serve(t, func(w http.ResponseWriter, _ request, _ int) { c.fail(w) })
		if _, err := open(t, config(s.URL)).CreateUpload(t.Context(), "k", s3.Attributes{}); !errors.Is(err, s3.ErrUnavailable) {
			t.Errorf("%s: %v", name, err)
		}
		if n := len(s.seen()); n != c.want {
			t.Errorf("%s: %d requests, want %d", name, n, c.want)
		}
	}
}

func TestRetriesEnd(t *testing.T) {
	for _, c := range []struct {
		attempts, status, want int
	}{{0, 503, 4}, {1, 503, 1}, {2, 429, 2}, {0, 403, 1}, {0, 400, 1}, {0, 412, 1}, {0, 507, 1}} {
		s := serve(t, func(w http.ResponseWriter, _ request, _ int) { w.WriteHeader(c.status) })
		cfg := config(s.URL)
		cfg.Attempts = c.attempts
		if _, err := open(t, cfg).List(t.Context(), s3.ListInput{}); err == nil {
			t.Error("no error")
		}
		if n := len(s.seen()); n != c.want {
			t.Errorf("%d attempts, status %d: %d requests, want %d", c.attempts, c.status, n, c.want)
		}
	}
}

func TestRetriesFitIntoTheContext(t *testing.T) {
	s := serve(t, func(w http.ResponseWriter, _ request, _ int) {
		w.Header().Set("Retry-After", "5")
		w.WriteHeader(503)
	})
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	start := time.Now()
	_, err := open(t, config(s.URL)).Head(ctx, "k")
	if !errors.Is(err, s3.ErrUnavailable) || time.Since(start) > time.Second {
		t.Errorf("%v after %v", err, time.Since(start))
	}
	if n := len(s.seen()); n != 1 {
		t.Errorf("%d requests, though the server asked for 5 s and there were 2", n)
	}
}

func TestManyFailuresDoNotUseUpTheRetries(t *testing.T) {
	s := serve(t, func(w http.ResponseWriter, _ request, n int) {
		if n%2 == 1 {
			w.WriteHeader(503)
			return
		}
		tagged(w)
	})
	b := open(t, config(s.URL))
	for i := range 20 {
		if _, err := b.Put(t.Context(), "k", body("x"), s3.Attributes{}, s3.Condition{}); err != nil {
			t.Fatalf("operation %d: %v", i, err)
		}
	}
}

func TestAnUnansweredAttemptMakesARefusalUnknown(t *testing.T) {
	for _, c := range []struct {
		name  string
		first func(w http.ResponseWriter)
		want  error
	}{
		{"hang up", hang, s3.ErrUnavailable},
		{"502", func(w http.ResponseWriter) { w.WriteHeader(502) }, s3.ErrUnavailable},
		{"412", func(w http.ResponseWriter) { fault(w, 412, "PreconditionFailed") }, s3.ErrPrecondition},
	} {
		for _, cond := range []s3.Condition{{IfNoneMatch: true}, {IfMatch: "tag"}} {
			for name, write := range map[string]func(b s3.Bucket) error{
				"put": func(b s3.Bucket) error {
					_, err := b.Put(t.Context(), "k", body("x"), s3.Attributes{}, cond)
					return err
				},
				"complete": func(b s3.Bucket) error {
					_, err := b.CompleteUpload(t.Context(), "k", "id", []s3.Part{{Number: 1, ETag: "e"}}, cond)
					return err
				},
			} {
				s := serve(t, func(w http.ResponseWriter, _ request, n int) {
					if n == 1 {
						c.first(w)
						return
					}
					fault(w, 412, "PreconditionFailed")
				})
				err := write(open(t, config(s.URL)))
				if !errors.Is(err, c.want) || errors.Is(c.want, s3.ErrUnavailable) && errors.Is(err, s3.ErrPrecondition) {
					t.Errorf("%s, %s: %v, want %v", c.name, name, err, c.want)
				}
			}
		}
	}
}

func TestCreateBucketAfterALostAnswer(t *testing.T) {
	for _, c := range []struct {
		code string
		want error
	}{{"BucketAlreadyOwnedByYou", nil}, {"BucketAlreadyExists", s3.ErrUnavailable}} {
		puts := 0
		s := serve(t, func(w http.ResponseWriter, r request, _ int) {
			if r.Method != http.MethodPut {
				fault(w, 404, "NoSuchBucket")
				return
			}
			if puts++; puts == 1 {
				hang(w)
				return
			}
			fault(w, 409, c.code)
		})
		err := open(t, config(s.URL)).CreateBucket(t.Context())
		if !errors.Is(err, c.want) || errors.Is(err, s3.ErrBucketExists) {
			t.Errorf("%s: %v, want %v", c.code, err, c.want)
		}
	}
}

func TestClockSkewHeals(t *testing.T) {
	const ahead = time.Hour
	s := serve(t, func(w http.ResponseWriter, r request, _ int) {
		now := time.Now().Add(ahead).UTC()
		w.Header().Set("Date", now.Format(http.TimeFormat))
		signed, err := time.Parse("20060102T150405Z", r.Header.Get("X-Amz-Date"))
		if err != nil || now.Sub(signed).Abs() > 15*time.Minute {
			fault(w, 403, "RequestTimeTooSkewed")
			return
		}
		tagged(w)
	})
	b := open(t, config(s.URL))
	for range 2 {
		if _, err := b.Put(t.Context(), "k", body("x"), s3.Attributes{}, s3.Condition{}); err != nil {
			t.Fatal(err)
		}
	}
}

type countingReader struct{ reads atomic.Int64 }

func (r *countingReader) ReadAt(p []byte, _ int64) (int, error) {
	r.reads.Add(1)
	return len(p), nil
}

func TestBodyIsNotReadAfterTheCall(t *testing.T) {
	// The server answers and leaves the body unread; the transport would go on sending.
	s := serve(t, func(http.ResponseWriter, request, int) {})
	s.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fault(w, 412, "PreconditionFailed") })
	r := new(countingReader)
	_, err := open(t, config(s.URL)).Put(t.Context(), "k", s3.Body{R: r, Size: 64 << 20}, s3.Attributes{}, s3.Condition{IfNoneMatch: true})
	after := r.reads.Load()
	if !errors.Is(err, s3.ErrPrecondition) && !errors.Is(err, s3.ErrUnavailable) {
		t.Error(err)
	}
	time.Sleep(200 * time.Millisecond)
	if n := r.reads.Load(); n != after {
		t.Errorf("%d reads after the call returned", n-after)
	}
}

func TestBodiesOfGet(t *testing.T) {
	const data = "0123456789"
	full := func(h map[string]string, status int, body string) func(w http.ResponseWriter, r request, n int) {
		return func(w http.ResponseWriter, _ request, _ int) {
			tagged(w)
			for k, v := range h {
				w.Header().Set(k, v)
			}
			w.WriteHeader(status)
			_, _ = io.WriteString(w, body) // some announce more than they send
		}
	}
	part := &s3.Range{Off: 2, End: 5}
	for _, c := range []struct {
		name    string
		answer  func(w http.ResponseWriter, r request, n int)
		r       *s3.Range
		match   s3.ETag
		openErr error
		readErr error
		want    string
	}{
		{"whole", full(nil, 200, data), nil, "", nil, nil, data},
		{"matching", full(nil, 200, data), nil, "0123456789abcdef", nil, nil, data},
		{"range", full(map[string]string{"Content-Range": "bytes 2-4/10"}, 206, "234"), part, "", nil, nil, "234"},
		{"short", full(map[string]string{"Content-Length": "20"}, 200, data), nil, "", nil, s3.ErrUnavailable, data},
		{"checksum", full(map[string]string{"X-Amz-Checksum-Crc32c": crcOf(data)}, 200, data), nil, "", nil, nil, data},
		{"composite checksum", full(map[string]string{"X-Amz-Checksum-Crc32c": crcOf("other") + "-2"}, 200, data), nil, "", nil, nil, data},
		{"wrong checksum", full(map[string]string{"X-Amz-Checksum-Crc32c": crcOf("other")}, 200, data), nil, "", nil, s3.ErrCorrupt, ""},
		{"checksum of the whole on a range", full(map[string]string{"Content-Range": "bytes 2-4/10", "X-Amz-Checksum-Crc32c": crcOf(data)}, 206, "234"), part, "", nil, nil, "234"},
		{"range ignored", full(nil, 200, data), part, "", s3.ErrCorrupt, nil, ""},
		{"other range", full(map[string]string{"Content-Range": "bytes 0-2/10"}, 206, "012"), part, "", s3.ErrCorrupt, nil, ""},
		{"shorter range", full(map[string]string{"Content-Range": "bytes 2-3/10"}, 206, "23"), part, "", s3.ErrCorrupt, nil, ""},
		{"unknown size", full(map[string]string{"Content-Range": "bytes 2-4/*"}, 206, "234"), part, "", s3.ErrCorrupt, nil, ""},
		{"condition ignored", full(nil, 200, data), nil, "other", s3.ErrPrecondition, nil, ""},
		{"no length", func(w http.ResponseWriter, _ request, _ int) {
			raw(w, "HTTP/1.1 200 OK\r\nETag: \"t\"\r\nConnection: close\r\n\r\n"+data)
		}, nil, "", s3.ErrCorrupt, nil, ""},
	} {
		s := serve(t, c.answer)
		cfg := config(s.URL)
		cfg.Attempts = 1
		b := open(t, cfg)
		rc, info, err := b.Get(t.Context(), "k", c.r, c.match)
		if !errors.Is(err, c.openErr) {
			t.Errorf("%s: open: %v, want %v", c.name, err, c.openErr)
		}
		if err != nil {
			continue
		}
		if c.r != nil && info.Size != 10 {
			t.Errorf("%s: size %d", c.name, info.Size)
		}
		got, err := io.ReadAll(rc)
		if string(got) != c.want || !errors.Is(err, c.readErr) || c.readErr == nil && err != nil {
			t.Errorf("%s: %q, %v; want %q, %v", c.name, got, err, c.want, c.readErr)
		}
		if err := rc.Close(); err != nil {
			t.Errorf("%s: close: %v", c.name, err)
		}
		if n, err := rc.Read(make([]byte, 1)); n != 0 || err == nil {
			t.Errorf("%s: read after close: %d, %v", c.name, n, err)
		}
		if c.readErr == nil {
			continue
		}
		rc, info, err = b.Get(t.Context(), "k", c.r, c.match)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(rc, make([]byte, info.Size)); !errors.Is(err, c.readErr) {
			t.Errorf("%s: a read of exactly the length: %v, want %v", c.name, err, c.readErr)
		}
		_ = rc.Close()
	}
}

func TestABrokenBodyIsNotRetried(t *testing.T) {
	s := serve(t, func(w http.ResponseWriter, _ request, _ int) {
		tagged(w)
		w.Header().Set("Content-Length", "100")
		fmt.Fprint(w, "short")
	})
	rc, _, err := open(t, config(s.URL)).Get(t.Context(), "k", nil, "")
	if err != nil {
		t.Fatal(err)
	}
	defer rc.Close()
	for range 2 { // the error stays
		if _, err := io.ReadAll(rc); !errors.Is(err, s3.ErrUnavailable) || errors.Is(err, io.EOF) {
			t.Error(err)
		}
	}
	if n := len(s.seen()); n != 1 {
		t.Errorf("%d requests", n)
	}
}
