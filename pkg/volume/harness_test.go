package volume

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/csi-s3/csi-s3/pkg/config"
	"github.com/csi-s3/csi-s3/pkg/disk"
	"github.com/csi-s3/csi-s3/pkg/disk/diskmem"
	"github.com/csi-s3/csi-s3/pkg/s3"
	"github.com/csi-s3/csi-s3/pkg/s3/s3mem"
	"github.com/csi-s3/csi-s3/pkg/vfs"
)

var (
	who         = vfs.Request{Uid: 0, Gid: 0}
	errInjected = errors.New("injected")
)

// spec is a volume that uploads only when it is drained.
func spec(bucket s3.Bucket) Spec {
	o := config.DefaultMount()
	o.Settle = time.Hour
	return Spec{ID: "bucket", Bucket: bucket, Options: o, Log: slog.New(slog.DiscardHandler), Node: "node-1", tuning: tuning{clock: clock()}}
}

// clock is one that synctest moves.
func clock() func() time.Duration {
	begun := time.Now()
	return func() time.Duration { return time.Since(begun) }
}

// running opens and starts a core.
func running(t *testing.T, d disk.FS, boot string, spec Spec) *core {
	t.Helper()
	c, err := openOn(d, boot, spec)
	if err != nil {
		t.Fatal(err)
	}
	c.start(context.Background())
	return c
}

func soon(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func drained(t *testing.T, c *core) {
	t.Helper()
	if err := c.drain(soon(t)); err != nil {
		t.Fatal(err)
	}
}

func closed(t *testing.T, c *core) {
	t.Helper()
	if err := c.close(soon(t)); err != nil {
		t.Fatal(err)
	}
}

// abandoned ends a core's goroutines as well as can be: its disk and its bucket are not looked at any more.
func abandoned(c *core) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	_ = c.close(ctx) // of a disk that may be broken
}

// contents is what the bucket has, without what is the volume's own and without markers of directories.
func contents(t *testing.T, b s3.Bucket) map[string]string {
	t.Helper()
	found := map[string]string{}
	page, err := b.List(t.Context(), s3.ListInput{})
	if err != nil || page.Token != "" {
		t.Fatal(err, "more than one page")
	}
	for _, o := range page.Objects {
		if strings.HasSuffix(string(o.Key), "/") || strings.HasPrefix(string(o.Key), ".csi-s3/") {
			continue
		}
		body, _, err := b.Get(t.Context(), o.Key, nil, "")
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(body)
		if err = errors.Join(err, body.Close()); err != nil {
			t.Fatal(err)
		}
		found[string(o.Key)] = string(text)
	}
	return found
}

func upload(t *testing.T, b s3.Bucket, key, content string, attr s3.Attributes) {
	t.Helper()
	if _, err := b.Put(t.Context(), s3.Key(key), s3.Body{R: strings.NewReader(content), Size: int64(len(content))}, attr, s3.Condition{}); err != nil {
		t.Fatal(err)
	}
}

// frozen is a bucket at a moment.
type frozen map[s3.Key]struct {
	content string
	attr    s3.Attributes
}

func freeze(t *testing.T, b s3.Bucket) frozen {
	f := frozen{}
	page, err := b.List(context.Background(), s3.ListInput{})
	if err != nil {
		t.Error(err)
	}
	for _, o := range page.Objects {
		body, info, err := b.Get(context.Background(), o.Key, nil, "")
		if err != nil {
			t.Error(err)
			continue
		}
		text, err := io.ReadAll(body)
		if err = errors.Join(err, body.Close()); err != nil {
			t.Error(err)
		}
		f[o.Key] = struct {
			content string
			attr    s3.Attributes
		}{string(text), s3.Attributes{Meta: info.Meta, ContentType: info.ContentType}}
	}
	return f
}

func (f frozen) thaw(t *testing.T) *s3mem.Bucket {
	t.Helper()
	b := s3mem.New("bucket")
	for key, o := range f {
		upload(t, b, string(key), o.content, o.attr)
	}
	return b
}

// The model: files with all that was ever written to them, and names.

func newTale(t *testing.T, objects map[string]int) *tale {
	t.Helper()
	x := &tale{t: t, disk: diskmem.New(), bucket: s3mem.New("bucket")}
	names := map[string]int{}
	for _, name := range slices.Sorted(maps.Keys(objects)) {
		content := x.bytes(objects[name])
		upload(t, x.bucket, name, string(content), s3.Attributes{})
		names[name] = len(x.model.files)
		x.model.files = append(x.model.files, story{versions: [][]byte{content}})
	}
	x.model.names = []map[string]int{names}
	return x
}

var objects = map[string]int{"base": 10000, "big": 6000, "gone": 100, "old": 50}
