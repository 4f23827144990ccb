package namespace

import (
	"fmt"
	"slices"

	"github.com/csi-s3/csi-s3/pkg/inode"
	"github.com/csi-s3/csi-s3/pkg/s3"
)

// Relieve makes everything that was changed up to now due at once, because the cache is full. An open file that big says
// has much to send is not sent as a whole, which would have to be done again and again: a Spill takes of it what there
// is.
func (t *Tree) Relieve(big func(inode.Ino) bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for n := range t.unsettled {
		if n.hasContent() && n.opens > 0 && n.contGen > n.baseGen() && !n.whole && big(n.attr.Ino) {
			n.spilling, n.early = true, false
			if n.running == nil {
				t.schedule(n, n.retry)
			}
			continue
		}
		t.urge(n)
	}
}

// Stream lets an open file that grows send a part of what it has, before it is due, by a Spill that is Early. It does
// nothing while the file has other work to do or the bucket fails it.
func (t *Tree) Stream(ino inode.Ino) {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := t.nodes[ino]
	if n == nil || n.running != nil || n.spilling || n.urgent || n.attempts > 0 || len(n.links) == 0 || n.opens == 0 || !n.hasContent() || n.contGen <= n.baseGen() {
		return
	}
	n.spilling, n.early = true, true
	t.schedule(n, t.dueAt(n))
}

// spills says whether a Spill is a file's next step. One that makes room is tried until it succeeds. One that is early is
// tried once, since the file can go without it; so is one that a crash has interrupted, since much of it may be sent.
func (n *node) spills() (yes, early bool) {
	switch {
	case !n.hasContent() || n.contGen <= n.baseGen():
		return false, false
	case n.spilling && n.opens > 0 && !n.early:
		return true, false
	case n.attempts > 0 || len(n.links) == 0:
		return false, false
	}
	begun := slices.ContainsFunc(n.objs, func(o object) bool { return o.spill != 0 && o.unsure })
	return begun || n.spilling && n.opens > 0, true
}

// Sends says whether anything is to be sent, or is being sent, whose bytes the cache cannot do without before: all that
// the bucket does not have but unlinked files that are open and too small to spill, and files whose last failure is
// hopeless. It is slow when it says no.
func (t *Tree) Sends(hopeless func(error) bool) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	for n := range t.unsettled {
		switch {
		case n.running != nil:
			return true
		case !n.hasContent() || n.contGen <= n.baseGen(), n.lastErr != nil && hopeless(n.lastErr):
		case len(n.links) > 0 || n.opens == 0 || n.spilling:
			return true
		}
	}
	return false
}

// spillKey is where a part of a file is that was sent while the file is written.
func (t *tree) spillKey(n *node, number uint64) s3.Key {
	return t.opt.Prefix + sysDir + "spill/" + s3.Key(t.opt.WriterID) + "-" + s3.Key(itoa(uint64(n.attr.Ino))) + "-" + s3.Key(itoa(number))
}

// planSpill sends a part of a file to an object of its own. Its number is used by no other spill of the file.
func (t *tree) planSpill(n *node, early bool) *Task {
	for _, o := range n.objs {
		if o.spill != 0 && o.unsure {
			return &Task{Verb: Spill, Key: o.key, Number: o.spill, Cond: s3.Condition{IfNoneMatch: true}, Early: early}
		}
	}
	number := max(uint64(t.opt.Now().UnixNano()), t.lastSpill+1)
	t.lastSpill = number
	return &Task{Verb: Spill, Key: t.spillKey(n, number), Number: number, Cond: s3.Condition{IfNoneMatch: true}, Early: early}
}

// spilled enters a part of a file that was sent; without an ETag there was nothing that could be.
func (t *tree) spilled(k *Task, info s3.Info) {
	n := k.n
	n.spilling = false
	if info.ETag == "" {
		n.objAt(k.Key).spill = 0 // an attempt whose answer was lost may have made it: it is looked for, and goes
		if !k.Early {
			n.whole, n.urgent = true, true // until it was sent as a whole
		}
		return
	}
	*n.objAt(k.Key) = object{key: k.Key, etag: info.ETag, size: info.Size, spill: k.Number, at: k.At}
}

// unspill notes that no byte of a file is in its spills any more: they can go.
func (n *node) unspill() {
	n.whole = false
	for i := range n.objs {
		n.objs[i].spill = 0
	}
}

// Spilled is the object of a file's spill, and where in the file it begins.
func (t *Tree) Spilled(ino inode.Ino, number uint64) (src Source, at int64, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	n, err := t.get(ino)
	if err != nil {
		return Source{}, 0, err
	}
	for _, o := range n.objs {
		if o.spill == number && !o.unsure {
			return Source{o.key, o.etag, o.size}, o.at, nil
		}
	}
	return Source{}, 0, fmt.Errorf("inode %d: spill %d: %w", ino, number, ErrStale)
}
