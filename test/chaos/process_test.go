package chaos_test

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/csi-s3/csi-s3/test/mountns"
)

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

// ownMounts is mountns.Own for a test that mounts by FUSE.
func ownMounts(t *testing.T, needs ...string) bool {
	t.Helper()
	timeout := 18 * time.Minute
	if soak() {
		timeout = 3 * time.Hour
	}
	return mountns.Own(t, timeout, append(needs, "/dev/fuse")...)
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
