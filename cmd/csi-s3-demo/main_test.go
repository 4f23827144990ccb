package main

import (
	"context"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// needMounts ends a test on a machine that cannot mount. In CI it must.
func needMounts(t *testing.T) {
	t.Helper()
	_, err := os.Stat("/dev/fuse")
	if os.Geteuid() == 0 && err == nil {
		return
	}
	if os.Getenv("CI") == "true" {
		t.Fatalf("CI needs root and /dev/fuse (uid %d, %v)", os.Geteuid(), err)
	}
	t.Skip("mounting needs root and /dev/fuse")
}

func mounts(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// TestDemo is the main job: every step of the demo succeeds, and it leaves nothing behind.
func TestDemo(t *testing.T) {
	needMounts(t)
	tmp := t.TempDir()
	t.Setenv("TMPDIR", tmp)
	var out strings.Builder
	if err := run(t.Context(), &out, false); err != nil {
		t.Fatalf("%v\n%s", err, out.String())
	}
	if n := strings.Count(out.String(), "✓ "); n != 12 {
		t.Errorf("%d steps of 12:\n%s", n, out.String())
	}
	nothingIn(t, tmp)
}

// TestDemoInterrupted: Ctrl-C at any moment leaves nothing behind either.
func TestDemoInterrupted(t *testing.T) {
	needMounts(t)
	for _, after := range []time.Duration{20 * time.Millisecond, 200 * time.Millisecond, time.Second} {
		tmp := t.TempDir()
		t.Setenv("TMPDIR", tmp)
		ctx, cancel := context.WithTimeout(t.Context(), after)
		defer cancel()
		var out strings.Builder
		if err := run(ctx, &out, false); err == nil {
			t.Errorf("the demo took less than %v:\n%s", after, out.String())
		}
		nothingIn(t, tmp)
	}
}

func nothingIn(t *testing.T, dir string) {
	t.Helper()
	if strings.Contains(mounts(t), dir) {
		t.Errorf("a mount is left:\n%s", mounts(t))
	}
	err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if err == nil && path != dir {
			t.Errorf("%s is left", path)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}
