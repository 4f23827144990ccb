package conformance_test

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/csi-s3/csi-s3/pkg/s3"
)

const (
	cacheBytes  = 256 << 20
	memoryLimit = 256 << 20 // the default of --memory
)

// smallCache gives the mount a file system of its own for its cache, of cacheBytes. It is for newMounted.
func smallCache(m *mounted) {
	m.t.Helper()
	disk := filepath.Join(filepath.Dir(m.cache), "disk")
	if err := os.Mkdir(disk, 0o700); err != nil {
		m.t.Fatal(err)
	}
	if err := syscall.Mount("cache", disk, "tmpfs", 0, fmt.Sprintf("size=%d", cacheBytes)); err != nil {
		m.t.Fatal(err)
	}
	m.t.Cleanup(func() {
		if err := syscall.Unmount(disk, 0); err != nil {
			m.t.Error(err)
		}
	})
	m.cache = filepath.Join(disk, "cache")
}

// TestSmallCache: files that do not all fit into the cache are written; the writer waits and sees no error.
func TestSmallCache(t *testing.T) {
	if !ownMounts(t) {
		return
	}
	m := newMounted(t, "", smallCache)
	total := int64(scale(512<<20, 2<<30))
	random := rand.New(rand.NewPCG(1, 1))
	want := map[string]int64{} // size by name; the seed is in the name
	var written int64
	watched := m.watchMemory()
	begin := time.Now()
	for i := 0; written < total; i++ {
		name, size := fmt.Sprintf("file-%d", i), 1<<20+random.Int64N(31<<20)
		makeFile(t, filepath.Join(m.dir, name), byte(i), size)
		want[name] = size
		written += size
	}
	wrote := time.Since(begin)
	m.flush()
	all := time.Since(begin)
	peak := watched()
	t.Logf("%d files of %d MiB in all on a cache of %d MiB: written in %v, in the bucket in %v (%d MiB/s); peak of memory %d MiB",
		len(want), written>>20, cacheBytes>>20, wrote.Round(time.Millisecond), all.Round(time.Millisecond), int64(float64(written>>20)/all.Seconds()), peak>>20)
	if peak > memoryLimit {
		t.Errorf("%d bytes of memory, the limit is %d", peak, memoryLimit)
	}
	for i := range len(want) {
		name := fmt.Sprintf("file-%d", i)
		if got, want := m.sumObject(s3.Key(name)), sumOf(t, byte(i), want[name]); got != want {
			t.Errorf("%s: SHA-256 %s, want %s", name, got, want)
		}
	}
}

// TestSpill: one file that is larger than the cache is written, and again with a kill in the middle.
func TestSpill(t *testing.T) {
	if !ownMounts(t) {
		return
	}
	m := newMounted(t, "", smallCache)
	size := int64(scale(600<<20, 2<<30))
	want := sumOf(t, 1, size)
	for _, kill := range []bool{false, true} {
		name := fmt.Sprintf("large-%v", kill)
		path := filepath.Join(m.dir, name)
		watched := m.watchMemory()
		begin := time.Now()
		if !kill {
			makeFile(t, path, 1, size)
		} else {
			killWriter(t, m, path, size, func() {
				t.Logf("peak of memory before the kill %d MiB", watched()>>20)
				m.kill()
				m.detach()
				m.start()
				watched = m.watchMemory()
			})
		}
		wrote := time.Since(begin)
		m.flush()
		all := time.Since(begin)
		peak := watched()
		t.Logf("kill %v: %d MiB on a cache of %d MiB: written in %v, in the bucket in %v; peak of memory %d MiB",
			kill, size>>20, cacheBytes>>20, wrote.Round(time.Millisecond), all.Round(time.Millisecond), peak>>20)
		if peak > memoryLimit {
			t.Errorf("%d bytes of memory, the limit is %d", peak, memoryLimit)
		}
		if got := m.sumObject(s3.Key(name)); got != want {
			t.Errorf("%s: SHA-256 %s, want %s", name, got, want)
		}
		if left := m.objects(".csi-s3/spill/"); len(left) > 0 {
			t.Errorf("spills are left: %v", left)
		}
	}
}

// killWriter writes a file and kills the mount when more than the cache holds is written; the writer then goes on where
// the last write was acknowledged.
func killWriter(t *testing.T, m *mounted, path string, size int64, kill func()) {
	t.Helper()
	content := rand.NewChaCha8([32]byte{1})
	piece := make([]byte, 1<<20)
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	for off := int64(0); off < size; off += int64(len(piece)) {
		if off == size/2/int64(len(piece))*int64(len(piece)) {
			if spills := len(m.objects(".csi-s3/spill/")); spills == 0 {
				t.Error("nothing was spilled before the kill")
			}
			kill()
			if err := f.Close(); err != nil && !errors.Is(err, syscall.ENOTCONN) && !errors.Is(err, syscall.ECONNABORTED) {
				t.Errorf("close of a file whose mount is gone: %v", err)
			}
			st, err := os.Stat(path)
			if err != nil || st.Size() != off {
				t.Fatalf("after the kill: %v, %v; want %d bytes", st, err, off)
			}
			if f, err = os.OpenFile(path, os.O_WRONLY, 0); err != nil {
				t.Fatal(err)
			}
		}
		_, _ = content.Read(piece) // never fails
		if _, err := f.WriteAt(piece[:min(int64(len(piece)), size-off)], off); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}

// sumOf is the SHA-256 of size bytes of a seed's content.
func sumOf(t *testing.T, seed byte, size int64) string {
	t.Helper()
	h := sha256.New()
	if _, err := io.Copy(h, io.LimitReader(rand.NewChaCha8([32]byte{seed}), size)); err != nil {
		t.Fatal(err)
	}
	return hex.EncodeToString(h.Sum(nil))
}
