package fuse

import (
	"bufio"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"log"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/csi-s3/csi-s3/pkg/inode"
	"github.com/csi-s3/csi-s3/pkg/vfs"
)

// blocker holds calls of some operations until their context ends or it is opened.
type blocker struct {
	ops     string
	open    chan struct{}
	waiting atomic.Int64 // calls that wait
	ended   atomic.Int64 // calls whose context ended
}

func block(core *memory, ops string) *blocker {
	b := &blocker{ops: ops, open: make(chan struct{})}
	core.setHook(b.hook)
	return b
}

func (b *blocker) hook(ctx context.Context, op string, _ inode.Ino) error {
	if !strings.Contains(b.ops, op) {
		return nil
	}
	// The core puts its own contexts around the request's.
	ctx, cancel := context.WithTimeout(ctx, time.Hour)
	defer cancel()
	b.waiting.Add(1)
	defer b.waiting.Add(-1)
	select {
	case <-b.open:
		return nil
	case <-ctx.Done():
		b.ended.Add(1)
		return ctx.Err()
	}
}

// A program that waits for the bucket can be killed.
func TestKill(t *testing.T) {
	core := newMemory()
	core.add(inode.Root, "f", unix.S_IFREG|0o644, 1<<20)
	m := serveCore(t, core)
	b := block(core, "read")
	c := start(t, "read", m.dir)
	c.line()
	eventually(t, "the read", func() bool { return b.waiting.Load() > 0 })
	begin := time.Now()
	c.kill()
	if took := time.Since(begin); took > 3*time.Second { // milliseconds on an idle machine
		t.Errorf("the child lived on for %v", took)
	}
	eventually(t, "the read ends", func() bool { return b.waiting.Load() == 0 && b.ended.Load() > 0 })
	core.setHook(nil)
	run(t, "use", m.dir)
}

// What a program has open when it ends is closed by the kernel, which waits for the answer: of a program that was killed
// not at all, of another one for a while.
func TestExit(t *testing.T) {
	t.Parallel() // it mostly waits
	core := newMemory()
	core.add(inode.Root, "f", unix.S_IFREG|0o666, 1<<20)
	m := serveCore(t, core)
	for _, kill := range []bool{true, false} {
		b := block(core, "flush")
		// Not Cmd.Dir: the child changes to it before its exec, when this process, which has to answer, may stand still.
		cmd := exec.CommandContext(t.Context(), "sh", "-c", `cd "$0" && exec 3< f; echo open; exec cat`, m.dir)
		in, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		if line, err := bufio.NewReader(out).ReadString('\n'); line != "open\n" {
			t.Fatalf("the shell said %q, %v", line, err)
		}
		begin, least := time.Now(), time.Duration(0)
		if kill {
			err = cmd.Process.Kill()
		} else {
			err, least = in.Close(), exitGrace
		}
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Wait(); (err != nil) != kill {
			t.Errorf("killed %v: the program ended with %v", kill, err)
		}
		if took := time.Since(begin); took < least || took > least+20*time.Second { // no more than 100 ms on an idle machine
			t.Errorf("killed %v: the end took %v", kill, took)
		}
		if b.ended.Load() != 1 || b.waiting.Load() != 0 {
			t.Errorf("killed %v: the close goes on", kill)
		}
		close(b.open)
	}
}

// A program that waits for what is read ahead can be killed too: for the kernel it waits for a page.
func TestKillCached(t *testing.T) {
	core := newMemory()
	core.ttl = time.Hour
	core.add(inode.Root, "f", unix.S_IFREG|0o644, 1<<20)
	m := serveCore(t, core)
	b := block(core, "read")
	c := start(t, "read cached?", m.dir)
	c.line()
	eventually(t, "the read", func() bool { return b.waiting.Load() > 0 })
	c.kill()
	close(b.open)
}

// A signal that the program handles ends no wait: on a disk it would not either. One that kills it does, also after
// others.
func TestSignal(t *testing.T) {
	core := newMemory()
	core.add(inode.Root, "f", unix.S_IFREG|0o644, 1<<20)
	m := serveCore(t, core)
	signal := func() (*child, *blocker) {
		b := block(core, "read")
		c := start(t, "signalled", m.dir)
		tid, err := strconv.Atoi(c.line())
		if err != nil {
			t.Fatal(err)
		}
		eventually(t, "the read", func() bool { return b.waiting.Load() > 0 })
		if err := unix.Tgkill(c.cmd.Process.Pid, tid, unix.SIGUSR1); err != nil {
			t.Fatal(err)
		}
		time.Sleep(4 * deathEvery)
		if b.ended.Load() != 0 {
			t.Error("the signal ended the read")
		}
		return c, b
	}
	c, b := signal()
	close(b.open)
	if got := c.line(); got != "<nil>" {
		t.Errorf("the read ended with %q", got)
	}
	c.end()

	c, b = signal()
	if err := c.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the read ends", func() bool { return b.waiting.Load() == 0 && b.ended.Load() > 0 })
	<-c.done
	close(b.open)
}

// A panic in the core is one request's EIO: the mount lives on.
func TestPanic(t *testing.T) {
	core := newMemory()
	m := serveCore(t, core)
	m.mayComplain = true
	core.setHook(func(_ context.Context, op string, _ inode.Ino) error {
		if op == "mkdir" {
			panic("of the test")
		}
		return nil
	})
	run(t, "panic", m.dir)
	if loud := m.log.loud(); len(loud) != 2 || !strings.Contains(loud[0], "panicked") || !strings.Contains(loud[0], "serve_test.go") {
		t.Errorf("2 panics are in the log as %q", loud)
	}
	core.setHook(nil)
	run(t, "use", m.dir)
}

// Requests that wait for the bucket must not keep other mounts, nor their own, from being served: the memory that
// requests are read into is shared.
func TestBlockedRequests(t *testing.T) {
	const reads, writes = 100, 100
	slow := newMemory()
	slow.ttl, slow.discard = time.Hour, true
	for i := range reads + writes {
		slow.add(inode.Root, fmt.Sprint("f", i), unix.S_IFREG|0o644, 1<<20)
	}
	m, other := serveCore(t, slow), serveCore(t, newMemory())
	b := block(slow, "read write")
	c := start(t, "blocked", m.dir, strconv.Itoa(reads), strconv.Itoa(writes))
	c.line()
	eventually(t, "all requests wait", func() bool { return b.waiting.Load() == reads+writes })
	for range 3 {
		run(t, "use", other.dir)
	}
	run(t, "stat", m.dir)
	if free := len(m.pool.free); free < scarce/2 {
		t.Errorf("%d slots are free", free)
	}
	close(b.open)
	c.end()
	run(t, "use", m.dir)
	eventually(t, "all slots are free", func() bool { return len(m.pool.free) == slots })
}

// Requests' memory does not grow with the traffic.
func TestMemory(t *testing.T) {
	core := newMemory()
	core.ttl, core.discard = time.Hour, true
	m := serveCore(t, core)
	run(t, "traffic", m.dir, "250")
	text, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	if kib := statusField(t, text, "RssShmem:"); kib >= 32<<10 {
		t.Errorf("RssShmem is %d KiB after 500 MiB", kib)
	}
}

func statusField(t *testing.T, text []byte, name string) int {
	t.Helper()
	_, rest, ok := strings.Cut(string(text), name)
	if !ok {
		t.Fatalf("no %s in /proc/self/status", name)
	}
	n, err := strconv.Atoi(strings.Fields(rest)[0])
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// A mount that nobody uses costs no thread.
func TestIdleMounts(t *testing.T) {
	const mounts = 60
	threads := func() int {
		text, err := os.ReadFile("/proc/self/status")
		if err != nil {
			t.Fatal(err)
		}
		return statusField(t, text, "Threads:")
	}
	before := threads()
	core := newMemory()
	var dirs []string
	for range mounts {
		dirs = append(dirs, serveCore(t, core).dir)
	}
	run(t, "statall", dirs...)
	if after := threads(); after > before+mounts/4 {
		t.Errorf("%d threads before, %d with %d mounts", before, after, mounts)
	}
}

// A request that the kernel sends again is marked, and has the number it had.
func TestResend(t *testing.T) {
	core := newMemory()
	core.add(inode.Root, "f", unix.S_IFREG|0o644, 1<<20)
	m := serveCore(t, core)
	var mu sync.Mutex
	var seen []vfs.Request
	again := make(chan struct{})
	core.setHook(func(ctx context.Context, op string, _ inode.Ino) error {
		if op != "read" {
			return nil
		}
		core.mu.Lock()
		r := core.reqs["read"]
		core.mu.Unlock()
		mu.Lock()
		seen = append(seen, r)
		n := len(seen)
		mu.Unlock()
		if n == 1 {
			<-again
		}
		return nil
	})
	c := start(t, "read", m.dir)
	c.line()
	first := func() bool { mu.Lock(); defer mu.Unlock(); return len(seen) == 1 }
	eventually(t, "the read", first)
	const notifyResend = 7
	b := notification(notifyResend)
	binary.LittleEndian.PutUint32(b, uint32(len(b)))
	if err := m.write(b); err != nil {
		close(again)
		t.Fatal(err)
	}
	eventually(t, "the read again", func() bool { mu.Lock(); defer mu.Unlock(); return len(seen) == 2 })
	close(again)
	c.end()
	mu.Lock()
	defer mu.Unlock()
	if seen[0].Resent || !seen[1].Resent || seen[0].Unique != seen[1].Unique {
		t.Errorf("%+v", seen)
	}
}

// deaf is a server without a kernel: its answers go nowhere.
func deaf(t testing.TB) *Server {
	t.Helper()
	log.SetOutput(io.Discard) // where the parser of go-fuse complains
	t.Cleanup(func() { log.SetOutput(os.Stderr) })
	p, err := sharedPool()
	if err != nil {
		t.Fatal(err)
	}
	core := newMemory()
	core.discard = true
	s := newServer(core, Options{Log: slog.New(slog.NewTextHandler(io.Discard, nil))}, p)
	t.Cleanup(s.cancel)
	if s.dev, err = os.OpenFile(os.DevNull, os.O_WRONLY, 0); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.dev.Close() }) // the end of the test
	if s.raw, err = s.dev.SyscallConn(); err != nil {
		t.Fatal(err)
	}
	return s
}

// request is a request of the kernel with any arguments.
func request(op uint32, node uint64, args []byte) []byte {
	b := binary.LittleEndian.AppendUint32(nil, uint32(inHeader+len(args)))
	b = binary.LittleEndian.AppendUint32(b, op)
	b = binary.LittleEndian.AppendUint64(b, 42)
	b = binary.LittleEndian.AppendUint64(b, node)
	return append(append(b, make([]byte, inHeader-len(b))...), args...)
}

// No bytes that the device may give us end the process.
func FuzzHandle(f *testing.F) {
	for op := range uint32(60) {
		f.Add(request(op, 1, nil))
		f.Add(request(op, 1, []byte("name\x00other\x00")))
		f.Add(request(op, 2, make([]byte, 80)))
		f.Add(request(op, ^uint64(0), append(make([]byte, 64), "no end"...)))
	}
	f.Add([]byte{})
	f.Add([]byte{1, 2, 3})
	s := deaf(f)
	s.handle(initRequest())
	f.Fuzz(func(_ *testing.T, req []byte) { s.handle(req) })
}

// initRequest is INIT of protocol 7.31 with all flags of the time.
func initRequest() []byte {
	var args []byte
	for _, v := range []uint32{7, 31, 1 << 20, 0x07ffffff} {
		args = binary.LittleEndian.AppendUint32(args, v)
	}
	return request(opInit, 0, args)
}

// What the fuzzer would find in its first minutes.
func TestHandleArbitrary(t *testing.T) {
	s := deaf(t)
	s.handle(initRequest())
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	core := s.core.(*memory)
	for range 20000 {
		req := request(r.Uint32N(60), r.Uint64N(4), nil)
		for range r.IntN(150) {
			v := byte(r.UintN(256))
			if r.IntN(3) > 0 {
				v = byte(r.UintN(2))
			}
			req = append(req, v)
		}
		if r.IntN(10) > 0 {
			binary.LittleEndian.PutUint32(req, uint32(len(req)))
		}
		s.handle(req[:r.IntN(len(req)+1)])
		s.handle(req)
		core.mu.Lock()
		clear(core.handles)
		core.mu.Unlock()
	}
}

// A refusal carries the request's number and the error, and nothing of earlier answers.
func TestRefuse(t *testing.T) {
	s := deaf(t)
	out := make([]byte, smallBuffer)
	for i := range out {
		out[i] = 0xff
	}
	req := request(opRead, 1, nil) // without its arguments
	n := s.answer(req, out)
	if n != outHeader || binary.LittleEndian.Uint32(out) != outHeader || binary.LittleEndian.Uint64(out[8:]) != 42 {
		t.Errorf("answer of %d bytes: % x", n, out[:outHeader])
	}
	if e := -int32(binary.LittleEndian.Uint32(out[4:])); e != int32(unix.EIO) {
		t.Errorf("error %d", e)
	}
}

// The kernel's protocol must be ours: a mount that could not be used would be the worse answer.
func TestRefusedInit(t *testing.T) {
	s := deaf(t)
	out := make([]byte, smallBuffer)
	req := initRequest()
	binary.LittleEndian.PutUint32(req[inHeader:], 6) // the major version
	if s.answer(req, out); binary.LittleEndian.Uint32(out[4:]) == 0 {
		t.Error("a protocol of another major version was accepted")
	}
}

// The answer's room follows from what the request says, whatever that is.
func TestOutSize(t *testing.T) {
	read := make([]byte, 40)
	for size, want := range map[uint32]int{0: 4 << 10, 4096: 8 << 10, maxIO: maxIO + 4<<10, 1 << 31: maxIO + 4<<10} {
		binary.LittleEndian.PutUint32(read[16:], size)
		if got := outSize(request(opRead, 1, read)); got != want {
			t.Errorf("read of %d: %d, want %d", size, got, want)
		}
	}
	if got := outSize(request(opRead, 1, nil)); got != smallBuffer {
		t.Errorf("read of nothing: %d", got)
	}
	if got := outSize(request(opInit, 1, read)); got != smallBuffer {
		t.Errorf("init: %d", got)
	}
}

func serveChildren() map[string]func(*actor) {
	return map[string]func(*actor){
		"read": func(a *actor) {
			fd := a.open("f", unix.O_RDONLY|unix.O_DIRECT, 0)
			a.say("reading")
			_, err := unix.Read(fd, a.aligned(4096))
			a.ok(err)
			a.close(fd)
		},
		"signalled": func(a *actor) {
			signals := make(chan os.Signal, 1)
			signal.Notify(signals, unix.SIGUSR1)
			runtime.LockOSThread()
			fd := a.open("f", unix.O_RDONLY|unix.O_DIRECT, 0)
			p := a.aligned(4096)
			a.say(unix.Gettid())
			_, err := unix.Read(fd, p)
			<-signals
			a.say(err)
			a.close(fd)
		},
		"panic": func(a *actor) {
			for range 2 {
				a.want(unix.Mkdir(a.path("d"), 0o700), unix.EIO)
			}
			a.close(a.open("f", unix.O_CREAT|unix.O_RDWR, 0o600))
		},
		"use": actUse,
		"stat": func(a *actor) {
			var st unix.Stat_t
			a.ok(unix.Stat(a.path("."), &st))
		},
		"statall": func(a *actor) {
			var st unix.Statfs_t
			for _, dir := range a.args {
				a.ok(unix.Statfs(dir, &st))
			}
		},
		"blocked": actBlocked,
		"traffic": actTraffic,
	}
}

// actUse does a bit of everything, and leaves nothing.
func actUse(a *actor) {
	a.ok(unix.Mkdir(a.path("used"), 0o700))
	fd := a.open("used/f", unix.O_CREAT|unix.O_RDWR, 0o600)
	p := pattern(1 << 20)
	n, err := unix.Pwrite(fd, p, 0)
	a.ok(err)
	a.check(n == len(p), "written", n)
	n, err = unix.Pread(fd, p, 0)
	a.ok(err)
	a.check(n == len(p), "read", n)
	a.ok(unix.Fsync(fd))
	a.close(fd)
	a.check(len(a.list("used", nil)) == 1, "entries")
	a.ok(unix.Unlink(a.path("used/f")))
	a.ok(unix.Rmdir(a.path("used")))
}

// actBlocked reads and writes many files at once.
func actBlocked(a *actor) {
	reads, err := strconv.Atoi(a.args[1])
	a.ok(err)
	writes, err := strconv.Atoi(a.args[2])
	a.ok(err)
	var wg sync.WaitGroup
	text := a.aligned(1 << 20)
	for i := range reads {
		fd := a.open(fmt.Sprint("f", i), unix.O_RDONLY|unix.O_DIRECT, 0)
		p := a.aligned(1 << 12)
		wg.Go(func() {
			n, err := unix.Read(fd, p)
			a.ok(err)
			a.check(n == len(p), "read", n)
		})
	}
	for i := range writes {
		fd := a.open(fmt.Sprint("f", reads+i), unix.O_WRONLY, 0)
		wg.Go(func() {
			n, err := unix.Write(fd, text)
			a.ok(err)
			a.check(n == len(text), "written", n)
		})
	}
	a.say("begun")
	wg.Wait()
}

// actTraffic writes and reads so many MiB each.
func actTraffic(a *actor) {
	count, err := strconv.Atoi(a.args[1])
	a.ok(err)
	fd := a.open("f", unix.O_CREAT|unix.O_RDWR|unix.O_DIRECT, 0o600)
	p := a.aligned(1 << 20)
	for i := range count {
		n, err := unix.Pwrite(fd, p, int64(i%32)<<20)
		a.ok(err)
		a.check(n == len(p), "written", n)
		n, err = unix.Pread(fd, p, int64(i%32)<<20)
		a.ok(err)
		a.check(n == len(p), "read", n)
	}
	a.close(fd)
}
