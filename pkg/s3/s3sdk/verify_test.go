package s3sdk_test

import (
	"crypto/md5"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/base64"
	"errors"
	"fmt"
	"hash"
	"hash/crc32"
	"hash/crc64"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/csi-s3/csi-s3/pkg/s3"
	"github.com/csi-s3/csi-s3/pkg/s3/s3sdk"
)

// newHash are the algorithms of S3 by the end of their header's name.
func newHash(name string) hash.Hash {
	switch name {
	case "Crc32c":
		return crc32.New(crc32.MakeTable(crc32.Castagnoli))
	case "Crc32":
		return crc32.NewIEEE()
	case "Crc64nvme":
		return crc64.New(crc64.MakeTable(0x9a6c9329ac4bc9b5))
	case "Sha1":
		return sha1.New()
	case "Sha256":
		return sha256.New()
	case "Sha512":
		return sha512.New()
	case "Md5":
		return md5.New()
	}
	panic(name)
}

func sumOf(name string, parts ...string) string {
	h := newHash(name)
	var sums []byte
	for _, p := range parts {
		h.Reset()
		_, _ = io.WriteString(h, p)
		sums = h.Sum(sums)
	}
	return base64.StdEncoding.EncodeToString(sums)
}

func composite(name string, parts ...string) string {
	sums, _ := base64.StdEncoding.DecodeString(sumOf(name, parts...))
	return sumOf(name, string(sums)) + fmt.Sprintf("-%d", len(parts))
}

// The check value of the algorithm's specification, so that the table is not only compared with itself.
func TestCRC64NVME(t *testing.T) {
	if got := sumOf("Crc64nvme", "123456789"); got != "rosUhgp5mIg=" { // 0xae8b14860a799888
		t.Error(got)
	}
}

// Whatever checksum the writer of an object stored, its whole body is held to it, and the answer is asked for.
func TestStoredChecksums(t *testing.T) {
	const good, bad = "0123456789", "0123456689"
	for _, algorithm := range []string{"Crc32c", "Crc32", "Crc64nvme", "Sha1", "Sha256", "Sha512", "Md5"} {
		for _, c := range []struct {
			name, sum, body string
			want            error
		}{
			{"good", sumOf(algorithm, good), good, nil},
			{"flipped", sumOf(algorithm, good), bad, s3.ErrCorrupt},
			{"one part, good", composite(algorithm, good), good, nil},
			{"one part, flipped", composite(algorithm, good), bad, s3.ErrCorrupt},
			{"empty", sumOf(algorithm, ""), "", nil},
			{"empty with another's", sumOf(algorithm, good), "", s3.ErrCorrupt},
		} {
			s := serve(t, func(w http.ResponseWriter, _ request, _ int) {
				tagged(w)
				w.Header().Set("X-Amz-Checksum-"+algorithm, c.sum)
				w.Header().Set("Content-Length", fmt.Sprint(len(c.body)))
				_, _ = io.WriteString(w, c.body)
			})
			client, err := s3sdk.New(config(s.URL))
			if err != nil {
				t.Fatal(err)
			}
			rc, _, err := client.Bucket("bkt").Get(t.Context(), "k", nil, "")
			if err != nil {
				t.Fatal(err)
			}
			got, err := io.ReadAll(rc)
			if !errors.Is(err, c.want) || c.want == nil && (err != nil || string(got) != c.body) {
				t.Errorf("%s, %s: %q, %v; want %v", algorithm, c.name, got, err, c.want)
			}
			if n := client.Stats().Corrupt; n == 1 != (c.want != nil) {
				t.Errorf("%s, %s: %d corrupt bodies counted", algorithm, c.name, n)
			}
			if mode := s.seen()[0].Header.Get("X-Amz-Checksum-Mode"); mode != "ENABLED" {
				t.Errorf("asked with checksum mode %q", mode)
			}
			_ = rc.Close()
			client.Close()
		}
	}
}

// Over plain HTTP a body without a checksum is only believed when a second copy of it is the same.
func TestTwoCopies(t *testing.T) {
	const size = 300 << 10 // more than one read
	good := strings.Repeat("0123456789abcdef", size/16)
	bad := good[:1000] + "?" + good[1001:]
	answer := func(w http.ResponseWriter, r request, body, tag, sum string) {
		w.Header().Set("Etag", tag)
		if sum != "" {
			w.Header().Set("X-Amz-Checksum-Crc32c", sum)
		}
		status := http.StatusOK
		if r.Header.Get("Range") != "" {
			w.Header().Set("Content-Range", fmt.Sprintf("bytes 0-%d/%d", size-1, 2*size))
			status = http.StatusPartialContent
		}
		w.Header().Set("Content-Length", fmt.Sprint(size))
		w.WriteHeader(status)
		_, _ = io.WriteString(w, body)
	}
	part := &s3.Range{End: size}
	for _, c := range []struct {
		name          string
		first, second string // what one and the other copy is
		sum           string
		r             *s3.Range
		match         s3.ETag
		tls           bool
		want          error
		requests      int
	}{
		{"same range", good, good, "", part, "tag", false, nil, 2},
		{"same range, not pinned", good, good, "", part, "", false, nil, 2},
		{"same object", good, good, "", nil, "tag", false, nil, 2},
		{"first flipped", bad, good, "", part, "tag", false, s3.ErrCorrupt, 2},
		{"second flipped", good, bad, "", part, "", false, s3.ErrCorrupt, 2},
		{"object flipped", bad, good, "", nil, "", false, s3.ErrCorrupt, 2},
		{"object without a second copy", good, "503", "", nil, "", false, s3.ErrUnavailable, 2},
		{"range without a second copy", good, "503", "", part, "", false, s3.ErrUnavailable, 2},
		{"changed between", good, "changed", "", part, "", false, s3.ErrUnavailable, 2},
		{"second broken off", good, good[:1000], "", part, "", false, s3.ErrUnavailable, 2},
		{"with a checksum", good, "503", crcOf(good), nil, "tag", false, nil, 1},
		{"range over TLS", good, "503", "", part, "tag", true, nil, 1},
		{"object over TLS", good, "503", "", nil, "", true, nil, 1},
	} {
		handler := func(w http.ResponseWriter, r request, n int) {
			switch body := []string{c.first, c.second}[min(n, 2)-1]; body {
			case "503":
				fault(w, http.StatusServiceUnavailable, "SlowDown")
			case "changed":
				if got := r.Header.Get("If-Match"); got != `"tag"` {
					t.Errorf("%s: If-Match %s", c.name, got)
				}
				fault(w, http.StatusPreconditionFailed, "PreconditionFailed")
			default:
				answer(w, r, body, `"tag"`, c.sum)
			}
		}
		s := start(t, handler, c.tls)
		cfg := config(s.URL)
		cfg.Insecure, cfg.Attempts = true, 1
		b := open(t, cfg)
		rc, _, err := b.Get(t.Context(), "k", c.r, c.match)
		if err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		p := make([]byte, size)
		if _, err := io.ReadFull(rc, p); !errors.Is(err, c.want) || c.want == nil && (err != nil || string(p) != good) {
			t.Errorf("%s: %v, want %v", c.name, err, c.want)
		}
		_ = rc.Close()
		if n := len(s.seen()); n != c.requests {
			t.Errorf("%s: %d requests, want %d", c.name, n, c.requests)
		}
	}
}
