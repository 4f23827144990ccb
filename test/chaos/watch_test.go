package chaos_test

import (
	"encoding/binary"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// change is a point of failure at a change of the cache's files.
type change struct {
	name  string
	event uint32 // of inotify(7)
	dir   string // the first component of the file's path in the cache of a volume
	file  string // "": any
}

// watch calls hit once, soon after the change was made for the skip-th time. stop ends it and returns when hit is not
// going to be called any more.
func watch(t *testing.T, cache string, c change, skip int, hit func()) (stop func()) {
	t.Helper()
	fd, err := unix.InotifyInit1(unix.IN_NONBLOCK | unix.IN_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	events := os.NewFile(uintptr(fd), "inotify")
	err = filepath.WalkDir(filepath.Join(cache, "mounts"), func(at string, d fs.DirEntry, err error) error {
		if err != nil || !d.IsDir() {
			return err
		}
		// mounts/VOLUME/DIR and what is below it
		parts := strings.Split(strings.TrimPrefix(at, cache+"/"), "/")
		if len(parts) < 3 || parts[2] != c.dir {
			return nil
		}
		_, err = unix.InotifyAddWatch(fd, at, c.event)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	// Ends when the descriptor is closed by stop, which waits for it.
	go func() {
		defer close(ended)
		buf := make([]byte, 64<<10)
		for {
			n, err := events.Read(buf)
			if err != nil {
				return
			}
			for b := buf[:n]; len(b) >= unix.SizeofInotifyEvent; {
				mask := binary.NativeEndian.Uint32(b[4:])
				size := int(binary.NativeEndian.Uint32(b[12:]))
				name := strings.TrimRight(string(b[unix.SizeofInotifyEvent:unix.SizeofInotifyEvent+size]), "\x00")
				b = b[unix.SizeofInotifyEvent+size:]
				if mask&c.event == 0 || mask&unix.IN_ISDIR != 0 || c.file != "" && c.file != name {
					continue
				}
				if skip--; skip < 0 {
					hit()
					return
				}
			}
		}
	}()
	return func() {
		_ = events.Close() // an inotify descriptor
		<-ended
	}
}
