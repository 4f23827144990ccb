package chaos_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"maps"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// What a wire does to a request or its answer.
const (
	slowed    = "503 SlowDown"
	reset     = "connection reset"
	lost      = "answer lost"      // the server has carried the request out
	truncated = "body truncated"   // of an answer
	flipped   = "bit flipped up"   // of an object on its way to the server
	misread   = "bit flipped down" // of an object on its way from it
	refused   = "refused"          // by an outage
	silent    = "unanswered"       // by an outage
	denied    = "denied"           // by an outage
	delayed   = "delayed"
	limited   = "limited" // bodies that had to wait for bandwidth
)

// weather is what a wire does at random. The zero value lets all pass.
type weather struct {
	latency   time.Duration // most that a request is delayed by
	bandwidth int64         // bytes of bodies in a second, in each direction; 0 is any
	// Shares of the requests, from 0 to 1.
	slowed, reset, lost, truncated float64
	corrupted                      float64 // of the requests that are corruptible
}

// wire stands between mounts and their server. What it does to a request follows from its seed and from how many came
// before.
type wire struct {
	url string

	mu      sync.Mutex
	server  *url.URL      // guarded by mu
	rnd     *rand.Rand    // guarded by mu
	weather weather       // guarded by mu
	outage  string        // guarded by mu: "" is none; else refused, silent or denied
	code    string        // guarded by mu: of the answers to what is denied
	over    chan struct{} // guarded by mu: closed when the outage is over
	counts  map[string]int
	asked   int            // guarded by mu: requests
	kinds   map[string]int // guarded by mu: requests that reached the server, by what they ask
	peak    int            // guarded by mu: most refusals of one second
	second  time.Time      // guarded by mu: the one that is counted
	refuse  int            // guarded by mu: refusals in it

	up, down line
}

// line is one direction.
type line struct {
	mu    sync.Mutex
	free  time.Time // guarded by mu: when the next byte may pass
	bytes int64     // guarded by mu: of bodies that passed
}

// newWire begins a wire. It leads nowhere before lead is called.
func newWire(t *testing.T) *wire {
	t.Helper()
	w := &wire{counts: map[string]int{}, kinds: map[string]int{}, over: make(chan struct{})}
	transport := &http.Transport{DisableCompression: true, MaxIdleConnsPerHost: 128}
	proxy := &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			w.mu.Lock()
			defer w.mu.Unlock()
			r.SetURL(w.server)
			r.Out.Host = r.In.Host // it is signed
		},
		ModifyResponse: func(r *http.Response) error { return fateOf(r.Request).answer(w, r) },
		ErrorHandler:   func(rw http.ResponseWriter, _ *http.Request, _ error) { cut(rw) },
		Transport:      transport,
		ErrorLog:       log.New(io.Discard, "", 0), // it tells of what the wire did itself
	}
	s := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) { w.pass(proxy, rw, r) }))
	w.url = s.URL
	t.Cleanup(func() {
		w.clear()
		s.Close()
		transport.CloseIdleConnections()
	})
	return w
}

// lead makes the wire end at a server.
func (w *wire) lead(t *testing.T, endpoint string, seed uint64) {
	t.Helper()
	server, err := url.Parse(endpoint)
	if err != nil {
		t.Fatal(err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.server, w.rnd = server, rand.New(rand.NewPCG(seed, 1))
}

func (w *wire) set(x weather) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.weather = x
}

// bandwidth is that of now: a body that began in bad weather ends in better.
func (w *wire) bandwidth() int64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.weather.bandwidth
}

// fail begins an outage of a kind. code is for denied.
func (w *wire) fail(outage, code string) {
	w.clear()
	w.mu.Lock()
	defer w.mu.Unlock()
	w.outage, w.code = outage, code
}

// clear ends the outage. What was unanswered stays so.
func (w *wire) clear() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.outage = ""
	close(w.over)
	w.over = make(chan struct{})
}

func (w *wire) count(what string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.counts[what]++
}

// tally is a copy of what was done to how many requests, and how many there were.
func (w *wire) tally() (counts map[string]int, asked int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return maps.Clone(w.counts), w.asked
}

// worst is how many requests an outage met in one second.
func (w *wire) worst() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.peak
}

// report prints the tally and fails for each in want that never happened, be it something done or a kind of request that
// reached the server.
func (w *wire) report(t *testing.T, want ...string) {
	t.Helper()
	counts, asked := w.tally()
	w.mu.Lock()
	maps.Copy(counts, w.kinds)
	w.mu.Unlock()
	var text []string
	for _, what := range slices.Sorted(maps.Keys(counts)) {
		text = append(text, fmt.Sprintf("%s: %d", what, counts[what]))
	}
	t.Logf("%d requests, %d MiB up, %d MiB down; %s", asked, w.up.passed()>>20, w.down.passed()>>20, strings.Join(text, ", "))
	for _, what := range want {
		if counts[what] == 0 {
			t.Errorf("the suite proved nothing: not one %s", what)
		}
	}
}

// fate is what is done to one request.
type fate struct {
	what    string
	at      float64 // where in a body, from 0 to 1
	bit     byte
	weather weather
}

// corruptible says that a request carries bytes of an object, there or back. Lists and other XML have no checksum, and
// without TLS nothing tells a bit of them that was flipped.
func corruptible(r *http.Request) bool {
	switch kind(r) {
	case "Put", "UploadPart":
		return r.ContentLength > 0
	case "Get":
		return true
	}
	return false
}

// fateKey is where a request's context has its fate.
type fateKey struct{}

func withFate(r *http.Request, f fate) context.Context {
	return context.WithValue(r.Context(), fateKey{}, f)
}

func fateOf(r *http.Request) fate {
	f, _ := r.Context().Value(fateKey{}).(fate) // the zero value lets it pass
	return f
}

// draw decides about a request.
func (w *wire) draw(r *http.Request) (f fate, outage, code string, over chan struct{}) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.asked++
	f = fate{at: w.rnd.Float64(), bit: 1 << w.rnd.IntN(8), weather: w.weather}
	x := w.rnd.Float64()
	for _, may := range []struct {
		what  string
		share float64
	}{{slowed, f.weather.slowed}, {reset, f.weather.reset}, {lost, f.weather.lost}, {truncated, f.weather.truncated}} {
		if x < may.share {
			f.what = may.what
			break
		}
		x -= may.share
	}
	if f.what == "" && corruptible(r) && w.rnd.Float64() < f.weather.corrupted {
		f.what = flipped
		if kind(r) == "Get" {
			f.what = misread
		}
	}
	if w.outage != "" {
		w.counts[w.outage]++
		now := time.Now().Truncate(time.Second)
		if !now.Equal(w.second) {
			w.second, w.refuse = now, 0
		}
		w.refuse++
		w.peak = max(w.peak, w.refuse)
	}
	return f, w.outage, w.code, w.over
}

// pass is one request.
func (w *wire) pass(proxy *httputil.ReverseProxy, rw http.ResponseWriter, r *http.Request) {
	f, outage, code, over := w.draw(r)
	if f.weather.latency > 0 {
		w.count(delayed)
		select {
		case <-time.After(time.Duration(f.at * float64(f.weather.latency))):
		case <-r.Context().Done():
		}
	}
	switch outage {
	case refused:
		cut(rw)
		return
	case silent:
		select {
		case <-over:
		case <-r.Context().Done():
		}
		cut(rw)
		return
	case denied:
		status := http.StatusForbidden
		if code == "ExpiredToken" {
			status = http.StatusBadRequest // as AWS says it
		}
		refuse(rw, r, status, code)
		return
	}
	switch {
	case f.what == slowed:
		w.count(slowed)
		refuse(rw, r, http.StatusServiceUnavailable, "SlowDown")
		return
	case f.what == reset && (r.ContentLength <= 1 || f.at < 0.5):
		w.count(reset)
		cut(rw)
		return
	}
	w.mu.Lock()
	w.kinds[kind(r)]++
	w.mu.Unlock()
	body := &body{ReadCloser: r.Body, wire: w, line: &w.up, from: -1}
	switch f.what {
	case reset:
		body.from, body.then = r.ContentLength/2, func([]byte) error { w.count(reset); return errCut }
	case flipped:
		body.from, body.then = int64(f.at*float64(r.ContentLength)), func(p []byte) error { w.count(flipped); p[0] ^= f.bit; return nil }
	}
	if r.Body != http.NoBody {
		r.Body = body
	}
	proxy.ServeHTTP(rw, r.WithContext(withFate(r, f)))
}

// answer is what is done to the answer of a request that the server has carried out.
func (f fate) answer(w *wire, r *http.Response) error {
	body := &body{ReadCloser: r.Body, wire: w, line: &w.down, from: -1}
	switch {
	case f.what == lost:
		_, err := io.Copy(io.Discard, r.Body) // the server has done all of it
		if r.StatusCode < 300 {
			w.count(lost)
		}
		return errors.Join(errCut, err)
	case f.what == truncated && r.ContentLength > 1:
		body.from, body.then = r.ContentLength/2, func([]byte) error { w.count(truncated); return errCut }
	case f.what == misread && r.ContentLength > 0 && r.StatusCode < 300:
		body.from, body.then = int64(f.at*float64(r.ContentLength)), func(p []byte) error { w.count(misread); p[0] ^= f.bit; return nil }
	}
	if r.ContentLength != 0 && r.Request.Method != http.MethodHead {
		r.Body = body
	}
	return nil
}

var errCut = errors.New("the wire was cut")

// cut ends a connection with a reset.
func cut(rw http.ResponseWriter) {
	c, _, err := rw.(http.Hijacker).Hijack()
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	if tcp, ok := c.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0) // or it ends in order
	}
	_ = c.Close() // there is nothing more to be done about it
}

// refuse answers as an S3 server does.
func refuse(rw http.ResponseWriter, r *http.Request, status int, code string) {
	_, _ = io.Copy(io.Discard, r.Body) // else the connection ends before the answer is read
	rw.Header().Set("Content-Type", "application/xml")
	rw.WriteHeader(status)
	if r.Method != http.MethodHead {
		_, _ = fmt.Fprintf(rw, "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Error><Code>%s</Code><Message>by the wire</Message></Error>", code)
	}
}

// body passes a line. then happens to the byte at from, if that is not -1.
type body struct {
	io.ReadCloser
	wire     *wire
	line     *line
	at, from int64
	then     func(p []byte) error
}

func (b *body) Read(p []byte) (int, error) {
	const step = 32 << 10 // small enough for a bandwidth
	n, err := b.ReadCloser.Read(p[:min(len(p), step)])
	if b.line.take(n, b.wire.bandwidth()) {
		b.wire.count(limited)
	}
	if b.from >= b.at && b.from < b.at+int64(n) {
		at := int(b.from - b.at)
		if cerr := b.then(p[at:n]); cerr != nil {
			return at, cerr
		}
	}
	b.at += int64(n)
	return n, err
}

// take lets n bytes pass, and says whether they had to wait.
func (l *line) take(n int, bandwidth int64) (waited bool) {
	l.mu.Lock()
	l.bytes += int64(n)
	if bandwidth <= 0 {
		l.mu.Unlock()
		return false
	}
	now := time.Now()
	if l.free.Before(now) {
		l.free = now
	}
	wait := l.free.Sub(now)
	l.free = l.free.Add(time.Duration(n) * time.Second / time.Duration(bandwidth))
	l.mu.Unlock()
	time.Sleep(wait)
	return wait > 0
}

func (l *line) passed() int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.bytes
}

// TestWire: each thing that a wire may do is seen by the client as what it is, and counted.
func TestWire(t *testing.T) {
	object := bytes.Repeat([]byte("0123456789abcdef"), 8<<10)
	var mu sync.Mutex
	var stored []byte // guarded by mu
	server := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		got, err := io.ReadAll(r.Body)
		if r.Method == http.MethodPut && err == nil {
			mu.Lock()
			stored = got
			mu.Unlock()
			return
		}
		rw.Header().Set("Content-Length", strconv.Itoa(len(object)))
		_, _ = rw.Write(object)
	}))
	defer server.Close()
	for _, test := range []struct {
		what    string
		method  string
		weather weather
		outage  string
		status  int // 0: an error
		changed int // bits of what arrives
		applied bool
	}{
		{what: "nothing", method: http.MethodGet, status: 200},
		{what: slowed, method: http.MethodPut, weather: weather{slowed: 1}, status: 503},
		{what: reset, method: http.MethodPut, weather: weather{reset: 1}},
		{what: lost, method: http.MethodPut, weather: weather{lost: 1}, applied: true},
		{what: truncated, method: http.MethodGet, weather: weather{truncated: 1}},
		{what: flipped, method: http.MethodPut, weather: weather{corrupted: 1}, status: 200, applied: true, changed: 1},
		{what: misread, method: http.MethodGet, weather: weather{corrupted: 1}, status: 200, changed: 1},
		{what: refused, method: http.MethodPut, outage: refused},
		{what: silent, method: http.MethodPut, outage: silent},
		{what: denied, method: http.MethodPut, outage: denied, status: 403},
		{what: delayed, method: http.MethodGet, weather: weather{latency: time.Millisecond}, status: 200},
		{what: limited, method: http.MethodGet, weather: weather{bandwidth: 4 << 20}, status: 200},
	} {
		t.Run(test.what, func(t *testing.T) {
			mu.Lock()
			stored = nil
			mu.Unlock()
			w := newWire(t)
			w.lead(t, server.URL, 1)
			w.set(test.weather)
			if test.outage != "" {
				w.fail(test.outage, "InvalidAccessKeyId")
			}
			if test.outage == silent {
				time.AfterFunc(50*time.Millisecond, w.clear)
			}
			var sent io.Reader
			if test.method == http.MethodPut {
				sent = bytes.NewReader(object)
			}
			r, err := http.NewRequestWithContext(t.Context(), test.method, w.url+"/bucket/key", sent)
			if err != nil {
				t.Fatal(err)
			}
			answer, err := new(http.Transport).RoundTrip(r)
			status, got := 0, []byte(nil)
			if err == nil {
				got, err = io.ReadAll(answer.Body)
				_ = answer.Body.Close() // it was read
				if err == nil {
					status = answer.StatusCode
				}
			}
			mu.Lock()
			defer mu.Unlock()
			if test.method == http.MethodPut {
				got = stored
			}
			if status != test.status || (test.method == http.MethodPut) && (stored != nil) != test.applied {
				t.Errorf("status %d, %v; stored %d bytes", status, err, len(stored))
			}
			if counts, asked := w.tally(); asked != 1 || test.what != "nothing" && counts[test.what] == 0 || test.what == "nothing" && len(counts) > 0 {
				t.Errorf("%d requests, %v", asked, counts)
			}
			if test.status == http.StatusOK {
				if n := differing(got, object); n != test.changed {
					t.Errorf("%d bits of %d bytes differ, want %d", n, len(got), test.changed)
				}
			}
		})
	}
}

// differing counts the bits that differ; -1: the lengths do.
func differing(p, q []byte) (n int) {
	if len(p) != len(q) {
		return -1
	}
	for i := range p {
		for x := p[i] ^ q[i]; x != 0; x &= x - 1 {
			n++
		}
	}
	return n
}
