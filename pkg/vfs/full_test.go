package vfs_test

import (
	"errors"
	"fmt"
	"strings"
	"syscall"
	"testing"

	"github.com/csi-s3/csi-s3/pkg/cache"
	"github.com/csi-s3/csi-s3/pkg/disk/diskmem"
	"github.com/csi-s3/csi-s3/pkg/s3/s3mem"
)

// Somebody else fills the cache's disk to the last byte. Every change is refused with ENOSPC and does nothing; reads and
// uploads go on, and so does everything once there is room, with no restart.
func TestFullDisk(t *testing.T) {
	for _, kill := range []bool{false, true} {
		t.Run(fmt.Sprintf("kill=%v", kill), func(t *testing.T) {
			d := diskmem.New()
			v := openVolume(t, s3mem.New("bucket"), d, config{cache: cache.Options{Capacity: 1 << 30}})
			t.Cleanup(func() { v.close() })
			v.mkdir("dir")
			for i := range 50 {
				v.write(fmt.Sprintf("dir/f%d", i), strings.Repeat("x", 5000+i))
			}
			fill := func() {
				total, free, err := d.Space()
				v.ok(err)
				d.SetCapacity(total - free)
			}
			fill()
			refused := 0
			for i := range 3000 {
				err := v.tryWrite(fmt.Sprintf("dir/new%d", i), "more")
				if err == nil {
					continue
				}
				v.errno(err, syscall.ENOSPC)
				refused++
			}
			if refused < 1000 {
				t.Fatalf("only %d writes were refused: the disk is not full", refused)
			}
			for what, change := range map[string]func() error{
				"mkdir":    func() error { return v.tryMkdir("d") },
				"rename":   func() error { return v.rename("dir/f1", "dir/g1", 0) },
				"unlink":   func() error { return v.unlink("dir/f2") },
				"truncate": func() error { return v.truncate("dir/f3", 1) },
				"symlink":  func() error { return v.symlink("l", "target") },
				"link":     func() error { return v.link("dir/f4", "h") },
			} {
				if err := change(); err != nil && !errors.Is(err, cache.ErrNoSpace) {
					t.Errorf("%s: %v", what, err)
				}
			}
			v.wantFile("dir/f5", strings.Repeat("x", 5005))
			if kill {
				v.kill()
				d = v.disk
				fill()
			}
			v.flush()
			v.wantFile("dir/f5", strings.Repeat("x", 5005))
			v.disk.SetCapacity(1 << 40)
			v.write("after", "there is room again")
			v.ok(v.rename("dir/f6", "dir/g6", 0))
			v.flush()
			objects := v.objects()
			if objects["after"] != "there is room again" || objects["dir/g6"] == "" || objects["dir/f5"] != strings.Repeat("x", 5005) {
				t.Errorf("the bucket has %d objects, not what was written", len(objects))
			}
		})
	}
}
