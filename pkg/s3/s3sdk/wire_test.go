package s3sdk_test

import (
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"github.com/csi-s3/csi-s3/pkg/s3"
	"github.com/csi-s3/csi-s3/pkg/s3/s3sdk"
)

const (
	accessKey = "AKIATESTACCESSKEY"
	secretKey = "test+secret/key"
	token     = "test-session-token"
)

// wire is a server that records requests and answers as its script says.
type wire struct {
	*httptest.Server
	mu       sync.Mutex
	requests []request // guarded by mu
	conns    int       // guarded by mu
}

type request struct {
	*http.Request
	body []byte
}

// serve starts a server; n counts requests from 1.
func serve(t *testing.T, answer func(w http.ResponseWriter, r request, n int)) *wire {
	t.Helper()
	return start(t, answer, false)
}

func start(t *testing.T, answer func(w http.ResponseWriter, r request, n int), tls bool) *wire {
	t.Helper()
	s := new(wire)
	s.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			body = nil // a client that breaks off is part of some tests
		}
		req := request{r, body}
		s.mu.Lock()
		s.requests = append(s.requests, req)
		n := len(s.requests)
		s.mu.Unlock()
		w.Header().Set("X-Amz-Request-Id", fmt.Sprintf("REQ%d", n))
		answer(w, req, n)
	}))
	s.Config.ConnState = func(_ net.Conn, state http.ConnState) {
		if state == http.StateNew {
			s.mu.Lock()
			s.conns++
			s.mu.Unlock()
		}
	}
	if tls {
		s.StartTLS()
	} else {
		s.Start()
	}
	t.Cleanup(s.Close)
	return s
}

func (s *wire) seen() []request {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]request(nil), s.requests...)
}

func (s *wire) connections() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.conns
}

func config(endpoint string) s3sdk.Config {
	return s3sdk.Config{Endpoint: endpoint, Credentials: s3sdk.Credentials{AccessKeyID: accessKey, SecretAccessKey: secretKey, SessionToken: token}}
}

func open(t *testing.T, cfg s3sdk.Config) s3.Bucket {
	t.Helper()
	c, err := s3sdk.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c.Bucket("bkt")
}

func body(data string) s3.Body { return s3.Body{R: strings.NewReader(data), Size: int64(len(data))} }

func tagged(w http.ResponseWriter) { w.Header().Set("Etag", `"0123456789abcdef"`) }

func fault(w http.ResponseWriter, status int, code string) {
	w.Header().Set("Content-Type", "application/xml")
	w.WriteHeader(status)
	if code != "" {
		fmt.Fprintf(w, `<?xml version="1.0"?><Error><Code>%s</Code><Message>m</Message><RequestId>R</RequestId></Error>`, code)
	}
}

func xml(w http.ResponseWriter, doc string) {
	w.Header().Set("Content-Type", "application/xml")
	fmt.Fprint(w, doc)
}

func crcOf(data string) string {
	sum := crc32.Checksum([]byte(data), crc32.MakeTable(crc32.Castagnoli))
	return base64.StdEncoding.EncodeToString(binary.BigEndian.AppendUint32(nil, sum))
}

func TestUploadsOnTheWire(t *testing.T) {
	s := serve(t, func(w http.ResponseWriter, _ request, _ int) { tagged(w) })
	b := open(t, config(s.URL))
	var want []string
	for _, size := range []int{0, 1, 3 << 20} {
		data := strings.Repeat("x", size)
		want = append(want, data, data)
		if _, err := b.Put(t.Context(), "k", body(data), s3.Attributes{}, s3.Condition{}); err != nil {
			t.Fatal(err)
		}
		if _, err := b.UploadPart(t.Context(), "k", "id", 7, body(data)); err != nil {
			t.Fatal(err)
		}
	}
	for i, r := range s.seen() {
		if string(r.body) != want[i] || r.ContentLength != int64(len(want[i])) || len(r.TransferEncoding) > 0 {
			t.Errorf("request %d: %d bytes, Content-Length %d, Transfer-Encoding %q", i, len(r.body), r.ContentLength, r.TransferEncoding)
		}
		if got := r.Header.Get("X-Amz-Checksum-Crc32c"); got != crcOf(want[i]) {
			t.Errorf("request %d: checksum %q, want %q", i, got, crcOf(want[i]))
		}
		if got := r.Header.Get("X-Amz-Content-Sha256"); got != "UNSIGNED-PAYLOAD" {
			t.Errorf("request %d: X-Amz-Content-Sha256 is %q", i, got)
		}
		for _, h := range []string{"X-Amz-Trailer", "Trailer", "Content-Encoding", "Expect", "X-Amz-Decoded-Content-Length"} {
			if v, ok := r.Header[h]; ok {
				t.Errorf("request %d: %s: %q", i, h, v)
			}
		}
		if r.Header.Get("X-Amz-Security-Token") != token || !strings.Contains(r.Header.Get("Authorization"), "/us-east-1/s3/aws4_request") {
			t.Errorf("request %d is signed %q", i, r.Header.Get("Authorization"))
		}
		if r.Proto != "HTTP/1.1" {
			t.Errorf("request %d: %s", i, r.Proto)
		}
	}
}

func TestKeysOnTheWire(t *testing.T) {
	s := serve(t, func(w http.ResponseWriter, _ request, _ int) { tagged(w) })
	b := open(t, config(s.URL))
	for _, c := range []struct{ key, path string }{
		{"a/", "/bkt/a/"},
		{"a//b", "/bkt/a//b"},
		{"a//", "/bkt/a//"},
		{"/lead", "/bkt//lead"},
		{"./x", "/bkt/./x"},
		{"a/../b", "/bkt/a/../b"},
		{"a b+c%d?e#f", "/bkt/a%20b%2Bc%25d%3Fe%23f"},
		{"é\x01", "/bkt/%C3%A9%01"},
	} {
		if _, err := b.Put(t.Context(), s3.Key(c.key), body("x"), s3.Attributes{}, s3.Condition{}); err != nil {
			t.Fatal(err)
		}
		seen := s.seen()
		if path, _, _ := strings.Cut(seen[len(seen)-1].RequestURI, "?"); path != c.path {
			t.Errorf("%q went out as %q, want %q", c.key, path, c.path)
		}
	}
}

func TestPathOfTheEndpointIsKept(t *testing.T) {
	s := serve(t, func(w http.ResponseWriter, _ request, _ int) { tagged(w) })
	b := open(t, config(s.URL+"/base"))
	if _, err := b.Put(t.Context(), "a/", body("x"), s3.Attributes{}, s3.Condition{}); err != nil {
		t.Fatal(err)
	}
	if path := s.seen()[0].URL.Path; path != "/base/bkt/a/" {
		t.Error(path)
	}
}

func TestCopySourceOnTheWire(t *testing.T) {
	s := serve(t, func(w http.ResponseWriter, _ request, _ int) {
		xml(w, `<CopyObjectResult><ETag>"t"</ETag><LastModified>2026-01-01T00:00:00Z</LastModified></CopyObjectResult>`)
	})
	b := open(t, config(s.URL))
	if _, err := b.Copy(t.Context(), "a b+c/%é~!?versionId=1", "srctag", "dst", nil, s3.Condition{}); err != nil {
		t.Fatal(err)
	}
	r := s.seen()[0]
	if got, want := r.Header.Get("X-Amz-Copy-Source"), "bkt/a%20b%2Bc/%25%C3%A9~%21%3FversionId%3D1"; got != want {
		t.Errorf("copy source %q, want %q", got, want)
	}
	if got := r.Header.Get("X-Amz-Copy-Source-If-Match"); got != `"srctag"` {
		t.Errorf("If-Match %q", got)
	}
}

func TestConditionsOnTheWire(t *testing.T) {
	s := serve(t, func(w http.ResponseWriter, r request, _ int) {
		tagged(w)
		if r.Method == http.MethodPost {
			xml(w, `<CompleteMultipartUploadResult><ETag>"t"</ETag></CompleteMultipartUploadResult>`)
		}
		if r.Header.Get("X-Amz-Copy-Source") != "" {
			xml(w, `<CopyObjectResult><ETag>"t"</ETag></CopyObjectResult>`)
		}
	})
	b := open(t, config(s.URL))
	for _, cond := range []s3.Condition{{}, {IfMatch: "tag"}, {IfNoneMatch: true}} {
		if _, err := b.Put(t.Context(), "k", body("x"), s3.Attributes{}, cond); err != nil {
			t.Fatal(err)
		}
		if _, err := b.CompleteUpload(t.Context(), "k", "id", []s3.Part{{Number: 1, ETag: "e"}}, cond); err != nil {
			t.Fatal(err)
		}
		if _, err := b.Copy(t.Context(), "src", "", "k", nil, cond); err != nil {
			t.Fatal(err)
		}
		if err := b.DeleteIf(t.Context(), "k", cond.IfMatch); err != nil {
			t.Fatal(err)
		}
	}
	for i, want := range [][2]string{{"", ""}, {`"tag"`, ""}, {"", "*"}} {
		for _, r := range s.seen()[4*i : 4*i+4] {
			if r.Method == http.MethodDelete {
				want[1] = "" // it has no If-None-Match
			}
			if got := [2]string{r.Header.Get("If-Match"), r.Header.Get("If-None-Match")}; got != want {
				t.Errorf("%s: %q, want %q", r.Method, got, want)
			}
		}
	}
}

func TestConnectionsAreReused(t *testing.T) {
	s := serve(t, func(w http.ResponseWriter, r request, _ int) {
		tagged(w)
		switch {
		case r.Method == http.MethodGet && strings.Contains(r.URL.RawQuery, "list-type"):
			xml(w, `<ListBucketResult><IsTruncated>false</IsTruncated></ListBucketResult>`)
		case strings.HasSuffix(r.URL.Path, "absent"):
			fault(w, http.StatusNotFound, "NoSuchKey")
		case r.Method == http.MethodGet:
			w.Header().Set("Content-Length", "100000")
			w.Header().Set("X-Amz-Checksum-Crc32c", crcOf(strings.Repeat("x", 100_000))) // else it is asked for twice, at once
			fmt.Fprint(w, strings.Repeat("x", 100_000))
		}
	})
	b := open(t, config(s.URL))
	for range 10 {
		if _, err := b.Put(t.Context(), "k", body("data"), s3.Attributes{}, s3.Condition{}); err != nil {
			t.Fatal(err)
		}
		rc, info, err := b.Get(t.Context(), "k", nil, "")
		if err != nil {
			t.Fatal(err)
		}
		// Exactly the length, and no more: as the cache reads.
		if _, err := io.ReadFull(rc, make([]byte, info.Size)); err != nil {
			t.Fatal(err)
		}
		if err := rc.Close(); err != nil {
			t.Fatal(err)
		}
		if _, err := b.List(t.Context(), s3.ListInput{}); err != nil {
			t.Fatal(err)
		}
		if _, _, err := b.Get(t.Context(), "absent", nil, ""); err == nil {
			t.Fatal("absent is there")
		}
	}
	if n := s.connections(); n != 1 {
		t.Errorf("%d connections for 40 requests in turn, want 1", n)
	}
}

func TestTransportsAreShared(t *testing.T) {
	s := serve(t, func(w http.ResponseWriter, _ request, _ int) { tagged(w) })
	cfg := config(s.URL)
	cfg.Transports = new(s3sdk.Transports)
	one, err := s3sdk.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	cfg.Credentials.SecretAccessKey = "rotated"
	two, err := s3sdk.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	put := func(c *s3sdk.Client) {
		t.Helper()
		if _, err := c.Bucket("bkt").Put(t.Context(), "k", body("x"), s3.Attributes{}, s3.Condition{}); err != nil {
			t.Fatal(err)
		}
	}
	put(one)
	one.Close()
	put(two)
	two.Close()
	if n := s.connections(); n != 1 {
		t.Errorf("%d connections, want 1", n)
	}
	// The second secret must sign, though the access key is the same: the SDK's signer caches by access key.
	seen := s.seen()
	first, second := seen[0].Header.Get("Authorization"), seen[1].Header.Get("Authorization")
	if seen[0].Header.Get("X-Amz-Date") == seen[1].Header.Get("X-Amz-Date") && first == second {
		t.Error("a rotated secret signs as the old one")
	}
}

func TestTLS(t *testing.T) {
	var proto string
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		proto = r.Proto
		tagged(w)
	}))
	s.EnableHTTP2 = true
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.StartTLS()
	t.Cleanup(s.Close)
	put := func(change func(c *s3sdk.Config)) error {
		cfg := config(s.URL)
		cfg.Attempts = 1
		change(&cfg)
		_, err := open(t, cfg).Put(t.Context(), "k", body("x"), s3.Attributes{}, s3.Condition{})
		return err
	}
	if err := put(func(*s3sdk.Config) {}); err == nil || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("an unknown CA: %v", err)
	}
	if err := put(func(c *s3sdk.Config) { c.CABundle = certificate(s) }); err != nil {
		t.Errorf("with its CA: %v", err)
	}
	if proto != "HTTP/1.1" {
		t.Errorf("spoke %s", proto)
	}
	if err := put(func(c *s3sdk.Config) { c.Insecure = true }); err != nil {
		t.Errorf("insecure: %v", err)
	}
}
