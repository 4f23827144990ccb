package vfs_test

import (
	"fmt"
	"syscall"
	"testing"

	"github.com/csi-s3/csi-s3/pkg/vfs"
)

// TestPrefixWithoutKeys: a common prefix that the server lists although no key is left below it is no directory: it is not
// found, not listed, does not keep its directory from being removed, and takes no name from a file. Looking at many
// directories does not take a request for each.
func TestPrefixWithoutKeys(t *testing.T) {
	for _, access := range []vfs.Access{vfs.ReadWriteOnce, vfs.ReadWriteMany} {
		v := newVolume(t, config{policy: vfs.Policy{Access: access}})
		v.bucket.EmptyPrefixes = true
		for _, key := range []string{"d/x/f", "d/y/deep/f", "e/real/f", "e/gone/f", "e/file/f", "e/marked/"} {
			v.put(key, "1")
		}
		for i := range 200 {
			v.put(fmt.Sprintf("many/%03d/f", i), "1")
		}
		v.delete("many/007/f")
		for _, key := range []string{"d/x/f", "d/y/deep/f", "e/gone/f", "e/file/f"} {
			v.delete(key)
		}
		v.put("e/file", "content")
		v.put("d/", "")
		_, err := v.walk("d/x")
		v.errno(err, syscall.ENOENT)
		v.errno(v.rmdir("d/y"), syscall.ENOENT)
		v.wantNames("e", "file", "marked", "real")
		v.wantFile("e/file", "content")
		v.wantFile("e/real/f", "1")
		v.stat("e/marked")
		v.ok(v.rmdir("d"))
		v.flush()
		v.wantNames("", "e", "many")
		v.errno(v.rmdir("e"), syscall.ENOTEMPTY)

		// What is removed here goes, and does not come back when the bucket is asked again.
		v.ok(v.unlink("e/real/f"))
		v.ok(v.rmdir("e/real"))
		v.ok(v.unlink("e/file"))
		v.ok(v.rmdir("e/marked"))
		v.flush()
		v.elsewhere()
		v.wantNames("e")
		v.ok(v.rmdir("e"))
		v.flush()
		v.wantNames("", "many")
		if keys := v.keys(); len(keys) != 199 {
			t.Errorf("%q are left", keys)
		}

		requests := v.faults.Count("List") + v.faults.Count("Head")
		v.stat("many")
		if names, err := v.tryList("many"); err != nil || len(names) < 199 {
			t.Errorf("%d names, %v", len(names), err)
		}
		if n := v.faults.Count("List") + v.faults.Count("Head") - requests; n > 5 {
			t.Errorf("%v: %d requests for one list of 200 directories", access, n)
		}
		_, err = v.walk("many/007")
		v.errno(err, syscall.ENOENT)
		v.stat("many/008")
	}
}

// TestConfirmedDirectories: what a list of a directory has asked for its subdirectories, look-ups do not ask again.
func TestConfirmedDirectories(t *testing.T) {
	v := newVolume(t, config{})
	v.put("d/a/f", "1")
	v.putMeta("d/b/", "", map[string]string{"mode": "16832"})
	v.wantNames("d", "a", "b")
	requests := v.faults.Count("List") + v.faults.Count("Head")
	v.stat("d/a")
	if m := v.stat("d/b").Mode & 0o777; m != 0o700 {
		t.Errorf("mode %o", m)
	}
	if n := v.faults.Count("List") + v.faults.Count("Head") - requests; n > 0 {
		t.Errorf("%d requests for what was known", n)
	}
}
