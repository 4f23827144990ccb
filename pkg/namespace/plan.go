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
		heading := n.heading
		k, v := t.plan(n)
		if n.heading != heading && t.append(n) != nil { // turnBack: whoever becomes tracked relies on it
			return nil, time.Time{}
		}
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
	n.running = k
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
		*o = object{key: o.key, etag: o.etag, size: o.size, unsure: true, id: o.id, told: o.told}
	default:
		return nil
	}
	return t.append(m)
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
	n.aimed, n.sent = false, nil
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
	if n.attempts == 0 && n.hasContent() && !slices.ContainsFunc(keys, func(key s3.Key) bool { o := n.objAt(key); return o == nil || o.unsure || o.contGen < n.baseGen() }) {
		// What is written again and again may be sent again and again: old names do not wait for the end of that. Nor does it
		// wait for one that cannot be removed.
		if k, _ := t.planDelete(n, keys, inSync); k != nil {
			return k, inSync
		}
	}
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
	if stale {
		if k := t.planAgain(n, keys); k != nil {
			return k, inSync
		}
	}
	if n.aimed && !stale {
		keys = slices.Clone(keys)
		slices.SortStableFunc(keys, func(a, b s3.Key) int {
			switch x, y := n.behind(a), n.behind(b); {
			case x == y:
				return 0
			case x:
				return -1
			}
			return 1
		})
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

// planAgain brings what a file's newest object has to the names that are behind it. Else the first name of a file that is
// written all the time would be sent again and again, and the others would wait for the end of that.
func (t *tree) planAgain(n *node, keys []s3.Key) *Task {
	if !n.aimed || n.sent == nil || n.sentCont != n.baseGen() || n.sentCont < n.aimCont || n.sentMeta < n.aimMeta {
		return nil
	}
	i := slices.IndexFunc(keys, func(key s3.Key) bool { o := n.objAt(key); return o != nil && !o.unsure && o.contGen == n.sentCont })
	if i < 0 {
		return nil
	}
	from := n.objAt(keys[i])
	for _, key := range keys {
		k := &Task{Verb: Copy, Key: key, Source: Source{from.key, from.etag, from.size}, again: true, contGen: n.sentCont}
		if key != from.key && n.behind(key) && t.free(n, k) {
			return k
		}
	}
	return nil
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

// Skip says that a key is not the business of a Move or Purge: a tracked inode decides it, or another directory.
func (t *Tree) Skip(k *Task, key s3.Key) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.owner[key] != nil {
		return true
	}
	// Below a directory that was itself renamed away from here, or is on its way here, the innermost such directory decides.
	var inner *node
	var innermost s3.Key
	under := func(d *node, prefix s3.Key) {
		if prefix != "" && isUnder(key, prefix) && (len(prefix) > len(innermost) || len(prefix) == len(innermost) && d == k.n) {
			inner, innermost = d, prefix
		}
	}
	for d := range t.moved {
		under(d, d.origin)
		under(d, d.heading)
		for _, p := range d.purges {
			under(d, p.src)
		}
	}
	return inner != nil && (inner != k.n || innermost != k.SrcPrefix && innermost != k.DstPrefix)
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
