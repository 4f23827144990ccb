package conformance_test

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
)

// meter stands between a mount and its server and counts what passes, but for the volume's own records: requests by what they
// ask, and bytes.
type meter struct {
	mu       sync.Mutex
	requests map[string]int // guarded by mu
	sent     int64          // guarded by mu: bytes of bodies to the server
	received int64          // guarded by mu: bytes of bodies from it
}

// metered puts a meter before the server of m, for the mount alone. It is for newMounted.
func (c *meter) metered(m *mounted) {
	m.t.Helper()
	target, err := url.Parse(m.server.Endpoint)
	if err != nil {
		m.t.Fatal(err)
	}
	c.reset()
	transport := &http.Transport{DisableCompression: true, MaxIdleConnsPerHost: 64}
	proxy := &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(target)
			r.Out.Host = r.In.Host // it is signed
		},
		ModifyResponse: func(r *http.Response) error {
			if !ofRecord(r.Request) {
				r.Body = &measured{r.Body, c, &c.received}
			}
			return nil
		},
		ErrorHandler: func(w http.ResponseWriter, _ *http.Request, _ error) { w.WriteHeader(http.StatusBadGateway) },
		Transport:    transport,
	}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !ofRecord(r) {
			c.mu.Lock()
			c.requests[kind(r)]++
			c.mu.Unlock()
			r.Body = &measured{r.Body, c, &c.sent}
		}
		proxy.ServeHTTP(w, r)
	}))
	m.t.Cleanup(func() {
		server.Close()
		transport.CloseIdleConnections()
	})
	m.server.Endpoint = server.URL
}

// ofRecord says that a request is about the volume's lease, or about what the server supports.
func ofRecord(r *http.Request) bool {
	return strings.HasSuffix(r.URL.Path, "/.csi-s3/lease") || strings.Contains(r.URL.Path, "/.csi-s3/probe")
}

// kind is the name of what a request asks.
func kind(r *http.Request) string {
	q := r.URL.Query()
	name := r.Method
	switch {
	case r.Header.Get("x-amz-copy-source") != "" && q.Has("partNumber"):
		name = "COPY-PART"
	case r.Header.Get("x-amz-copy-source") != "":
		name = "COPY"
	case q.Has("partNumber"):
		name = "PUT-PART"
	case q.Has("delete"):
		name = "DELETE-MANY"
	case q.Has("uploads") || q.Has("uploadId"):
		name = r.Method + "-UPLOAD"
	case q.Has("list-type"):
		name = "LIST"
	}
	return name
}

// measured counts the bytes of a body.
type measured struct {
	io.ReadCloser
	c     *meter
	count *int64
}

func (b *measured) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	b.c.mu.Lock()
	*b.count += int64(n)
	b.c.mu.Unlock()
	return n, err
}

func (c *meter) reset() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.requests, c.sent, c.received = map[string]int{}, 0, 0
}

// count is how many requests of some kinds there were; without kinds, of all.
func (c *meter) count(kinds ...string) (n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for k, v := range c.requests {
		if len(kinds) == 0 || slices.Contains(kinds, k) {
			n += v
		}
	}
	return n
}

func (c *meter) bytes() (sent, received int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.sent, c.received
}

func (c *meter) String() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	var parts []string
	for k, v := range c.requests {
		parts = append(parts, fmt.Sprintf("%s %d", k, v))
	}
	slices.Sort(parts)
	return fmt.Sprintf("%s; %d bytes sent, %d received", strings.Join(parts, ", "), c.sent, c.received)
}

// TestMeter: what the proxy counts is what was sent.
func TestMeter(t *testing.T) {
	if !ownMounts(t) {
		return
	}
	var c meter
	m := newMounted(t, "", c.metered)
	if err := writeFile(m.dir+"/file", make([]byte, 12345), false); err != nil {
		t.Fatal(err)
	}
	c.reset()
	m.flush()
	if sent, _ := c.bytes(); sent != 12345 || c.count("PUT") != 1 {
		t.Errorf("%s; want one PUT of 12345 bytes", &c)
	}
}
