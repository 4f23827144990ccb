package fuse

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The process that serves a mount must not use it: each test runs its file operations in a child, this binary again,
// which finds its part in the environment.
const childVariable = "CSI_S3_FUSE_TEST_CHILD"

// patience is after what a test is not slow but hangs. The machine may be loaded.
const patience = 30 * time.Second

func TestMain(m *testing.M) {
	if name := os.Getenv(childVariable); name != "" {
		play, ok := children()[name]
		if !ok {
			fmt.Fprintln(os.Stderr, "no such child:", name)
			os.Exit(2)
		}
		c := &actor{args: os.Args[1:], in: bufio.NewReader(os.Stdin)}
		play(c)
		os.Exit(0)
	}
	// A directory of our own: other packages' tests have mounts at the same time.
	tmp, err := os.MkdirTemp("", "csi-s3-fuse-test-")
	if err == nil {
		err = os.Setenv("TMPDIR", tmp)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
	code := m.Run()
	if left := leftBehind(); left != "" {
		fmt.Fprintln(os.Stderr, "left behind:", left)
		code = max(code, 1)
	} else if err := os.Remove(tmp); err != nil { // never all below it: it might be a mount
		fmt.Fprintln(os.Stderr, err)
		code = max(code, 1)
	}
	os.Exit(code)
}

// leftBehind names mounts, goroutines and descriptors that outlived the tests.
func leftBehind() string {
	var left []string
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		left = nil
		for _, line := range mountsOf(os.TempDir()) {
			left = append(left, "mount "+line)
		}
		stacks := make([]byte, 4<<20)
		stacks = stacks[:runtime.Stack(stacks, true)]
		for _, g := range bytes.Split(stacks, []byte("\n\n")) {
			if bytes.Contains(g, []byte("pkg/fuse.")) && !bytes.Contains(g, []byte("leftBehind")) {
				left = append(left, "goroutine "+string(g))
			}
		}
		if n := devices(); n != 0 {
			left = append(left, fmt.Sprint(n, " descriptors of ", device))
		}
		if left == nil {
			return ""
		}
	}
	return strings.Join(left, "\n")
}

// mountsOf returns the lines of mountinfo of our type below dir.
func mountsOf(dir string) []string {
	text, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return []string{err.Error()}
	}
	var got []string
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); len(f) > 4 && strings.HasPrefix(f[4], dir) && strings.Contains(line, " "+Type+" ") {
			got = append(got, line)
		}
	}
	return got
}

// devices is how many descriptors of the FUSE device this process has.
func devices() int {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return -1
	}
	n := 0
	for _, e := range entries {
		if to, err := os.Readlink("/proc/self/fd/" + e.Name()); err == nil && to == device {
			n++
		}
	}
	return n
}

// needFUSE skips where no mount can be had, which in CI is a failure.
func needFUSE(t testing.TB) {
	t.Helper()
	_, err := os.Stat(device)
	if os.Geteuid() == 0 && err == nil {
		return
	}
	if os.Getenv("CI") == "true" {
		t.Fatal("CI has no root or no /dev/fuse")
	}
	t.Skip("needs root and /dev/fuse")
}

// lines collects a log.
type lines struct {
	mu   sync.Mutex
	text []string
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.text = append(l.text, string(p))
	return len(p), nil
}

// loud returns the lines above level INFO.
func (l *lines) loud() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	var got []string
	for _, s := range l.text {
		if strings.Contains(s, "level=ERROR") || strings.Contains(s, "level=WARN") {
			got = append(got, s)
		}
	}
	return got
}

// served is a mount of a test.
type served struct {
	*Server
	core *memory
	dir  string
	log  *lines
	// mayComplain is set by tests that make the server log errors.
	mayComplain bool
}

// serveCore mounts core until the end of the test.
func serveCore(t *testing.T, core *memory, change ...func(*Options)) *served {
	t.Helper()
	needFUSE(t)
	m := &served{core: core, dir: t.TempDir(), log: &lines{}}
	opt := Options{
		Dir: m.dir, Name: "memory", AllowOther: true,
		Log: slog.New(slog.NewTextHandler(m.log, &slog.HandlerOptions{Level: slog.LevelDebug})),
	}
	for _, c := range change {
		c(&opt)
	}
	var err error
	if m.Server, err = Mount(core, opt); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		m.within(t, "unmount", func() {
			if err := m.Unmount(true); err != nil {
				t.Errorf("unmount: %v", err)
			}
			m.Wait()
		})
		if loud := m.log.loud(); !m.mayComplain && len(loud) > 0 {
			t.Errorf("the log has %d complaints: %s", len(loud), loud[0])
		}
	})
	return m
}

// within fails the test if f takes longer than patience.
func (m *served) within(t testing.TB, what string, f func()) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		f()
	}()
	select {
	case <-done:
	case <-time.After(patience):
		stacks := make([]byte, 1<<20)
		t.Errorf("%s takes more than %v\n%s", what, patience, stacks[:runtime.Stack(stacks, true)])
	}
}

// eventually waits until cond holds.
func eventually(t testing.TB, what string, cond func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !cond(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within %v: %s", patience, what)
		}
	}
}

// expect compares the calls that the core saw.
func (m *served) expect(t *testing.T, ops []string, want ...string) {
	t.Helper()
	if got := m.core.take(ops...); !slices.Equal(got, want) {
		t.Errorf("core saw %q, want %q", got, want)
	}
}

// child is a process that uses a mount.
type child struct {
	t      testing.TB
	name   string
	cmd    *exec.Cmd
	in     io.WriteCloser
	lines  chan string
	done   chan struct{} // closed when it ended
	err    error         // how it ended
	stderr bytes.Buffer
}

// start starts a child. It is killed at the end of the test if it still runs.
func start(t testing.TB, name string, args ...string) *child {
	t.Helper()
	c := &child{t: t, name: name, lines: make(chan string, 100), done: make(chan struct{})}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	c.cmd = exec.CommandContext(context.WithoutCancel(t.Context()), exe, args...)
	// The race detector would wait a second for reports at each child's end. The scheduler's signals would interrupt
	// the system calls.
	c.cmd.Env = append(os.Environ(), childVariable+"="+name, "GORACE=atexit_sleep_ms=0", "GODEBUG=asyncpreemptoff=1")
	c.cmd.Stderr = &c.stderr
	out, err := c.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if c.in, err = c.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	if err := c.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	// Ends with the child, for which the end of the test waits.
	go func() {
		for s := bufio.NewScanner(out); s.Scan(); {
			c.lines <- s.Text()
		}
		close(c.lines)
		c.err = c.cmd.Wait()
		close(c.done)
	}()
	t.Cleanup(func() {
		select {
		case <-c.done:
		default:
			_ = c.cmd.Process.Kill() // it may have ended by itself
			select {
			case <-c.done:
			case <-time.After(patience):
				t.Errorf("child %s cannot be killed", name)
			}
		}
	})
	return c
}

// line returns the next line that the child says.
func (c *child) line() string {
	c.t.Helper()
	select {
	case s, ok := <-c.lines:
		if !ok {
			<-c.done
			c.t.Fatalf("child %s ended: %v %s", c.name, c.err, c.stderr.String())
		}
		return s
	case <-time.After(patience):
		c.t.Fatalf("child %s says nothing for %v", c.name, patience)
		return ""
	}
}

// tell lets the child go on after actor.pause.
func (c *child) tell(s string) {
	c.t.Helper()
	if _, err := io.WriteString(c.in, s+"\n"); err != nil {
		c.t.Fatal(err)
	}
}

// kill kills the child, which must end whatever it waits for.
func (c *child) kill() {
	c.t.Helper()
	if err := c.cmd.Process.Kill(); err != nil {
		c.t.Fatal(err)
	}
	select {
	case <-c.done:
	case <-time.After(patience):
		c.t.Fatalf("child %s cannot be killed", c.name)
	}
}

// end waits for the child's success and returns the rest of what it says.
func (c *child) end() []string {
	c.t.Helper()
	var got []string
	timeout := time.After(patience)
	for {
		select {
		case s, ok := <-c.lines:
			if ok {
				got = append(got, s)
				continue
			}
			<-c.done
			if c.err != nil {
				c.t.Fatalf("child %s: %v\n%s", c.name, c.err, c.stderr.String())
			}
			return got
		case <-timeout:
			c.t.Fatalf("child %s hangs, having said %q", c.name, got)
		}
	}
}

// run runs a child to its end.
func run(t testing.TB, name string, args ...string) []string {
	t.Helper()
	return start(t, name, args...).end()
}

// actor is what a child's function works with. Any failure ends the process.
type actor struct {
	args []string
	in   *bufio.Reader
}

func (a *actor) path(name string) string { return filepath.Join(a.args[0], name) }

func (a *actor) fail(format string, args ...any) {
	_, file, line, _ := runtime.Caller(2)
	fmt.Fprintf(os.Stderr, "%s:%d: %s\n", filepath.Base(file), line, fmt.Sprintf(format, args...))
	os.Exit(1)
}

func (a *actor) ok(err error) {
	if err != nil {
		a.fail("%v", err)
	}
}

// want fails unless err is errno.
func (a *actor) want(err error, errno unix.Errno) {
	if err != errno { //nolint:errorlint // raw system calls return it as it is
		a.fail("got %v, want %v", err, errno)
	}
}

func (a *actor) check(ok bool, what string, got ...any) {
	if !ok {
		a.fail("%s: %v", what, got)
	}
}

func (a *actor) say(args ...any) { fmt.Println(args...) }

// pause says a line and waits for the test.
func (a *actor) pause(s string) {
	a.say(s)
	if _, err := a.in.ReadString('\n'); err != nil {
		a.fail("%v", err)
	}
}

// open opens without the poller, which would ask the mount.
func (a *actor) open(name string, flags int, mode uint32) int {
	fd, err := unix.Open(a.path(name), flags|unix.O_CLOEXEC, mode)
	if err != nil {
		a.fail("open %s: %v", name, err)
	}
	return fd
}

func (a *actor) close(fd int) {
	if err := unix.Close(fd); err != nil {
		a.fail("close: %v", err)
	}
}

// aligned is memory for direct I/O.
func (a *actor) aligned(n int) []byte {
	p, err := unix.Mmap(-1, 0, n, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		a.fail("%v", err)
	}
	return p
}
