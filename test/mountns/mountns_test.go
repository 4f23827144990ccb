package mountns_test

import (
	"syscall"
	"testing"
	"time"

	"github.com/csi-s3/csi-s3/test/mountns"
)

// What a test mounts in its own namespace is there, and nowhere else.
func TestOwn(t *testing.T) {
	dir := "/tmp"
	before := mountns.Type(t, dir)
	if !mountns.Own(t, time.Minute, dir, "true") {
		if now := mountns.Type(t, dir); now != before {
			t.Errorf("%s has a file system %q, had %q", dir, now, before)
		}
		return
	}
	if err := syscall.Mount("none", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, ""); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount("none", dir, "ramfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	if now := mountns.Type(t, dir); now != "ramfs" {
		t.Errorf("%s has a file system %q", dir, now)
	}
}
