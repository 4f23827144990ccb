package fuse

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
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
