package mountns

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"
)

// inside is set in the environment of a run that has a namespace of its own.
const inside = "CSI_S3_TEST_MOUNT_NAMESPACE"

// Inside says that this process is such a run.
func Inside() bool { return os.Getenv(inside) != "" }

// Own runs the calling test again, alone, in a mount namespace of its own, and reports whether this is that run; the caller
// returns when it is not. The test fails when that run does, or takes longer than timeout. Without root, or one of needs (a
// path, or a command), it is skipped, which with CI=true is a failure. A verbose run is seen while it lasts.
func Own(t *testing.T, timeout time.Duration, needs ...string) bool {
	t.Helper()
	if Inside() {
		// The processes that the test starts are killed when the thread ends that started them.
		runtime.LockOSThread()
		return true
	}
	if lacks := lacking(needs); lacks != "" {
		if os.Getenv("CI") == "true" {
			t.Fatalf("needed: root and %s", lacks)
		}
		t.Skipf("needed: root and %s", lacks)
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	c := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^"+t.Name()+"$", fmt.Sprintf("-test.timeout=%v", timeout), "-test.v")
	c.Env = append(os.Environ(), inside+"=1")
	c.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	var out bytes.Buffer
	c.Stdout = &out
	if testing.Verbose() {
		c.Stdout = io.MultiWriter(os.Stdout, &out)
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

// lacking is what a run cannot do without and this machine does not have, "" when it has all.
func lacking(needs []string) string {
	if os.Geteuid() != 0 {
		return "what only root may do"
	}
	for _, need := range needs {
		var err error
		if strings.HasPrefix(need, "/") {
			_, err = os.Stat(need)
		} else {
			_, err = exec.LookPath(need)
		}
		if err != nil {
			return need
		}
	}
	return ""
}

// Type is the type of the file system that is mounted on dir, "" when there is none.
func Type(t *testing.T, dir string) string {
	t.Helper()
	text, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	found := ""
	for line := range strings.Lines(string(text)) {
		before, after, _ := strings.Cut(line, " - ")
		if strings.Fields(before)[4] == dir {
			found = strings.Fields(after)[0]
		}
	}
	return found
}
