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
