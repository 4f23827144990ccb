package conformance_test

import (
	"crypto/md5"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// TestMoveDirectory: a directory of thousands of files has its new name at once. The bucket follows, also when the process
// is killed meanwhile, and then has every object once.
func TestMoveDirectory(t *testing.T) {
	if !ownMounts(t) {
		return
	}
	var c meter
	m := newMounted(t, "settle=100ms", c.metered)
	count := scale(2000, 10_000)
	content := func(i int) string { return fmt.Sprintf("content of %d", i) }
	name := func(i int) string { return fmt.Sprintf("sub-%d/file-%05d", i%3, i) }
	each(t, count/2, func(i int) error { return m.put("dir-0/"+name(i), content(i)) })
	for i := range 3 {
		if err := os.MkdirAll(filepath.Join(m.dir, "dir-0", fmt.Sprintf("sub-%d", i)), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	each(t, count-count/2, func(i int) error {
		i += count / 2
		return writeFile(filepath.Join(m.dir, "dir-0", name(i)), []byte(content(i)), false)
	})
	m.flush()
	dir := func(i int) string { return fmt.Sprintf("dir-%d", i) }

	const moves = 9
	var took []time.Duration
	for i := range moves {
		begin := time.Now()
		if err := os.Rename(filepath.Join(m.dir, dir(i)), filepath.Join(m.dir, dir(i+1))); err != nil {
			t.Fatal(err)
		}
		took = append(took, time.Since(begin))
		if i == 2 { // what follows comes on top of moves that the bucket has not seen
			m.flush()
		}
	}
	first := took[0]
	slices.Sort(took)
	t.Logf("rename of a directory with %d files: first %v, median %v, worst %v", count, first, took[moves/2], took[moves-1])
	if limit := 100 * time.Millisecond; took[moves/2] > limit || soak() && took[moves-1] > limit {
		t.Errorf("renames took %v, the limit is %v", took, limit)
	}

	// Objects are copied first, and deleted when all are copied.
	from := dir(moves)
	for _, kill := range []struct {
		to   string
		when func() bool
	}{
		{"copying", func() bool { return c.count("COPY") >= count/4 }},
		{"deleting", func() bool { return c.count("DELETE-MANY") > 1 }},
	} {
		m.flush()
		c.reset()
		if err := os.Rename(filepath.Join(m.dir, from), filepath.Join(m.dir, kill.to)); err != nil {
			t.Fatal(err)
		}
		for deadline := time.Now().Add(2 * time.Minute); !kill.when(); time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("the bucket does not follow: %s", &c)
			}
		}
		m.kill()
		m.detach()
		before, after := len(m.objects(from+"/")), len(m.objects(kill.to+"/"))
		t.Logf("killed while %s, with %d objects of the old name and %d of the new one: %s", kill.to, before, after, &c)
		if after == 0 || kill.to == "copying" && (before < count || after >= count) {
			t.Error("the kill was not in the middle of the work")
		}
		m.start()
		m.flush()
		seen := 0
		for key, info := range m.objects("") {
			if strings.HasSuffix(string(key), "/") || strings.HasPrefix(string(key), ".csi-s3/") {
				continue
			}
			seen++
			var i int
			if _, err := fmt.Sscanf(filepath.Base(string(key)), "file-%d", &i); err != nil || string(key) != kill.to+"/"+name(i) {
				t.Errorf("%q was never asked for", key)
				continue
			}
			if want := md5.Sum([]byte(content(i))); string(info.ETag) != hex.EncodeToString(want[:]) {
				t.Errorf("%q has ETag %s, want %x", key, info.ETag, want)
			}
		}
		if seen != count {
			t.Errorf("%d objects, want %d", seen, count)
		}
		from = kill.to
	}
	m.restart(true)
	if got := strings.Count(m.run("find", filepath.Join(m.dir, from), "-type", "f"), "\n"); got != count {
		t.Errorf("the mount shows %d files, want %d", got, count)
	}
}

// each does something for all numbers below n, 16 at a time.
func each(t *testing.T, n int, do func(i int) error) {
	t.Helper()
	var wg sync.WaitGroup
	errs := make([]error, n)
	next := make(chan int)
	for range 16 {
		wg.Go(func() {
			for i := range next {
				errs[i] = do(i)
			}
		})
	}
	for i := range n {
		next <- i
	}
	close(next)
	wg.Wait()
	for _, err := range errs {
		if err != nil {
			t.Fatal(err)
		}
	}
}
