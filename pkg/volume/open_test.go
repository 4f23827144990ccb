package volume

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"math/rand/v2"
	"path"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/csi-s3/csi-s3/pkg/disk"
	"github.com/csi-s3/csi-s3/pkg/disk/diskfault"
	"github.com/csi-s3/csi-s3/pkg/disk/diskmem"
	"github.com/csi-s3/csi-s3/pkg/inode"
	"github.com/csi-s3/csi-s3/pkg/journal"
	"github.com/csi-s3/csi-s3/pkg/s3"
	"github.com/csi-s3/csi-s3/pkg/s3/s3fault"
	"github.com/csi-s3/csi-s3/pkg/s3/s3mem"
	"github.com/csi-s3/csi-s3/pkg/vfs"
)

// tree is all that a disk has.
func tree(t *testing.T, d disk.FS, dir string) map[string]string {
	t.Helper()
	all := map[string]string{}
	entries, err := d.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		name := path.Join(dir, e.Name())
		if e.IsDir() {
			maps.Copy(all, tree(t, d, name))
			continue
		}
		text, err := d.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		all[name] = string(text)
	}
	return all
}

// put makes or replaces a file of a disk.
func put(t *testing.T, d disk.FS, name, content string) {
	t.Helper()
	f, err := d.OpenFile(name, true)
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.WriteAt([]byte(content), 0)
	if err = errors.Join(err, f.Truncate(int64(len(content))), f.Close()); err != nil {
		t.Fatal(err)
	}
}

// write makes a file in the root of a core, with the error that a program sees.
func write(c *core, name, content string) error {
	ctx := context.Background()
	e, h, err := c.fs.Create(ctx, who, inode.Root, name, 0o644, syscall.O_RDWR)
	if err != nil {
		return err
	}
	_, err = c.fs.Write(ctx, who, e.Attr.Ino, h, []byte(content), 0)
	c.fs.Release(e.Attr.Ino, h)
	c.fs.Forget(e.Attr.Ino, 1)
	return err
}

func unlink(t *testing.T, c *core, name string) {
	t.Helper()
	if err := c.fs.Unlink(t.Context(), who, inode.Root, name); err != nil {
		t.Fatal(err)
	}
}

// killed is a disk with one file that the bucket does not have, after a kill.
func killed(t *testing.T) *diskmem.FS {
	t.Helper()
	d := diskmem.New()
	c := running(t, d, "first", spec(s3mem.New("bucket")))
	if err := write(c, "f", "content"); err != nil {
		t.Fatal(err)
	}
	left := d.Clone()
	abandoned(c)
	return left
}

// TestRefused opens cache directories that must not be used: the error says why, nothing on the disk changes, and what
// it holds is still uploaded when the cause is gone.
func TestRefused(t *testing.T) {
	for name, tt := range map[string]struct {
		spoil func(t *testing.T, d *diskmem.FS)
		id    string
		want  []error
		says  string
	}{
		"another volume's": {id: "bucket/prefix", want: []error{ErrCacheDir}, says: `belongs to volume "bucket"`},
		"in use": {spoil: func(t *testing.T, d *diskmem.FS) {
			if _, err := d.Lock("lock"); err != nil {
				t.Fatal(err)
			}
		}, want: []error{ErrCacheDir, disk.ErrLocked}, says: "in use"},
		"identity empty": {spoil: func(t *testing.T, d *diskmem.FS) { put(t, d, identityFile, "") }, want: []error{ErrCacheDir}, says: "identity.json is damaged"},
		"identity cut":   {spoil: func(t *testing.T, d *diskmem.FS) { put(t, d, identityFile, `{"format":1,"vol`) }, want: []error{ErrCacheDir}, says: "identity.json is damaged"},
		"identity of a newer version": {spoil: func(t *testing.T, d *diskmem.FS) {
			put(t, d, identityFile, `{"format":2,"volume":"bucket","writer":"w"}`)
		},
			want: []error{ErrCacheDir}, says: "newer version (format 2)"},
		"identity without content": {spoil: func(t *testing.T, d *diskmem.FS) { put(t, d, identityFile, `{}`) }, want: []error{ErrCacheDir}, says: "identity.json is damaged"},
		"identity without writer":  {spoil: func(t *testing.T, d *diskmem.FS) { put(t, d, identityFile, `{"format":1,"volume":"bucket"}`) }, want: []error{ErrCacheDir}, says: "identity.json is damaged"},
		"journal empty":            {spoil: func(t *testing.T, d *diskmem.FS) { put(t, d, "journal/journal", "") }, want: []error{journal.ErrCorrupt}, says: "header"},
		"journal foreign":          {spoil: func(t *testing.T, d *diskmem.FS) { put(t, d, "journal/journal", strings.Repeat("x", 100)) }, want: []error{journal.ErrCorrupt}, says: "header"},
		"journal's header damaged": {spoil: func(t *testing.T, d *diskmem.FS) {
			text, err := d.ReadFile("journal/journal")
			if err != nil {
				t.Fatal(err)
			}
			put(t, d, "journal/journal", string(text[:9])+"?"+string(text[10:]))
		}, want: []error{journal.ErrCorrupt}, says: "checksum"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			good := killed(t)
			d := good.Clone()
			if tt.spoil != nil {
				tt.spoil(t, d)
			}
			before := tree(t, d, ".")
			b := s3mem.New("bucket")
			s := spec(b)
			if tt.id != "" {
				s.ID = tt.id
			}
			for _, boot := range []string{"first", "second"} {
				c, err := openOn(d, boot, s)
				if err == nil {
					abandoned(c)
					t.Fatal("it was opened")
				}
				for _, want := range tt.want {
					if !errors.Is(err, want) {
						t.Errorf("%v is not %v", err, want)
					}
				}
				if !strings.Contains(err.Error(), tt.says) {
					t.Errorf("%v does not say %q", err, tt.says)
				}
				after := tree(t, d, ".")
				delete(after, lockFile)
				delete(before, lockFile)
				if !maps.Equal(after, before) {
					t.Errorf("the disk was %q\nand is %q", before, after)
				}
			}
			// What was spoiled is mended, in place.
			mended := d.Clone() // without its locks
			for name, content := range tree(t, good, ".") {
				put(t, mended, name, content)
			}
			if found := recovered(t, mended, "first", b); found["f"] != "content" {
				t.Errorf("the bucket has %q", found)
			}
		})
	}
}

// A lock that a failed open took is let go.
func TestRefusedUnlocks(t *testing.T) {
	t.Parallel()
	d := killed(t)
	s := spec(s3mem.New("bucket"))
	s.ID = "another"
	if _, err := openOn(d, "first", s); !errors.Is(err, ErrCacheDir) {
		t.Fatal(err)
	}
	recovered(t, d, "first", s3mem.New("bucket"))
}

// TestIdentity crashes the making of a cache directory at each call: the next open makes it, and it stays one volume's,
// with one writer.
func TestIdentity(t *testing.T) {
	t.Parallel()
	d := diskmem.New()
	var left []*diskmem.FS
	rnd := rand.New(rand.NewPCG(1, 9))
	watched := diskfault.New(d, func(diskfault.Op) error {
		left = append(left, d.Clone(), d.CrashClone(rnd), d.CrashClone(rnd))
		return nil
	})
	c, err := openOn(watched, "first", spec(s3mem.New("bucket")))
	if err != nil {
		t.Fatal(err)
	}
	closed(t, c)
	for _, d := range left {
		var writers []string
		for _, boot := range []string{"second", "second", "third"} {
			c := running(t, d, boot, spec(s3mem.New("bucket")))
			closed(t, c)
			var id identity
			text, err := d.ReadFile(identityFile)
			if err != nil {
				t.Fatal(err)
			}
			if err := json.Unmarshal(text, &id); err != nil {
				t.Fatal(err)
			}
			if id.Volume != "bucket" || id.Boot != boot || len(id.Writer) < 20 || strings.ToLower(id.Writer) != id.Writer {
				t.Fatalf("in boot %s: %+v", boot, id)
			}
			writers = append(writers, id.Writer)
		}
		if len(slices.Compact(writers)) != 1 {
			t.Fatalf("the writer changed: %q", writers)
		}
		if _, err := d.ReadFile(identityFile + ".new"); !errors.Is(err, fs.ErrNotExist) {
			t.Fatalf("a temporary file is left: %v", err)
		}
	}
}

// switched is a bucket that can be turned off.
func switched(b s3.Bucket, down *bool) *s3fault.Bucket {
	f := s3fault.New(b)
	f.Fault = func(s3fault.Op) s3fault.Action {
		if *down {
			return s3fault.FailBefore(nil)
		}
		return s3fault.Action{}
	}
	return f
}

// A close while the bucket cannot be reached ends with its context and keeps all, over a power cut too; the next open
// uploads it.
func TestCloseWithoutBucket(t *testing.T) {
	t.Parallel()
	for _, hang := range []bool{false, true} {
		t.Run(fmt.Sprintf("hangs %v", hang), func(t *testing.T) {
			t.Parallel()
			b := s3mem.New("bucket")
			d := diskmem.New()
			f := s3fault.New(b)
			f.Fault = func(op s3fault.Op) s3fault.Action {
				switch {
				case op.Name == "Head" || op.Name == "List" || op.Name == "Get":
					return s3fault.Action{}
				case hang:
					return s3fault.Delay(time.Hour)
				}
				return s3fault.FailBefore(nil)
			}
			c := running(t, d, "first", spec(f))
			if err := write(c, "f", "content"); err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
			defer cancel()
			begin := time.Now()
			if err := c.drain(ctx); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "7 bytes") {
				t.Errorf("the drain says %v", err)
			}
			if s := c.executor.Status(); s.DirtyBytes != 7 || s.DirtyFiles != 1 {
				t.Errorf("%+v", s)
			}
			if err := c.close(ctx); err != nil {
				t.Errorf("the close says %v", err)
			}
			if took := time.Since(begin); took > 5*time.Second {
				t.Errorf("it took %v", took)
			}
			if found := contents(t, b); len(found) > 0 {
				t.Fatalf("the bucket has %q", found)
			}
			found := recovered(t, d.CrashClone(rand.New(rand.NewPCG(1, 1))), "second", b)
			if found["f"] != "content" || len(found) != 1 {
				t.Errorf("the bucket has %q", found)
			}
		})
	}
}

// A core that never started, because its mount failed, closes, and leaves all as it was.
func TestCloseNeverStarted(t *testing.T) {
	t.Parallel()
	d := killed(t)
	for range 2 {
		c, err := openOn(d, "first", spec(s3mem.New("bucket")))
		if err != nil {
			t.Fatal(err)
		}
		closed(t, c)
	}
	if found := recovered(t, d, "first", s3mem.New("bucket")); found["f"] != "content" {
		t.Errorf("the bucket has %q", found)
	}
}

// An error of the disk at the close is told, and what was acknowledged is not lost by it.
func TestCloseOnBadDisk(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"Sync", "WriteAt", "Rename", "SyncDir", "OpenFile"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := diskmem.New()
			bad := false
			c, err := openOn(diskfault.New(d, func(op diskfault.Op) error {
				if bad && op.Name == name {
					return errInjected
				}
				return nil
			}), "first", spec(s3mem.New("bucket")))
			if err != nil {
				t.Fatal(err)
			}
			if err := write(c, "f", "content"); err != nil {
				t.Fatal(err)
			}
			bad = true
			if err := c.close(soon(t)); !errors.Is(err, errInjected) {
				t.Errorf("close: %v", err)
			}
			if found := recovered(t, d, "first", s3mem.New("bucket")); found["f"] != "content" {
				t.Errorf("the bucket has %q", found)
			}
		})
	}
}

// What the ioctl answers has room for 16 KiB, whatever an error or a name says, and is JSON.
func TestStatusFits(t *testing.T) {
	t.Parallel()
	for name, text := range map[string]string{
		"long": strings.Repeat("long ", 50_000), "quoted": strings.Repeat("\x01", 100_000),
		"markup": strings.Repeat("<&>", 30_000), "wide": strings.Repeat("\u2028", 30_000), "broken": strings.Repeat("\xff", 30_000),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := s3fault.New(s3mem.New("bucket"))
			b.Fault = func(op s3fault.Op) s3fault.Action {
				if op.Name == "Put" {
					return s3fault.FailBefore(fmt.Errorf("%s: %w", text, s3.ErrUnavailable))
				}
				return s3fault.Action{}
			}
			c := running(t, diskmem.New(), "first", spec(b))
			defer abandoned(c)
			if err := write(c, "f", "content"); err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
			defer cancel()
			if err := c.drain(ctx); !errors.Is(err, s3.ErrUnavailable) {
				t.Fatal(err)
			}
			v := &Volume{id: "bucket/" + strings.Repeat("<", 1000), dir: "/" + strings.Repeat("d&", 400), core: c, log: slog.New(slog.DiscardHandler)}
			if len(v.Status().LastError) < len(text) {
				t.Fatal("there is no long error")
			}
			answer := v.status()
			if len(answer) >= 16<<10-1 {
				t.Errorf("the answer has %d bytes", len(answer))
			}
			var s Status
			if err := json.Unmarshal(answer, &s); err != nil {
				t.Fatalf("%v in %.200q", err, answer)
			}
			if s.ID != v.id || s.Dirty != 7 || s.DirtyFiles != 1 || s.Queue != 1 || s.OldestAge <= 0 || s.LastError == "" {
				t.Errorf("%+v", s)
			}
			if !bytes.Contains(answer, []byte(`"dirtyBytes":7`)) {
				t.Errorf("%.200q", answer)
			}
		})
	}
}

// counted waits until the volume has counted what the bucket holds.
func counted(t *testing.T, c *core, bytes, inodes int64) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		b, i := c.usage.Get()
		if b == bytes && i == inodes {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("%d bytes in %d inodes are counted, want %d in %d", b, i, bytes, inodes)
		}
	}
}

// A volume with a capacity counts what the bucket has, refuses what does not fit and takes it when there is room.
func TestCapacity(t *testing.T) {
	t.Parallel()
	b := s3mem.New("bucket")
	upload(t, b, "p/old", strings.Repeat("o", 4000), s3.Attributes{})
	upload(t, b, "other", strings.Repeat("x", 5000), s3.Attributes{}) // not the volume's
	s := spec(b)
	s.ID, s.Prefix, s.Options.Size = "bucket/p/", "p/", 10_000
	d := diskmem.New()
	c := running(t, d, "first", s)
	v := &Volume{core: c}
	counted(t, c, 4000, 1)
	if err := write(c, "new", strings.Repeat("n", 5000)); err != nil {
		t.Fatal(err)
	}
	counted(t, c, 9000, 2)
	err := write(c, "more", strings.Repeat("m", 1001))
	if !errors.Is(err, vfs.ErrCapacity) || vfs.Errno(err) != syscall.ENOSPC {
		t.Fatalf("a write past the capacity: %v", err)
	}
	counted(t, c, 9000, 3) // the file is there, empty
	if err := write(c, "more", strings.Repeat("m", 1000)); err != nil {
		t.Fatalf("a write up to the capacity: %v", err)
	}
	if used, free, inodes := v.Usage(); used != 10_000 || free != 0 || inodes != 3 {
		t.Errorf("usage is %d, %d free, %d inodes", used, free, inodes)
	}
	df, err := c.fs.Statfs(t.Context())
	if err != nil || df.Total != 10_000 || df.Free != 0 {
		t.Errorf("df says %+v, %v", df, err)
	}
	// Overwriting takes no room.
	if err := write(c, "old", strings.Repeat("O", 4000)); err != nil {
		t.Error(err)
	}
	unlink(t, c, "old")
	if _, free, _ := v.Usage(); free != 4000 {
		t.Errorf("%d bytes are free after an unlink", free)
	}
	drained(t, c)
	closed(t, c)
	// The next mount counts the same.
	c = running(t, d, "first", s)
	defer closed(t, c)
	counted(t, c, 6000, 2)
	if err := write(c, "again", strings.Repeat("a", 4001)); !errors.Is(err, vfs.ErrCapacity) {
		t.Errorf("a write past the capacity after a new mount: %v", err)
	}
}

// What a process left that died counts, whether the bucket has it when it is listed or not, and what is on its way out of
// the bucket does not.
func TestCapacityRecovered(t *testing.T) {
	t.Parallel()
	for _, late := range []bool{false, true} {
		t.Run(fmt.Sprintf("late=%t", late), func(t *testing.T) {
			t.Parallel()
			good := s3mem.New("bucket")
			for name, size := range map[string]int{"old": 4000, "gone": 300, "renamed": 200, "kept": 50, ".csi-s3/own": 1000} {
				upload(t, good, "p/"+name, strings.Repeat("o", size), s3.Attributes{})
			}
			b := s3fault.New(good)
			s := spec(b)
			s.ID, s.Prefix, s.Options.Size = "bucket/p/", "p/", 20_000
			d := diskmem.New()
			c := running(t, d, "first", s)
			counted(t, c, 4550, 4)
			h := hand{t, c}
			h.write(h.ino("old"), strings.Repeat("O", 7000), 0)
			unlink(t, c, "gone")
			h.must(c.fs.Rename(t.Context(), who, inode.Root, "renamed", inode.Root, "moved", 0))
			h.mkdir("d", 0o755)
			h.file("d/new", strings.Repeat("n", 5000), 0o644)
			const bytes, inodes = 7000 + 200 + 50 + 5000, 5
			if used, _, files := (&Volume{core: c}).Usage(); used != bytes || files != inodes {
				t.Errorf("before the kill %d bytes in %d inodes are counted", used, files)
			}
			left := d.Clone()
			abandoned(c)

			listed := make(chan struct{})
			b.Fault = func(op s3fault.Op) s3fault.Action {
				if late && op.Name == "List" {
					<-listed
				}
				return s3fault.Action{}
			}
			c = running(t, left, "first", s)
			if late {
				drained(t, c)
			}
			close(listed)
			counted(t, c, bytes, inodes)
			if err := write(c, "more", strings.Repeat("m", 20_000-bytes+1)); !errors.Is(err, vfs.ErrCapacity) {
				t.Errorf("a write past the capacity: %v", err)
			}
			unlink(t, c, "more")
			drained(t, c)
			counted(t, c, bytes, inodes)
			if exact, err := c.recount(t.Context()); !exact || err != nil {
				t.Errorf("recount: %t, %v", exact, err)
			}
			counted(t, c, bytes, inodes)
			closed(t, c)
		})
	}
}

// A count that changes fell into is corrected.
func TestCapacityRecount(t *testing.T) {
	t.Parallel()
	b := s3mem.New("bucket")
	s := spec(b)
	s.Options.Size = 20_000
	c := running(t, diskmem.New(), "first", s)
	defer closed(t, c)
	counted(t, c, 0, 0)
	if err := write(c, "f", strings.Repeat("f", 100)); err != nil {
		t.Fatal(err)
	}
	c.usage.Add(5000, -7)
	if exact, err := c.recount(t.Context()); exact || err != nil {
		t.Errorf("recount while a change waits: %t, %v", exact, err)
	}
	drained(t, c)
	if exact, err := c.recount(t.Context()); !exact || err != nil {
		t.Errorf("recount: %t, %v", exact, err)
	}
	counted(t, c, 100, 1)
}

// Without a capacity nothing is counted that would cost requests, and the volume says so.
func TestNoCapacity(t *testing.T) {
	t.Parallel()
	b := s3fault.New(s3mem.New("bucket"))
	c := running(t, diskmem.New(), "first", spec(b))
	defer closed(t, c)
	if _, free, _ := (&Volume{core: c}).Usage(); free != -1 {
		t.Errorf("%d bytes are free", free)
	}
	if n := b.Count("List"); n > 0 {
		t.Errorf("%d listings", n)
	}
}

// A bucket that cannot be listed does not keep a volume with a capacity from its work.
func TestCapacityUncounted(t *testing.T) {
	t.Parallel()
	down := true
	b := s3mem.New("bucket")
	f := switched(b, &down)
	s := spec(f)
	s.Options.Size = 100
	c, err := openOn(diskmem.New(), "first", s)
	if err != nil {
		t.Fatal(err)
	}
	short, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	c.count(short, c.hold())
	down = false
	c.start(t.Context())
	if err := write(c, "f", "content"); err != nil {
		t.Fatal(err)
	}
	drained(t, c)
	closed(t, c)
	if found := contents(t, b); found["f"] != "content" {
		t.Errorf("the bucket has %q", found)
	}
}
