package vfs_test

import (
	"context"
	"errors"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/csi-s3/csi-s3/pkg/inode"
	"github.com/csi-s3/csi-s3/pkg/namespace"
	"github.com/csi-s3/csi-s3/pkg/s3"
	"github.com/csi-s3/csi-s3/pkg/s3/s3fault"
	"github.com/csi-s3/csi-s3/pkg/vfs"
)

// A server that is away for a while, or does not take the keys, is neither an error nor an absence: whoever asks waits. One
// that denies what is asked for is an error.
func TestLookupWaitsForTheServer(t *testing.T) {
	for _, fault := range []error{s3.ErrUnavailable, s3.ErrKeys} {
		v := newVolume(t, config{})
		v.put("there", "x")
		var failures atomic.Int64
		v.faulty(func(s3fault.Op) s3fault.Action {
			if failures.Add(1)%4 == 0 {
				return s3fault.Action{}
			}
			return s3fault.FailBefore(fault)
		})
		if _, err := v.Lookup(t.Context(), vfs.Request{}, inode.Root, "there"); err != nil {
			t.Fatal(err)
		}
		if _, err := v.Lookup(t.Context(), vfs.Request{}, inode.Root, "absent"); !errors.Is(err, namespace.ErrNotExist) {
			t.Fatal(err)
		}
		v.wantFile("there", "x")
		if failures.Load() <= 3 {
			t.Error("nothing was asked again")
		}
	}
	v := newVolume(t, config{})
	v.put("there", "x")
	v.faulty(func(s3fault.Op) s3fault.Action { return s3fault.FailBefore(s3.ErrAuth) })
	_, err := v.Lookup(t.Context(), vfs.Request{}, inode.Root, "there")
	v.errno(err, syscall.EACCES)
}

// A program that is interrupted does not wait any longer, and io-timeout ends the wait of the others; neither takes the
// file for absent.
func TestLookupWaitEnds(t *testing.T) {
	v := newVolume(t, config{})
	v.put("there", "x")
	v.down()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := v.Lookup(ctx, vfs.Request{}, inode.Root, "there"); err == nil || vfs.Errno(err) == syscall.ENOENT {
		t.Fatal(err)
	}

	v = newVolume(t, config{policy: vfs.Policy{IOTimeout: 50 * time.Millisecond}})
	v.put("there", "x")
	v.down()
	start := time.Now()
	h, err := v.OpenDir(t.Context(), vfs.Request{}, inode.Root)
	if err != nil {
		t.Fatal(err)
	}
	err = v.ReadDir(t.Context(), vfs.Request{}, inode.Root, h, 0, false, func(vfs.DirEntry, vfs.Entry) bool { return true })
	v.errno(err, syscall.EIO)
	_, err = v.Lookup(t.Context(), vfs.Request{}, inode.Root, "there")
	v.errno(err, syscall.EIO)
	if took := time.Since(start); took > 5*time.Second {
		t.Errorf("it took %v", took)
	}
}
