package writeback_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/csi-s3/csi-s3/pkg/inode"
	"github.com/csi-s3/csi-s3/pkg/namespace"
	"github.com/csi-s3/csi-s3/pkg/s3/s3mem"
	"github.com/csi-s3/csi-s3/pkg/s3/s3probe"
)

// worse are all quirks of one kind.
func worse(q s3mem.Quirk) s3mem.Quirks {
	all := s3mem.Quirks{}
	for _, f := range s3probe.Features() {
		all[f] = q
	}
	return all
}

// TestServerWithoutConditions: files of all kinds get to a server that refuses conditions, or ignores them, and what
// others wrote in between is found all the same.
func TestServerWithoutConditions(t *testing.T) {
	for name, q := range map[string]s3mem.Quirk{"refused": s3mem.Refuses, "ignored": s3mem.Ignores} {
		for _, size := range []int{1000, 100 << 10} {
			t.Run(fmt.Sprint(name, " ", size), func(t *testing.T) {
				r := newRig(t, small)
				r.quirks(worse(q))
				body, renamed := noise(size), noise(size)
				r.put("old name", renamed)
				r.learn("old name")
				ino := r.create("file")
				r.write(ino, 0, body)
				gone := r.create("gone")
				r.write(gone, 0, body)
				r.ok(r.tree.Rename(namespace.Op{}, inode.Root, "old name", inode.Root, "renamed", 0))
				r.flush()
				r.holds("file", body)
				r.holds("renamed", renamed)
				r.ok(r.tree.Unlink(namespace.Op{}, inode.Root, "gone"))
				r.write(ino, 5, []byte("changed"))
				copy(body[5:], "changed")
				r.flush()
				r.holds("file", body)
				r.wantKeys("file", "renamed")

				r.write(ino, 5, []byte("again"))
				copy(body[5:], "again")
				r.write(r.create("new"), 0, body)
				r.ok(r.tree.Rename(namespace.Op{}, inode.Root, "renamed", inode.Root, "once more", 0))
				for _, key := range []string{"file", "new", "once more"} {
					r.put(key, []byte("theirs"))
				}
				r.flush()
				kept := map[string][]byte{"file": body, "new": body, "once more": renamed}
				if keys := r.keys(); len(keys) != 2*len(kept) {
					t.Fatalf("%q", keys)
				}
				for _, key := range r.keys() {
					if name, _, ours := strings.Cut(key, ".conflict-"); ours {
						r.holds(key, kept[name])
					} else {
						r.holds(key, []byte("theirs"))
					}
				}
				r.settled()
				r.noUploads()
			})
		}
	}
}

// TestDeleteIsOneRequest, where the server compares.
func TestDeleteIsOneRequest(t *testing.T) {
	r := newRig(t, small)
	r.put("file", noise(10))
	r.learn("file")
	before := r.faults.Count("Head")
	r.ok(r.tree.Unlink(namespace.Op{}, inode.Root, "file"))
	r.flush()
	r.wantKeys()
	if heads, deletes := r.faults.Count("Head")-before, r.faults.Count("Delete"); heads != 0 || deletes != 1 {
		t.Errorf("%d HEADs and %d DELETEs", heads, deletes)
	}
}
