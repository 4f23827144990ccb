package writeback_test

import (
	"sync/atomic"
	"testing"
	"time"

	"github.com/csi-s3/csi-s3/pkg/inode"
	"github.com/csi-s3/csi-s3/pkg/namespace"
	"github.com/csi-s3/csi-s3/pkg/s3/s3fault"
)

// TestFileInADirectoryThatCameBack: a directory is moved away and back while its objects are copied to where it went. A file
// that is made in it then is no stray object that goes after the others: it would be at two places of which the tree knows
// one, and outlive its removal at the other.
func TestFileInADirectoryThatCameBack(t *testing.T) {
	for _, remove := range []bool{false, true} {
		r := newRig(t, small)
		r.put("a/old", []byte("old"))
		dir := r.learnDir("a")
		var began, strayed atomic.Bool
		var file inode.Ino
		r.faulty(func(op s3fault.Op) s3fault.Action {
			switch {
			case op.Name == "Copy" && op.Key == "b/old" && began.CompareAndSwap(false, true):
				r.ok(r.tree.Rename(namespace.Op{}, inode.Root, "b", inode.Root, "a", 0))
				file = r.make(dir, "new", inode.ModeRegular|0o644)
				r.write(file, 0, []byte("new"))
				r.tree.Urge()
				// Whether it is sent now or after the directory is the Executor's business.
				for until := time.Now().Add(200 * time.Millisecond); time.Now().Before(until); time.Sleep(time.Millisecond) {
					if n, err := r.tree.Get(file); err != nil || !n.Tracked {
						break
					}
				}
			case op.Name == "Copy" && op.Key == "b/new":
				strayed.Store(true)
				if remove {
					r.ok(r.tree.Unlink(namespace.Op{}, dir, "new"))
				}
				time.Sleep(50 * time.Millisecond)
			}
			return s3fault.Action{}
		})
		r.ok(r.tree.Rename(namespace.Op{}, inode.Root, "a", inode.Root, "b", 0))
		r.flush()
		r.faulty(nil)
		if strayed.Load() {
			t.Error("the file was copied to where its directory had been")
		}
		want := []string{"a/new", "a/old"}
		if remove {
			if !strayed.Load() {
				r.ok(r.tree.Unlink(namespace.Op{}, dir, "new"))
			}
			want = []string{"a/", "a/old"} // the directory lost a name: its marker tells when
		}
		r.flush()
		r.settled()
		r.wantKeys(want...)
	}
}
