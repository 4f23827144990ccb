package namespace

import (
	"slices"

	"github.com/csi-s3/csi-s3/pkg/s3"
)

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

// planDir finds the next step of a directory. It has left prefixes to be emptied first; where that waits for others to
// leave, what it does in its own place goes on, since they may wait for that.
func (t *tree) planDir(n *node) (*Task, verdict) {
	if n.heading != "" && (n != t.root && len(n.links) == 0 || n.heading != t.wantPrefix(n)) {
		n.turnBack()
	}
	if len(n.purges) > 0 {
		if i := slices.IndexFunc(n.purges, func(p purge) bool { return t.canPurge(n, p) }); i >= 0 {
			return &Task{Verb: Purge, SrcPrefix: n.purges[i].src, DstPrefix: n.purges[i].dst}, inSync
		}
		if len(n.links) > 0 && slices.ContainsFunc(n.purges, func(p purge) bool { return p.dst != "" }) {
			return nil, blocked
		}
	}
	k, v := t.planPlace(n)
	if k == nil && len(n.purges) > 0 {
		v = blocked
	}
	return k, v
}

// turnBack notes that a Move that was broken off goes elsewhere now. What it has copied is removed where the original is;
// what has no original any more belongs to a tracked inode.
func (n *node) turnBack() {
	left := purge{src: n.heading}
	if len(n.links) > 0 {
		left.dst = n.origin
	}
	n.purges = append(n.purges, left)
	n.heading = ""
}

// planPlace brings a directory and its marker to where they shall be.
func (t *tree) planPlace(n *node) (*Task, verdict) {
	if len(n.links) == 0 && n != t.root {
		return t.planDelete(n, nil, ended)
	}
	if n != t.root && n.origin != "" && n.origin != t.wantPrefix(n) {
		want := t.wantPrefix(n)
		if !overlap(n.origin, want) && t.canMove(n, want) {
			return &Task{Verb: Move, SrcPrefix: n.origin, DstPrefix: want}, inSync
		}
		// A directory that moves below itself, or to above where it was, takes a detour.
		if dst := t.orphanKey(n) + "/"; (n.save || overlap(n.origin, want)) && n.origin != dst && t.movable(n) {
			if n.heading != "" && n.heading != dst {
				n.turnBack()
				return t.planDir(n)
			}
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
	if !t.movable(n) || t.anyBusy(dst) {
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
		if crosses(d.heading) {
			if inside {
				t.askAway(d, n) // it waits for n to be there first
			}
			return false
		}
		if slices.ContainsFunc(d.purges, func(p purge) bool { return first(p) && (crosses(p.src) || crosses(p.dst)) }) {
			return false
		}
		if d.origin != "" && len(d.links) > 0 && d.origin != t.wantPrefix(d) && overlap(d.origin, dst) {
			t.askAway(d, n)
			return false
		}
	}
	return t.clearBelow(dst, n, false, n.wantMarker)
}

// movable says that a directory's objects may leave where they are: no task is on its way there, and no other directory
// has copies there with which what it has left is to be compared.
func (t *tree) movable(n *node) bool {
	compared := func(d *node) bool {
		return d != n && slices.ContainsFunc(d.purges, func(p purge) bool { return p.dst != "" && overlap(p.dst, n.origin) })
	}
	return !t.anyBusy(n.origin) && !t.anyMoved(compared)
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

// clearBelow says that no objects of other nodes than n are left below a prefix, and asks those to go that are. Those do
// not count that are where they shall be: of nodes inside n, and with all set of any, since names came back to a place that
// was left. With overwrite set another directory's marker at the prefix itself does not count: n's replaces it.
func (t *tree) clearBelow(prefix s3.Key, n *node, all, overwrite bool) bool {
	if t.under[prefix] == 0 && t.owner[prefix] == nil {
		return true
	}
	free := true
	for key, m := range t.owner {
		if m == n && !all || !isUnder(key, prefix) || overwrite && key == prefix {
			continue
		}
		if (all || m.inside(n)) && slices.Contains(t.wantKeys(m), key) {
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
