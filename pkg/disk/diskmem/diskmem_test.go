package diskmem_test

import (
	"bytes"
	"math/rand/v2"
	"testing"

	"github.com/csi-s3/csi-s3/pkg/disk"
	"github.com/csi-s3/csi-s3/pkg/disk/diskmem"
)

// TestLoss cuts the power of a disk with a durable file that has two changes more, and of one that has only a name.
func TestLoss(t *testing.T) {
	d := diskmem.New()
	open := func(name string) disk.File {
		f, err := d.OpenFile(name, true)
		if err != nil {
			t.Fatal(err)
		}
		return f
	}
	put := func(f disk.File, b byte, n int, off int64) {
		if _, err := f.WriteAt(bytes.Repeat([]byte{b}, n), off); err != nil {
			t.Fatal(err)
		}
	}
	f := open("f")
	put(f, 1, 100, 0)
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
	if err := d.SyncDir("."); err != nil {
		t.Fatal(err)
	}
	put(f, 2, 3000, 100)
	put(f, 3, 3000, 3100)
	put(open("g"), 4, 10, 0)
	after := func(loss diskmem.Loss, seed uint64) (f, g []byte) {
		c := d.CrashCloneAs(loss, rand.New(rand.NewPCG(seed, 1)))
		f, err := c.ReadFile("f")
		if err != nil {
			t.Fatal(err)
		}
		g, err = c.ReadFile("g")
		if err != nil {
			g = nil
		}
		return f, g
	}
	if f, g := after(diskmem.Drop, 1); len(f) != 100 || g != nil {
		t.Errorf("drop left %d and %d bytes", len(f), len(g))
	}
	if f, g := after(diskmem.Keep, 1); len(f) != 6100 || len(g) != 10 {
		t.Errorf("keep left %d and %d bytes", len(f), len(g))
	}
	sizes, within := map[int]bool{}, false
	for seed := range uint64(200) {
		f, _ := after(diskmem.Tear, seed)
		sizes[len(f)] = true
		within = within || len(f)%512 == 0
		if i := bytes.IndexByte(f, 3); i >= 0 && i != 3100 {
			t.Fatalf("the second change is at %d", i)
		}
	}
	if !within || !sizes[100] || len(sizes) < 5 {
		t.Errorf("torn sizes are %v", sizes)
	}
}
