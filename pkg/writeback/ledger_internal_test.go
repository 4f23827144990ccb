package writeback

import "testing"

// While the sweeper looks at uploads, a task still finds its own; what the task has, the sweeper does not get.
func TestALookAtIdleUploadsTakesNone(t *testing.T) {
	l := ledger{open: map[uint64]*upload{1: {number: 1, key: "a"}, 2: {number: 2, key: "b"}}}
	idle := l.idle()
	if len(idle) != 2 {
		t.Fatalf("%d idle uploads, want 2", len(idle))
	}
	if l.find("b") != idle[1] {
		t.Error("the task does not find its upload")
	}
	if !l.take(idle[0]) || l.take(idle[0]) || l.take(idle[1]) {
		t.Error("an upload was not to be had, or twice")
	}
	delete(l.open, 2)
	l.leave(idle[1])
	if l.take(idle[1]) {
		t.Error("an upload that is over was taken")
	}
}
