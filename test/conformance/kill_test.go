package conformance_test

import (
	"crypto/sha256"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/csi-s3/csi-s3/pkg/s3"
)

// TestKill: the process is killed while files are written, and started again on the same cache. Every file whose close or
// fsync had returned is complete in the bucket after a flush.
func TestKill(t *testing.T) {
	if !ownMounts(t) {
		return
	}
	m := newMounted(t, "settle=100ms")
	acknowledged := map[string][32]byte{} // by key
	for round := range scale(4, 40) {
		var (
			mu   sync.Mutex
			wg   sync.WaitGroup
			stop = make(chan struct{})
		)
		for writer := range 3 {
			random := rand.NewChaCha8([32]byte{byte(round), byte(writer)})
			wg.Go(func() {
				for i := 0; ; i++ {
					select {
					case <-stop:
						return
					default:
					}
					key := fmt.Sprintf("round-%d/writer-%d/file-%d", round, writer, i)
					content := make([]byte, random.Uint64()%(300<<10))
					if i%20 == 10 {
						content = make([]byte, 20<<20) // a multipart upload
					}
					_, _ = random.Read(content) // never fails
					if err := writeFile(filepath.Join(m.dir, key), content, i%2 == 0); err != nil {
						return // the server is gone
					}
					if i%5 == 4 {
						renamed := key + ".renamed"
						if err := os.Rename(filepath.Join(m.dir, key), filepath.Join(m.dir, renamed)); err != nil {
							// Done or not, the file is under one of the names; which one nobody has said.
							return
						}
						key = renamed
					}
					mu.Lock()
					acknowledged[key] = sha256.Sum256(content)
					mu.Unlock()
				}
			})
		}
		time.Sleep(time.Duration(rand.IntN(2000)) * time.Millisecond)
		for enough := false; !enough; time.Sleep(10 * time.Millisecond) {
			mu.Lock()
			enough = len(acknowledged) >= 20*(round+1)
			mu.Unlock()
		}
		m.kill()
		close(stop)
		wg.Wait() // while the dead mount is there: below it is a directory that takes everything
		m.detach()
		m.start()
	}
	m.flush()
	bucket := m.client.Bucket(m.bucket)
	for key, want := range acknowledged {
		body, _, err := bucket.Get(t.Context(), s3.Key(key), nil, "")
		if err != nil {
			t.Errorf("%s: %v", key, err)
			continue
		}
		h := sha256.New()
		_, err = io.Copy(h, body)
		if cerr := body.Close(); err == nil {
			err = cerr
		}
		if err != nil || [32]byte(h.Sum(nil)) != want {
			t.Errorf("%s: not what was acknowledged (%v)", key, err)
		}
	}
	t.Logf("%d files acknowledged", len(acknowledged))
}

// writeFile makes a file. When it returns nil, close or (with sync) fsync was acknowledged.
func writeFile(path string, content []byte, sync bool) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	if err == nil && sync {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	return err
}
