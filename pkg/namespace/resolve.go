package namespace

import (
	"fmt"
	"slices"
	"strings"

	"github.com/csi-s3/csi-s3/pkg/inode"
	"github.com/csi-s3/csi-s3/pkg/s3"
)

// get returns a live node.
func (t *tree) get(ino inode.Ino) (*node, error) {
	n := t.nodes[ino]
	if n == nil {
		return nil, fmt.Errorf("inode %d: %w", ino, ErrStale)
	}
	return n, nil
}

func (t *tree) getDir(ino inode.Ino) (*node, error) {
	n, err := t.get(ino)
	if err == nil && !n.isDir() {
		return nil, fmt.Errorf("inode %d: %w", ino, ErrNotDir)
	}
	return n, err
}

// Get returns the node, or ErrStale.
func (t *Tree) Get(ino inode.Ino) (Node, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	n, err := t.get(ino)
	if err != nil {
		return Node{}, err
	}
	return n.copyOut(), nil
}

// Resolve looks name up in dir.
func (t *Tree) Resolve(dir inode.Ino, name string) (Resolution, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	d, err := t.getDir(dir)
	if err != nil {
		return Resolution{}, err
	}
	r := Resolution{Version: d.version}
	if c := d.children[name]; c != nil {
		r.Node, r.Found = c.copyOut(), true
		if p, ok := t.remotePrefix(d); ok && !c.tracked {
			r.Key = p + s3.Key(name)
		}
		return r, nil
	}
	p, ok := t.remotePrefix(d)
	if !ok || len(d.links) == 0 && d != t.root {
		r.Absent = true
		return r, nil
	}
	r.Key = p + s3.Key(name)
	if t.hidden(r.Key) || t.hidden(r.Key+"/") {
		r.Absent = true
	}
	return r, nil
}

// hidden says that a key of the bucket does not count: a tracked inode owns it, or a directory has left it.
func (t *tree) hidden(key s3.Key) bool { return t.owner[key] != nil || t.left(key) }

// left says that a directory has left a prefix, or has begun to move there.
func (t *tree) left(prefix s3.Key) bool {
	return t.anyLeft(func(p s3.Key) bool { return p == prefix })
}

// leftBelow is left of any prefix below one.
func (t *tree) leftBelow(prefix s3.Key) bool {
	return t.anyLeft(func(p s3.Key) bool { return isUnder(p, prefix) })
}

func (t *tree) anyLeft(is func(prefix s3.Key) bool) bool {
	return t.anyMoved(func(d *node) bool {
		return d.origin != "" && is(d.origin) || d.heading != "" && is(d.heading) || slices.ContainsFunc(d.purges, func(p purge) bool { return is(p.src) })
	})
}

// anyMoved says that a directory that has left a place is so.
func (t *tree) anyMoved(is func(d *node) bool) bool {
	for d := range t.moved {
		if is(d) {
			return true
		}
	}
	return false
}

// List returns what the tree knows of a directory.
func (t *Tree) List(dir inode.Ino) (Listing, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	d, err := t.getDir(dir)
	if err != nil {
		return Listing{}, err
	}
	l := Listing{Version: d.version, Names: make(map[string]Child, len(d.children)), Hidden: map[s3.Key]bool{}}
	for name, c := range d.children {
		l.Names[name] = Child{c.attr.Ino, c.attr.Mode & inode.ModeType, c.tracked}
	}
	if len(d.links) == 0 && d != t.root {
		return l, nil
	}
	if l.Prefix, l.Remote = t.remotePrefix(d); !l.Remote {
		return l, nil
	}
	for key := range t.beside[l.Prefix] {
		l.Hidden[key] = true
	}
	for m := range t.moved {
		for _, key := range []s3.Key{m.origin, m.heading} {
			if key != "" {
				l.Hidden[key] = true
			}
		}
		for _, p := range m.purges {
			l.Hidden[p.src] = true
		}
	}
	return l, nil
}

// Learn adds a name that the bucket holds, or refreshes what is known of it. version is Resolve's: ErrChanged when the
// directory changed since. A file whose ETag changed gets a new inode number.
func (t *Tree) Learn(dir inode.Ino, name string, version uint64, r Remote) (Node, error) {
	t.mu.Lock()
	defer t.unlock()
	d, err := t.getDir(dir)
	if err != nil {
		return Node{}, err
	}
	if d.version != version {
		return Node{}, ErrChanged
	}
	if c := d.children[name]; c != nil {
		if c.tracked || c.isDir() && r.IsDir {
			return c.copyOut(), nil
		}
		if !c.isDir() && !r.IsDir && len(c.objs) > 0 && c.objs[0].etag == r.Info.ETag {
			if !c.known && r.Known {
				t.setAttr(c, r.Info)
				c.objs[0].id = r.Info.Meta[MetaWriteID]
			}
			return c.copyOut(), nil
		}
		t.replaced(c)
	}
	p, ok := t.remotePrefix(d)
	if !ok {
		return Node{}, ErrChanged
	}
	n := t.newNode()
	if t.next > t.limit {
		if err := t.append(); err != nil {
			return Node{}, err
		}
	}
	n.attr.Mode = inode.ModeRegular
	if r.IsDir {
		n.attr.Mode = inode.ModeDir
		n.children = map[string]*node{}
	}
	n.links = []link{{d, name}}
	d.children[name] = n
	t.setAttr(n, r.Info)
	n.known = r.Known
	key := p + s3.Key(name)
	if r.IsDir {
		key += "/"
	}
	if !r.IsDir || r.Info.ETag != "" {
		n.objs = []object{{key: key, etag: r.Info.ETag, size: r.Info.Size, contGen: n.contGen, metaGen: n.metaGen, id: r.Info.Meta[MetaWriteID]}}
	}
	if d.idle != nil {
		t.idle.Remove(d.idle)
		d.idle = nil
	}
	t.rest(n)
	return n.copyOut(), nil
}

// Unlearn forgets a name that was learned from the bucket and is not there any more. version is Resolve's: ErrChanged
// when the directory changed since, or the name has changes of its own. A name that is not known is success.
func (t *Tree) Unlearn(dir inode.Ino, name string, version uint64) error {
	t.mu.Lock()
	defer t.unlock()
	d, err := t.getDir(dir)
	if err != nil {
		return err
	}
	c := d.children[name]
	switch {
	case d.version != version, c != nil && c.tracked:
		return ErrChanged
	case c != nil:
		t.replaced(c)
	}
	return nil
}

// Place is the key that a file called name would have in dir, ErrNotExist when dir was removed. A directory's has a
// slash more.
func (t *Tree) Place(dir inode.Ino, name string) (s3.Key, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	d, err := t.getDir(dir)
	if err != nil {
		return "", err
	}
	if d != t.root && len(d.links) == 0 {
		return "", fmt.Errorf("directory %d was removed: %w", dir, ErrNotExist)
	}
	return t.wantPrefix(d) + s3.Key(name), nil
}

// Parent is the directory in which an inode is called name; ok is false when there is none.
func (t *Tree) Parent(ino inode.Ino, name string) (dir inode.Ino, ok bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if n := t.nodes[ino]; n != nil {
		for _, l := range n.links {
			if l.name == name {
				return l.dir.attr.Ino, true
			}
		}
	}
	return 0, false
}

// setAttr takes a node's attributes from its object.
func (t *tree) setAttr(n *node, info s3.Info) {
	ino := n.attr.Ino
	n.attr, n.target, n.xattrs, n.extra = decodeAttr(info, n.isDir(), codecDefaults{t.opt.Uid, t.opt.Gid, t.opt.FileMode, t.opt.DirMode})
	n.attr.Ino = ino
	n.contentType = info.ContentType
	n.known = true
}

// replaced takes a volatile node out of its directory: the bucket has something else under its name.
func (t *tree) replaced(n *node) {
	for _, c := range n.children {
		t.replaced(c)
	}
	for _, l := range n.links {
		delete(l.dir.children, l.name)
	}
	n.links = nil
	n.children = nil
	t.drop(n)
}

// AttrKey is the key whose HEAD tells the attributes of a node that is not Known: the object, or the marker of a
// directory.
func (t *Tree) AttrKey(ino inode.Ino) (s3.Key, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	n, err := t.get(ino)
	if err != nil {
		return "", err
	}
	return t.attrKey(n)
}

func (t *tree) attrKey(n *node) (s3.Key, error) {
	switch {
	case n == t.root:
		return t.wantKeys(n)[0], nil
	case n.isDir():
		p, ok := t.remotePrefix(n)
		if !ok {
			return "", fmt.Errorf("inode %d: %w", n.attr.Ino, ErrStale)
		}
		return p, nil
	case len(n.objs) == 0:
		return "", fmt.Errorf("inode %d: %w", n.attr.Ino, ErrStale)
	}
	return n.objs[0].key, nil
}

// LearnAttr gives the attributes of a node that is not Known yet, from a HEAD of what AttrKey named: ErrChanged when it
// would name another key by now. A nil info says that the directory has no marker.
func (t *Tree) LearnAttr(ino inode.Ino, key s3.Key, info *s3.Info) (Node, error) {
	t.mu.Lock()
	defer t.unlock()
	n, err := t.get(ino)
	if err != nil || n.known {
		if err != nil {
			return Node{}, err
		}
		return n.copyOut(), nil
	}
	switch now, err := t.attrKey(n); {
	case err != nil:
		return Node{}, err
	case now != key:
		return Node{}, ErrChanged
	case info == nil && !n.isDir():
		return Node{}, fmt.Errorf("inode %d: %w", ino, ErrStale)
	case info == nil:
		n.known = true
		return n.copyOut(), nil
	}
	t.setAttr(n, *info)
	if n.objAt(key) == nil {
		n.objs = nil
	}
	n.dropObj(key)
	n.objs = append(n.objs, object{key: key, etag: info.ETag, size: info.Size, contGen: n.contGen, metaGen: n.metaGen, id: info.Meta[MetaWriteID]})
	if n.tracked {
		n.wantMarker = n.isDir()
		t.claim(key, n)
		if err := t.append(n); err != nil {
			return Node{}, err
		}
	}
	return n.copyOut(), nil
}

// Source of a file; ok is false when the bucket holds nothing of it.
func (t *Tree) Source(ino inode.Ino) (src Source, ok bool, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	n, err := t.get(ino)
	if err != nil {
		return Source{}, false, err
	}
	b := n.base()
	if b == nil {
		return Source{}, false, nil
	}
	return Source{b.key, b.etag, b.size}, true, nil
}

// Xattrs returns a copy of the user.* attributes, by name with the prefix.
func (t *Tree) Xattrs(ino inode.Ino) (map[string][]byte, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	n, err := t.get(ino)
	if err != nil {
		return nil, err
	}
	x := make(map[string][]byte, len(n.xattrs))
	for k, v := range n.xattrs {
		x[k] = append([]byte(nil), v...)
	}
	return x, nil
}

// Opened counts an open handle of an inode: while there is one, its bytes stay.
func (t *Tree) Opened(ino inode.Ino) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	n, err := t.get(ino)
	if err != nil {
		return err
	}
	if len(n.links) == 0 && n != t.root && !n.tracked {
		return fmt.Errorf("inode %d was removed: %w", ino, ErrStale)
	}
	n.opens++
	t.rest(n)
	return nil
}

// Released takes one open handle back.
func (t *Tree) Released(ino inode.Ino) {
	t.mu.Lock()
	defer t.unlock()
	n := t.nodes[ino]
	if n == nil || n.opens == 0 {
		return
	}
	if n.opens--; n.opens == 0 {
		t.schedule(n, t.dueAt(n))
		t.unblock()
		t.rest(n)
	}
}

// Looked counts n lookups by the kernel.
func (t *Tree) Looked(ino inode.Ino, count uint64) {
	t.mu.Lock()
	defer t.unlock()
	if n := t.nodes[ino]; n != nil {
		n.lookups += count
		t.rest(n)
	}
}

// Forget drops lookups (FUSE_FORGET).
func (t *Tree) Forget(ino inode.Ino, count uint64) {
	t.mu.Lock()
	defer t.unlock()
	n := t.nodes[ino]
	if n == nil {
		return
	}
	n.lookups -= min(count, n.lookups)
	t.rest(n)
}

// rest puts a volatile node that nobody refers to on the idle list, or takes it off, and forgets the oldest beyond the
// limit.
func (t *tree) rest(n *node) {
	free := !n.tracked && n.lookups == 0 && n.opens == 0 && len(n.children) == 0 && n != t.root
	switch {
	case free && len(n.links) == 0:
		t.drop(n)
	case free && n.idle == nil:
		n.idle = t.idle.PushBack(n)
	case !free && n.idle != nil:
		t.idle.Remove(n.idle)
		n.idle = nil
	}
	for t.idle.Len() > keepIdle {
		t.drop(t.idle.Front().Value.(*node))
	}
}

// drop forgets a volatile node. One that the kernel still refers to stays, without a name, until it is forgotten.
func (t *tree) drop(n *node) {
	if n.idle != nil {
		t.idle.Remove(n.idle)
		n.idle = nil
	}
	for _, l := range n.links {
		delete(l.dir.children, l.name)
	}
	parents := n.links
	n.links = nil
	if n.lookups == 0 && n.opens == 0 {
		delete(t.nodes, n.attr.Ino)
		t.gone = append(t.gone, n.attr.Ino)
	}
	for _, l := range parents {
		t.rest(l.dir)
	}
}

// under says that the key lies below a prefix.
func isUnder(key, prefix s3.Key) bool { return strings.HasPrefix(string(key), string(prefix)) }
