package namespace

import (
	"testing"

	"github.com/csi-s3/csi-s3/pkg/s3"
)

// A directory stays where its objects are as long as another one's copies are to be compared with them, be they those of a
// directory above it, below it or beside it.
func TestMovable(t *testing.T) {
	for origin, want := range map[s3.Key]bool{"d/": false, "d/e/": false, "d/e/f/": false, "d/g/": true, "x/": true} {
		n := &node{origin: origin}
		other := &node{purges: []purge{{src: "x/e/", dst: "d/e/"}, {src: "x/"}}}
		tree := &tree{moved: map[*node]struct{}{n: {}, other: {}}}
		if got := tree.movable(n); got != want {
			t.Errorf("objects at %q may leave: %v, should be %v", string(origin), got, want)
		}
	}
}
