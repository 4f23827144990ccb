package fetch_test

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"github.com/csi-s3/csi-s3/pkg/cache"
	"github.com/csi-s3/csi-s3/pkg/fetch"
	"github.com/csi-s3/csi-s3/pkg/s3"
	"github.com/csi-s3/csi-s3/pkg/s3/s3sdk"
)

// flipper is a server with one object, which turns a bit over in some of its bodies.
type flipper struct {
	body []byte
	bare bool // no checksum is stored

	mu      sync.Mutex
	random  *rand.Rand // guarded by mu
	flips   int        // guarded by mu: bodies with a wrong bit
	answers int        // guarded by mu
}

func (s *flipper) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	off, end, status := 0, len(s.body), http.StatusOK
	if h := r.Header.Get("Range"); h != "" {
		if _, err := fmt.Sscanf(strings.TrimPrefix(h, "bytes="), "%d-%d", &off, &end); err != nil {
			panic(h)
		}
		end, status = min(end+1, len(s.body)), http.StatusPartialContent
		w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", off, end-1, len(s.body)))
	} else if !s.bare && r.Header.Get("X-Amz-Checksum-Mode") == "ENABLED" {
		sum := crc32.Checksum(s.body, crc32.MakeTable(crc32.Castagnoli))
		w.Header().Set("X-Amz-Checksum-Crc32c", base64.StdEncoding.EncodeToString(binary.BigEndian.AppendUint32(nil, sum)))
	}
	part := bytes.Clone(s.body[off:end])
	s.mu.Lock()
	s.answers++
	if s.random.IntN(8) == 0 {
		s.flips++
		part[s.random.IntN(len(part))] ^= 1 << s.random.IntN(8)
	}
	s.mu.Unlock()
	w.Header().Set("Etag", `"tag"`)
	w.Header().Set("Content-Length", fmt.Sprint(len(part)))
	w.WriteHeader(status)
	_, _ = w.Write(part) // a client that gave up is no matter
}

// flipped runs files of size bytes through a server that gives a wrong bit in an eighth of its bodies.
func flipped(t *testing.T, size, files int, bare bool) (*flipper, s3sdk.Stats) {
	t.Helper()
	s := &flipper{body: noise(size), bare: bare, random: rand.New(rand.NewPCG(1, uint64(size)))}
	server := httptest.NewServer(s)
	defer server.Close()
	client, err := s3sdk.New(s3sdk.Config{Endpoint: server.URL, Credentials: s3sdk.Credentials{AccessKeyID: "key", SecretAccessKey: "secret"}})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	r := newRig(t, fetch.Options{}, 1<<30)
	x := fetch.New(client.Bucket("bucket"), fetch.Options{Chunk: chunk})
	defer x.Close()
	src := fetch.Source{Key: "key", ETag: "tag", Size: int64(size)}
	locate := func(int64) (fetch.Source, int64, error) { return src, src.Size, nil }
	for i := range files {
		f := r.store.File(cache.ID(i+1), src.Size)
		r.ok(x.Ensure(t.Context(), f, locate, 0, src.Size))
		r.reads(f, 0, s.body)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.flips == 0 {
		t.Error("no bit was turned over")
	}
	return s, client.Stats()
}

// An object that comes in one piece is held to the checksum that is stored with it: a wrong bit on its way costs a
// request more.
func TestWrongBitsInWholeObjects(t *testing.T) {
	s, stats := flipped(t, chunk-1, 40, false)
	// A machine under load makes answers late, and so a few more of them.
	if late := int64(s.answers) - 40 - stats.Corrupt; late < 0 || late > stats.Hedged || stats.Corrupt > int64(s.flips) || stats.Compared != 0 {
		t.Errorf("%d requests for 40 files and %d wrong bodies: %+v", s.answers, s.flips, stats)
	}
}

// Ranges, and objects without a checksum, have nothing to be held to: over plain HTTP two copies of them must agree.
func TestWrongBitsInRanges(t *testing.T) {
	for _, c := range []struct{ size, files int }{{5*chunk + 1, 6}, {chunk - 1, 20}} {
		s, stats := flipped(t, c.size, c.files, true)
		if stats.Corrupt == 0 || stats.Corrupt > int64(s.flips) {
			t.Errorf("%d corrupt found, of %d", stats.Corrupt, s.flips)
		}
		if late := int64(s.answers) - stats.Compared*2; late < 0 || late > stats.Hedged {
			t.Errorf("%d requests, %d compared", s.answers, stats.Compared)
		}
	}
}

// A whole object that is longer than it was is another one, also where nothing pins the request.
func TestWholeObjectHasItsSize(t *testing.T) {
	r := newRig(t, fetch.Options{}, 1<<30)
	r.put("key", noise(10<<10))
	r.source.Store(&fetch.Source{Key: "key", Size: 9 << 10})
	if err := r.ensure(r.store.File(1, 9<<10), 0, 9<<10); !errors.Is(err, s3.ErrPrecondition) {
		t.Error(err)
	}
}
