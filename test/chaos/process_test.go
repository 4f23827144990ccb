package chaos_test

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
	"syscall"
	"testing"
)

const inNamespace = "CSI_S3_TEST_MOUNT_NAMESPACE"

// soak says that the long figures are wanted, not the short ones of every change.
func soak() bool { return os.Getenv("CSI_S3_SOAK") != "" }

// ownMounts runs the calling test again, alone, in a mount namespace of its own, and reports whether this is that run.
// The caller returns when it is not. needs are commands beside root and /dev/fuse.
func ownMounts(t *testing.T, needs ...string) bool {
	t.Helper()
	if os.Getenv(inNamespace) != "" {
		// The processes that the test starts are killed when the thread ends that started them.
		runtime.LockOSThread()
		return true
	}
	missing := func(what string) {
		t.Helper()
		if os.Getenv("CI") == "true" {
			t.Fatalf("needed: root and %s", what)
		}
		t.Skipf("needed: root and %s", what)
	}
	if _, err := os.Stat("/dev/fuse"); err != nil || os.Geteuid() != 0 {
		missing("/dev/fuse")
	}
	for _, command := range needs {
		if _, err := exec.LookPath(command); err != nil {
			missing(command)
		}
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	timeout := "10m"
	if soak() {
		timeout = "3h"
	}
	c := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^"+t.Name()+"$", "-test.timeout="+timeout, "-test.v")
	c.Env = append(os.Environ(), inNamespace+"=1")
	c.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	out, err := c.CombinedOutput()
	if err != nil || testing.Verbose() {
		t.Logf("%s", out)
	}
	if err != nil {
		t.Error(err)
	} else if bytes.Contains(out, []byte("no tests to run")) {
		t.Errorf("%s did not run", t.Name())
	}
	return false
}

// buildDriver builds csi-s3 for the length of the test.
func buildDriver(t *testing.T) string {
	t.Helper()
	binary := filepath.Join(t.TempDir(), "csi-s3")
	build := exec.CommandContext(t.Context(), "go", "build", "-o", binary, "./cmd/csi-s3")
	build.Dir = filepath.Join("..", "..")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	return binary
}

// buffer is the end of what processes have written.
type buffer struct {
	mu sync.Mutex
	b  []byte // guarded by mu
}

const bufferSize = 1 << 20

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.b = append(b.b, p...)
	if over := len(b.b) - bufferSize; over > bufferSize {
		b.b = append(b.b[:0], b.b[over:]...)
	}
	return len(p), nil
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return string(b.b)
}
