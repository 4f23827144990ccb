package fuse

import (
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/csi-s3/csi-s3/pkg/inode"
)

func xattrSteps() []step {
	return []step{
		{"set", func(a *actor) {
			a.ok(unix.Setxattr(a.path("f"), "user.a", []byte("value"), unix.XATTR_CREATE))
			a.ok(unix.Setxattr(a.path("f"), "user.empty", nil, 0))
		}, "setxattr", []string{"setxattr {f} user.a 5 1", "setxattr {f} user.empty 0 0"}},
		{"get", func(a *actor) {
			p := make([]byte, 100)
			n, err := unix.Getxattr(a.path("f"), "user.a", p)
			a.ok(err)
			a.check(string(p[:n]) == "value", "value", string(p[:n]))
			n, err = unix.Getxattr(a.path("f"), "user.empty", p)
			a.ok(err)
			a.check(n == 0, "length", n)
		}, "getxattr", []string{"getxattr {f} user.a", "getxattr {f} user.empty"}},
		{"ask for the size", func(a *actor) {
			n, err := unix.Getxattr(a.path("f"), "user.a", nil)
			a.ok(err)
			a.check(n == 5, "size", n)
			n, err = unix.Getxattr(a.path("f"), "user.empty", nil)
			a.ok(err)
			a.check(n == 0, "size", n)
			n, err = unix.Listxattr(a.path("f"), nil)
			a.ok(err)
			a.check(n == len("user.a\x00user.empty\x00"), "size", n)
		}, "listxattr", []string{"listxattr {f}"}},
		{"too little room", func(a *actor) {
			_, err := unix.Getxattr(a.path("f"), "user.a", make([]byte, 4))
			a.want(err, unix.ERANGE)
			_, err = unix.Listxattr(a.path("f"), make([]byte, 4))
			a.want(err, unix.ERANGE)
			n, err := unix.Getxattr(a.path("f"), "user.a", make([]byte, 5))
			a.ok(err)
			a.check(n == 5, "exact room", n)
		}, "listxattr", []string{"listxattr {f}"}},
		{"absent", func(a *actor) {
			_, err := unix.Getxattr(a.path("f"), "user.absent", make([]byte, 4))
			a.want(err, unix.ENODATA)
			_, err = unix.Getxattr(a.path("f"), "user.absent", nil)
			a.want(err, unix.ENODATA)
		}, "getxattr", []string{"getxattr {f} user.absent", "getxattr {f} user.absent"}},
		{"list", func(a *actor) {
			p := make([]byte, 100)
			n, err := unix.Listxattr(a.path("f"), p)
			a.ok(err)
			a.check(string(p[:n]) == "user.a\x00user.empty\x00", "names", string(p[:n]))
			n, err = unix.Listxattr(a.path(""), p)
			a.ok(err)
			a.check(n == 0, "names of the root", string(p[:n]))
		}, "listxattr", []string{"listxattr {f}", "listxattr 1"}},
		{"large", func(a *actor) {
			value := strings.Repeat("v", 60000)
			a.ok(unix.Setxattr(a.path("f"), "user.large", []byte(value), unix.XATTR_REPLACE))
			p := make([]byte, 65536)
			n, err := unix.Getxattr(a.path("f"), "user.large", p)
			a.ok(err)
			a.check(string(p[:n]) == value, "length", n)
		}, "setxattr", []string{"setxattr {f} user.large 60000 2"}},
		{"remove", func(a *actor) {
			a.ok(unix.Removexattr(a.path("f"), "user.a"))
			_, err := unix.Getxattr(a.path("f"), "user.a", nil)
			a.want(err, unix.ENODATA)
		}, "removexattr", []string{"removexattr {f} user.a"}},
	}
}

func TestXattrs(t *testing.T) {
	core := newMemory()
	core.ttl = time.Hour
	core.add(inode.Root, "f", unix.S_IFREG|0o644, 100)
	walk(t, serveCore(t, core), "xattrs", xattrSteps())
}
