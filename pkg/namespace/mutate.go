package namespace

import (
	"fmt"
	"slices"
	"time"

	"github.com/csi-s3/csi-s3/pkg/inode"
	"github.com/csi-s3/csi-s3/pkg/s3"
)

// target checks that a name can be made in a directory.
func (t *tree) target(dir inode.Ino, name string, version uint64) (*node, error) {
	if err := t.ready(); err != nil {
		return nil, err
	}
	d, err := t.getDir(dir)
	if err != nil {
		return nil, err
	}
	switch {
	case len(d.links) == 0 && d != t.root:
		return nil, fmt.Errorf("%q: directory was removed: %w", name, ErrNotExist)
	case !ValidName(name):
		return nil, fmt.Errorf("%q: %w", name, ErrInvalid)
	case d.children[name] != nil:
		return nil, fmt.Errorf("%q: %w", name, ErrExist)
	case d.version != version:
		return nil, ErrChanged
	}
	return d, nil
}

// bind enters a tracked node under a name and returns the directories that became tracked by it.
func (t *tree) bind(d *node, name string, n *node, now time.Time) []*node {
	fresh := t.track(d)
	d.children[name] = n
	d.below++
	n.links = append(n.links, link{d, name})
	t.changedDir(d, now)
	return fresh
}

// changedDir notes in memory that the names in a directory changed.
func (t *tree) changedDir(d *node, now time.Time) {
	d.version++
	d.attr.Mtime, d.attr.Ctime = now, now
}

// Create makes a new inode of attr.Mode's type under a name: file, directory, symlink (target) or special file.
// attr's mode, owner, rdev and times are taken. ErrExist when the name exists in the tree: the caller has made sure
// with Resolve and the bucket that it does not exist there. One frame of the journal, like every mutation below; on
// return it survives a kill of the process.
func (t *Tree) Create(op Op, dir inode.Ino, name string, version uint64, attr inode.Attr, target string) (Node, error) {
	t.mu.Lock()
	defer t.unlock()
	d, err := t.target(dir, name, version)
	if err != nil {
		return Node{}, err
	}
	now := t.opt.Now()
	n := t.newNode()
	attr.Ino = n.attr.Ino
	n.attr, n.target = attr, target
	n.known, n.tracked = true, true
	n.attr.Size = 0
	switch attr.Mode & inode.ModeType {
	case inode.ModeDir:
		n.children, n.local, n.wantMarker, n.attr.Size = map[string]*node{}, true, true, 4096
	case inode.ModeSymlink:
		n.attr.Size = int64(len(target))
	}
	if err := t.fits(n, n.attr, nil); err != nil {
		delete(t.nodes, n.attr.Ino)
		return Node{}, fmt.Errorf("%q: %w", name, err)
	}
	fresh := t.bind(d, name, n, now)
	t.touch(n, now)
	if err := t.appendOp(op, n.attr.Ino, append(fresh, n)...); err != nil {
		return Node{}, err
	}
	return n.copyOut(), nil
}

// fits says with ErrTooMany that a node's object could not hold its attributes: to be asked before each change that makes
// such an object, since afterwards there is nobody to tell. Others may have filled the object's metadata with theirs.
func (t *tree) fits(n *node, attr inode.Attr, xattrs map[string][]byte) error {
	_, err := encodeAttr(attr, n.target, xattrs, n.extra, t.opt.WriterID+"-18446744073709551615-18446744073709551615")
	return err
}

// Tmpfile makes a regular file without a name, as O_TMPFILE: it ends with its last open handle unless Link gives it a
// name before. The handle that it is made for is counted as by Opened. After a crash it is gone.
func (t *Tree) Tmpfile(op Op, dir inode.Ino, attr inode.Attr) (Node, error) {
	t.mu.Lock()
	defer t.unlock()
	if err := t.ready(); err != nil {
		return Node{}, err
	}
	d, err := t.getDir(dir)
	if err != nil {
		return Node{}, err
	}
	if len(d.links) == 0 && d != t.root {
		return Node{}, fmt.Errorf("directory was removed: %w", ErrNotExist)
	}
	n := t.newNode()
	attr.Ino = n.attr.Ino
	n.attr = attr
	n.attr.Size = 0
	n.known, n.tracked, n.unnamed, n.opens = true, true, true, 1
	if err := t.appendOp(op, n.attr.Ino, n); err != nil {
		return Node{}, err
	}
	return n.copyOut(), nil
}

func unique(nodes []*node) []*node {
	seen := make(map[*node]bool, len(nodes))
	return slices.DeleteFunc(nodes, func(n *node) bool {
		dup := seen[n]
		seen[n] = true
		return dup
	})
}

// pin makes a node tracked without the directories above it: it is about to lose its name.
func (t *tree) pin(n *node) {
	if n.tracked {
		return
	}
	links := n.links
	n.links = nil
	t.track(n)
	n.links = links
	for _, l := range links {
		l.dir.below++
	}
}

// unlink takes a name from a pinned node and returns the nodes whose records change. A node without a name ends when
// nothing of it is in the bucket and nobody has it open.
func (t *tree) unlink(d *node, name string) []*node {
	now := t.opt.Now()
	n := d.children[name]
	delete(d.children, name)
	d.below--
	n.links = slices.DeleteFunc(n.links, func(l link) bool { return l.dir == d && l.name == name })
	t.changedDir(d, now)
	n.attr.Ctime = now
	t.touch(n, now)
	changed := []*node{n}
	if len(n.links) == 0 && len(n.objs) == 0 && len(n.purges) == 0 && n.opens == 0 && n.running == nil {
		t.end(n)
	}
	if d != t.root && !d.local && !d.wantMarker && len(d.objs) == 0 {
		// A directory that exists only as a prefix of keys must not vanish with its last one.
		changed = append(changed, t.track(d)...)
		d.wantMarker = true
		d.metaGen++
		t.touch(d, now)
		changed = append(changed, d)
	}
	return changed
}

// end finishes a node that has no name and nothing in the bucket.
func (t *tree) end(n *node) {
	t.settled(n)
	n.tracked = false
	for _, o := range n.objs {
		t.release(o.key, n)
	}
	n.objs = nil
	delete(t.moved, n)
	t.drop(n)
}

// named finds a name for a mutation.
func (t *tree) named(dir inode.Ino, name string) (d, n *node, err error) {
	if err := t.ready(); err != nil {
		return nil, nil, err
	}
	if d, err = t.getDir(dir); err != nil {
		return nil, nil, err
	}
	if n = d.children[name]; n == nil {
		return nil, nil, fmt.Errorf("%q: %w", name, ErrNotExist)
	}
	return d, n, nil
}

// finish journals a mutation that took names away and lets go of directories that need no tracking any more.
func (t *tree) finish(op Op, ino inode.Ino, nodes []*node, left ...*node) error {
	t.unblock()
	for _, d := range left {
		nodes = append(nodes, t.relax(d)...)
	}
	return t.appendOp(op, ino, unique(nodes)...)
}

// Unlink removes a name that Resolve or Learn found; not of a directory (ErrIsDir). An inode that is open lives on.
func (t *Tree) Unlink(op Op, dir inode.Ino, name string) error {
	t.mu.Lock()
	defer t.unlock()
	d, n, err := t.named(dir, name)
	if err != nil {
		return err
	}
	if n.isDir() {
		return fmt.Errorf("%q: %w", name, ErrIsDir)
	}
	t.pin(n)
	return t.finish(op, n.attr.Ino, t.unlink(d, name), d)
}

// Rmdir removes an empty directory: ErrNotEmpty when the tree knows names in it. The caller has made sure that the
// bucket shows none either.
func (t *Tree) Rmdir(op Op, dir inode.Ino, name string) error {
	t.mu.Lock()
	defer t.unlock()
	d, n, err := t.named(dir, name)
	if err != nil {
		return err
	}
	if err := removable(n, name); err != nil {
		return err
	}
	return t.finish(op, n.attr.Ino, t.rmdir(d, name), d)
}

func removable(n *node, name string) error {
	if !n.isDir() {
		return fmt.Errorf("%q: %w", name, ErrNotDir)
	}
	if len(n.children) > 0 {
		return fmt.Errorf("%q: %w", name, ErrNotEmpty)
	}
	return nil
}

// rmdir takes away a directory, and leaves its prefix to be purged of keys that have no name.
func (t *tree) rmdir(d *node, name string) []*node {
	n := d.children[name]
	t.pin(n)
	if p, ok := t.remotePrefix(n); ok {
		n.purges = append(n.purges, purge{src: p})
		t.moved[n] = struct{}{}
	}
	t.leavePlace(n)
	n.origin, n.local = "", false
	return t.unlink(d, name)
}

// Rename moves a name. Both names were resolved (and learned) before; the rules of rename(2) for kinds are checked here,
// emptiness of a replaced directory as in Rmdir. flags: 1 is NOREPLACE, 2 is EXCHANGE.
func (t *Tree) Rename(op Op, oldDir inode.Ino, oldName string, newDir inode.Ino, newName string, flags uint32) error {
	t.mu.Lock()
	defer t.unlock()
	od, n, err := t.named(oldDir, oldName)
	if err != nil {
		return err
	}
	nd, err := t.getDir(newDir)
	if err != nil {
		return err
	}
	x := nd.children[newName]
	exchange := flags&2 != 0
	switch {
	case !ValidName(newName):
		return fmt.Errorf("%q: %w", newName, ErrInvalid)
	case len(nd.links) == 0 && nd != t.root:
		return fmt.Errorf("%q: directory was removed: %w", newName, ErrNotExist)
	case flags&1 != 0 && x != nil:
		return fmt.Errorf("%q: %w", newName, ErrExist)
	case exchange && x == nil:
		return fmt.Errorf("%q: %w", newName, ErrNotExist)
	case n.isDir() && nd.inside(n), exchange && x.isDir() && od.inside(x):
		return fmt.Errorf("%q into itself: %w", oldName, ErrInvalid)
	case n == x:
		return nil
	}
	if x != nil && !exchange {
		if n.isDir() {
			if err := removable(x, newName); err != nil {
				return err
			}
		} else if x.isDir() {
			return fmt.Errorf("%q: %w", newName, ErrIsDir)
		}
	}
	for _, m := range []*node{n, x} {
		if m == nil || m == x && !exchange {
			continue
		}
		if err := t.fits(m, m.attr, m.xattrs); err != nil {
			return fmt.Errorf("%q: %w", oldName, err)
		}
	}
	now := t.opt.Now()
	changed := t.track(n)
	if exchange {
		changed = append(changed, t.track(x)...)
	}
	origin := t.origins(n)
	t.leavePlace(n)
	var xOrigin s3.Key
	switch {
	case exchange:
		xOrigin = t.origins(x)
		t.leavePlace(x)
		t.detach(nd, newName, now)
	case x != nil && x.isDir():
		changed = append(changed, t.rmdir(nd, newName)...)
	case x != nil:
		t.pin(x)
		changed = append(changed, t.unlink(nd, newName)...)
	}
	t.detach(od, oldName, now)
	changed = append(changed, t.bind(nd, newName, n, now)...)
	n.attr.Ctime = now
	if exchange {
		changed = append(changed, t.bind(od, oldName, x, now)...)
		x.attr.Ctime = now
		t.settleOrigin(x, xOrigin)
		t.leaveCopies(x)
		t.touchAll(x, now)
		changed = append(changed, x)
	}
	t.settleOrigin(n, origin)
	t.leaveCopies(n)
	t.touchAll(n, now)
	if od != t.root && !od.local && !od.wantMarker && len(od.objs) == 0 {
		changed = append(changed, t.track(od)...)
		od.wantMarker = true
		od.metaGen++
		t.touch(od, now)
		changed = append(changed, od)
	}
	return t.finish(op, n.attr.Ino, append(changed, n), od)
}

// detach takes a name from a tracked node without ending it.
func (t *tree) detach(d *node, name string, now time.Time) {
	n := d.children[name]
	delete(d.children, name)
	d.below--
	n.links = slices.DeleteFunc(n.links, func(l link) bool { return l.dir == d && l.name == name })
	t.changedDir(d, now)
}

// origins is where a directory's untracked children lie now, "" when there are none (or it is no directory).
func (t *tree) origins(n *node) s3.Key {
	if !n.isDir() {
		return ""
	}
	p, _ := t.remotePrefix(n)
	return p
}

// settleOrigin notes where the untracked children of a renamed directory lie, unless its name says it already. While a
// Move of a directory above has them on its way, the directory goes by itself, also when it has come back: the Move
// passed over some of them meanwhile.
func (t *tree) settleOrigin(n *node, origin s3.Key) {
	if !n.isDir() || n.local {
		return
	}
	n.origin = ""
	if p, ok := t.remotePrefix(n); !ok || p != origin || n.heading != "" || len(t.copies(n, origin)) > 0 {
		n.origin = origin
	}
	t.noteMoved(n)
}

// leavePlace notes that a directory loses its place, and that what was stored there is not to make one of it until it has
// gone. What the directory has not brought there yet is the business of settleOrigin.
func (t *tree) leavePlace(n *node) {
	if !n.isDir() {
		return
	}
	origin := t.origins(n)
	leave := func(place s3.Key, seen func(prefix s3.Key) bool) {
		if origin != "" && isUnder(place, origin) {
			return // that is where its own children lie
		}
		others := func(d *node) bool {
			return slices.ContainsFunc(d.purges, func(p purge) bool { return seen(p.src) }) || (seen(d.origin) || seen(d.heading)) && !n.inside(d)
		}
		if (t.under[place] > 0 || t.leftBelow(place)) && !t.anyMoved(others) {
			n.purges = append(n.purges, purge{src: place})
		}
	}
	want := t.wantPrefix(n)
	p, remote := t.remotePrefix(n.links[0].dir)
	there := p + s3.Key(n.links[0].name) + "/"
	if remote {
		// Where its parent is looked for, one that sees to a place further up does not hide this one.
		leave(there, func(prefix s3.Key) bool { return prefix == there })
	}
	if !remote || there != want {
		// Elsewhere another directory that has left, or is on its way, sees to all that is there.
		leave(want, func(prefix s3.Key) bool { return prefix != "" && isUnder(want, prefix) })
	}
	t.noteMoved(n)
}

// copies are the places to which Moves of directories above have begun to copy what lies at origin.
func (t *tree) copies(n *node, origin s3.Key) []s3.Key {
	var at []s3.Key
	for d := range t.moved {
		if d != n && d.heading != "" && d.origin != "" && origin != d.origin && isUnder(origin, d.origin) {
			at = append(at, d.heading+origin[len(d.origin):])
		}
	}
	return at
}

// leaveCopies notes what a Move of a directory above may have copied of a renamed directory's children.
func (t *tree) leaveCopies(n *node) {
	if n.origin == "" {
		return
	}
	for _, at := range t.copies(n, n.origin) {
		if p := (purge{src: at, dst: n.origin}); !slices.Contains(n.purges, p) {
			n.purges = append(n.purges, p)
		}
	}
	t.noteMoved(n)
}

func (t *tree) noteMoved(n *node) {
	if n.origin != "" || len(n.purges) > 0 {
		t.moved[n] = struct{}{}
	} else {
		delete(t.moved, n)
	}
}

// touchAll notes that the keys of a node and of all tracked ones below it changed, and that no lookup under way below
// it may be believed.
func (t *tree) touchAll(n *node, now time.Time) {
	if n.tracked {
		t.touch(n, now)
	}
	n.version++
	for _, c := range n.children {
		t.touchAll(c, now)
	}
}

// apply is what becomes of attributes.
func (p Patch) apply(attr inode.Attr, now time.Time) inode.Attr {
	attr.Ctime = now
	for _, set := range []struct{ to, from *time.Time }{{&attr.Atime, p.Atime}, {&attr.Mtime, p.Mtime}, {&attr.Ctime, p.Ctime}} {
		if set.from != nil {
			*set.to = *set.from
		}
	}
	for _, set := range []struct{ to, from *uint32 }{{&attr.Uid, p.Uid}, {&attr.Gid, p.Gid}} {
		if set.from != nil {
			*set.to = *set.from
		}
	}
	if p.Mode != nil {
		attr.Mode = attr.Mode&inode.ModeType | *p.Mode&inode.ModePerm
	}
	return attr
}

// SetAttr changes attributes; ErrTooMany as in SetXattr. A change of atime alone never goes to the bucket.
func (t *Tree) SetAttr(op Op, ino inode.Ino, p Patch) (Node, error) {
	t.mu.Lock()
	defer t.unlock()
	n, err := t.get(ino)
	if err != nil {
		return Node{}, err
	}
	if err := t.ready(); err != nil {
		return Node{}, err
	}
	if p.Mode == nil && p.Uid == nil && p.Gid == nil && p.Mtime == nil && p.Ctime == nil {
		if p.Atime != nil {
			n.attr.Atime = *p.Atime
		}
		return n.copyOut(), nil
	}
	now := t.opt.Now()
	attr := p.apply(n.attr, now)
	if err := t.fits(n, attr, n.xattrs); err != nil {
		return Node{}, fmt.Errorf("inode %d: %w", ino, err)
	}
	n.attr = attr
	return t.changedMeta(op, n, now)
}

func (t *tree) changedMeta(op Op, n *node, now time.Time) (Node, error) {
	if len(n.links) == 0 && n != t.root {
		return n.copyOut(), nil // removed: nothing of it goes to the bucket any more
	}
	fresh := t.track(n)
	n.metaGen++
	n.wantMarker = n.isDir()
	t.touch(n, now)
	if err := t.appendOp(op, n.attr.Ino, unique(append(fresh, n))...); err != nil {
		return Node{}, err
	}
	return n.copyOut(), nil
}

// SetXattr sets (or with a nil value removes) an extended attribute. ErrTooMany when they would not fit.
func (t *Tree) SetXattr(op Op, ino inode.Ino, name string, value []byte) error {
	t.mu.Lock()
	defer t.unlock()
	n, err := t.get(ino)
	if err != nil {
		return err
	}
	if err := t.ready(); err != nil {
		return err
	}
	x := make(map[string][]byte, len(n.xattrs)+1)
	for k, v := range n.xattrs {
		x[k] = v
	}
	if value == nil {
		delete(x, name)
	} else {
		x[name] = append([]byte{}, value...)
	}
	if err := t.fits(n, n.attr, x); err != nil {
		return err
	}
	n.xattrs = x
	now := t.opt.Now()
	n.attr.Ctime = now
	_, err = t.changedMeta(op, n, now)
	return err
}

// BeginWrite must return before the first change of a file's bytes goes to the cache: from here on the tree tracks the
// file, journaled. It is cheap when the file is tracked already.
func (t *Tree) BeginWrite(ino inode.Ino) error {
	t.mu.Lock()
	defer t.unlock()
	n, err := t.get(ino)
	if err != nil {
		return err
	}
	if err := t.ready(); err != nil {
		return err
	}
	if !n.hasContent() {
		return fmt.Errorf("inode %d: %w", ino, ErrInvalid)
	}
	if n.tracked && n.contGen > n.baseGen() {
		return nil
	}
	return t.dirty(n)
}

// dirty makes a clean file one whose bytes the bucket does not have, journaled.
func (t *tree) dirty(n *node) error {
	if len(n.links) == 0 && !n.tracked {
		return fmt.Errorf("inode %d was removed: %w", n.attr.Ino, ErrStale)
	}
	if err := t.fits(n, n.attr, n.xattrs); err != nil {
		return fmt.Errorf("inode %d: %w", n.attr.Ino, err)
	}
	fresh := t.track(n)
	n.contGen++
	n.metaGen++
	t.touch(n, t.opt.Now())
	return t.append(unique(append(fresh, n))...)
}

// Written says that the bytes changed: size and mtime (and ctime) now. The cache has journaled them.
func (t *Tree) Written(ino inode.Ino, size int64, mtime time.Time) error {
	t.mu.Lock()
	defer t.unlock()
	n, err := t.get(ino)
	if err != nil {
		return err
	}
	n.attr.Size, n.attr.Mtime, n.attr.Ctime = size, mtime, mtime
	if !n.tracked || n.contGen <= n.baseGen() {
		// An upload was committed between BeginWrite and now: it does not hold this change.
		return t.dirty(n)
	}
	n.contGen++
	n.metaGen++
	t.touch(n, mtime)
	return nil
}
