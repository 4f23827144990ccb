package namespace_test

import (
	"testing"
	"time"

	"github.com/csi-s3/csi-s3/pkg/namespace"
	"github.com/csi-s3/csi-s3/pkg/s3"
)

// TestAnyUnsavedOldName: an object that may be there under a name that the file does not have any more is still to go.
func TestAnyUnsavedOldName(t *testing.T) {
	defer catch(t)
	w := still(t)
	w.create("f")
	next := func(verb namespace.Verb) *namespace.Task {
		w.now = w.now.Add(time.Hour)
		k, _ := w.tree.Next(w.now)
		if k == nil || k.Verb != verb {
			t.Fatalf("%+v", k)
		}
		return k
	}
	w.tree.Fail(next(namespace.Put), s3.ErrUnavailable, w.now)
	w.rename("f", "g")
	k := next(namespace.Put)
	w.ok(w.tree.Prepare(k))
	w.ok(w.tree.Commit(k, s3.Info{ETag: "e"}, nil, nil))
	if !w.tree.AnyUnsaved() {
		t.Errorf("nothing is left: %s", w.tree.Waiting())
	}
	k = next(namespace.Delete)
	w.ok(w.tree.Commit(k, s3.Info{}, nil, nil))
	if w.tree.AnyUnsaved() {
		t.Errorf("something is left: %s", w.tree.Waiting())
	}
}
