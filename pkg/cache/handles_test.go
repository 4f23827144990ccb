package cache_test

import (
	"fmt"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/csi-s3/csi-s3/pkg/cache"
	"github.com/csi-s3/csi-s3/pkg/disk"
	"github.com/csi-s3/csi-s3/pkg/disk/diskmem"
	"github.com/csi-s3/csi-s3/pkg/extent"
)

// openFiles counts open data files, and refuses those that were closed.
type openFiles struct {
	disk.FS
	mu        sync.Mutex
	open, max int
}

type countedFile struct {
	disk.File
	of     *openFiles
	closed atomic.Bool
}

func (o *openFiles) OpenFile(name string, create bool) (disk.File, error) {
	f, err := o.FS.OpenFile(name, create)
	if err != nil || !strings.HasPrefix(name, "data/") {
		return f, err
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.open++
	o.max = max(o.max, o.open)
	return &countedFile{File: f, of: o}, nil
}

func (c *countedFile) ReadAt(p []byte, off int64) (int, error) {
	runtime.Gosched() // whoever closes too early gets the chance to
	if c.closed.Load() {
		return 0, errClosed
	}
	return c.File.ReadAt(p, off)
}

func (c *countedFile) WriteAt(p []byte, off int64) (int, error) {
	if c.closed.Load() {
		return 0, errClosed
	}
	return c.File.WriteAt(p, off)
}

func (c *countedFile) Sync() error {
	time.Sleep(100 * time.Microsecond)
	if c.closed.Load() {
		return errClosed
	}
	return c.File.Sync()
}

func (c *countedFile) Close() error {
	c.of.mu.Lock()
	defer c.of.mu.Unlock()
	c.of.open--
	if c.closed.Swap(true) {
		return errClosed
	}
	return c.File.Close()
}

func TestManyFiles(t *testing.T) {
	const files = 2000
	mem := diskmem.New()
	fs := &openFiles{FS: mem}
	b := mustOpen(t, fs, false)
	var wg sync.WaitGroup
	for g := range 4 {
		wg.Go(func() {
			for id := g; id < files; id += 4 {
				f := b.File(cache.ID(id+1), 0)
				if err := f.WriteAt(fmt.Appendf(nil, "file %d", id), 0, stamp(id)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	for id := range files {
		wantRead(t, b.Lookup(cache.ID(id+1)), 0, 99, fmt.Sprintf("file %d", id), extent.Range{})
	}
	if fs.max > 600 {
		t.Errorf("%d data files were open at once", fs.max)
	}
	if u := b.Usage(); u.Files != files || u.DirtyFiles != files {
		t.Errorf("%+v", u)
	}
	must(t, b.checkpoint())
	must(t, b.Close())
	if fs.open != 0 {
		t.Errorf("%d data files are open after Close", fs.open)
	}
	again := &openFiles{FS: mem.Clone()}
	b = mustOpen(t, again, false)
	if len(b.rec.Dirty) != files || again.max > 600 {
		t.Errorf("%d files after a restart, %d open at once", len(b.rec.Dirty), again.max)
	}
	wantRead(t, b.Lookup(77), 0, 99, "file 76", extent.Range{})
}
