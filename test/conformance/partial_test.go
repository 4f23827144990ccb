package conformance_test

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// partBytes is the size of the parts of files below 8 GiB.
const partBytes = 8 << 20

// TestPartialUpdate: of a large object of which a little changes, little is sent, and an object that somebody else has put
// in its place meanwhile stays, beside ours.
func TestPartialUpdate(t *testing.T) {
	if !ownMounts(t) {
		return
	}
	var c meter
	m := newMounted(t, "settle=2s", c.metered)
	size := int64(scale(128<<20, 1<<30))
	path := filepath.Join(m.dir, "large")
	local := filepath.Join(t.TempDir(), "local") // has what large is to have
	for _, p := range []string{path, local} {
		makeFile(t, p, 1, size)
	}
	m.flush()
	m.restart(true)
	overwrite := func(change []byte, at int64) {
		t.Helper()
		for _, p := range []string{path, local} {
			f, err := os.OpenFile(p, os.O_RDWR, 0)
			if err != nil {
				t.Fatal(err)
			}
			_, err = f.WriteAt(change, at)
			if err = errors.Join(err, f.Close()); err != nil {
				t.Fatal(err)
			}
		}
	}

	c.reset()
	overwrite(bytes.Repeat([]byte{'x'}, 1<<20), size/2-300<<10) // across the border of two parts
	m.flush()
	sent, received := c.bytes()
	t.Logf("1 MiB in the middle of %d MiB changed: %.2f MiB sent, %.2f MiB received: %s", size>>20, float64(sent)/(1<<20), float64(received)/(1<<20), &c)
	// The request that completes the upload has a body, which names every part.
	if limit := int64(2*partBytes + 64<<10); sent > limit || sent < 1<<20 {
		t.Errorf("%d bytes were sent, want at most %d", sent, limit)
	}
	if c.count("COPY-PART") == 0 {
		t.Error("no part was copied on the server")
	}
	m.restart(true)
	want := sum(t, local)
	if got := m.sumObject("large"); got != want {
		t.Errorf("the object's SHA-256 is %s, want %s", got, want)
	}
	if got := sum(t, path); got != want { // and now all of it is in the cache
		t.Errorf("the file's SHA-256 is %s, want %s", got, want)
	}

	// Somebody else's object comes between the change and its upload.
	overwrite(bytes.Repeat([]byte{'y'}, 1<<20), size/4)
	if err := m.put("large", "theirs"); err != nil {
		t.Fatal(err)
	}
	c.reset()
	m.flush()
	want = sum(t, local)
	kept := 0
	objects := m.objects("")
	for key := range objects {
		switch {
		case key == "large":
			if got := m.sumObject(key); got != fmt.Sprintf("%x", sha256.Sum256([]byte("theirs"))) {
				t.Errorf("the other's object has SHA-256 %s", got)
			}
		case strings.HasPrefix(string(key), "large.conflict-"):
			kept++
			if got := m.sumObject(key); got != want {
				t.Errorf("%s: SHA-256 %s, want %s", key, got, want)
			}
		}
	}
	if _, ok := objects["large"]; !ok || kept != 1 {
		t.Errorf("%d objects hold what was changed here, want 1: %v", kept, objects)
	}
	t.Logf("both are kept: %s", &c)
}

// makeFile writes size bytes of a seed's content.
func makeFile(t *testing.T, path string, seed byte, size int64) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	_, err = io.CopyBuffer(struct{ io.Writer }{f}, io.LimitReader(rand.NewChaCha8([32]byte{seed}), size), make([]byte, 1<<20))
	if err = errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
}
