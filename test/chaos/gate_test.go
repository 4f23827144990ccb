package chaos_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// When a request's trap goes off.
const (
	before = "before" // the server has not heard of the request
	during = "during" // the server has half of the request's body
	after  = "after"  // the server has carried the request out, and nobody hears of it
)

// gate stands before the server, for the mount alone, and lets one request of a kind be the last.
type gate struct {
	url  string
	mu   sync.Mutex
	trap *trap    // guarded by mu
	past []string // guarded by mu: the last requests and answers, for who has to understand a failure
}

// note remembers a request or its answer.
func (g *gate) note(r *http.Request, what string) {
	if r.Method == http.MethodGet && r.URL.Query().Get("list-type") == "" {
		return
	}
	const most = 2000
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.past) >= 2*most {
		g.past = append(g.past[:0], g.past[most:]...)
	}
	g.past = append(g.past, strings.Join([]string{time.Now().Format("05.000"), kind(r), r.URL.Path, r.URL.Query().Get("prefix"), what}, " "))
}

// history is what passed the gate.
func (g *gate) history() string {
	g.mu.Lock()
	defer g.mu.Unlock()
	return strings.Join(g.past, "\n")
}

// trap is a point of failure at a request. hit is called once, in the goroutine of the request, whose client then hears
// nothing.
type trap struct {
	kind, when string
	skip       int // requests of the kind that pass
	hit        func()
}

func (x *trap) String() string { return fmt.Sprintf("%s a %s", x.when, x.kind) }

// trapKey is where a request's context has its trap.
type trapKey struct{}

// errTrapped: the answer is kept back.
var errTrapped = errors.New("trapped")

// newGate begins a gate before a server.
func newGate(t *testing.T, endpoint string) *gate {
	t.Helper()
	target, err := url.Parse(endpoint)
	if err != nil {
		t.Fatal(err)
	}
	g := &gate{}
	transport := &http.Transport{DisableCompression: true, MaxIdleConnsPerHost: 64}
	proxy := &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(target)
			r.Out.Host = r.In.Host // it is signed
		},
		ModifyResponse: func(r *http.Response) error {
			g.note(r.Request, r.Status)
			x, ok := r.Request.Context().Value(trapKey{}).(*trap)
			if !ok || x.when != after {
				return nil
			}
			// The answer is whole when the server has done all of it.
			_, err := io.Copy(io.Discard, r.Body)
			x.hit()
			return errors.Join(errTrapped, err)
		},
		// The client is told nothing by a gate: a connection that ends is the server's death, or its own.
		ErrorHandler: func(http.ResponseWriter, *http.Request, error) { panic(http.ErrAbortHandler) },
		Transport:    transport,
	}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		g.note(r, strings.TrimSpace("sent "+r.Header.Get("If-Match")+r.Header.Get("If-None-Match")))
		x := g.take(kind(r))
		if x == nil {
			proxy.ServeHTTP(w, r)
			return
		}
		switch x.when {
		case before:
			x.hit()
			panic(http.ErrAbortHandler)
		case during:
			half := &halfBody{ReadCloser: r.Body, left: max(r.ContentLength/2, 1), hit: x.hit}
			r.Body = half
		}
		proxy.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), trapKey{}, x)))
	}))
	g.url = server.URL
	t.Cleanup(func() {
		server.Close()
		transport.CloseIdleConnections()
	})
	return g
}

// set arms the gate; nil lets everything pass.
func (g *gate) set(x *trap) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.trap = x
}

// take returns the trap when it is this request's.
func (g *gate) take(kind string) *trap {
	g.mu.Lock()
	defer g.mu.Unlock()
	x := g.trap
	if x == nil || x.kind != kind {
		return nil
	}
	if x.skip--; x.skip >= 0 {
		return nil
	}
	g.trap = nil
	return x
}

// halfBody is the body of a request of which the server gets a half.
type halfBody struct {
	io.ReadCloser
	left int64
	hit  func()
	once sync.Once
}

func (b *halfBody) Read(p []byte) (int, error) {
	if b.left == 0 {
		b.once.Do(b.hit)
		return 0, errTrapped
	}
	n, err := b.ReadCloser.Read(p[:min(int64(len(p)), b.left)])
	b.left -= int64(n)
	if err == io.EOF && b.left > 0 {
		b.left = 0
	}
	return n, err
}

// kind is the name of what a request asks.
func kind(r *http.Request) string {
	q := r.URL.Query()
	copied := r.Header.Get("x-amz-copy-source") != ""
	switch {
	case q.Has("partNumber") && copied:
		return "UploadPartCopy"
	case q.Has("partNumber"):
		return "UploadPart"
	case q.Has("uploadId"):
		return map[string]string{http.MethodPost: "CompleteUpload", http.MethodDelete: "AbortUpload", http.MethodGet: "ListParts"}[r.Method]
	case q.Has("uploads") && r.Method == http.MethodPost:
		return "CreateUpload"
	case q.Has("uploads"):
		return "ListUploads"
	case q.Has("delete"):
		return "DeleteObjects"
	case q.Has("list-type"):
		return "List"
	case copied:
		return "Copy"
	}
	return map[string]string{http.MethodPut: "Put", http.MethodGet: "Get", http.MethodHead: "Head", http.MethodDelete: "Delete"}[r.Method]
}

// TestGate: a request is trapped once, at its point, and the server has then what the point says.
func TestGate(t *testing.T) {
	for _, when := range []string{before, during, after} {
		t.Run(when, func(t *testing.T) {
			var mu sync.Mutex
			var got []byte      // guarded by mu
			var carriedOut bool // guarded by mu
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				body, err := io.ReadAll(r.Body)
				mu.Lock()
				got, carriedOut = body, err == nil
				mu.Unlock()
				w.WriteHeader(http.StatusOK)
			}))
			g := newGate(t, server.URL)
			var hits atomic.Int32
			put := func() error {
				r, err := http.NewRequestWithContext(t.Context(), http.MethodPut, g.url+"/bucket/key", bytes.NewReader(make([]byte, 1<<20)))
				if err != nil {
					return err
				}
				answer, err := http.DefaultTransport.RoundTrip(r)
				if err != nil {
					return err
				}
				return answer.Body.Close()
			}
			g.set(&trap{kind: "Put", when: when, skip: 1, hit: func() { hits.Add(1) }})
			first, second := put(), put()
			server.Close()
			mu.Lock()
			defer mu.Unlock()
			if first != nil || second == nil || hits.Load() != 1 {
				t.Errorf("the first request: %v, the second: %v; %d hits", first, second, hits.Load())
			}
			if carriedOut != (when != during) || when == during && len(got) > 512<<10 {
				t.Errorf("the server carried it out: %v, and has %d bytes", carriedOut, len(got))
			}
		})
	}
}
