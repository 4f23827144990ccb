package fuse

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/csi-s3/csi-s3/pkg/inode"
	"github.com/csi-s3/csi-s3/pkg/vfs"
)

// A directory that is not ours must be told from a failure: the user is at the wrong place, not the server.
func TestControlElsewhere(t *testing.T) {
	dir := t.TempDir()
	if _, err := Status(dir); !errors.Is(err, unix.ENOTTY) {
		t.Errorf("status: %v", err)
	}
	if err := Flush(t.Context(), dir, nil); !errors.Is(err, unix.ENOTTY) {
		t.Errorf("flush: %v", err)
	}
	if err := Flush(context.Background(), filepath.Join(dir, "absent"), nil); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("flush of nothing: %v", err)
	}
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Status(file); !errors.Is(err, unix.ENOTDIR) {
		t.Errorf("status of a file: %v", err)
	}
}

func TestIoctlNumbers(t *testing.T) {
	// _IOR('s', 1, char[16383]) and _IO('s', 2) of the kernel's headers.
	if IoctlStatus != 0xbfff7301 || IoctlFlush != 0x7302 {
		t.Errorf("%#x %#x", IoctlStatus, IoctlFlush)
	}
}

// Any directory of a mount tells the volume's state.
func TestStatus(t *testing.T) {
	long := `{"text":"` + strings.Repeat("x", statusSize-20) + `"}`
	for text, want := range map[string]string{
		`{"dirtyBytes":5}`:               `{"dirtyBytes":5}`,
		long:                             long,
		strings.Repeat("x", statusSize):  unix.EIO.Error(), // cut off it would be another state
		"nil means that nobody can tell": "{}",
	} {
		core := newMemory()
		core.add(inode.Root, "d", unix.S_IFDIR|0o755, 0)
		m := serveCore(t, core, func(o *Options) {
			if text[0] != 'n' {
				o.Status = func() []byte { return []byte(text) }
			}
		})
		for _, got := range run(t, "status", m.dir, filepath.Join(m.dir, "d")) {
			if !strings.HasSuffix(got, want) {
				t.Errorf("%.50s: got %.100s", text, got)
			}
		}
	}
}

// A flush is of the directory that it is asked of, and its error that of the core.
func TestFlush(t *testing.T) {
	core := newMemory()
	d := core.add(inode.Root, "d", unix.S_IFDIR|0o755, 0)
	m := serveCore(t, core)
	if got := run(t, "flush", m.dir, filepath.Join(m.dir, "d")); !slices.Equal(got, []string{"<nil>", "<nil>"}) {
		t.Errorf("%q", got)
	}
	m.expect(t, []string{"flushtree"}, "flushtree 1", fmt.Sprint("flushtree ", d))
	core.setHook(func(_ context.Context, op string, _ inode.Ino) error {
		if op == "flushtree" {
			return vfs.ErrCapacity
		}
		return nil
	})
	if got := run(t, "flush", m.dir); len(got) != 1 || !strings.HasSuffix(got[0], unix.ENOSPC.Error()) {
		t.Errorf("%q", got)
	}
}

// A flush reports its progress, and lives with whatever the state says.
func TestFlushProgress(t *testing.T) {
	for state, want := range map[string]string{`{"dirtyBytes":77}`: "left 77", "no JSON": ""} {
		core := newMemory()
		m := serveCore(t, core, func(o *Options) { o.Status = func() []byte { return []byte(state) } })
		b := block(core, "flushtree")
		c := start(t, "flush with progress", m.dir)
		if want != "" {
			for range 3 {
				if got := c.line(); got != want {
					t.Errorf("%q, want %q", got, want)
				}
			}
		} else {
			eventually(t, "the flush", func() bool { return b.waiting.Load() == 1 })
			time.Sleep(2 * progressEvery)
		}
		close(b.open)
		if got := c.end(); len(got) == 0 || got[len(got)-1] != "<nil>" || want == "" && len(got) != 1 {
			t.Errorf("%s: %q", state, got)
		}
	}
}

// Who no longer waits for a flush ends it: by its context, by a signal, by death.
func TestFlushInterrupted(t *testing.T) {
	core := newMemory()
	m := serveCore(t, core)
	b := block(core, "flushtree")

	if got := run(t, "flush for a moment", m.dir); !slices.Equal(got, []string{context.DeadlineExceeded.Error()}) {
		t.Errorf("%q", got)
	}
	eventually(t, "nobody waits", func() bool { return b.waiting.Load() == 0 })

	c := start(t, "flush signalled", m.dir)
	tid, err := strconv.Atoi(c.line())
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "the flush", func() bool { return b.waiting.Load() == 1 })
	if err := unix.Tgkill(c.cmd.Process.Pid, tid, unix.SIGUSR1); err != nil {
		t.Fatal(err)
	}
	if got := c.end(); !slices.Equal(got, []string{unix.EINTR.Error()}) {
		t.Errorf("%q", got)
	}
	eventually(t, "nobody waits", func() bool { return b.waiting.Load() == 0 })

	c = start(t, "flush", m.dir)
	eventually(t, "the flush", func() bool { return b.waiting.Load() == 1 })
	if err := c.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	<-c.done
	eventually(t, "nobody waits", func() bool { return b.waiting.Load() == 0 })
}

func controlChildren() map[string]func(*actor) {
	flush := func(a *actor) {
		for _, dir := range a.args {
			a.say(Flush(context.Background(), dir, nil))
		}
	}
	return map[string]func(*actor){
		"status": func(a *actor) {
			for _, dir := range a.args {
				text, err := Status(dir)
				if err != nil {
					a.say(err)
				} else {
					a.say(string(text))
				}
			}
		},
		"flush": flush,
		"flush with progress": func(a *actor) {
			a.say(Flush(context.Background(), a.args[0], func(left int64) { a.say("left", left) }))
		},
		"flush for a moment": func(a *actor) {
			ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
			defer cancel()
			a.say(Flush(ctx, a.args[0], nil))
		},
		"flush signalled": func(a *actor) {
			signals := make(chan os.Signal, 1)
			signal.Notify(signals, unix.SIGUSR1)
			runtime.LockOSThread()
			f, err := openDir(a.args[0])
			a.ok(err)
			a.say(unix.Gettid())
			a.say(ioctl(f, IoctlFlush, unsafe.Pointer(nil)))
			<-signals
		},
	}
}
