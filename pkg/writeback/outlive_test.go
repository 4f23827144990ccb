package writeback_test

import (
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/csi-s3/csi-s3/pkg/inode"
	"github.com/csi-s3/csi-s3/pkg/namespace"
	"github.com/csi-s3/csi-s3/pkg/s3/s3fault"
)

// TestNoObjectOutlivesItsFile: a request makes an object, its answer is lost, and so is every HEAD that asks for it. Then the
// file goes, or goes elsewhere: the object goes too, whoever has to look for it.
func TestNoObjectOutlivesItsFile(t *testing.T) {
	for _, method := range []string{"Put", "CompleteUpload", "Copy", "Patch"} {
		for _, end := range []string{"unlink", "rename", "replaced", "truncated and unlinked"} {
			for _, kill := range []bool{false, true} {
				t.Run(fmt.Sprint(method, ", ", end, ", killed: ", kill), func(t *testing.T) {
					t.Parallel()
					r := newRig(t, small)
					size := map[string]int{"CompleteUpload": 100 << 10}[method]
					size = max(size, 1000)
					body := noise(size)
					var ino inode.Ino
					request := method
					switch method {
					case "Copy":
						r.put("elsewhere", body)
						r.learn("elsewhere")
						r.ok(r.tree.Rename(namespace.Op{}, inode.Root, "elsewhere", inode.Root, "file", 0))
						ino = r.learned("file")
					case "Patch":
						request = "Put"
						r.put("file", body)
						ino = r.learn("file")
						r.write(ino, 0, []byte("patch"))
					default:
						ino = r.create("file")
						r.write(ino, 0, body)
					}
					var applied sync.Once
					sent := make(chan struct{})
					asked := make(chan struct{})
					var deaf atomic.Bool
					var once sync.Once
					r.faulty(func(op s3fault.Op) s3fault.Action {
						switch {
						case op.Name == request && op.Key == "file":
							act := s3fault.FailBefore(nil)
							applied.Do(func() {
								act = s3fault.FailAfter(nil)
								deaf.Store(true)
								close(sent)
							})
							return act
						case op.Name == "Head" && deaf.Load():
							once.Do(func() { close(asked) })
							return s3fault.FailBefore(nil)
						}
						return s3fault.Action{}
					})
					r.tree.Urge()
					for _, met := range []chan struct{}{sent, asked} {
						select {
						case <-met:
						case <-time.After(10 * time.Second):
							t.Fatal("no request")
						}
					}
					if kill {
						r.kill()
					}
					want := []string{}
					switch end {
					case "truncated and unlinked":
						r.write(ino, 0, []byte("more"))
						r.ok(r.tree.Unlink(namespace.Op{}, inode.Root, "file"))
					case "unlink":
						r.ok(r.tree.Unlink(namespace.Op{}, inode.Root, "file"))
					case "rename":
						r.ok(r.tree.Rename(namespace.Op{}, inode.Root, "file", inode.Root, "new name", 0))
						want = []string{"new name"}
					case "replaced":
						r.write(r.create("other"), 0, []byte("other"))
						r.ok(r.tree.Rename(namespace.Op{}, inode.Root, "other", inode.Root, "file", 0))
						want = []string{"file"}
					}
					time.Sleep(5 * time.Millisecond)
					r.faulty(nil)
					r.flush()
					r.settled()
					r.wantKeys(want...)
					r.noUploads()
				})
			}
		}
	}
}

// learned is the inode of a name that the tree knows.
func (r *rig) learned(name string) inode.Ino {
	r.t.Helper()
	res, err := r.tree.Resolve(inode.Root, name)
	r.ok(err)
	return res.Node.Attr.Ino
}
