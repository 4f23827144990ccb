package namespace

import (
	"fmt"
	"strings"
)

// Waiting describes the inodes that have something to do.
func (t *Tree) Waiting() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	var out strings.Builder
	for n := range t.unsettled {
		fmt.Fprintf(&out, "%d: ", n.attr.Ino)
		if len(n.links) > 0 {
			fmt.Fprintf(&out, "wants %q", t.wantKeys(n))
		}
		fmt.Fprintf(&out, " has")
		for _, o := range n.objs {
			fmt.Fprintf(&out, " %q (bytes %d, attributes %d, unsure %v)", string(o.key), o.contGen, o.metaGen, o.unsure)
		}
		fmt.Fprintf(&out, " of %d, %d; origin %q, heading %q, purges %q, save %v, opens %d\n", n.contGen, n.metaGen, string(n.origin), string(n.heading), n.purges, n.save, n.opens)
	}
	return out.String()
}
