package writeback

import (
	"testing"

	"github.com/csi-s3/csi-s3/pkg/s3"
)

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

// An upload that is being created has no ID yet: a list that shows it does not say whose it is.
func TestAnUploadOfOursWithoutAnID(t *testing.T) {
	u := &upload{number: 1, key: "a", others: []s3.UploadID{"before"}}
	l := ledger{open: map[uint64]*upload{1: u, 2: {number: 2, key: "a", id: "known"}, 3: {number: 3, key: "b"}}}
	open := []s3.Upload{{Key: "a", ID: "before"}, {Key: "a", ID: "known"}, {Key: "a", ID: "strange"}, {Key: "ab", ID: "longer"}}
	if rest, later := l.strange(u, open); len(rest) != 1 || rest[0].ID != "strange" || later {
		t.Errorf("%v, later %v", rest, later)
	}
	l.open[4] = &upload{number: 4, key: "a"}
	if _, later := l.strange(u, open); !later {
		t.Error("one without an ID was not seen")
	}
	if _, later := l.strange(l.open[4], open); later {
		t.Error("an earlier one is waited for")
	}
}
