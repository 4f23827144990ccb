package writeback_test

import (
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/csi-s3/csi-s3/pkg/inode"
	"github.com/csi-s3/csi-s3/pkg/namespace"
	"github.com/csi-s3/csi-s3/pkg/s3"
	"github.com/csi-s3/csi-s3/pkg/s3/s3fault"
)

// A program that rewrites an object with the metadata that it had is another client all the same.
func TestForeignObjectWithOurMetadata(t *testing.T) {
	r := newRig(t, small)
	ino := r.create("f")
	r.write(ino, 0, []byte("zero"))
	r.flush()
	r.write(ino, 0, []byte("first"))
	r.flush()
	info, err := r.bucket.Head(t.Context(), "f")
	r.ok(err)
	body := "theirs, more"
	_, err = r.bucket.Put(t.Context(), "f", s3.Body{R: strings.NewReader(body), Size: int64(len(body))}, s3.Attributes{Meta: info.Meta, ContentType: info.ContentType}, s3.Condition{})
	r.ok(err)
	r.write(ino, 0, []byte("ours!"))
	t.Log(r.tryFlush(10 * time.Second))
	found := false
	for _, k := range r.keys() {
		got := string(r.get(k))
		t.Log(k, got)
		found = found || got == body
	}
	if !found {
		t.Fatal("theirs is lost")
	}
}

// A symbolic link that moves with its directory is not taken for another empty object.
func TestMoveOfObjectsWithoutBytes(t *testing.T) {
	r := newRig(t, small)
	link := func(key, target string) {
		_, err := r.bucket.Put(t.Context(), s3.Key(key), s3.Body{}, s3.Attributes{Meta: map[string]string{"--symlink-target": target}}, s3.Condition{})
		r.ok(err)
	}
	link("old/l", "ours")
	link("new/l", "theirs")
	r.learnDir("old")
	r.ok(r.tree.Rename(namespace.Op{}, inode.Root, "old", inode.Root, "new", 0))
	r.flush()
	have := map[string]bool{}
	for _, k := range r.keys() {
		info, err := r.bucket.Head(t.Context(), s3.Key(k))
		r.ok(err)
		t.Log(k, info.Meta)
		have[info.Meta["--symlink-target"]] = true
	}
	if !have["ours"] || !have["theirs"] {
		t.Fatalf("have %v", have)
	}
}

// Another client's object where a large one of a moving directory goes.
func TestMoveOfLargeObjectMeetsForeign(t *testing.T) {
	r := newRig(t, small)
	big := noise(300 << 10)
	r.put("old/big", big)
	r.put("old/x", []byte("x"))
	r.learnDir("old")
	var once sync.Once
	r.faulty(func(op s3fault.Op) s3fault.Action {
		if op.Key == "" && op.Name != "List" && op.Name != "DeleteMany" {
			t.Errorf("%s of no key", op.Name)
		}
		if op.Name == "CompleteUpload" {
			once.Do(func() { r.put("new/big", []byte("foreign")) })
		}
		return s3fault.Action{}
	})
	r.ok(r.tree.Rename(namespace.Op{}, inode.Root, "old", inode.Root, "new", 0))
	r.ok(r.tryFlush(10 * time.Second))
	r.holds("new/big", big)
	r.noUploads()
	r.settled()
}
