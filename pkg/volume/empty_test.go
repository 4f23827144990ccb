package volume

import (
	"math/rand/v2"
	"syscall"
	"testing"

	"github.com/csi-s3/csi-s3/pkg/disk/diskmem"
	"github.com/csi-s3/csi-s3/pkg/inode"
	"github.com/csi-s3/csi-s3/pkg/s3"
	"github.com/csi-s3/csi-s3/pkg/s3/s3mem"
	"github.com/csi-s3/csi-s3/pkg/vfs"
)

// TestEmptyAtItsFsync loses power after a change of a file that was empty when it was made durable: by fsync, or because
// it replaced another one. The file is there after each kind of start, and nothing of the change is.
func TestEmptyAtItsFsync(t *testing.T) {
	t.Parallel()
	for name, durable := range map[string]func(c *core, e vfs.Entry) error{
		"fsync": func(c *core, e vfs.Entry) error {
			return c.fs.Fsync(t.Context(), who, e.Attr.Ino, 0, false)
		},
		"rename": func(c *core, e vfs.Entry) error {
			return c.fs.Rename(t.Context(), who, inode.Root, "new", inode.Root, "old", 0)
		},
		"fsync, kill": func(c *core, e vfs.Entry) error {
			return c.fs.Fsync(t.Context(), who, e.Attr.Ino, 0, false)
		},
		"nothing": func(*core, vfs.Entry) error { return nil },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d, b := diskmem.New(), s3mem.New("bucket")
			upload(t, b, "old", "the old one", s3.Attributes{})
			c := running(t, d, "first", spec(b))
			e, h, err := c.fs.Create(t.Context(), who, inode.Root, "new", 0o644, syscall.O_RDWR)
			if err != nil {
				t.Fatal(err)
			}
			if err := durable(c, e); err != nil {
				t.Fatal(err)
			}
			ino := e.Attr.Ino
			if name == "fsync, kill" {
				killed := d.Clone()
				abandoned(c)
				d = killed
				c = running(t, d, "first", spec(b))
				if e, err = c.fs.Lookup(t.Context(), who, inode.Root, "new"); err != nil {
					t.Fatal(err)
				}
				ino, h = e.Attr.Ino, 0
			}
			if _, err := c.fs.Write(t.Context(), who, ino, h, make([]byte, 5000), 0); err != nil {
				t.Fatal(err)
			}
			// All names are durable now, and with them that the file was changed.
			if err := c.fs.FsyncDir(t.Context(), who, inode.Root); err != nil {
				t.Fatal(err)
			}
			cut := d.CrashClone(rand.New(rand.NewPCG(1, 1)))
			abandoned(c)
			found := recovered(t, cut, "second", b)
			want := map[string]string{"old": "the old one", "new": ""}
			switch name {
			case "rename":
				want = map[string]string{"old": ""}
			case "nothing":
				delete(want, "new")
			}
			if describe(found) != describe(want) {
				t.Errorf("the bucket has%s instead of%s", describe(found), describe(want))
			}
		})
	}
}
