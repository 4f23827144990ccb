package namespace

import (
	"fmt"

	"github.com/csi-s3/csi-s3/pkg/inode"
	"github.com/csi-s3/csi-s3/pkg/journal"
)

// maxLinkBytes is what the names of an inode, and an old and a new object for each, may take in its record. It is well
// below journal.MaxRecord, because a directory above may get a longer name.
const maxLinkBytes = journal.MaxRecord / 4

// linkable says that the record of a node has room for another name.
func (t *tree) linkable(n *node) bool {
	size := 0
	for i, key := range t.wantKeys(n) {
		size += len(n.links[i].name) + 2*(len(key)+64)
	}
	return size < maxLinkBytes
}

// Link gives ino another name. ErrTooManyLinks when it has about a thousand.
func (t *Tree) Link(op Op, ino, dir inode.Ino, name string, version uint64) (Node, error) {
	t.mu.Lock()
	defer t.unlock()
	d, err := t.target(dir, name, version)
	if err != nil {
		return Node{}, err
	}
	n, err := t.get(ino)
	switch {
	case err != nil:
		return Node{}, err
	case n.isDir():
		return Node{}, fmt.Errorf("%q: %w", name, ErrIsDir)
	case len(n.links) == 0 && !n.unnamed:
		return Node{}, fmt.Errorf("inode %d was removed: %w", ino, ErrNotExist)
	case !t.linkable(n):
		return Node{}, fmt.Errorf("%q: inode %d has %d names: %w", name, ino, len(n.links), ErrTooManyLinks)
	}
	if err := t.fits(n, n.attr, n.xattrs); err != nil {
		return Node{}, fmt.Errorf("%q: %w", name, err)
	}
	now := t.opt.Now()
	n.unnamed = false
	fresh := t.track(n)
	fresh = append(fresh, t.bind(d, name, n, now)...)
	n.attr.Ctime = now
	t.touch(n, now)
	if err := t.appendOp(op, ino, unique(append(fresh, n))...); err != nil {
		return Node{}, err
	}
	return n.copyOut(), nil
}
