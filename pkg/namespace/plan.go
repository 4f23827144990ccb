package namespace

import (
	"container/heap"
	"iter"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/csi-s3/csi-s3/pkg/inode"
	"github.com/csi-s3/csi-s3/pkg/s3"
)

// The plan compares what the bucket holds of a node (objs) with what its names ask for, and finds the next step. It
// keeps no list of past operations: create, write and rename of a file need one Put, create and unlink nothing.
//
// Steps wait for each other by keys alone. A key is free for a node when no running task uses it, no directory is
// moving over it, nothing that must still be deleted stands in its way (DELETE a before PUT a/b and the reverse), and
// no living node has its only bytes there. Whoever waits is in tree.waiting until a step that frees keys is done.

// verdict is what plan says when it has no task.
type verdict int

const (
	inSync  verdict = iota // nothing to do
	blocked                // others must go first
	held                   // an open handle keeps it
	ended                  // the node is gone
)

// Next hands out a task that may run at now, or nil and the time when it is worth asking again (zero: only after Wake).
// The caller ends each task with exactly one of Commit, Fail, Adopt and Conflict.
func (t *Tree) Next(now time.Time) (*Task, time.Time) {
	t.mu.Lock()
	defer t.unlock()
	for len(t.queue) > 0 && t.broken == nil {
		n := t.queue[0]
		if n.due.After(now) {
			return nil, n.due
		}
		heap.Pop(&t.queue)
		k, v := t.plan(n)
		if k != nil {
			if t.start(n, k) != nil {
				return nil, time.Time{}
			}
			return k, time.Time{}
		}
		switch v {
		case inSync:
			t.settled(n)
			if changed := t.relax(n); len(changed) > 0 && t.append(changed...) != nil {
				return nil, time.Time{}
			}
		case blocked:
			t.waiting[n] = struct{}{}
		case ended:
			t.end(n)
			t.unblock()
			if t.append(n) != nil {
				return nil, time.Time{}
			}
		}
	}
	return nil, time.Time{}
}

// Wake has a value when Next may have something new.
func (t *Tree) Wake() <-chan struct{} { return t.wake }

// start hands a task out. One that makes an object where there is none is journaled first: if its outcome is lost, the
// object is looked for when the node loses that name. So is one that removes or replaces an object of a node that lives on:
// if its outcome is lost, that node does not rely on the object any more.
func (t *tree) start(n *node, k *Task) error {
	n.running, n.prepared = k, false
	k.Ino, k.n, k.Attempts, k.LastErr = n.attr.Ino, n, n.attempts, n.lastErr
	for _, key := range k.keys() {
		t.busy[key] = n
	}
	m := t.owner[k.Key] // whose record changes
	switch {
	case k.Verb == Move:
		m = n
		if n.heading == k.DstPrefix {
			return nil
		}
		n.heading = k.DstPrefix
	case (k.Verb == Put || k.Verb == Copy || k.Verb == Spill) && m == nil:
		m = n
		n.objs = append(n.objs, object{key: k.Key, unsure: true, spill: k.Number})
		t.claim(k.Key, n)
	case m != nil && (m != n || k.Verb == Delete) && len(m.links)+m.opens > 0:
		o := m.objAt(k.Key)
		if o.unsure {
			return nil
		}
		*o = object{key: o.key, etag: o.etag, size: o.size, unsure: true}
	default:
		return nil
	}
	return t.append(m)
}

// claimCopies enters what a Move that has begun may have made of a node's objects, when it becomes tracked: from now on
// the Move passes them over.
func (t *tree) claimCopies(n *node) {
	for _, o := range slices.Clone(n.objs) {
		var over *node
		for d := range t.moved {
			if d != n && d.origin != "" && isUnder(o.key, d.origin) && (over == nil || len(d.origin) > len(over.origin)) {
				over = d
			}
		}
		if over == nil || over.heading == "" {
			continue
		}
		key := over.heading + o.key[len(over.origin):]
		if t.owner[key] == nil {
			n.objs = append(n.objs, object{key: key, etag: o.etag, size: o.size, unsure: true})
			t.claim(key, n)
		}
	}
}

// keys are those that the task alone may use while it runs.
func (k *Task) keys() []s3.Key {
	keys := make([]s3.Key, 0, 2)
	if k.Key != "" {
		keys = append(keys, k.Key)
	}
	if k.Verb == Copy && k.Source.Key != k.Key {
		keys = append(keys, k.Source.Key)
	}
	return keys
}

// settled notes that the bucket holds all of a node.
func (t *tree) settled(n *node) {
	n.changed, n.nextChanged, n.urgent, n.attempts, n.lastErr, n.save = 0, 0, false, 0, nil, false
	delete(t.unsettled, n)
	delete(t.waiting, n)
	if n.heapIndex >= 0 {
		heap.Remove(&t.queue, n.heapIndex)
	}
}

func (t *tree) plan(n *node) (*Task, verdict) {
	if n.isDir() {
		return t.planDir(n)
	}
	if spill, early := n.spills(); spill {
		return t.planSpill(n, early), inSync
	}
	n.spilling = false
	if len(n.links) == 0 {
		if n.opens > 0 {
			if n.save {
				return t.giveWay(n, nil), blocked
			}
			return nil, held
		}
		return t.planDelete(n, nil, ended)
	}
	keys := t.wantKeys(n)
	k, v := t.planWrite(n, keys)
	if k == nil && v == inSync {
		k, v = t.planDelete(n, keys, inSync)
	}
	if k == nil && v == blocked && n.save {
		k = t.giveWay(n, keys)
	}
	return k, v
}

// planWrite brings every wanted key up to date.
func (t *tree) planWrite(n *node, keys []s3.Key) (*Task, verdict) {
	base := n.base()
	stale := n.hasContent() && (base == nil || base.contGen < n.contGen)
	// An object that is already ours is replaced rather than a second one made.
	if i := slices.IndexFunc(keys, func(k s3.Key) bool { return n.objAt(k) != nil }); i > 0 {
		keys = slices.Clone(keys)
		keys[0], keys[i] = keys[i], keys[0]
	}
	for _, key := range keys {
		o := n.objAt(key)
		if o != nil && !stale && o.metaGen == n.metaGen && (!n.hasContent() || o.contGen == n.contGen) {
			continue
		}
		k := &Task{Verb: Put, Key: key}
		switch {
		case !n.hasContent():
		case stale:
			k.Content = true
			if base != nil {
				k.Source = Source{base.key, base.etag, base.size}
			}
		default:
			k.Verb, k.Source = Copy, Source{base.key, base.etag, base.size}
		}
		k.contGen = n.contGen
		if !t.free(n, k) {
			return nil, blocked
		}
		return k, inSync
	}
	return nil, inSync
}

// free says that a node may write k.Key now, and fills the task's condition.
func (t *tree) free(n *node, k *Task) bool {
	for _, key := range k.keys() {
		if t.busy[key] != nil {
			return false
		}
	}
	if t.moving(k.Key, n, k.Verb) {
		return false
	}
	if !t.clearAbove(n, k.Key) {
		return false
	}
	if !strings.HasSuffix(string(k.Key), "/") {
		below := k.Key + "/"
		for d := range t.moved {
			if isUnder(d.origin, below) || isUnder(d.heading, below) || slices.ContainsFunc(d.purges, func(p purge) bool { return isUnder(p.src, below) }) {
				return false
			}
		}
		if t.under[below] > 0 || t.owner[below] != nil {
			// A directory stands where a file must be. What is in it goes by itself, unless it waits for this very file.
			for key, m := range t.owner {
				if isUnder(key, below) {
					t.askAway(m, n)
				}
			}
			return false
		}
	}
	switch m := t.owner[k.Key]; {
	case m == nil:
		k.Cond = s3.Condition{IfNoneMatch: true}
	case m != n && t.needs(m, k.Key):
		t.askAway(m, n)
		return false
	case m.objAt(k.Key).unsure:
		k.Cond = s3.Condition{IfNoneMatch: true} // an object of ours that is there after all is adopted
	default:
		k.Cond = s3.Condition{IfMatch: m.objAt(k.Key).etag}
	}
	return true
}

// needs says that a node would lose bytes if the object at key went.
func (t *tree) needs(m *node, key s3.Key) bool {
	b := m.base()
	if b == nil || !m.hasContent() || (len(m.links) == 0 && m.opens == 0) {
		return false
	}
	for _, o := range m.objs {
		if o.key != key && o.contGen == b.contGen {
			return false
		}
	}
	o := m.objAt(key)
	return o != nil && o.contGen == b.contGen
}

// clearAbove says that no file stands where a key (a marker's or a prefix's own, with its slash, included) asks for a
// directory, and asks one that does to go.
func (t *tree) clearAbove(n *node, key s3.Key) bool {
	p := key
	if !strings.HasSuffix(string(p), "/") {
		p, _ = parentPrefix(p)
	}
	for ; len(p) > len(t.opt.Prefix); p, _ = parentPrefix(p) {
		if m := t.owner[p[:len(p)-1]]; m != nil {
			t.askAway(m, n)
			return false
		}
	}
	return true
}

// askAway makes a node whose object stands in n's way give way, should it be blocked itself.
func (t *tree) askAway(m, n *node) {
	if m.save {
		return
	}
	m.save = true
	if m != n {
		t.schedule(m, time.Time{})
	}
}

// giveWay takes a node's objects from keys that it shall not have, although it cannot have those that it shall (keep)
// yet: its bytes are saved first. Else two nodes that exchange their places would wait for each other for ever.
func (t *tree) giveWay(n *node, keep []s3.Key) *Task {
	orphan := t.orphanKey(n)
	// What was saved before may be older than what is to go now.
	if o := n.objAt(orphan); (o == nil || o.unsure || o.contGen < n.baseGen()) && n.baseGen() > 0 {
		if k := t.planSave(n); k != nil {
			return k
		}
		// The bytes may be in a directory that waits for the rest to go.
		keep = append(slices.Clone(keep), n.base().key)
	}
	k, _ := t.planDelete(n, append(slices.Clone(keep), orphan), blocked)
	return k
}

// planSave copies a node's bytes to a place of their own, because another node must write where they are.
func (t *tree) planSave(n *node) *Task {
	gen, key := n.baseGen(), t.orphanKey(n)
	if gen == 0 || t.busy[key] != nil {
		return nil
	}
	for _, o := range n.objs {
		if o.contGen == gen && t.busy[o.key] == nil && !t.moving(o.key, n, Delete) {
			return &Task{Verb: Copy, Key: key, Source: Source{o.key, o.etag, o.size}, contGen: gen}
		}
	}
	return nil
}

// planDelete removes objects whose keys no name asks for. A key that another node claims is left to it, so that the name
// is never without an object: it overwrites. Unless it has to wait for a directory, which in turn may wait for us.
func (t *tree) planDelete(n *node, keep []s3.Key, done verdict) (*Task, verdict) {
	for _, o := range n.objs {
		if slices.Contains(keep, o.key) || o.spill != 0 && !o.unsure && len(n.links)+n.opens > 0 {
			continue
		}
		if c := t.claimant(o.key, n); c != nil && !t.moving(o.key, c, Put) || t.busy[o.key] != nil || t.moving(o.key, n, Delete) {
			done = blocked
			continue
		}
		return &Task{Verb: Delete, Key: o.key, Unsure: o.unsure, Source: Source{o.key, o.etag, o.size}}, inSync
	}
	return nil, done
}

// moving says that a directory is on its way over the key, so that n must wait.
func (t *tree) moving(key s3.Key, n *node, verb Verb) bool {
	for d := range t.moved {
		for _, p := range d.purges {
			if p.dst == "" && verb == Delete {
				continue // a removed directory: its purge waits for us
			}
			if isUnder(key, p.src) && !(p.dst == "" && d == n) || p.dst != "" && isUnder(key, p.dst) {
				return true
			}
		}
		if verb == Delete && d.running == nil {
			continue // a Move passes over what tracked inodes own, and may have to wait for it to go
		}
		if d.heading != "" && isUnder(key, d.heading) {
			return true
		}
		if d.origin == "" || len(d.links) == 0 {
			continue
		}
		want := t.wantPrefix(d)
		if d.origin == want && d.heading == "" {
			continue // it came back, and nothing takes its objects away any more
		}
		if isUnder(key, d.origin) || isUnder(key, want) && n.inside(d) {
			return true
		}
	}
	return false
}

func (t *tree) planDir(n *node) (*Task, verdict) {
	if n.heading != "" && (n != t.root && len(n.links) == 0 || n.heading != t.wantPrefix(n)) {
		// The Move that was broken off goes elsewhere now. What it has copied is removed where the original is; what
		// has no original any more belongs to a tracked inode.
		left := purge{src: n.heading}
		if len(n.links) > 0 {
			left.dst = n.origin
		}
		n.purges = append(n.purges, left)
		n.heading = ""
	}
	if len(n.purges) > 0 {
		i := slices.IndexFunc(n.purges, func(p purge) bool { return t.canPurge(n, p) })
		if i < 0 {
			return nil, blocked
		}
		return &Task{Verb: Purge, SrcPrefix: n.purges[i].src, DstPrefix: n.purges[i].dst}, inSync
	}
	if len(n.links) == 0 && n != t.root {
		return t.planDelete(n, nil, ended)
	}
	if n != t.root && n.origin != "" && n.origin != t.wantPrefix(n) {
		want := t.wantPrefix(n)
		if !overlap(n.origin, want) && t.canMove(n, want) {
			return &Task{Verb: Move, SrcPrefix: n.origin, DstPrefix: want}, inSync
		}
		// A directory that moves below itself, or to above where it was, takes a detour.
		if dst := t.orphanKey(n) + "/"; (n.save || overlap(n.origin, want)) && n.origin != dst && !t.anyBusy(n.origin) {
			return &Task{Verb: Move, SrcPrefix: n.origin, DstPrefix: dst}, inSync
		}
		if n.save {
			return t.planDelete(n, t.wantKeys(n), blocked) // its marker gives way
		}
		return nil, blocked
	}
	keys := t.wantKeys(n)
	if n.wantMarker {
		k, v := t.planWrite(n, keys)
		if k == nil && v == blocked && n.save {
			k, _ = t.planDelete(n, keys, blocked) // the marker gives way: there is nothing in it to save
		}
		if k != nil || v == blocked {
			return k, v
		}
	}
	return t.planDelete(n, keys, inSync)
}

// canMove says that nothing is in the way of a directory's objects: no directory above it has to move first, nobody
// else's objects are left at the destination, and no other directory is on its way over either prefix.
func (t *tree) canMove(n *node, dst s3.Key) bool {
	first := func(p purge) bool { // it does not wait for n to leave
		return p.dst != "" || !isUnder(n.origin, p.src) || overlap(p.src, dst)
	}
	for a := n.links[0].dir; a != t.root; a = a.links[0].dir {
		if a.origin != "" && a.origin != t.wantPrefix(a) || slices.ContainsFunc(a.purges, first) {
			return false
		}
	}
	if t.anyBusy(n.origin) || t.anyBusy(dst) {
		return false
	}
	if !t.clearAbove(n, dst) {
		return false
	}
	for d := range t.moved {
		if d == n {
			continue
		}
		// What is inside n goes with it, unless it is still where n goes to.
		inside := d.inside(n)
		crosses := func(prefix s3.Key) bool {
			return prefix != "" && (overlap(prefix, dst) || !inside && overlap(prefix, n.origin))
		}
		if crosses(d.heading) || slices.ContainsFunc(d.purges, func(p purge) bool { return first(p) && (crosses(p.src) || crosses(p.dst)) }) {
			return false
		}
		if d.origin != "" && len(d.links) > 0 && d.origin != t.wantPrefix(d) && overlap(d.origin, dst) {
			t.askAway(d, n)
			return false
		}
	}
	return t.clearBelow(dst, n, false, n.wantMarker)
}

func overlap(a, b s3.Key) bool { return isUnder(a, b) || isUnder(b, a) }

// anyBusy says that a task is running on a key or prefix that touches this one.
func (t *tree) anyBusy(prefix s3.Key) bool {
	for k := range t.busy {
		if isUnder(k, prefix) {
			return true
		}
	}
	for d := range t.moved {
		if k := d.running; k != nil && (k.Verb == Move || k.Verb == Purge) {
			if overlap(k.SrcPrefix, prefix) || k.DstPrefix != "" && overlap(k.DstPrefix, prefix) {
				return true
			}
		}
	}
	return false
}

// clearBelow says that no objects of other nodes than n are left below a prefix, and asks those to go that are. With
// inside unset those do not count that are inside n; with it set, those that are where they shall be, because names came
// back to a place that was left. With overwrite set another directory's marker at the prefix itself does not count: n's
// replaces it.
func (t *tree) clearBelow(prefix s3.Key, n *node, inside, overwrite bool) bool {
	if t.under[prefix] == 0 && t.owner[prefix] == nil {
		return true
	}
	free := true
	for key, m := range t.owner {
		if m == n || !isUnder(key, prefix) || !inside && m.inside(n) || overwrite && key == prefix {
			continue
		}
		if inside && slices.Contains(t.wantKeys(m), key) {
			continue
		}
		t.askAway(m, n)
		free = false
	}
	return free
}

// canPurge says that no task is on its way over a prefix that n has left, and that it is empty but for keys without a
// name if it is to be seen again afterwards.
func (t *tree) canPurge(n *node, p purge) bool {
	if t.anyBusy(p.src) || p.dst != "" && t.anyBusy(p.dst) {
		return false
	}
	return p.dst != "" || t.deserted(p.src, n)
}

// deserted says that nothing is left below a prefix that must not be seen there, and asks it to go. Until then the
// prefix must stay hidden: it would be seen as a directory again.
func (t *tree) deserted(prefix s3.Key, n *node) bool {
	return t.clearBelow(prefix, n, true, false) && !t.leaving(prefix, n)
}

// leaving says that directories which left a prefix still have objects below it, theirs or copies, and asks those to go
// that do not go by themselves.
func (t *tree) leaving(prefix s3.Key, n *node) bool {
	left := false
	for d := range t.moved {
		if slices.ContainsFunc(d.purges, func(p purge) bool { return p.src != prefix && isUnder(p.src, prefix) }) {
			left = true
		}
		if d == n {
			continue
		}
		here := func(p s3.Key) bool {
			return p != prefix && isUnder(p, prefix) && (len(d.links) == 0 || p != t.wantPrefix(d))
		}
		if here(d.heading) || len(d.links) > 0 && here(d.origin) {
			t.askAway(d, n)
			left = true
		}
	}
	return left
}

// relax stops tracking a settled node, and then the directories above it, where the bucket alone now says it all. It
// returns the nodes whose records change.
func (t *tree) relax(n *node) []*node {
	var changed []*node
	if n.tracked && n.local && n.changed == 0 && n.origin == "" && n.objAt(t.wantKeys(n)[0]) != nil {
		if _, ok := t.remotePrefix(n.links[0].dir); ok {
			n.local = false
			n.version++
			changed = append(changed, n)
			for _, c := range n.children {
				if c.isDir() && c.origin != "" {
					t.settleOrigin(c, c.origin)
				}
				changed = append(changed, t.relax(c)...)
			}
		}
	}
	for n.tracked && n.changed == 0 && n.running == nil && n != t.root && len(n.links) == 1 && n.below == 0 && !n.local && n.origin == "" && len(n.purges) == 0 {
		d := n.links[0].dir
		p, ok := t.remotePrefix(d)
		key := p + s3.Key(n.links[0].name)
		if n.isDir() {
			key += "/"
		}
		if !ok || t.onMove(d) || len(n.objs) > 1 || len(n.objs) == 1 && n.objs[0].key != key || len(n.objs) == 0 && !n.isDir() {
			break
		}
		n.tracked = false
		for _, o := range n.objs {
			t.release(o.key, n)
		}
		d.below--
		changed = append(changed, n)
		t.rest(n)
		n = d
		if n == t.root {
			break
		}
		changed = append(changed, t.relaxLocal(n)...)
	}
	return changed
}

// onMove says that a Move has begun to copy what lies below a directory. It passes over what is tracked, and would not come
// back for it.
func (t *tree) onMove(d *node) bool {
	for ; d != t.root && len(d.links) > 0; d = d.links[0].dir {
		if d.heading != "" {
			return true
		}
	}
	return false
}

// relaxLocal is the first half of relax for a directory on the way up.
func (t *tree) relaxLocal(n *node) []*node {
	if n.local && n.changed == 0 {
		return t.relax(n)
	}
	return nil
}

// Skip says that the key is not the business of a Move or Purge: a tracked inode decides it.
func (t *Tree) Skip(key s3.Key) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.owner[key] != nil {
		return true
	}
	// Below a directory that was itself renamed away from here, the innermost such directory decides.
	var inner *node
	var length int
	for d := range t.moved {
		if d.origin != "" && isUnder(key, d.origin) && len(d.origin) > length {
			inner, length = d, len(d.origin)
		}
		for _, p := range d.purges {
			if isUnder(key, p.src) && len(p.src) > length {
				inner, length = d, len(p.src)
			}
		}
	}
	return inner != nil && inner.running == nil
}

// Seq numbers the mutations.
func (t *Tree) Seq() uint64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.seq
}

// Urge makes everything that was changed up to now due at once.
func (t *Tree) Urge() {
	t.mu.Lock()
	defer t.mu.Unlock()
	for n := range t.unsettled {
		t.urge(n)
	}
}

// UrgeInode makes one inode due at once.
func (t *Tree) UrgeInode(ino inode.Ino) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if n := t.nodes[ino]; n != nil && n.changed != 0 {
		t.urge(n)
	}
}

func (t *tree) urge(n *node) {
	n.urgent = true
	if _, waits := t.waiting[n]; !waits {
		t.schedule(n, t.dueAt(n))
	}
}

// Pending counts inodes with changes numbered up to seq that the bucket does not hold; of all inodes or, with ino not
// 0, of that one. An unlinked file that is open does not count: it has nothing to send. err is the last failure of one
// of them.
func (t *Tree) Pending(ino inode.Ino, seq uint64) (count int, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.broken != nil {
		return len(t.unsettled), t.broken
	}
	for n := range t.pending(ino, seq) {
		count++
		if n.lastErr != nil {
			err = n.lastErr
		}
	}
	return count, err
}

// pending are the nodes that Pending counts. The caller holds mu.
func (t *tree) pending(ino inode.Ino, seq uint64) iter.Seq[*node] {
	nodes := maps.Keys(t.unsettled)
	if ino != 0 {
		nodes = func(yield func(*node) bool) {
			if n := t.nodes[ino]; n != nil && n.changed != 0 {
				yield(n)
			}
		}
	}
	return func(yield func(*node) bool) {
		for n := range nodes {
			if n.changed > seq || len(n.links) == 0 && !n.isDir() && n.opens > 0 {
				continue
			}
			if !yield(n) {
				return
			}
		}
	}
}

// Failed counts those that Pending counts whose last failure is of a kind.
func (t *Tree) Failed(ino inode.Ino, seq uint64, kind func(error) bool) (count int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for n := range t.pending(ino, seq) {
		if n.lastErr != nil && kind(n.lastErr) {
			count++
		}
	}
	return count
}
