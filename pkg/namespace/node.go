package namespace

import (
	"container/list"
	"strings"
	"time"

	"github.com/csi-s3/csi-s3/pkg/inode"
	"github.com/csi-s3/csi-s3/pkg/s3"
)

// object is what the tree believes to be in the bucket under key.
type object struct {
	key  s3.Key
	etag s3.ETag
	size int64
	// contGen and metaGen say which state of the node the object has: equal to the node's means current.
	contGen, metaGen uint64
	// unsure: a request that makes, replaces or removes it was sent, and nothing is known of its outcome. It has no state.
	// It is ours when it carries our write-id or has this etag: that of what was to be copied, replaced or removed.
	unsure bool
	// id is the write-id of an object that this process has made or looked at. It is not in the journal.
	// told says what has named its ETag.
	id   string
	told Answer
	// spill is not 0 for an object that holds a part of the file's bytes, sent while the file is written.
	// at is where in the file it begins.
	spill uint64
	at    int64
}

// link is one name of a node.
type link struct {
	dir  *node
	name string
}

// purge is a prefix that a directory has left and that must be emptied: dst is where the Move that came before took its
// objects, "" when the directory was removed.
type purge struct{ src, dst s3.Key }

// node is one inode. All fields are guarded by tree.mu.
//
// A volatile node was learned from the bucket and may be forgotten. A tracked one has, or lately had, changes that the
// bucket does not hold: its state is in the journal, and the directories above it are tracked with it, so that a
// replay can put it back in its place.
type node struct {
	attr        inode.Attr
	known       bool
	target      string
	contentType string
	xattrs      map[string][]byte
	extra       map[string]string // metadata of others, kept as it is
	links       []link            // empty: removed (or the root)
	unnamed     bool              // made without a name, by Tmpfile: Link may give it one
	kept        bool              // a barrier covered the file when it was new and empty

	// Of a directory.
	children   map[string]*node
	version    uint64
	local      bool   // the bucket holds nothing below it that the tree does not know
	wantMarker bool   // its marker object shall exist
	origin     s3.Key // where its untracked children lie, when that is not the place that its name says
	heading    s3.Key // where a Move has begun to copy them; some may be there
	purges     []purge
	below      int // tracked children

	tracked          bool
	objs             []object
	metaGen, contGen uint64 // raised by each change of the attributes, of the bytes

	lookups uint64
	opens   int
	idle    *list.Element // in tree.idle: volatile, not referenced

	// Of a tracked node: the work that it waits for.
	changed     uint64 // tree.seq of the oldest change that the bucket does not hold, 0: settled
	first, last time.Time
	nextChanged uint64 // as changed and first, of changes made since there is an aim
	nextFirst   time.Time
	aimed       bool // there is an aim: the state that all names are brought to, whatever is changed meanwhile
	aimCont     uint64
	aimMeta     uint64
	sent        *s3.Attributes // of a file with several names: those that its newest bytes were sent with
	sentCont    uint64         // and the states that they are of
	sentMeta    uint64
	urgent      bool
	spilling    bool // a part of its bytes shall go to an object of its own, to make room
	early       bool // ... because it grows: there is room
	whole       bool // that was not possible
	save        bool // its remote bytes stand where another node must write: move them out of the way
	running     *Task
	retry       time.Time
	attempts    int
	lastErr     error
	due         time.Time
	heapIndex   int // in tree.queue, -1 when not queued
}

func (n *node) isDir() bool { return n.attr.IsDir() }

// hasContent says that the object's body is the cached file, not the attributes alone.
func (n *node) hasContent() bool { return n.attr.IsRegular() }

// baseGen is the newest state of the bytes that an object holds, 0 when there is none.
func (n *node) baseGen() uint64 {
	var g uint64
	for _, o := range n.objs {
		g = max(g, o.contGen)
	}
	return g
}

// behind says that the object under a name does not show the aim yet.
func (n *node) behind(key s3.Key) bool {
	o := n.objAt(key)
	return o == nil || o.unsure || o.metaGen < n.aimMeta || n.hasContent() && o.contGen < n.aimCont
}

// base is the object that backs the ranges that are not dirty: if there is a choice, not one that is being deleted.
func (n *node) base() *object {
	g := n.baseGen()
	var b *object
	for i := range n.objs {
		o := &n.objs[i]
		if g == 0 || o.contGen != g {
			continue
		}
		if n.running == nil || n.running.Verb != Delete || n.running.Key != o.key {
			return o
		}
		b = o
	}
	return b
}

func (n *node) objAt(key s3.Key) *object {
	for i := range n.objs {
		if n.objs[i].key == key {
			return &n.objs[i]
		}
	}
	return nil
}

func (n *node) dropObj(key s3.Key) {
	for i := range n.objs {
		if n.objs[i].key == key {
			n.objs = append(n.objs[:i:i], n.objs[i+1:]...)
			return
		}
	}
}

// inside says that the node is d or below it by one of its names.
func (n *node) inside(d *node) bool {
	for n != nil {
		if n == d {
			return true
		}
		if len(n.links) == 0 {
			return false
		}
		for _, l := range n.links[1:] {
			if l.dir.inside(d) {
				return true
			}
		}
		n = n.links[0].dir
	}
	return false
}

// copyOut is the node as others see it.
func (n *node) copyOut() Node {
	a := n.attr
	if n.isDir() {
		a.Nlink = 2
		for _, c := range n.children {
			if c.isDir() {
				a.Nlink++
			}
		}
	} else {
		a.Nlink = uint32(len(n.links))
	}
	return Node{Attr: a, Known: n.known, Target: n.target, Tracked: n.tracked, Dirty: n.hasContent() && n.contGen > n.baseGen(), Open: n.opens}
}

// Keys.

// sysDir is the directory at the volume's root that is ours and invisible.
const sysDir = ".csi-s3/"

// wantPrefix is where a directory's children belong by its name.
func (t *tree) wantPrefix(d *node) s3.Key {
	if d == t.root {
		return t.opt.Prefix
	}
	l := d.links[0]
	return t.wantPrefix(l.dir) + s3.Key(l.name) + "/"
}

// remotePrefix is where those children of d are that no one tracks; ok is false when there are none.
func (t *tree) remotePrefix(d *node) (prefix s3.Key, ok bool) {
	switch {
	case d == t.root:
		return t.opt.Prefix, true
	case d.local:
		return "", false
	case d.origin != "":
		return d.origin, true
	case len(d.links) == 0:
		return "", false
	}
	p, ok := t.remotePrefix(d.links[0].dir)
	return p + s3.Key(d.links[0].name) + "/", ok
}

// wantKeys are the keys that a node's objects shall have: one for each name, in the order of the links.
func (t *tree) wantKeys(n *node) []s3.Key {
	if n == t.root {
		return []s3.Key{t.opt.Prefix + sysDir + "root"}
	}
	keys := make([]s3.Key, 0, len(n.links))
	for _, l := range n.links {
		k := t.wantPrefix(l.dir) + s3.Key(l.name)
		if n.isDir() {
			k += "/"
		}
		keys = append(keys, k)
	}
	return keys
}

// orphanKey is where bytes are kept that have lost their place.
func (t *tree) orphanKey(n *node) s3.Key {
	return t.opt.Prefix + sysDir + "orphans/" + s3.Key(t.opt.WriterID) + "-" + s3.Key(itoa(uint64(n.attr.Ino)))
}

// parentPrefix splits a key into its directory's prefix and the rest (with the slash of a marker).
func parentPrefix(key s3.Key) (dir s3.Key, name string) {
	s := strings.TrimSuffix(string(key), "/")
	i := strings.LastIndexByte(s, '/') + 1
	return key[:i], string(key[i:])
}

// claim enters a tracked node's object into the table of owners; release takes it out.
func (t *tree) claim(key s3.Key, n *node) {
	if t.owner[key] == nil {
		t.count(key, 1)
	}
	t.owner[key] = n
}

func (t *tree) release(key s3.Key, n *node) {
	if t.owner[key] == n {
		delete(t.owner, key)
		t.count(key, -1)
	}
}

// count keeps, for each directory prefix, how many owned keys lie below it.
func (t *tree) count(key s3.Key, by int) {
	for p := key; ; {
		dir, _ := parentPrefix(p)
		if dir == "" {
			break
		}
		if t.under[dir] += by; t.under[dir] == 0 {
			delete(t.under, dir)
		}
		p = dir
	}
	dir, _ := parentPrefix(key)
	m := t.beside[dir]
	if by > 0 {
		if m == nil {
			m = map[s3.Key]bool{}
			t.beside[dir] = m
		}
		m[key] = true
	} else if delete(m, key); len(m) == 0 {
		delete(t.beside, dir)
	}
}

// claimant is the node whose name asks for the key, if it is not n: it will overwrite what is there.
func (t *tree) claimant(key s3.Key, n *node) *node {
	rest, ok := strings.CutPrefix(string(key), string(t.opt.Prefix))
	if !ok || strings.HasPrefix(rest, sysDir) {
		return nil
	}
	isDir := strings.HasSuffix(rest, "/")
	d := t.root
	parts := strings.Split(strings.TrimSuffix(rest, "/"), "/")
	for i, p := range parts {
		c := d.children[p]
		if c == nil {
			return nil
		}
		if i == len(parts)-1 {
			if c == n || c.isDir() != isDir || !c.tracked || (c.isDir() && !c.wantMarker) {
				return nil
			}
			return c
		}
		if !c.isDir() {
			return nil
		}
		d = c
	}
	return nil
}
