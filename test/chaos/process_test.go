package chaos_test

import (
	"bytes"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
)

const inNamespace = "CSI_S3_TEST_MOUNT_NAMESPACE"

// soak says that the long figures are wanted, not the short ones of every change.
func soak() bool { return os.Getenv("CSI_S3_SOAK") != "" }

// figure is a suite's figure: that of a variable in the environment, for who wants a short run, or n.
func figure(variable string, n int) int {
	if text := os.Getenv(variable); text != "" {
		var err error
		if n, err = strconv.Atoi(text); err != nil {
			panic(variable + " is not a number")
		}
	}
	return n
}

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
	timeout := "18m"
	if soak() {
		timeout = "3h"
	}
	c := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^"+t.Name()+"$", "-test.timeout="+timeout, "-test.v")
	c.Env = append(os.Environ(), inNamespace+"=1")
	c.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	var out bytes.Buffer
	c.Stdout = &out
	if testing.Verbose() {
		c.Stdout = io.MultiWriter(os.Stdout, &out) // a long run is looked at while it lasts
	}
	c.Stderr = c.Stdout
	err := c.Run()
	if err != nil && !testing.Verbose() {
		t.Logf("%s", out.Bytes())
	}
	if err != nil {
		t.Error(err)
	} else if bytes.Contains(out.Bytes(), []byte("no tests to run")) {
		t.Errorf("%s did not run", t.Name())
	}
	return false
}

// nothingLeft fails the test when it leaves a mount, a loop device or a process behind. It is called before all else.
func nothingLeft(t *testing.T) {
	t.Helper()
	mounts := func() []string {
		text, err := os.ReadFile("/proc/self/mountinfo")
		if err != nil {
			t.Fatal(err)
		}
		return slices.Collect(strings.Lines(string(text)))
	}
	base := t.TempDir() // beside all other directories of the test
	begin := mounts()
	t.Cleanup(func() {
		// A driver also takes away dead mounts that it found.
		for _, line := range mounts() {
			if !slices.Contains(begin, line) {
				t.Errorf("a mount is left: %s", line)
			}
		}
		backing, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
		if err != nil {
			t.Error(err)
		}
		for _, name := range backing {
			// A device that is gone by now has none.
			if text, err := os.ReadFile(name); err == nil && bytes.HasPrefix(text, []byte(filepath.Dir(base))) {
				t.Errorf("%s: %s is left", name, text)
			}
		}
		tasks, err := filepath.Glob("/proc/self/task/*/children")
		if err != nil {
			t.Error(err)
		}
		for _, name := range tasks {
			if text, err := os.ReadFile(name); err == nil && len(bytes.TrimSpace(text)) > 0 {
				t.Errorf("processes are left: %s", text)
			}
		}
	})
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
