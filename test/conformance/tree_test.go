package conformance_test

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/csi-s3/csi-s3/test/mountns"
)

// TestTree: a real tree of thousands of files is the same after cp -a, and again when only the bucket is left of it.
func TestTree(t *testing.T) {
	if !ownMounts(t) {
		return
	}
	m := newMounted(t, "")
	source := filepath.Join(strings.TrimSpace(m.run("go", "env", "GOROOT")), "src", "cmd")
	if soak() {
		source = filepath.Dir(source)
	}
	extra := filepath.Join(t.TempDir(), "extra")
	for _, dir := range []string{"empty", "sticky"} {
		if err := os.MkdirAll(filepath.Join(extra, dir), 0o750); err != nil {
			t.Fatal(err)
		}
	}
	for _, err := range []error{
		os.WriteFile(filepath.Join(extra, "nobody's"), []byte("x"), 0o640),
		os.WriteFile(filepath.Join(extra, "nothing"), nil, 0o400),
		os.WriteFile(filepath.Join(extra, "new\nline"), []byte("x"), 0o4755),
		os.Symlink("nobody's", filepath.Join(extra, "link")),
		os.Symlink("no/such/ünicode", filepath.Join(extra, "dangling")),
		os.Lchown(filepath.Join(extra, "nobody's"), 65534, 1000),
		os.Lchown(filepath.Join(extra, "dangling"), 1, 2),
		os.Chmod(filepath.Join(extra, "sticky"), os.ModeSticky|0o777),
		os.Chtimes(filepath.Join(extra, "nothing"), time.Unix(1, 0), time.Unix(-86400, 123456789)),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	m.run("cp", "-a", source, filepath.Join(m.dir, "tree"))
	m.run("cp", "-a", extra, filepath.Join(m.dir, "extra"))
	check := func(when string) {
		t.Helper()
		m.run("diff", "-r", "--no-dereference", source, filepath.Join(m.dir, "tree"))
		m.run("diff", "-r", "--no-dereference", extra, filepath.Join(m.dir, "extra"))
		for want, got := range map[string]string{source: "tree", extra: "extra"} {
			compare(t, when, listTree(m, want), listTree(m, filepath.Join(m.dir, got)))
		}
	}
	check("as it was written")
	m.flush()
	m.restart(true)
	check("out of the bucket")
}

// listTree lists name, mode, owner, mtime, size and link target of everything below dir. Sizes of directories are a
// file system's own affair.
func listTree(m *mounted, dir string) []string {
	m.t.Helper()
	out := m.run("find", dir, "-mindepth", "1", "(", "-type", "d", "-printf", `%P %y %m %U %G %T@\0`, ")", "-o", "-printf", `%P %y %m %U %G %T@ %s %l\0`)
	lines := strings.Split(out, "\x00")
	slices.Sort(lines)
	return lines
}

func compare(t *testing.T, when string, want, got []string) {
	t.Helper()
	if len(want) != len(got) {
		t.Errorf("%s: %d names, want %d", when, len(got), len(want))
	}
	shown := 0
	for i := 0; i < min(len(want), len(got)) && shown < 10; i++ {
		if want[i] != got[i] {
			t.Errorf("%s:\n got %q\nwant %q", when, got[i], want[i])
			shown++
		}
	}
}

// TestLargeFile: a large file goes up as a multipart upload and comes back as it was, in bounded memory.
func TestLargeFile(t *testing.T) {
	if !ownMounts(t) {
		return
	}
	m := newMounted(t, "")
	size := int64(scale(256<<20, 3<<30))
	path := filepath.Join(m.dir, "large")
	watched := m.watchMemory()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	want := sha256.New()
	random := rand.NewChaCha8([32]byte{1})
	if _, err := io.CopyBuffer(struct{ io.Writer }{io.MultiWriter(f, want)}, io.LimitReader(random, size), make([]byte, 1<<20)); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	m.flush()
	peak := watched()
	info, err := m.client.Bucket(m.bucket).Head(t.Context(), "large")
	if err != nil || info.Size != size {
		t.Fatalf("%+v, %v", info, err)
	}
	if !strings.Contains(string(info.ETag), "-") {
		t.Errorf("ETag %s is not that of a multipart upload", info.ETag)
	}

	m.restart(true)
	watched = m.watchMemory()
	if got := sum(t, path); got != hex.EncodeToString(want.Sum(nil)) {
		t.Errorf("sha256 %s, want %x", got, want.Sum(nil))
	}
	peak = max(peak, watched())
	t.Logf("%d MiB; peak of anonymous and shared memory %d MiB", size>>20, peak>>20)
	if peak > 256<<20 {
		t.Errorf("%d MiB of memory, the limit is 256", peak>>20)
	}
}

func sum(t *testing.T, path string) string {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.CopyBuffer(struct{ io.Writer }{h}, f, make([]byte, 1<<20)); err != nil {
		t.Fatal(err)
	}
	return hex.EncodeToString(h.Sum(nil))
}

// TestListing: everything that another client put there is listed, and what has no name hides nothing else.
func TestListing(t *testing.T) {
	if !ownMounts(t) {
		return
	}
	m := newMounted(t, "")
	count := scale(3000, 20000)
	var keys []string
	for i := range count {
		keys = append(keys, fmt.Sprintf("many/object-%05d", i))
	}
	odd := []string{
		"odd/plain", "odd/ünïcödé", "odd/with space", "odd/tab\there", "odd/" + strings.Repeat("n", 255),
		"odd/both", "odd/both/below", "odd/implied/deep/er", "odd/marker/", "odd/%41&+#?", "odd/-rf",
	}
	hidden := []string{"odd//double", "odd/dir//x", "odd/./dot", "odd/../dots", "odd/" + strings.Repeat("n", 256)}
	keys = append(keys, odd...)
	keys = append(keys, hidden...)
	var (
		wg    sync.WaitGroup
		next  = make(chan string)
		mu    sync.Mutex
		fails []error
		taken = map[string]bool{} // hidden keys that the server took
	)
	for range 16 {
		wg.Go(func() {
			for key := range next {
				err := m.put(key, "x")
				mu.Lock()
				switch {
				case slices.Contains(hidden, key):
					taken[key] = err == nil // some servers refuse them
				case strings.HasPrefix(key, "odd/both") && err != nil: // MinIO has either the file or the directory
				case err != nil:
					fails = append(fails, fmt.Errorf("%q: %w", key, err))
				}
				mu.Unlock()
			}
		})
	}
	for _, k := range keys {
		next <- k
	}
	close(next)
	wg.Wait()
	if len(fails) > 0 {
		t.Fatal(fails)
	}
	for _, list := range []string{
		m.run("ls", "-f", filepath.Join(m.dir, "many")),
		m.run("find", filepath.Join(m.dir, "many"), "-type", "f", "-printf", `%f\n`),
	} {
		names := slices.DeleteFunc(strings.Fields(list), func(s string) bool { return strings.HasPrefix(s, ".") })
		slices.Sort(names)
		if len(slices.Compact(names)) != count || names[0] != "object-00000" || names[count-1] != fmt.Sprintf("object-%05d", count-1) {
			t.Errorf("%d names of %d, from %q to %q", len(names), count, names[0], names[len(names)-1])
		}
	}
	got := strings.Split(strings.TrimSuffix(m.run("find", filepath.Join(m.dir, "odd"), "-mindepth", "1", "-printf", `%P\0`), "\x00"), "\x00")
	slices.Sort(got)
	for _, want := range []string{"plain", "ünïcödé", "with space", "tab\there", strings.Repeat("n", 255), "implied", "implied/deep", "implied/deep/er", "marker", "%41&+#?", "-rf"} {
		if !slices.Contains(got, want) {
			t.Errorf("%q is not listed (of %d)", want, len(got))
		}
		if st, err := os.Lstat(filepath.Join(m.dir, "odd", want)); err != nil {
			t.Error(err)
		} else if st.Mode().IsRegular() && st.Size() != 1 {
			t.Errorf("%q has %d bytes", want, st.Size())
		}
	}
	t.Logf("%d objects and %d odd keys, %d of which have no name; the server took %v", count, len(odd)+len(hidden), len(hidden), taken)
}

// TestTwoMounts: two mounts of two buckets beside each other, of our own type.
func TestTwoMounts(t *testing.T) {
	if !ownMounts(t) {
		return
	}
	a, b := newMounted(t, ""), newMounted(t, "")
	for i, m := range []*mounted{a, b} {
		if got := mountns.Type(t, m.dir); got != "fuse.csi-s3" {
			t.Errorf("type %q", got)
		}
		if err := os.WriteFile(filepath.Join(m.dir, "who"), []byte{byte('a' + i)}, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for i, m := range []*mounted{a, b} {
		m.flush()
		m.restart(true)
		if got, err := os.ReadFile(filepath.Join(m.dir, "who")); err != nil || string(got) != string(rune('a'+i)) {
			t.Errorf("%q, %v", got, err)
		}
	}
}
