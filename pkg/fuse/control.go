package fuse

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The ioctls of a mount, on any directory of it. The kernel copies as many bytes as the number's size field says (see
// ioctl(2) and FUSE's restricted ioctls), at most 16383.
const (
	// IoctlStatus returns the volume's state as JSON, filled up with zeros, whatever the directory.
	IoctlStatus uint32 = 2<<30 | statusSize<<16 | 's'<<8 | 1
	// IoctlFlush returns when all that was written below the directory before the call is in the bucket. A signal
	// interrupts it.
	IoctlFlush uint32 = 's'<<8 | 2

	statusSize = 16<<10 - 1
)

// progressEvery is how often Flush reports.
const progressEvery = 200 * time.Millisecond

// Status asks the server of the mount that holds directory dir for its state, a JSON object. The server answers
// without waiting for S3; one that hangs makes Status hang. unix.ENOTTY means that dir is not in one of our mounts.
func Status(dir string) ([]byte, error) {
	f, err := openDir(dir)
	if err != nil {
		return nil, err
	}
	defer f.Close() //nolint:errcheck // it was only read
	return status(f)
}

func status(f *os.File) ([]byte, error) {
	text := make([]byte, statusSize)
	if err := ioctl(f, IoctlStatus, unsafe.Pointer(&text[0])); err != nil {
		return nil, fmt.Errorf("status of %s: %w", f.Name(), err)
	}
	text, _, _ = bytes.Cut(text, []byte{0})
	return text, nil
}

// Flush returns when all that was written below directory dir before the call is in the bucket. progress, if not nil,
// hears from time to time how many bytes of the whole volume are left. When ctx ends first, Flush returns its error
// and leaves a thread behind that waits on; the upload goes on too. unix.ENOTTY means that dir is not in one of our
// mounts.
func Flush(ctx context.Context, dir string, progress func(left int64)) error {
	f, err := openDir(dir)
	if err != nil {
		return err
	}
	done := make(chan error, 1)
	// Ends with the flush; it owns f.
	go func() {
		defer f.Close() //nolint:errcheck // it was only read
		for {
			err := ioctl(f, IoctlFlush, nil)
			if !errors.Is(err, unix.EINTR) {
				done <- err
				return
			}
			// The runtime's own signals interrupt too.
			if ctx.Err() != nil {
				return
			}
		}
	}()
	tick := time.NewTicker(progressEvery)
	defer tick.Stop()
	for {
		select {
		case err := <-done:
			if err != nil {
				return fmt.Errorf("flush %s: %w", dir, err)
			}
			return nil
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
			if progress != nil {
				report(dir, progress)
			}
		}
	}
}

// report tells progress how much is left. A state that cannot be had is no reason to stop a flush.
func report(dir string, progress func(left int64)) {
	text, err := Status(dir)
	if err != nil {
		return
	}
	var s struct {
		Dirty int64 `json:"dirtyBytes"`
	}
	if json.Unmarshal(text, &s) == nil {
		progress(s.Dirty)
	}
}

func openDir(dir string) (*os.File, error) {
	return os.OpenFile(dir, os.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
}

func ioctl(f *os.File, number uint32, arg unsafe.Pointer) error {
	conn, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var errno unix.Errno
	if err := conn.Control(func(fd uintptr) {
		_, _, errno = unix.Syscall(unix.SYS_IOCTL, fd, uintptr(number), uintptr(arg))
	}); err != nil {
		return err
	}
	if errno != 0 {
		return errno
	}
	return nil
}
