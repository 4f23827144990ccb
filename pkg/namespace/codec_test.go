package namespace

import (
	"bytes"
	"errors"
	"maps"
	"reflect"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/csi-s3/csi-s3/pkg/inode"
	"github.com/csi-s3/csi-s3/pkg/journal"
	"github.com/csi-s3/csi-s3/pkg/s3"
)

var testDefaults = codecDefaults{uid: 10, gid: 20, fileMode: 0o640, dirMode: 0o750}

// What is written comes back, to the nanosecond and the byte.
func TestAttributesRoundTrip(t *testing.T) {
	when := time.Unix(1700000000, 123456789)
	for name, c := range map[string]struct {
		attr   inode.Attr
		target string
		xattrs map[string][]byte
	}{
		"file":        {attr: inode.Attr{Mode: inode.ModeRegular | 0o4711, Uid: 1, Gid: 2, Size: 5, Nlink: 1}},
		"directory":   {attr: inode.Attr{Mode: inode.ModeDir | 0o1777, Uid: 4294967295, Gid: 2, Size: 4096, Nlink: 2}},
		"device":      {attr: inode.Attr{Mode: inode.ModeBlock | 0o600, Rdev: 0x801, Nlink: 1}},
		"link":        {attr: inode.Attr{Mode: inode.ModeSymlink | 0o777, Size: 12, Nlink: 1}, target: "a b%/ü\n\x01é"},
		"with xattrs": {attr: inode.Attr{Mode: inode.ModeRegular | 0o600, Nlink: 1}, xattrs: map[string][]byte{"user.a": {0, 1, 2}, "user.empty": {}}},
	} {
		c.attr.Mtime, c.attr.Ctime, c.attr.Atime = when, when.Add(time.Hour), when
		if c.target != "" {
			c.attr.Size = int64(len(c.target))
		}
		extra := map[string]string{"theirs": "kept"}
		meta, err := encodeAttr(c.attr, c.target, c.xattrs, extra, "w-1-2-3")
		if err != nil {
			t.Fatal(err)
		}
		if err := (s3.Attributes{Meta: meta}).Validate(); err != nil {
			t.Errorf("%s: a server would refuse it: %v", name, err)
		}
		size := c.attr.Size
		if c.target != "" {
			size = 0 // the object is empty
		}
		attr, target, xattrs, rest := decodeAttr(s3.Info{Size: size, Meta: meta, Modified: time.Unix(1, 0)}, c.attr.IsDir(), testDefaults)
		if attr != c.attr || target != c.target || !maps.Equal(rest, extra) {
			t.Errorf("%s:\n got %+v %q %v\nwant %+v %q %v", name, attr, target, rest, c.attr, c.target, extra)
		}
		if len(xattrs) != len(c.xattrs) {
			t.Errorf("%s: %v", name, xattrs)
		}
		for k, v := range c.xattrs {
			if !bytes.Equal(xattrs[k], v) {
				t.Errorf("%s: %s is %v", name, k, xattrs[k])
			}
		}
	}
}

// The forms of other programs.
func TestForeignForms(t *testing.T) {
	modified := time.Unix(1600000000, 0)
	for name, c := range map[string]struct {
		meta  map[string]string
		dir   bool
		check func(a inode.Attr, target string) bool
	}{
		"nothing": {nil, false, func(a inode.Attr, _ string) bool {
			return a.Mode == inode.ModeRegular|0o640 && a.Uid == 10 && a.Gid == 20 && a.Mtime.Equal(modified)
		}},
		"nothing, directory": {nil, true, func(a inode.Attr, _ string) bool { return a.Mode == inode.ModeDir|0o750 && a.Size == 4096 }},
		"geesefs": {map[string]string{"mode": "33261", "uid": "7", "gid": "8", "mtime": "1500000000"}, false, func(a inode.Attr, _ string) bool {
			return a.Mode == inode.ModeRegular|0o755 && a.Uid == 7 && a.Mtime.Unix() == 1500000000
		}},
		"s3fs directory": {map[string]string{"mode": "16877"}, true, func(a inode.Attr, _ string) bool { return a.Mode == inode.ModeDir|0o755 }},
		"rclone": {map[string]string{"mode": "0100600", "mtime": "1500000000.250000000"}, false, func(a inode.Attr, _ string) bool {
			return a.Mode == inode.ModeRegular|0o600 && a.Mtime.Nanosecond() == 250000000
		}},
		"a short fraction":     {map[string]string{"mtime": "1500000000.5"}, false, func(a inode.Attr, _ string) bool { return a.Mtime.Nanosecond() == 500000000 }},
		"symlink":              {map[string]string{"--symlink-target": "../x%20y"}, false, func(a inode.Attr, s string) bool { return a.IsSymlink() && s == "../x y" && a.Size == 6 }},
		"a file that lies":     {map[string]string{"mode": "16877"}, false, func(a inode.Attr, _ string) bool { return a.IsRegular() }},
		"a directory's lies":   {map[string]string{"mode": "33261"}, true, func(a inode.Attr, _ string) bool { return a.IsDir() }},
		"mode of no kind":      {map[string]string{"mode": "99999999"}, false, func(a inode.Attr, _ string) bool { return a.Mode == inode.ModeRegular|0o640 }},
		"time of no use":       {map[string]string{"mtime": "99999999999999999"}, false, func(a inode.Attr, _ string) bool { return a.Mtime.Equal(modified) }},
		"a later other's time": {map[string]string{"mtime": "1500000001", metaTimes: "FNEgAAAAAAAU0SAAAAAAAA"}, false, func(a inode.Attr, _ string) bool { return a.Mtime.Unix() == 1500000001 }},
	} {
		attr, target, _, _ := decodeAttr(s3.Info{Meta: c.meta, Modified: modified}, c.dir, testDefaults)
		if !c.check(attr, target) {
			t.Errorf("%s: %+v %q", name, attr, target)
		}
	}
}

// What does not fit is refused before anything is changed.
func TestTooMuchMetadata(t *testing.T) {
	attr := inode.Attr{Mode: inode.ModeRegular | 0o644}
	if _, err := encodeAttr(attr, "", map[string][]byte{"user.a": make([]byte, 2000)}, nil, "w"); !errors.Is(err, ErrTooMany) {
		t.Error(err)
	}
	attr.Mode = inode.ModeSymlink | 0o777
	if _, err := encodeAttr(attr, strings.Repeat("é", 500), nil, nil, "w"); !errors.Is(err, ErrTooMany) {
		t.Error(err)
	}
}

func TestValidName(t *testing.T) {
	for name, want := range map[string]bool{
		"a": true, "ü": true, "a b": true, "a\nb": true, "...": true, strings.Repeat("n", 255): true,
		"": false, ".": false, "..": false, "a/b": false, "a\x00": false, strings.Repeat("n", 256): false, "\xff": false,
	} {
		if got := ValidName(name); got != want {
			t.Errorf("%q: %v", name, got)
		}
	}
}

// Metadata comes from whoever may write to the bucket: any of it is taken without harm, and what is made of it can be
// written again.
func FuzzDecodeAttr(f *testing.F) {
	f.Add("33261", "1500000000.5", "../x%20", "AAAAAAAAAAAAAAAAAAAAAA", "BnVzZXIuYQEx", "0", false)
	f.Add("", "-1", "%", "!", "/////w", "99", true)
	f.Fuzz(func(t *testing.T, mode, mtime, link, times, xattrs, id string, dir bool) {
		info := s3.Info{Size: 3, Modified: time.Unix(5, 0), Meta: map[string]string{
			metaMode: mode, metaMtime: mtime, metaTimes: times, metaXattrs: xattrs, metaUid: id, metaGid: id, metaRdev: id,
		}}
		if link != "" {
			info.Meta[metaSymlink] = link
		}
		attr, target, x, extra := decodeAttr(info, dir, testDefaults)
		if attr.IsDir() != dir {
			t.Fatalf("%+v", attr)
		}
		meta, err := encodeAttr(attr, target, x, extra, "w")
		if errors.Is(err, ErrTooMany) {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		info.Meta = meta
		again, target2, _, _ := decodeAttr(info, dir, testDefaults)
		if again.Mode != attr.Mode || again.Uid != attr.Uid || target2 != target {
			t.Fatalf("%+v %q, then %+v %q", attr, target, again, target2)
		}
	})
}

// A node's record brings back all of it.
func TestNodeRecord(t *testing.T) {
	root := &node{attr: inode.Attr{Ino: inode.Root, Mode: inode.ModeDir}}
	when := time.Unix(1700000000, 5)
	n := &node{
		attr:  inode.Attr{Ino: 77, Mode: inode.ModeDir | 0o755, Uid: 1, Gid: 2, Rdev: 3, Size: 4096, Atime: when, Mtime: when, Ctime: when},
		known: true, target: "", contentType: "text/plain", xattrs: map[string][]byte{"user.a": {1}}, extra: map[string]string{"k": "v"},
		links: []link{{root, "name"}, {root, "other"}}, local: true, wantMarker: true, origin: "from/", heading: "to/",
		purges: []purge{{"a/", "b/"}, {"c/", ""}}, metaGen: 9, contGen: 4, tracked: true,
		objs: []object{{key: "k1", etag: "e1", size: 5, contGen: 4, metaGen: 9}, {key: "k2", etag: "e2", size: 6, contGen: 3, metaGen: 8}, {key: "k3", unsure: true}},
	}
	got, links, err := decodeNode(n.encode())
	if err != nil {
		t.Fatal(err)
	}
	if got.attr != n.attr || got.contentType != n.contentType || !reflect.DeepEqual(got.xattrs, n.xattrs) || !maps.Equal(got.extra, n.extra) ||
		got.known != n.known || got.local != n.local || got.wantMarker != n.wantMarker || got.origin != n.origin || got.heading != n.heading ||
		!reflect.DeepEqual(got.purges, n.purges) {
		t.Errorf("%+v", got)
	}
	if !reflect.DeepEqual(links, []savedLink{{inode.Root, "name"}, {inode.Root, "other"}}) {
		t.Errorf("%v", links)
	}
	o := got.objs
	if len(o) != 3 || o[0].contGen != got.contGen || o[0].metaGen != got.metaGen || o[1].contGen == got.contGen || o[1].metaGen == got.metaGen || !o[2].unsure {
		t.Errorf("%+v", o)
	}
	if got.base() == nil || got.base().key != "k1" {
		t.Errorf("base %+v", got.base())
	}
}

// A journal that is damaged in a way that its checksums do not see is refused, not guessed.
func FuzzReplay(f *testing.F) {
	n := &node{attr: inode.Attr{Ino: 7, Mode: inode.ModeRegular}, links: nil, objs: []object{{key: "k", etag: "e", size: 1}}}
	f.Add(byte(kindNode), n.encode())
	f.Add(byte(kindForget), []byte{7})
	f.Add(byte(kindLimit), []byte{200, 1})
	f.Add(byte(kindOutcome), []byte{1, 2})
	f.Add(byte(0x2f), []byte{})
	f.Fuzz(func(t *testing.T, kind byte, data []byte) {
		tree := New(Options{})
		err := tree.Replay(journal.Record{Kind: journal.Kind(kind), Data: data})
		if err != nil && !errors.Is(err, journal.ErrCorrupt) {
			t.Fatalf("%v is not told as damage", err)
		}
		if err == nil && kind == byte(kindNode) && !utf8.Valid(data) && len(data) == 0 {
			t.Fatal("nothing is a node")
		}
	})
}
