package namespace

import (
	"fmt"

	"github.com/csi-s3/csi-s3/pkg/s3"
)

// Rest is what is left of a file whose object is gone.
type Rest int

// What is left.
const (
	RestNothing Rest = iota
	RestPart         // some bytes were only in that object
	RestAll
)

// Salvage ends a task whose source is gone for good: others removed or replaced the object that had the file's bytes.
// found is what is at the source's key now, nil for nothing; rest is what the cache has of the file, which it holds for
// dirty from now on (cache.File.Orphan). All of it is uploaded as any change. A part goes to the names
// NAME.partial-WRITER-TIME instead, kept is the first of them, and the name is what the bucket says. Nothing ends the
// file: that it was removed is the newer state.
func (t *Tree) Salvage(k *Task, rest Rest, found *s3.Info) (kept string, err error) {
	t.mu.Lock()
	defer t.unlock()
	n := k.n
	t.finishTask(k, false)
	defer t.unblock()
	now := t.opt.Now()
	changed := []*node{n}
	if k.Source.Key != "" {
		n.dropObj(k.Source.Key)
		t.release(k.Source.Key, n)
		t.tell(k.Source.Key, found)
	}
	n.contGen++
	n.metaGen++
	links := append([]link(nil), n.links...)
	for _, l := range links {
		switch rest {
		case RestNothing:
			changed = append(changed, t.unlink(l.dir, l.name)...)
		case RestPart:
			name := fmt.Sprintf("%s.partial-%.8s-%s", trimName(l.name), t.opt.WriterID, now.UTC().Format("20060102T150405.000000000"))
			t.detach(l.dir, l.name, now)
			changed = append(changed, t.bind(l.dir, name, n, now)...)
			if kept == "" {
				kept = name
			}
		}
	}
	if rest != RestNothing {
		t.touch(n, now)
	}
	return kept, t.append(unique(changed)...)
}
