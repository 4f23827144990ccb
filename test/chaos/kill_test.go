package chaos_test

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

// TestKill: what was closed when the process was killed is in the next mount, and after a flush in the bucket.
func TestKill(t *testing.T) {
	if !ownMounts(t) {
		return
	}
	m := newMounted(t, "settle=50ms")
	m.start()
	if err := os.WriteFile(filepath.Join(m.dir, "f"), []byte("x"), 0o644); err != nil {
		t.Fatal(err)
	}
	t.Logf("%+v", m.status())
	m.signal(syscall.SIGKILL)
	m.reap()
	m.detach()
	t.Logf("recovered in %v", m.start())
	m.flush()
	if info, err := m.objects().Head(t.Context(), "f"); err != nil || info.Size != 1 {
		t.Errorf("%+v, %v", info, err)
	}
}
