package namespace_test

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/csi-s3/csi-s3/pkg/disk"
	"github.com/csi-s3/csi-s3/pkg/disk/diskfault"
	"github.com/csi-s3/csi-s3/pkg/disk/diskmem"
	"github.com/csi-s3/csi-s3/pkg/inode"
	"github.com/csi-s3/csi-s3/pkg/journal"
	"github.com/csi-s3/csi-s3/pkg/namespace"
)

// still is a world in which nothing happens by itself, with some files that are in the bucket.
func still(t *testing.T, files ...string) *world {
	t.Helper()
	w := &world{bench: newBench(1), names: map[string]*entry{}, open: map[inode.Ino]*entry{}}
	w.changed = w.check
	for _, name := range files {
		w.there(name, w.change(w.make(name, false), "first"))
	}
	return w
}

// catch makes what a bench panics with the test's failure.
func catch(t *testing.T) {
	if r := recover(); r != nil {
		f, ok := r.(failure)
		if !ok {
			panic(r)
		}
		t.Fatal(f)
	}
}

// tasks carries out one task after the other until one of them was as asked for.
func (w *world) tasks(until func(k *namespace.Task) bool) {
	for range 100 {
		w.now = w.now.Add(time.Second)
		if !w.begin() {
			w.fail("no task is left: %s", w.tree.Waiting())
		}
		k := w.running[0].task
		for len(w.running) > 0 {
			w.advance()
		}
		if until(k) {
			return
		}
	}
	w.fail("no such task")
}

// TestGiveWayAgain: a file whose bytes were saved to give way to a directory, and that was changed since, is saved again
// before it gives way again: what was saved is older.
func TestGiveWayAgain(t *testing.T) {
	defer catch(t)
	w := still(t, "f", "d/x")
	w.make("d/", true)
	saves := func(k *namespace.Task) bool {
		return k.Verb == namespace.Copy && strings.HasPrefix(string(k.Key), ".csi-s3/orphans/")
	}
	w.exchange("f", "d/")
	w.tasks(saves)
	w.exchange("d", "f/")
	w.write("f")
	ino, _ := w.lookup("f")
	w.tasks(func(k *namespace.Task) bool { return k.Verb == namespace.Put && k.Ino == ino })
	if _, ok := w.cached[ino]; ok {
		t.Fatal("the test tests nothing: the bytes are cached")
	}
	w.exchange("f", "d/")
	w.tasks(saves)
	w.drain()
	if got, err := w.read(ino); err != nil || got != w.names["d"].content {
		t.Errorf("%q, want %q, %v", got, w.names["d"].content, err)
	}
	if keys := w.keys(); !slices.Equal(keys, []string{"d", "f/", "f/x"}) && !slices.Equal(keys, []string{"d", "f/x"}) {
		t.Errorf("the bucket has %q", keys)
	}
}

// TestErr: a tree says that its journal failed, whoever met the failure, and takes no more mutations.
func TestErr(t *testing.T) {
	for _, own := range []bool{true, false} {
		var bad bool
		d := diskfault.New(diskmem.New(), func(op diskfault.Op) error {
			if bad && op.Name == "WriteAt" {
				return disk.ErrIO
			}
			return nil
		})
		tree := namespace.New(namespace.Options{WriterID: "0123456789abcdef"})
		if err := tree.Err(); err != nil {
			t.Errorf("before there is a journal: %v", err)
		}
		j, err := journal.Open(d, "journal", journal.Options{}, func([]journal.Record) error { return nil })
		if err != nil {
			t.Fatal(err)
		}
		if err := tree.Recover(j); err != nil {
			t.Fatal(err)
		}
		create := func(name string) error {
			res, err := tree.Resolve(inode.Root, name)
			if err != nil {
				t.Fatal(err)
			}
			_, err = tree.Create(namespace.Op{}, inode.Root, name, res.Version, inode.Attr{Mode: inode.ModeRegular | 0o644}, "")
			return err
		}
		if err := create("good"); err != nil || tree.Err() != nil {
			t.Fatalf("%v, %v", err, tree.Err())
		}
		bad = true
		if own {
			err = create("bad")
		} else {
			err = j.Append(journal.Record{Kind: journal.OwnerCache | 1, Data: []byte("x")})
		}
		if !errors.Is(err, disk.ErrIO) {
			t.Fatalf("own %v: the disk fails, and the answer is %v", own, err)
		}
		bad = false
		if err := tree.Err(); !errors.Is(err, disk.ErrIO) {
			t.Errorf("own %v: Err is %v", own, err)
		}
		if err := create("more"); err == nil {
			t.Errorf("own %v: a mutation was taken that no journal has", own)
		}
		if k, _ := tree.Next(time.Now().Add(time.Hour)); k != nil && own {
			t.Errorf("a task was handed out: %+v", k)
		}
		_ = j.Close() // it failed
	}
}

// keys are all that the bucket has.
func (b *bench) keys() []string {
	objs, err := b.list(func() bool { return true }, "")
	b.ok(err)
	var keys []string
	for _, o := range objs {
		keys = append(keys, string(o.Key))
	}
	slices.Sort(keys)
	return keys
}
