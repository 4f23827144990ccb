package volume_test

import (
	"bytes"
	"os"
	"os/exec"
	"syscall"
	"testing"
)

const inNamespace = "CSI_S3_TEST_MOUNT_NAMESPACE"

// ownMounts runs the calling test again, alone, in a mount namespace of its own, and reports whether this is that run.
// The caller returns when it is not. What such a test mounts nobody else sees, and it is gone with the process, whatever
// becomes of the test.
func ownMounts(t *testing.T) bool {
	t.Helper()
	if os.Getenv(inNamespace) != "" {
		return true
	}
	if os.Geteuid() != 0 {
		if os.Getenv("CI") == "true" {
			t.Fatal("mounts need root")
		}
		t.Skip("mounts need root")
	}
	t.Parallel()
	args := []string{"-test.run=^" + t.Name() + "$", "-test.timeout=2m"}
	if testing.Verbose() {
		args = append(args, "-test.v")
	}
	c := exec.CommandContext(t.Context(), os.Args[0], args...)
	c.Env = append(os.Environ(), inNamespace+"=1")
	c.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	out, err := c.CombinedOutput()
	if err != nil {
		t.Errorf("%v\n%s", err, out)
	} else if bytes.Contains(out, []byte("no tests to run")) {
		t.Errorf("%s did not run", t.Name())
	}
	return false
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
