package namespace

import (
	"maps"
	"slices"

	"github.com/csi-s3/csi-s3/pkg/s3"
)

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
		if !ok || len(n.objs) > 1 || len(n.objs) == 1 && n.objs[0].key != key || len(n.objs) == 0 && !n.isDir() || t.passed(key, n) {
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

// passed says that a directory which n is not in has left a prefix above a key, or begun to move there: as long as that is
// to be emptied, only what is tracked counts there. So it does while a Move has begun, which may have passed n over and
// would not come back for it.
func (t *tree) passed(key s3.Key, n *node) bool {
	over := func(prefix s3.Key) bool { return prefix != "" && isUnder(key, prefix) }
	return t.anyMoved(func(d *node) bool {
		moves := d.heading != "" || d.running != nil && d.running.Verb == Move
		return slices.ContainsFunc(d.purges, func(p purge) bool { return over(p.src) }) || (over(d.heading) || over(d.origin)) && (moves || !n.inside(d))
	})
}

// relaxBelow stops tracking what had to be tracked as long as a prefix was passed.
func (t *tree) relaxBelow(prefix s3.Key) []*node {
	var changed []*node
	for key, n := range maps.Clone(t.owner) {
		if isUnder(key, prefix) && n.changed == 0 {
			changed = append(changed, t.relax(n)...)
		}
	}
	return changed
}

// relaxLocal is the first half of relax for a directory on the way up.
func (t *tree) relaxLocal(n *node) []*node {
	if n.local && n.changed == 0 {
		return t.relax(n)
	}
	return nil
}
