package volume_test

import (
	"os"
	"testing"
	"time"

	"github.com/csi-s3/csi-s3/test/mountns"
)

// ownMounts is mountns.Own, beside other tests.
func ownMounts(t *testing.T) bool {
	t.Helper()
	if !mountns.Inside() {
		t.Parallel()
	}
	return mountns.Own(t, 2*time.Minute)
}

// needFuse ends a test on a machine without the device. In CI it must be there.
func needFuse(t *testing.T) {
	t.Helper()
	_, err := os.Stat("/dev/fuse")
	switch {
	case err == nil:
	case os.Getenv("CI") == "true":
		t.Fatal(err)
	default:
		t.Skip("dead mounts need /dev/fuse")
	}
}
