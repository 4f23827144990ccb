package s3_test

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/csi-s3/csi-s3/pkg/s3"
	"github.com/csi-s3/csi-s3/pkg/s3/s3sdk"
	"github.com/csi-s3/csi-s3/test/minio"
	"github.com/csi-s3/csi-s3/test/s3/versity"
)

// TestWrongBits reads through a proxy that turns a bit over in each tenth body. No wrong byte gets through, whatever
// the object: one with a checksum, one of parts, ranges of both.
func TestWrongBits(t *testing.T) {
	t.Run("VersityGW", func(t *testing.T) {
		s, err := versity.Start(t.Context(), t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := s.Stop(); err != nil {
				t.Error(err)
			}
		})
		wrongBits(t, s.Endpoint, s.AccessKey, s.SecretKey)
	})
	t.Run("MinIO", func(t *testing.T) {
		s := minio.Start(t)
		wrongBits(t, s.Endpoint, s.AccessKey, s.SecretKey)
	})
}

func wrongBits(t *testing.T, endpoint, accessKey, secretKey string) {
	credentials := s3sdk.Credentials{AccessKeyID: s3sdk.Secret(accessKey), SecretAccessKey: s3sdk.Secret(secretKey)}
	b := client(t, s3sdk.Config{Endpoint: endpoint, Credentials: credentials}).Bucket("integrity")
	if err := b.CreateBucket(t.Context()); err != nil {
		t.Fatal(err)
	}
	random := rand.NewChaCha8([32]byte{1})
	small, large := make([]byte, 100_000), make([]byte, 5<<20+4321)
	_, _ = random.Read(small) // never fails
	_, _ = random.Read(large)
	if _, err := b.Put(t.Context(), "small", s3.Body{R: bytes.NewReader(small), Size: int64(len(small))}, s3.Attributes{}, s3.Condition{}); err != nil {
		t.Fatal(err)
	}
	id, err := b.CreateUpload(t.Context(), "large", s3.Attributes{})
	if err != nil {
		t.Fatal(err)
	}
	var parts []s3.Part
	for n, data := range [][]byte{large[:5<<20], large[5<<20:]} {
		part, err := b.UploadPart(t.Context(), "large", id, n+1, s3.Body{R: bytes.NewReader(data), Size: int64(len(data))})
		if err != nil {
			t.Fatal(err)
		}
		parts = append(parts, part)
	}
	if _, err := b.CompleteUpload(t.Context(), "large", id, parts, s3.Condition{}); err != nil {
		t.Fatal(err)
	}

	proxy, flips := flipping(t, endpoint)
	c := client(t, s3sdk.Config{Endpoint: proxy, Credentials: credentials})
	b = c.Bucket("integrity")
	read := func(key s3.Key, r *s3.Range, want []byte) {
		t.Helper()
		for {
			body, _, err := b.Get(t.Context(), key, r, "")
			if err != nil {
				t.Fatal(err)
			}
			got, err := io.ReadAll(body)
			_ = body.Close()
			if errors.Is(err, s3.ErrCorrupt) {
				continue
			}
			if err != nil || !bytes.Equal(got, want) {
				t.Fatalf("%s %v: %d bytes that differ, %v", key, r, len(got), err)
			}
			return
		}
	}
	before := c.Stats()
	for range 100 {
		read("small", nil, small)
	}
	if s := c.Stats(); s.Compared != before.Compared || s.Corrupt == 0 || s.Corrupt > flips.Load() {
		t.Errorf("%d bodies turned over: %+v", flips.Load(), s)
	}
	for range 10 {
		read("large", nil, large)
	}
	for range 100 {
		off := rand.Int64N(int64(len(large)))
		end := min(off+128<<10, int64(len(large)))
		read("large", &s3.Range{Off: off, End: end}, large[off:end])
	}
	t.Logf("%d bodies turned over: %+v", flips.Load(), c.Stats())
}

// flipping returns a proxy to endpoint and how many bodies of GETs it has turned a bit over in.
func flipping(t *testing.T, endpoint string) (string, *atomic.Int64) {
	t.Helper()
	target, err := url.Parse(endpoint)
	if err != nil {
		t.Fatal(err)
	}
	var flips atomic.Int64
	var mu sync.Mutex
	random := rand.New(rand.NewPCG(2, 2)) // guarded by mu
	s := httptest.NewServer(&httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(target)
			r.Out.Host = r.In.Host // it is signed
		},
		ModifyResponse: func(r *http.Response) error {
			mu.Lock()
			defer mu.Unlock()
			if r.Request.Method != http.MethodGet || r.StatusCode >= 300 || random.IntN(10) != 0 {
				return nil
			}
			body, err := io.ReadAll(r.Body)
			if err != nil {
				return err
			}
			flips.Add(1)
			body[random.IntN(len(body))] ^= 1 << random.IntN(8)
			r.Body = io.NopCloser(bytes.NewReader(body))
			return nil
		},
	})
	t.Cleanup(s.Close)
	return s.URL, &flips
}
