package writeback_test

import (
	"bytes"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/csi-s3/csi-s3/pkg/inode"
	"github.com/csi-s3/csi-s3/pkg/namespace"
	"github.com/csi-s3/csi-s3/pkg/writeback"
)

// Others remove or replace an object that was changed or renamed here, of which the cache has only a part. What is here is
// kept, under a name that says what it is; nothing waits for ever for bytes that nobody has any more.
func TestSourceGone(t *testing.T) {
	ours := []byte("ours")
	for _, c := range []struct {
		name     string
		written  bool // ours, at the start of the file
		cached   bool // all of it was read before
		renamed  bool // to "other"
		replaced bool // by theirs, else removed
		kill     bool
		want     []string // keys; a name that ends with a dot is the beginning of one
	}{
		{name: "changed, removed", written: true, want: []string{"file.partial-."}},
		{name: "changed, replaced", written: true, replaced: true, want: []string{"file", "file.partial-."}},
		{name: "changed and renamed, removed", written: true, renamed: true, want: []string{"other.partial-."}},
		{name: "changed and renamed, replaced", written: true, renamed: true, replaced: true, want: []string{"file", "other.partial-."}},
		{name: "renamed, removed", renamed: true},
		{name: "renamed, replaced", renamed: true, replaced: true, want: []string{"file"}},
		{name: "renamed and cached, removed", renamed: true, cached: true, want: []string{"other"}},
		{name: "changed and cached, removed", written: true, cached: true, want: []string{"file"}},
		{name: "changed, removed, killed", written: true, kill: true, want: []string{"file.partial-."}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, small)
			old := noise(200 << 10)
			r.put("file", old)
			ino := r.learn("file")
			if c.cached {
				r.ok(r.fetcher.Ensure(t.Context(), r.file(ino), r.locate(ino), 0, int64(len(old))))
			}
			want := make([]byte, len(old))
			if c.cached {
				copy(want, old)
			}
			if c.written {
				r.write(ino, 0, ours)
				copy(want, ours)
			}
			if c.renamed {
				r.ok(r.tree.Rename(namespace.Op{}, inode.Root, "file", inode.Root, "other", 0))
			}
			if c.replaced {
				r.put("file", []byte("theirs"))
			} else {
				r.ok(r.bucket.Delete(t.Context(), "file"))
			}
			if c.kill {
				r.kill()
			}
			partial := slices.ContainsFunc(c.want, func(key string) bool { return strings.HasSuffix(key, ".") })
			if err := r.exec.Flush(t.Context(), ino, nil); partial != errors.Is(err, writeback.ErrConflict) {
				t.Errorf("flush of the file: %v", err)
			}
			r.flush()
			keys := r.keys()
			ok := slices.EqualFunc(keys, c.want, func(key, want string) bool {
				begin, partial := strings.CutSuffix(want, ".")
				return key == want || partial && strings.HasPrefix(key, begin)
			})
			if !ok {
				t.Fatalf("the bucket has %q, want %q", keys, c.want)
			}
			for _, key := range keys {
				if key == "file" && c.replaced {
					r.holds(key, []byte("theirs"))
				} else if !bytes.Equal(r.get(key), want) {
					t.Errorf("%q is not what was here", key)
				}
			}
			r.settled()
			r.noUploads()
		})
	}
}
