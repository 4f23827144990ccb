package vfs_test

import (
	"testing"

	"github.com/csi-s3/csi-s3/pkg/vfs"
)

// TestPlacesAreExchanged: what waits in the bucket for what waits for it gives way, and nothing is lost.
func TestPlacesAreExchanged(t *testing.T) {
	chmod := func(v *volume, p string) {
		m := uint32(0o701)
		_, _, err := v.SetAttr(ctx, root, v.ino(p), 0, vfs.SetAttr{Mode: &m})
		v.ok(err)
	}
	for name, test := range map[string]struct {
		do   func(v *volume)
		want []string
	}{
		"a file and a directory": {func(v *volume) {
			v.put("b", "file")
			v.put("a/b", "below")
			v.ok(v.rename("a", "b", vfs.RenameExchange))
		}, []string{"a", "file", "b/b", "below"}},
		"and it has changes": {func(v *volume) {
			v.put("b", "file")
			v.put("a/b", "below")
			chmod(v, "a/b")
			v.ok(v.rename("a", "b", vfs.RenameExchange))
		}, []string{"a", "file", "b/b", "below"}},
		"a file takes the name of its directory": {func(v *volume) {
			v.put("a/b", "below")
			v.ok(v.rename("a", "c", 0))
			v.ok(v.rename("c/b", "a", 0))
		}, []string{"a", "below", "c/", ""}},
		"two files take the names of each other's directory": {func(v *volume) {
			v.put("a/x", "1")
			v.put("b/y", "2")
			v.ok(v.rename("a/x", "s", 0))
			v.ok(v.rename("b/y", "t", 0))
			v.ok(v.rmdir("a"))
			v.ok(v.rmdir("b"))
			v.ok(v.rename("s", "b", 0))
			v.ok(v.rename("t", "a", 0))
		}, []string{"b", "1", "a", "2"}},
		"two directories, one of them new": {func(v *volume) {
			v.put("b/c", "below")
			v.mkdir("a")
			v.flush()
			v.write("a/f", "x")
			v.write("b/c", "z")
			v.ok(v.rename("a", "b", vfs.RenameExchange))
		}, []string{"a/c", "z", "b/", "", "b/f", "x"}},
		"a directory moves below its old self": {func(v *volume) {
			v.put("b/a", "below")
			v.mkdir("c")
			v.ok(v.rename("b", "c/b", 0))
			v.ok(v.rename("c", "b", 0))
		}, []string{"b/", "", "b/b/a", "below"}},
		"and back up": {func(v *volume) {
			v.put("b/b/a", "below")
			v.ok(v.rename("b/b", "c", 0))
			v.ok(v.rmdir("b"))
			v.ok(v.rename("c", "b", 0))
		}, []string{"b/a", "below"}},
		"two directories with markers": {func(v *volume) {
			v.mkdir("a")
			v.mkdir("b")
			v.flush()
			v.kill()
			v.mkdir("a/b")
			v.ok(v.rename("a", "b", vfs.RenameExchange))
		}, []string{"a/", "", "b/", "", "b/b/", ""}},
	} {
		t.Run(name, func(t *testing.T) {
			v := newVolume(t, config{})
			test.do(v)
			v.kill()
			v.flush()
			v.wantObjects(test.want...)
			v.kill()
			v.wantObjects(test.want...)
		})
	}
}
