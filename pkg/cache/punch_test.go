package cache_test

import (
	"bytes"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/csi-s3/csi-s3/pkg/cache"
	"github.com/csi-s3/csi-s3/pkg/disk/diskfault"
	"github.com/csi-s3/csi-s3/pkg/disk/diskmem"
	"github.com/csi-s3/csi-s3/pkg/journal"
)

// What an eviction that failed half-way has left is not read as the object's bytes.
func TestFailedPunchIsNotClean(t *testing.T) {
	mem := diskmem.New()
	var bad atomic.Bool
	fsys := diskfault.New(mem, func(op diskfault.Op) error {
		if op.Name != "PunchHole" || !bad.Load() {
			return nil
		}
		h, err := mem.OpenFile(op.Path, false)
		if err == nil {
			err = h.PunchHole(op.Off, op.Off+op.Len/2)
		}
		if err != nil {
			t.Error(err)
		}
		return syscall.ENOSPC
	})
	s := cache.New(fsys, cache.Options{})
	j, err := journal.Open(fsys, "journal", journal.Options{}, func([]journal.Record) error { return nil })
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Recover(j, false); err != nil {
		t.Fatal(err)
	}
	want := bytes.Repeat([]byte("object.."), 16<<10)
	f := s.File(1, int64(len(want))+4096)
	if err := f.Fill(want, 0, f.Generation()); err != nil {
		t.Fatal(err)
	}
	if err := f.WriteAt([]byte("dirty"), int64(len(want)), time.Now()); err != nil {
		t.Fatal(err)
	}
	bad.Store(true)
	s.Evict(1 << 20)
	got := make([]byte, len(want))
	n, missing, err := f.ReadAt(got, 0)
	if err != nil || !missing.Empty() && n == 0 {
		t.Log(n, missing, err)
		return
	}
	if !bytes.Equal(got[:n], want[:n]) {
		t.Fatalf("%d bytes read, not those of the object: %q", n, got[:8])
	}
}
