package namespace

import (
	"strings"

	"github.com/csi-s3/csi-s3/pkg/inode"
	"github.com/csi-s3/csi-s3/pkg/s3"
)

// Held is what the tree alone says of the volume's size, at a moment.
type Held struct {
	Bytes, Inodes int64 // of what is tracked and has a name; a directory counts when it has a marker, or shall have one

	keys     map[s3.Key]bool
	prefixes []s3.Key
}

// Has says that an object of the bucket does not count beside Held: it is an object of something tracked, in whatever
// state, or on its way out of the bucket, or the second of two copies.
func (h Held) Has(key s3.Key) bool {
	if h.keys[key] {
		return true
	}
	for _, p := range h.prefixes {
		if strings.HasPrefix(string(key), string(p)) {
			return true
		}
	}
	return false
}

// Held counts what is tracked.
func (t *Tree) Held() Held {
	t.mu.Lock()
	defer t.mu.Unlock()
	h := Held{keys: map[s3.Key]bool{}}
	for _, n := range t.nodes {
		if !n.tracked {
			continue
		}
		for _, o := range n.objs {
			h.keys[o.key] = true
		}
		for _, p := range n.purges {
			h.prefixes = append(h.prefixes, p.src)
		}
		if n.heading != "" {
			h.prefixes = append(h.prefixes, n.heading)
		}
		if len(n.links) == 0 {
			continue
		}
		// Its objects may come while the bucket is listed.
		for _, key := range t.wantKeys(n) {
			h.keys[key] = true
		}
		switch {
		case !n.isDir():
			h.Inodes++
		case n.wantMarker || len(n.objs) > 0:
			h.Inodes++
		}
		if n.attr.Mode&inode.ModeType == inode.ModeRegular {
			h.Bytes += n.attr.Size
		}
	}
	return h
}
