package fuse

import (
	"fmt"
	"maps"
	"regexp"
	"strings"
	"syscall"
	"testing"
)

// children are the parts that a child can play.
func children() map[string]func(*actor) {
	all := map[string]func(*actor){
		"names": playSteps(nameSteps()), "files": playSteps(fileSteps()), "attributes": playSteps(attributeSteps()),
		"xattrs": playSteps(xattrSteps()), "caches": playSteps(cacheSteps()),
	}
	for _, more := range []map[string]func(*actor){fileChildren(), directoryChildren(), serveChildren(), mountChildren(), controlChildren(), notifyChildren()} {
		maps.Copy(all, more)
	}
	return all
}

// step is something that a child does, and what the core must then have seen of some operations, in order. {path} in
// want stands for an inode's number.
type step struct {
	name string
	do   func(a *actor)
	ops  string // separated by blanks
	want []string
}

// playSteps is the child's side of walk.
func playSteps(steps []step) func(*actor) {
	return func(a *actor) {
		syscall.Umask(0)
		for _, s := range steps {
			s.do(a)
			a.pause(s.name)
		}
	}
}

var pathPattern = regexp.MustCompile(`\{[^}]*\}`)

// walk lets a child do the steps of its name and compares what the core sees.
func walk(t *testing.T, m *served, child string, steps []step) {
	t.Helper()
	c := start(t, child, m.dir)
	for _, s := range steps {
		if got := c.line(); got != s.name {
			t.Fatalf("child did %q, want %q", got, s.name)
		}
		var want []string
		for _, w := range s.want {
			want = append(want, pathPattern.ReplaceAllStringFunc(w, func(p string) string {
				return fmt.Sprint(m.core.ino(strings.Trim(p, "{}")))
			}))
		}
		t.Run(strings.ReplaceAll(s.name, " ", "-"), func(t *testing.T) { m.expect(t, strings.Fields(s.ops), want...) })
		c.tell("")
	}
	c.end()
}
