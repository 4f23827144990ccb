package namespace

import (
	"maps"
	"slices"
	"strings"

	"github.com/csi-s3/csi-s3/pkg/s3"
)

// Unsaved is an inode that the bucket does not show as it is here.
type Unsaved struct {
	Node
	Paths  []string          // its names, below the volume's root, without a slash at either end; none: it was removed or never named
	Xattrs map[string][]byte // extended attributes
	Stored []s3.Key          // the objects that the bucket has of it, under its names or others
	// What the bucket does not have: the inode at all (no object and, of a directory, nothing that shows it), its bytes,
	// its attributes; Moved: one of its names, or it has one too many.
	New, Bytes, Attributes, Moved bool
	// Below is, of a directory, where its children lie in the bucket, when that is elsewhere.
	Below s3.Key
}

// Due says that something of it can still get into the bucket: not so of what was removed and never got there.
func (u Unsaved) Due() bool { return u.Moved || len(u.Paths) > 0 && (u.New || u.Bytes || u.Attributes) }

// Unsaved lists what the bucket does not have, and the directories above it. Parents come before their children.
func (t *Tree) Unsaved() []Unsaved {
	t.mu.Lock()
	defer t.mu.Unlock()
	var list []Unsaved
	for _, n := range t.nodes {
		if !n.tracked {
			continue
		}
		if u := t.unsaved(n); u.New || u.Bytes || u.Attributes || u.Moved || n.below > 0 {
			list = append(list, u)
		}
	}
	slices.SortFunc(list, func(a, b Unsaved) int {
		if c := slices.Compare(a.Paths, b.Paths); c != 0 {
			return c
		}
		return int(a.Attr.Ino) - int(b.Attr.Ino)
	})
	return list
}

// AnyUnsaved says that an inode is Due, or that an object which a request without an answer may have made is still to be
// removed. It looks only at what waits for write-back, in memory, and may be called at any time.
func (t *Tree) AnyUnsaved() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	for n := range t.unsettled {
		if t.unsaved(n).Due() {
			return true
		}
		// What was sent, and is to be removed again, may be there.
		keys := t.wantKeys(n)
		if slices.ContainsFunc(n.objs, func(o object) bool { return o.unsure && !slices.Contains(keys, o.key) }) {
			return true
		}
	}
	return false
}

func (t *tree) unsaved(n *node) Unsaved {
	u := Unsaved{Node: n.copyOut(), Xattrs: maps.Clone(n.xattrs), Below: n.origin}
	want := map[s3.Key]bool{}
	if len(n.links) > 0 || n == t.root {
		for _, key := range t.wantKeys(n) {
			want[key] = true
			path := strings.TrimSuffix(strings.TrimPrefix(string(key), string(t.opt.Prefix)), "/")
			if n == t.root {
				path = ""
			}
			u.Paths = append(u.Paths, path)
		}
	}
	for _, o := range n.objs {
		if o.unsure {
			continue
		}
		u.Stored = append(u.Stored, o.key)
		switch {
		case !want[o.key]:
			u.Moved = true
		case o.metaGen != n.metaGen:
			u.Attributes = true
		}
	}
	if n.isDir() {
		u.New = n.wantMarker && len(u.Stored) == 0 && n.origin == ""
		u.Moved = u.Moved || n.origin != "" || len(n.purges) > 0
		return u
	}
	u.Bytes = n.hasContent() && (n.contGen > n.baseGen() || n.base() == nil)
	u.New = len(u.Stored) == 0
	u.Moved = u.Moved || len(u.Stored) > 0 && len(u.Stored) < len(want)
	return u
}
