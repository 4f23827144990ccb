package conformance_test

import (
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/hanwen/go-fuse/v2/posixtest"
)

// mistaken are tests of the suite that no file system passes, with what is wrong. Its authors leave them out too.
var mistaken = map[string]string{
	"FcntlFlockLocksFile": "expects a process's own lock to be in its way, which fcntl(2) rules out",
}

// TestPosix is go-fuse's suite of POSIX behaviour, all of it but what is mistaken.
func TestPosix(t *testing.T) {
	if !ownMounts(t) {
		return
	}
	m := newMounted(t, "")
	for _, name := range slices.Sorted(maps.Keys(posixtest.All)) {
		if mistaken[name] != "" {
			continue
		}
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(m.dir, name)
			if err := os.Mkdir(dir, 0o755); err != nil {
				t.Fatal(err)
			}
			posixtest.All[name](t, dir)
		})
	}
}
