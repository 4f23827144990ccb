package namespace

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/csi-s3/csi-s3/pkg/inode"
	"github.com/csi-s3/csi-s3/pkg/journal"
	"github.com/csi-s3/csi-s3/pkg/s3"
)

// Prepare fills the attributes from the inode as it is now; those of a Spill are the write-id alone, and a Copy of what another
// name was sent has the attributes that were sent with it. For Content it is called before the snapshot is taken: what is
// written after Prepare makes the inode dirty again, whether the snapshot has it or not.
func (t *Tree) Prepare(k *Task) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := k.n
	t.writes++
	id := fmt.Sprintf("%s-%d-%d-%d", t.opt.WriterID, n.attr.Ino, t.opt.Now().UnixNano(), t.writes)
	if k.Verb == Spill {
		k.Attr = s3.Attributes{Meta: map[string]string{MetaWriteID: id}}
		return nil
	}
	if k.again {
		k.Attr = s3.Attributes{Meta: maps.Clone(n.sent.Meta), ContentType: n.sent.ContentType}
		k.Attr.Meta[MetaWriteID], k.metaGen = id, n.sentMeta
		return nil
	}
	meta, err := encodeAttr(n.attr, n.target, n.xattrs, n.extra, id)
	if err != nil {
		return err
	}
	k.Attr = s3.Attributes{Meta: meta, ContentType: n.contentType}
	k.metaGen = n.metaGen
	if k.Content {
		k.contGen = n.contGen
	}
	if !n.aimed {
		n.aimed, n.aimCont, n.aimMeta = true, n.contGen, n.metaGen
	}
	return nil
}

// finishTask takes a task off its node and lets the node be planned again. Once the aim is reached, only what was changed since
// there is one is still to go. A task that was not committed ends the aim: there may be other names now.
func (t *tree) finishTask(k *Task, committed bool) {
	n := k.n
	for _, key := range k.keys() {
		delete(t.busy, key)
	}
	n.running = nil
	if committed && !t.complete(n) {
		return
	}
	if committed && n.nextChanged != 0 {
		n.changed, n.first, n.urgent = n.nextChanged, n.nextFirst, false
	}
	n.nextChanged, n.aimed = 0, false
}

// Commit records that the task was carried out and verified; info is the new object's (zero for Move and Purge; for
// Delete that of an object that was left because it is not ours).
// write must add the records to the journal as one frame, with the caller's own if it has any (cache.Snapshot.Commit);
// nil appends them alone. moved gives, for Move, the copies by their source key. The task is ended in any case; after an
// error of the journal the tree takes no more mutations.
func (t *Tree) Commit(k *Task, info s3.Info, moved map[s3.Key]s3.Info, write func(...journal.Record) error) error {
	t.mu.Lock()
	defer t.unlock()
	n := k.n
	changed := []*node{n}
	switch k.Verb {
	case Put, Copy:
		changed = append(changed, t.stored(k, info)...)
	case Spill:
		t.spilled(k, info)
	case Delete:
		n.dropObj(k.Key)
		t.release(k.Key, n)
		if info.ETag == "" {
			t.tell(k.Key, nil)
		} else {
			t.tell(k.Key, &info)
		}
	case Move:
		changed = append(changed, t.movedTo(k, moved)...)
	case Purge:
		changed = append(changed, t.purged(k)...)
	}
	if n.lastErr != nil {
		t.lastErr = nil
	}
	n.attempts, n.lastErr, n.retry = 0, nil, time.Time{}
	t.finishTask(k, true)
	if t.broken != nil {
		return t.broken
	}
	recs := t.save(unique(changed)...)
	if write == nil {
		write = t.j.Append
	}
	if err := write(recs...); err != nil {
		t.broken = fmt.Errorf("journal: %w", err)
		return t.broken
	}
	t.schedule(n, t.dueAt(n))
	// Most files that go up keep nobody waiting, and looking at all who wait after each of them would take long.
	if k.Verb != Put || len(changed) > 1 || len(n.objs) > 1 || n.isDir() || t.claimant(k.Key, n) != nil || t.onTheWay(k.Key) {
		t.unblock()
	}
	return nil
}

// complete says that the aim is reached: the bucket shows it under all names of a node and no others.
func (t *tree) complete(n *node) bool {
	switch {
	case !n.aimed:
		return false
	case len(n.links) == 0 && n != t.root:
		return len(n.objs) == 0
	}
	keys := t.wantKeys(n)
	return !slices.ContainsFunc(keys, n.behind) && !slices.ContainsFunc(n.objs, func(o object) bool { return o.spill == 0 && !slices.Contains(keys, o.key) })
}

// purged notes that a prefix holds no object any more that is not the business of tracked inodes. It stays hidden, and is
// purged once more, until they and other directories have left it: only then is it no directory. It returns other nodes that
// changed by it.
func (t *tree) purged(k *Task) []*node {
	n := k.n
	i := slices.Index(n.purges, purge{k.SrcPrefix, k.DstPrefix})
	if k.DstPrefix != "" && (t.under[k.SrcPrefix] > 0 || t.owner[k.SrcPrefix] != nil) || !t.deserted(k.SrcPrefix, n) {
		n.purges[i].dst = ""
		return nil
	}
	n.purges = slices.Delete(n.purges, i, i+1)
	t.noteMoved(n)
	if t.under[k.SrcPrefix] == 0 && t.owner[k.SrcPrefix] == nil {
		t.tell(k.SrcPrefix, nil)
		return nil
	}
	t.tell(k.SrcPrefix, &s3.Info{Key: k.SrcPrefix})
	return t.relaxBelow(k.SrcPrefix)
}

// onTheWay says that a directory moves from, over or to a key: it had to wait until no task used it.
func (t *tree) onTheWay(key s3.Key) bool {
	touches := func(prefix s3.Key) bool { return prefix != "" && isUnder(key, prefix) }
	for d := range t.moved {
		if touches(d.origin) || touches(d.heading) || len(d.links) > 0 && touches(t.wantPrefix(d)) {
			return true
		}
		for _, p := range d.purges {
			if touches(p.src) || touches(p.dst) {
				return true
			}
		}
	}
	return false
}

// stored enters a new object and returns other nodes that changed by it.
func (t *tree) stored(k *Task, info s3.Info) []*node {
	n := k.n
	var changed []*node
	if m := t.owner[k.Key]; m != nil && k.Cond.IfMatch != "" {
		if o := m.objAt(k.Key); o.etag == k.Cond.IfMatch {
			t.honest[o.told] = true
		}
	}
	if m := t.owner[k.Key]; m != nil && m != n {
		m.dropObj(k.Key)
		t.release(k.Key, m)
		if m.changed != 0 {
			t.schedule(m, t.dueAt(m))
		}
		changed = append(changed, m)
	}
	if k.Content {
		n.unspill()
		if n.sent = nil; len(n.links) > 1 {
			n.sent, n.sentCont, n.sentMeta = &k.Attr, k.contGen, k.metaGen
		}
	}
	o := object{key: k.Key, etag: info.ETag, size: info.Size, contGen: k.contGen, metaGen: k.metaGen, id: k.Attr.Meta[MetaWriteID], told: k.Told}
	if old := n.objAt(k.Key); old != nil {
		*old = o
	} else {
		n.objs = append(n.objs, o)
	}
	t.claim(k.Key, n)
	if k.Key == t.orphanKey(n) {
		n.save = false
		return changed
	}
	info.Key = k.Key
	t.tell(k.Key, &info)
	for _, l := range n.links {
		// A directory without a marker is in the bucket from now on.
		for d := l.dir; d != t.root && len(d.objs) == 0 && len(d.links) > 0; d = d.links[0].dir {
			t.tell(t.wantPrefix(d), &info)
		}
	}
	return changed
}

// tell reports a change of the bucket to whoever caches listings.
func (t *tree) tell(key s3.Key, info *s3.Info) {
	if t.opt.Settled == nil {
		return
	}
	dir, name := parentPrefix(key)
	plain := strings.TrimSuffix(name, "/")
	t.opt.Settled(dir, plain, plain != name, info)
}

// movedTo switches a directory over to the place where its objects now are. It returns the nodes that became tracked
// while theirs were copied: the copies are theirs, too.
func (t *tree) movedTo(k *Task, moved map[s3.Key]s3.Info) []*node {
	n := k.n
	n.heading = ""
	var changed []*node
	for src, info := range moved {
		m := t.owner[src]
		if m == nil {
			continue
		}
		copied := object{key: k.DstPrefix + src[len(k.SrcPrefix):], etag: info.ETag, size: info.Size}
		if o := m.objAt(src); !o.unsure && o.etag != "" {
			copied.contGen, copied.metaGen = o.contGen, o.metaGen
		}
		if o := m.objAt(copied.key); o != nil {
			*o = copied
			changed = append(changed, m)
		}
	}
	n.save = false
	if len(n.links) == 0 {
		// Removed meanwhile: what it had belongs to inodes that were removed, too, each with its copy.
		n.purges = append(n.purges, purge{src: k.DstPrefix})
		t.moved[n] = struct{}{}
		return changed
	}
	// It may have left the place that it has come to, for good as it seemed: now it is there again, or a directory above is.
	n.purges = slices.DeleteFunc(n.purges, func(p purge) bool { return p == purge{src: k.DstPrefix} })
	n.purges = append(n.purges, purge{k.SrcPrefix, k.DstPrefix})
	n.origin = ""
	if p, ok := t.remotePrefix(n); !ok || p != k.DstPrefix {
		n.origin = k.DstPrefix
	}
	t.moved[n] = struct{}{}
	t.follow(n, k.SrcPrefix, k.DstPrefix, moved)
	t.tell(k.DstPrefix, &s3.Info{Key: k.DstPrefix})
	return append(append(changed, t.relaxBelow(k.SrcPrefix)...), t.relaxBelow(k.DstPrefix)...)
}

// follow gives the untracked nodes below a moved directory their new keys.
func (t *tree) follow(d *node, src, dst s3.Key, moved map[s3.Key]s3.Info) {
	d.version++
	for _, c := range d.children {
		if !c.tracked {
			for i := range c.objs {
				o := &c.objs[i]
				rest, ok := strings.CutPrefix(string(o.key), string(src))
				if !ok {
					continue
				}
				if info, ok := moved[o.key]; ok {
					o.etag = info.ETag
				}
				o.key = dst + s3.Key(rest)
			}
		}
		if c.isDir() && c.origin == "" {
			t.follow(c, src, dst, moved)
		}
	}
}

// Fail ends a task that did not succeed; it comes again not before retry.
func (t *Tree) Fail(k *Task, err error, retry time.Time) {
	t.mu.Lock()
	defer t.unlock()
	n := k.n
	t.finishTask(k, false)
	n.attempts++
	if n.early {
		n.spilling = false
	}
	n.lastErr, n.retry = err, retry
	t.lastErr = err
	t.schedule(n, t.dueAt(n))
	t.unblock()
}

// Drop ends a task whose object nobody needs any more, see Needed.
func (t *Tree) Drop(k *Task) {
	t.mu.Lock()
	defer t.unlock()
	t.finishTask(k, false)
	t.schedule(k.n, t.dueAt(k.n))
	t.unblock()
}

// Needed says that what a running Put or Spill makes is still asked for: the file was not removed meanwhile.
func (t *Tree) Needed(k *Task) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(k.n.links) > 0 || k.Verb == Spill && k.n.opens > 0
}

// Ours says that the object which a task found at its key was written by this cache directory (by its write-id, or
// because it is a copy that we were about to make): then a failed precondition was our own earlier, unacknowledged
// attempt. Adopt tells the tree its ETag so that the task can be tried again.
func (t *Tree) Ours(k *Task, info s3.Info) bool {
	ours := strings.HasPrefix(info.Meta[MetaWriteID], t.opt.WriterID+"-")
	t.mu.Lock()
	defer t.mu.Unlock()
	m := t.owner[k.Key]
	if m == nil {
		return ours
	}
	o := m.objAt(k.Key)
	if ours {
		return !t.kept(o, info)
	}
	return o.unsure && o.etag != "" && o.etag == info.ETag
}

// kept says that somebody else has replaced an object and kept its metadata, as other programs do: each request of ours that
// makes one has a write-id of its own. Some servers name another ETag in their answers than the object then has: what they
// say counts once a condition on it has held.
func (t *tree) kept(o *object, info s3.Info) bool {
	return (o.told == Looked || t.honest[o.told]) && o.id != "" && o.id == info.Meta[MetaWriteID] && o.etag != info.ETag
}

// Marked are the attributes for a copy of an object that Ours shall know by its write-id: those of the object, with one
// added where it has none of ours and there is room.
func (t *Tree) Marked(src s3.Info) *s3.Attributes {
	attr := &s3.Attributes{Meta: src.Meta, ContentType: src.ContentType}
	if strings.HasPrefix(src.Meta[MetaWriteID], t.opt.WriterID+"-") {
		return attr
	}
	marked := s3.Attributes{Meta: map[string]string{}, ContentType: src.ContentType}
	maps.Copy(marked.Meta, src.Meta)
	marked.Meta[MetaWriteID] = t.opt.WriterID + "-0-" + string(src.ETag) // of no inode
	if marked.Validate() != nil {
		return attr
	}
	return &marked
}

// Same says that an object is the very one that the task writes: its request was applied although its answer was lost.
func (k *Task) Same(info s3.Info) bool {
	id := k.Attr.Meta[MetaWriteID]
	return id != "" && info.Meta[MetaWriteID] == id
}

// Recheck hears what is really at src, which Source had named, after a GET found something else or (found is nil)
// nothing there. It reports whether Source has another answer now: because it changed meanwhile, or because the change
// was our own: a request that was applied and whose answer did not arrive yet, or was lost in a crash. The bytes that
// such an object has in ranges which are missing here are those of the object before it.
func (t *Tree) Recheck(ino inode.Ino, src Source, found *s3.Info) (bool, error) {
	t.mu.Lock()
	defer t.unlock()
	n, err := t.get(ino)
	if err != nil {
		return false, err
	}
	b := n.base()
	switch {
	case b == nil:
		return false, nil
	case b.key != src.Key || b.etag != src.ETag:
		return true, nil
	case n.changed == 0 || !n.tracked:
		return false, nil // all our changes are in the bucket: this one is not ours
	case found != nil && found.ETag == b.etag:
		return false, nil
	case found != nil && t.kept(b, *found):
		return false, nil
	case found == nil || !t.wrote(n, *found):
		// Gone, or another file has the name: the same bytes may be at another key.
		for _, o := range n.objs {
			if o.key != b.key && o.contGen == b.contGen {
				key := b.key
				n.dropObj(key)
				t.release(key, n)
				return true, t.append(n)
			}
		}
		return false, nil
	}
	b.etag, b.size, b.metaGen, b.id, b.told = found.ETag, found.Size, 0, found.Meta[MetaWriteID], Looked
	return true, t.append(n)
}

// Adopt ends a task whose precondition failed because of our own earlier attempt: the object at Key is info.
func (t *Tree) Adopt(k *Task, info s3.Info) {
	t.mu.Lock()
	defer t.unlock()
	t.broken = errors.Join(t.broken, t.append(t.adopt(k, info)...))
}

// adopt takes the object at the task's key for what it is now, and returns the nodes that changed.
func (t *tree) adopt(k *Task, info s3.Info) []*node {
	n := k.n
	t.finishTask(k, false)
	defer t.unblock()
	changed := []*node{n}
	m := t.owner[k.Key]
	if m != nil && m != n {
		changed = append(changed, m)
		if !t.wrote(m, info) {
			// It was m's until our earlier attempt replaced it. Now it has our bytes.
			t.lose(m, k.Key)
			m = nil
		}
	}
	if m == nil {
		n.objs = append(n.objs, object{key: k.Key, etag: info.ETag, size: info.Size, id: info.Meta[MetaWriteID]})
		t.claim(k.Key, n)
	} else {
		o := m.objAt(k.Key)
		o.etag, o.size, o.metaGen, o.unsure, o.spill, o.id, o.told = info.ETag, info.Size, 0, false, 0, info.Meta[MetaWriteID], Looked
	}
	t.schedule(n, t.dueAt(n))
	return changed
}

// wrote says that an object was written for a node, by this cache directory.
func (t *tree) wrote(n *node, info s3.Info) bool {
	return strings.HasPrefix(info.Meta[MetaWriteID], t.opt.WriterID+"-"+itoa(uint64(n.attr.Ino))+"-")
}

// lose notes that a node's object at key is not there any more.
func (t *tree) lose(n *node, key s3.Key) {
	n.dropObj(key)
	t.release(key, n)
	if n.changed != 0 {
		t.schedule(n, t.dueAt(n))
	}
}

// Conflict ends a Put or Copy whose precondition failed because somebody else wrote Key: foreign is what is there now
// (nil: it is gone). The foreign object keeps the name; ours becomes NAME.conflict-WRITER-TIME, which is returned. A
// directory's marker is adopted, and so is the foreign object with Options.Overwrite: kept is then empty.
func (t *Tree) Conflict(k *Task, foreign *s3.Info) (kept string, err error) {
	t.mu.Lock()
	defer t.unlock()
	n := k.n
	if foreign != nil && (n.isDir() || t.opt.Overwrite) {
		changed := t.adopt(k, *foreign)
		if o := n.objAt(k.Key); n.isDir() && o != nil && !n.local {
			o.metaGen = n.metaGen
		}
		return "", t.append(changed...)
	}
	t.finishTask(k, false)
	defer t.unblock()
	changed := []*node{n}
	if m := t.owner[k.Key]; m != nil {
		t.lose(m, k.Key)
		if m != n {
			changed = append(changed, m)
		}
	}
	if foreign == nil {
		t.schedule(n, t.dueAt(n))
		return "", t.append(changed...)
	}
	now := t.opt.Now()
	for _, l := range n.links {
		if t.wantPrefix(l.dir)+s3.Key(l.name) != k.Key {
			continue
		}
		kept = fmt.Sprintf("%s.conflict-%.8s-%s", trimName(l.name), t.opt.WriterID, now.UTC().Format("20060102T150405.000000000"))
		t.detach(l.dir, l.name, now)
		changed = append(changed, t.bind(l.dir, kept, n, now)...)
		break
	}
	t.tell(k.Key, foreign)
	t.touch(n, now)
	return kept, t.append(unique(changed)...)
}

// trimName leaves room for the suffix of a conflict copy in the 255 bytes of a name.
func trimName(s string) string {
	const room = 255 - len(".conflict-12345678-20060102T150405.000000000")
	if len(s) <= room {
		return s
	}
	return strings.ToValidUTF8(s[:room], "")
}
