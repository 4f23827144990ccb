package volume

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/csi-s3/csi-s3/pkg/config"
	"github.com/csi-s3/csi-s3/pkg/disk"
	"github.com/csi-s3/csi-s3/pkg/inode"
	"github.com/csi-s3/csi-s3/pkg/journal"
	"github.com/csi-s3/csi-s3/pkg/s3"
	"github.com/csi-s3/csi-s3/pkg/s3/s3mem"
	"github.com/csi-s3/csi-s3/pkg/vfs"
)

// left makes a cache directory as a kill leaves it: use works with a volume whose uploads never begin by themselves.
func left(t *testing.T, s Spec, use func(c *core)) (dir string) {
	t.Helper()
	s.CacheDir = filepath.Join(t.TempDir(), "live")
	c, err := open(s)
	if err != nil {
		t.Fatal(err)
	}
	c.start(context.Background())
	use(c)
	dir = filepath.Join(t.TempDir(), "cache")
	// With its holes.
	if out, err := exec.CommandContext(t.Context(), "cp", "-a", s.CacheDir, dir).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	abandoned(c)
	return dir
}

// listing is all that lies below dir, with modes, sizes and times, but not the times of access.
func listing(t *testing.T, dir string) string {
	t.Helper()
	var all strings.Builder
	err := filepath.WalkDir(dir, func(name string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		st, err := e.Info()
		if err != nil {
			return err
		}
		fmt.Fprintln(&all, name, st.Mode(), st.Size(), st.ModTime().UnixNano(), st.Sys().(*syscall.Stat_t).Blocks)
		if st.Mode().IsRegular() && st.Size() < 1<<20 {
			text, err := os.ReadFile(name)
			fmt.Fprintf(&all, "%x\n", text)
			return err
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all.String()
}

func remains(t *testing.T, dir string) *Remains {
	t.Helper()
	r, err := OpenRemains(dir, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
	return r
}

func saved(t *testing.T, r *Remains) (to string, report *Report) {
	t.Helper()
	to = filepath.Join(t.TempDir(), "saved")
	report, err := r.Save(t.Context(), to, nil)
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(to, "recover-report.json"))
	if err != nil {
		t.Fatal(err)
	}
	var written Report
	if err := json.Unmarshal(text, &written); err != nil || written.Files != report.Files || len(written.Remnants) != len(report.Remnants) {
		t.Errorf("the report that was written is %s (%v), returned was %+v", text, err, report)
	}
	return to, report
}

// hand works on a core as programs do, with paths.
type hand struct {
	t *testing.T
	c *core
}

func (h hand) must(err error) {
	h.t.Helper()
	if err != nil {
		h.t.Fatal(err)
	}
}

func (h hand) ino(path string) inode.Ino {
	h.t.Helper()
	ino := inode.Root
	for part := range strings.SplitSeq(path, "/") {
		if path == "" {
			break
		}
		e, err := h.c.fs.Lookup(h.t.Context(), who, ino, part)
		h.must(err)
		ino = e.Attr.Ino
	}
	return ino
}

func (h hand) split(path string) (inode.Ino, string) {
	dir, name := "", path
	if i := strings.LastIndexByte(path, '/'); i >= 0 {
		dir, name = path[:i], path[i+1:]
	}
	return h.ino(dir), name
}

func (h hand) mkdir(path string, mode uint32) {
	h.t.Helper()
	dir, name := h.split(path)
	_, err := h.c.fs.Mkdir(h.t.Context(), who, dir, name, mode)
	h.must(err)
}

func (h hand) create(path, content string, mode uint32) (inode.Ino, vfs.HandleID) {
	h.t.Helper()
	dir, name := h.split(path)
	e, id, err := h.c.fs.Create(h.t.Context(), who, dir, name, mode, syscall.O_RDWR)
	h.must(err)
	h.write(e.Attr.Ino, content, 0)
	return e.Attr.Ino, id
}

func (h hand) file(path, content string, mode uint32) inode.Ino {
	h.t.Helper()
	ino, id := h.create(path, content, mode)
	h.c.fs.Release(ino, id)
	return ino
}

func (h hand) write(ino inode.Ino, content string, off int64) {
	h.t.Helper()
	if content == "" {
		return
	}
	id, _, err := h.c.fs.Open(h.t.Context(), who, ino, syscall.O_RDWR)
	h.must(err)
	_, err = h.c.fs.Write(h.t.Context(), who, ino, id, []byte(content), off)
	h.must(err)
	h.c.fs.Release(ino, id)
}

// wants is what Save made.
func wants(t *testing.T, to string, want map[string]string) {
	t.Helper()
	var names []string
	err := filepath.WalkDir(to, func(name string, e fs.DirEntry, err error) error {
		if err == nil && !e.IsDir() {
			names = append(names, strings.TrimPrefix(name, to+"/"))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for name, content := range want {
		got, err := os.ReadFile(filepath.Join(to, name))
		if err != nil || string(got) != content {
			t.Errorf("%s holds %.40q (%d bytes, %v), want %.40q (%d bytes)", name, got, len(got), err, content, len(content))
		}
	}
	if len(names) != len(want)+1 { // and the report
		t.Errorf("saved are %q, want %d and the report", names, len(want))
	}
}

func remnant(t *testing.T, all []Remnant, name string) Remnant {
	t.Helper()
	i := slices.IndexFunc(all, func(x Remnant) bool { return x.Name == name })
	if i < 0 {
		t.Errorf("nothing is said of %q", name)
		return Remnant{}
	}
	return all[i]
}

// What a killed mount left is saved with names, modes and times; what only the bucket had is a hole and in the report; and
// the cache is the same afterwards, so that a mount uploads all of it should the bucket come back.
func TestRemains(t *testing.T) {
	b := s3mem.New("bucket")
	base := strings.Repeat("0123456789abcdef", 3<<16) // 3 MiB
	for key, content := range map[string]string{"p/old/big": base, "p/old/moved": "in the bucket", "p/old/removed": "too", "p/old/mode": "m"} {
		upload(t, b, key, content, s3.Attributes{})
	}
	s := spec(b)
	s.ID, s.Prefix = "bucket/p", "p/"
	when := time.Date(2020, 2, 3, 4, 5, 6, 7, time.UTC)
	patch := strings.Repeat("x", 1<<20)
	dir := left(t, s, func(c *core) {
		h := hand{t, c}
		ctx := t.Context()
		h.write(h.ino("old/big"), patch, 1<<20)
		h.must(c.fs.Rename(ctx, who, h.ino("old"), "moved", h.ino("old"), "renamed", 0))
		h.must(c.fs.Unlink(ctx, who, h.ino("old"), "removed"))
		mode := uint32(0o600)
		_, _, err := c.fs.SetAttr(ctx, who, h.ino("old/mode"), 0, vfs.SetAttr{Mode: &mode})
		h.must(err)

		h.mkdir("new", 0o750)
		h.mkdir("new/deep", 0o700)
		h.mkdir("new/empty", 0o711)
		f := h.file("new/deep/file", "content", 0o640)
		_, _, err = c.fs.SetAttr(ctx, who, f, 0, vfs.SetAttr{Mtime: &when})
		h.must(err)
		h.must(c.fs.SetXattr(ctx, who, f, "user.colour", []byte("blue"), 0))
		_, err = c.fs.Link(ctx, who, f, h.ino("new"), "hard")
		h.must(err)
		h.file("new/recover-report.json", "{}", 0o4755)
		h.file("new/nothing", "", 0o644)
		_, err = c.fs.Symlink(ctx, who, h.ino("new"), "soft", "../old/big")
		h.must(err)
		sparse := h.file("new/sparse", "start", 0o644)
		h.write(sparse, "end", 1<<34)
		h.create("new/unnamed", "still open", 0o644)
		h.must(c.fs.Unlink(ctx, who, h.ino("new"), "unnamed"))
	})
	before := listing(t, dir)

	r := remains(t, dir)
	if r.Volume != "bucket/p" || r.Undrained {
		t.Errorf("volume %q, undrained %t", r.Volume, r.Undrained)
	}
	if _, err := OpenRemains(dir, slog.New(slog.DiscardHandler)); !errors.Is(err, disk.ErrLocked) {
		t.Errorf("opened twice: %v", err)
	}
	to, report := saved(t, r)
	if !report.Complete || report.Failed != 0 || report.Partial != 1 {
		t.Errorf("report: complete %t, failed %d, partial %d", report.Complete, report.Failed, report.Partial)
	}

	// The sparse file is too large to be read as the others are.
	sparse, err := os.Open(filepath.Join(to, "files/new/sparse"))
	if err != nil {
		t.Fatal(err)
	}
	p := make([]byte, 5)
	st, err := sparse.Stat()
	if err != nil || st.Size() != 1<<34+3 || st.Sys().(*syscall.Stat_t).Blocks > 64 {
		t.Errorf("sparse file: %+v, %v", st, err)
	}
	if _, err := sparse.ReadAt(p, 0); err != nil || string(p) != "start" {
		t.Errorf("sparse file: %q, %v", p, err)
	}
	if _, err := sparse.ReadAt(p[:3], 1<<34); err != nil || string(p[:3]) != "end" {
		t.Errorf("sparse file: %q, %v", p[:3], err)
	}
	if err := errors.Join(sparse.Close(), os.Remove(sparse.Name())); err != nil {
		t.Fatal(err)
	}
	target, err := os.Readlink(filepath.Join(to, "files/new/soft"))
	if err != nil || target != "../old/big" {
		t.Errorf("symlink to %q, %v", target, err)
	}
	if err := os.Remove(filepath.Join(to, "files/new/soft")); err != nil {
		t.Fatal(err)
	}
	var unnamed string
	for _, x := range report.Remnants {
		if x.State == StateUnnamed {
			unnamed = x.SavedAs
		}
	}
	zeros := string(make([]byte, 1<<20))
	wants(t, to, map[string]string{
		"files/old/big": zeros + patch + zeros, "files/new/deep/file": "content", "files/new/hard": "content", "files/new/nothing": "",
		"files/new/recover-report.json": "{}", unnamed: "still open",
	})

	big := remnant(t, report.Remnants, "old/big")
	if big.State != StateChanged || !slices.Equal(big.Missing, []Span{{0, 1 << 20}, {2 << 20, 1 << 20}}) || big.Local != 1<<20 || !slices.Equal(big.Stored, []string{"p/old/big"}) {
		t.Errorf("big: %+v", big)
	}
	for name, state := range map[string]State{"old/renamed": StateMoved, "old/mode": StateAttributes, "new": StateNew, "new/nothing": StateNew} {
		if x := remnant(t, report.Remnants, name); x.State != state || (x.SavedAs != "") != (state == StateNew) {
			t.Errorf("%s: %+v", name, x)
		}
	}
	if i := slices.IndexFunc(report.Remnants, func(x Remnant) bool { return x.State == StateRemoved }); i < 0 || !slices.Equal(report.Remnants[i].Stored, []string{"p/old/removed"}) {
		t.Error("nothing is said of the file that was removed")
	}
	for name, mode := range map[string]fs.FileMode{"new": 0o750, "new/deep": 0o700, "new/empty": 0o711, "new/deep/file": 0o640, "new/recover-report.json": 0o755} {
		st, err := os.Stat(filepath.Join(to, "files", name))
		if err != nil || st.Mode() & ^fs.ModeDir != mode {
			t.Errorf("%s: mode %v, want %v (%v)", name, st.Mode(), mode, err)
		}
	}
	st, err = os.Stat(filepath.Join(to, "files/new/hard"))
	if err != nil || !st.ModTime().Equal(when) || st.Sys().(*syscall.Stat_t).Nlink != 2 {
		t.Errorf("hard: %+v, %v", st, err)
	}
	value := make([]byte, 10)
	if n, err := syscall.Getxattr(filepath.Join(to, "files/new/hard"), "user.colour", value); err != nil && !errors.Is(err, syscall.ENOTSUP) || err == nil && string(value[:n]) != "blue" {
		t.Errorf("user.colour: %q, %v", value[:max(n, 0)], err)
	}

	if _, err := r.Save(t.Context(), to, nil); !errors.Is(err, ErrTarget) {
		t.Errorf("saved twice: %v", err)
	}
	if _, err := r.Save(t.Context(), filepath.Join(dir, "inside"), nil); !errors.Is(err, ErrTarget) {
		t.Errorf("saved into the cache: %v", err)
	}
	if after := listing(t, dir); after != before {
		t.Errorf("the cache changed from\n%s\nto\n%s", before, after)
	}
}

// After a loss of power what no fsync covered is saved apart, with the name that it had.
func TestRemainsPowerCut(t *testing.T) {
	dir := left(t, spec(s3mem.New("bucket")), func(c *core) {
		h := hand{t, c}
		synced, id := h.create("synced", "to the disk", 0o644)
		h.must(c.fs.Fsync(t.Context(), who, synced, id, false))
		h.file("lost", "never synced", 0o644)
	})
	text, err := os.ReadFile(filepath.Join(dir, identityFile))
	if err != nil {
		t.Fatal(err)
	}
	var id identity
	if err := json.Unmarshal(text, &id); err != nil {
		t.Fatal(err)
	}
	id.Boot = "an earlier one"
	if text, err = json.Marshal(id); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, identityFile), text, 0o600); err != nil {
		t.Fatal(err)
	}
	before := listing(t, dir)
	to, report := saved(t, remains(t, dir))
	lost := remnant(t, report.Remnants, "lost")
	if lost.State != StateQuarantined {
		t.Errorf("lost: %+v", lost)
	}
	wants(t, to, map[string]string{"files/synced": "to the disk", lost.SavedAs: "never synced"})
	if after := listing(t, dir); after != before {
		t.Errorf("the cache changed from\n%s\nto\n%s", before, after)
	}
}

// What is no cache, or not to be read, is refused and stays as it is.
func TestRemainsRefused(t *testing.T) {
	good := left(t, spec(s3mem.New("bucket")), func(c *core) { hand{t, c}.file("f", "content", 0o644) })
	for name, c := range map[string]struct {
		spoil func(dir string) error
		is    error
		says  string
	}{
		"no identity": {func(dir string) error { return os.Remove(filepath.Join(dir, identityFile)) }, ErrCacheDir, "not one of csi-s3"},
		"damaged":     {func(dir string) error { return os.WriteFile(filepath.Join(dir, identityFile), []byte("{"), 0o600) }, ErrCacheDir, "damaged"},
		"newer": {func(dir string) error {
			return os.WriteFile(filepath.Join(dir, identityFile), []byte(`{"format":99,"volume":"v","writer":"w"}`), 0o600)
		}, ErrCacheDir, "newer version"},
		"journal broken": {func(dir string) error {
			return os.WriteFile(filepath.Join(dir, journalDir, "journal"), []byte("?"), 0o600)
		}, journal.ErrCorrupt, "header"},
	} {
		dir := filepath.Join(t.TempDir(), "cache")
		if err := errors.Join(os.CopyFS(dir, os.DirFS(good)), c.spoil(dir)); err != nil {
			t.Fatal(err)
		}
		before := listing(t, dir)
		_, err := OpenRemains(dir, slog.New(slog.DiscardHandler))
		if !errors.Is(err, c.is) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v", name, err)
		}
		if after := listing(t, dir); after != before {
			t.Errorf("%s: the cache changed from\n%s\nto\n%s", name, before, after)
		}
	}
	if _, err := OpenRemains(filepath.Join(good, "absent"), slog.New(slog.DiscardHandler)); !errors.Is(err, ErrCacheDir) {
		t.Errorf("a directory that is not there: %v", err)
	}
}

// A cache is given up only with the right volume ID and after all of it was saved, and then no mount finds it.
func TestRemainsDiscard(t *testing.T) {
	base := t.TempDir()
	s := &Set{CacheDir: base, Log: slog.New(slog.DiscardHandler)}
	request := StageRequest{ID: config.VolumeID{Bucket: "bucket"}, Secret: config.Secret{Endpoint: "https://s3.example"}, Options: config.DefaultMount()}
	n := s.nest(request)
	if _, err := s.occupy(n, request); err != nil {
		t.Fatal(err)
	}
	kept := left(t, spec(s3mem.New("bucket")), func(c *core) { hand{t, c}.file("f", "content", 0o644) })
	if err := os.CopyFS(n.cache, os.DirFS(kept)); err != nil {
		t.Fatal(err)
	}
	found, err := FindCaches(base)
	if err != nil || !slices.Equal(found, []string{n.cache}) {
		t.Fatalf("found %q, %v; want %s", found, err, n.cache)
	}
	before := listing(t, base)
	r := remains(t, n.cache)
	_, report := saved(t, r)
	if !r.Undrained || !report.Complete {
		t.Fatalf("undrained %t, complete %t", r.Undrained, report.Complete)
	}
	half := *report
	half.Complete = false
	for _, refused := range []error{r.Discard("bucket/other", report), r.Discard("bucket", nil), r.Discard("bucket", &half)} {
		if !errors.Is(refused, ErrUnsaved) {
			t.Errorf("discard: %v", refused)
		}
	}
	if after := listing(t, base); after != before {
		t.Fatalf("a refused discard changed\n%s\nto\n%s", before, after)
	}
	if err := r.Discard("bucket", report); err != nil {
		t.Fatal(err)
	}
	marks, err := s.marks(request.ID)
	if err != nil || len(marks) != 0 {
		t.Errorf("marks %v, %v", marks, err)
	}
	if found, err := FindCaches(base); !errors.Is(err, ErrCacheDir) {
		t.Errorf("found %q, %v", found, err)
	}
	if text, err := os.ReadFile(filepath.Join(r.Dir, identityFile)); err != nil || len(text) == 0 {
		t.Errorf("what was given up is not there any more: %v", err)
	}
}
