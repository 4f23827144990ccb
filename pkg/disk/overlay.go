package disk

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Overlay shows a directory as it is and keeps every change of it in memory: nothing on the disk is ever written, not
// even a time of access where the file system allows it. It works on a disk that is mounted read-only. What is changed is
// gone with the Overlay.
//
// Directories cannot be renamed in it. Lock takes the real lock, which must be there. The durability steps do nothing.
type Overlay struct {
	root *os.Root

	mu    sync.Mutex
	files map[string]*layer // guarded by mu: files that were looked at; nil for one that is gone
	dirs  map[string]bool   // guarded by mu: directories that were made, or false for one that is gone
}

var _ FS = (*Overlay)(nil)

// OpenOverlay opens an existing directory.
func OpenOverlay(dir string) (*Overlay, error) {
	r, err := os.OpenRoot(dir)
	if err != nil {
		return nil, wrap(err)
	}
	return &Overlay{root: r, files: map[string]*layer{}, dirs: map[string]bool{}}, nil
}

// Close releases the directory. Open files stay usable.
func (o *Overlay) Close() error { return wrap(o.root.Close()) }

const pageSize = 4096

// layer is one file: pages that were written lie over blank ranges, and these over the file on the disk. It is guarded by
// Overlay.mu.
type layer struct {
	below string   // the file on the disk, "" for none
	file  *os.File // of below, while refs > 0
	refs  int
	size  int64
	pages map[int64][]byte
	blank []span // sorted, apart from each other: what is zero whatever the disk holds
}

// span is [off, end).
type span struct{ off, end int64 }

// find returns the layer of a file that exists. The caller holds mu.
func (o *Overlay) find(name string) (*layer, error) {
	if l, ok := o.files[name]; ok {
		if l == nil {
			return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
		}
		return l, nil
	}
	st, err := o.root.Lstat(name)
	if err != nil {
		return nil, wrap(err)
	}
	if !st.Mode().IsRegular() {
		return nil, fmt.Errorf("%w: %s is no regular file", ErrIO, name)
	}
	l := &layer{below: name, size: st.Size()}
	o.files[name] = l
	return l, nil
}

// isDir asks for a directory. The caller holds mu.
func (o *Overlay) isDir(name string) error {
	if there, ok := o.dirs[name]; ok {
		if !there {
			return &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
		}
		return nil
	}
	if _, ok := o.files[name]; ok {
		return fmt.Errorf("%w: %s is no directory", ErrIO, name)
	}
	st, err := o.root.Lstat(name)
	if err == nil && !st.IsDir() {
		return fmt.Errorf("%w: %s is no directory", ErrIO, name)
	}
	return wrap(err)
}

// OpenFile implements FS.
func (o *Overlay) OpenFile(name string, create bool) (File, error) {
	if !fs.ValidPath(name) {
		return nil, fmt.Errorf("%w: %s: %w", ErrIO, name, fs.ErrInvalid)
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	l, err := o.find(name)
	if errors.Is(err, fs.ErrNotExist) && create {
		if err := o.isDir(path.Dir(name)); err != nil {
			return nil, err
		}
		l, err = &layer{}, nil
		o.files[name] = l
	}
	if err != nil {
		return nil, err
	}
	if l.refs == 0 && l.below != "" {
		if l.file, err = o.root.OpenFile(l.below, os.O_RDONLY|unix.O_NOFOLLOW, 0); err != nil {
			return nil, wrap(err)
		}
	}
	l.refs++
	return &overlayFile{o: o, l: l}, nil
}

// ReadFile implements FS.
func (o *Overlay) ReadFile(name string) ([]byte, error) {
	f, err := o.OpenFile(name, false)
	if err != nil {
		return nil, err
	}
	size, err := f.Size()
	if err == nil {
		text := make([]byte, size)
		_, err = f.ReadAt(text, 0)
		if err == nil || errors.Is(err, io.EOF) {
			return text, f.Close()
		}
	}
	return nil, errors.Join(err, f.Close())
}

// MkdirAll implements FS.
func (o *Overlay) MkdirAll(name string) error {
	if !fs.ValidPath(name) {
		return fmt.Errorf("%w: %s: %w", ErrIO, name, fs.ErrInvalid)
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	var missing []string
	for dir := name; ; dir = path.Dir(dir) {
		err := o.isDir(dir)
		if err == nil {
			break
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		missing = append(missing, dir)
	}
	for _, dir := range missing {
		o.dirs[dir] = true
	}
	return nil
}

// ReadDir implements FS.
func (o *Overlay) ReadDir(name string) ([]fs.DirEntry, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.readDir(name)
}

// readDir is ReadDir under mu.
func (o *Overlay) readDir(name string) ([]fs.DirEntry, error) {
	if err := o.isDir(name); err != nil {
		return nil, err
	}
	found := map[string]fs.DirEntry{}
	below, err := fs.ReadDir(o.root.FS(), name)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, wrap(err)
	}
	for _, e := range below {
		found[e.Name()] = e
	}
	for full, l := range o.files {
		if path.Dir(full) != name {
			continue
		}
		if l == nil {
			delete(found, path.Base(full))
		} else {
			found[path.Base(full)] = entry{path.Base(full), l.size, false}
		}
	}
	for full, there := range o.dirs {
		if path.Dir(full) != name || full == name {
			continue
		}
		if there {
			found[path.Base(full)] = entry{path.Base(full), 0, true}
		} else {
			delete(found, path.Base(full))
		}
	}
	entries := make([]fs.DirEntry, 0, len(found))
	for _, e := range found {
		entries = append(entries, e)
	}
	slices.SortFunc(entries, func(a, b fs.DirEntry) int { return strings.Compare(a.Name(), b.Name()) })
	return entries, nil
}

// Rename implements FS, for files.
func (o *Overlay) Rename(oldname, newname string) error {
	if !fs.ValidPath(oldname) || !fs.ValidPath(newname) {
		return fmt.Errorf("%w: rename %s to %s: %w", ErrIO, oldname, newname, fs.ErrInvalid)
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	l, err := o.find(oldname)
	if err != nil {
		return err
	}
	if err := o.isDir(path.Dir(newname)); err != nil {
		return err
	}
	if oldname != newname {
		o.files[newname], o.files[oldname] = l, nil
	}
	return nil
}

// Remove implements FS.
func (o *Overlay) Remove(name string) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if err := o.isDir(name); err == nil {
		left, err := o.readDir(name)
		if err != nil {
			return err
		}
		if len(left) > 0 {
			return fmt.Errorf("%w: remove %s: %w", ErrIO, name, unix.ENOTEMPTY)
		}
		o.dirs[name] = false
		return nil
	}
	if _, err := o.find(name); err != nil {
		return err
	}
	o.files[name] = nil
	return nil
}

// SyncDir implements FS: it only asks for the directory.
func (o *Overlay) SyncDir(name string) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.isDir(name)
}

// Space implements FS.
func (o *Overlay) Space() (total, free int64, err error) { return (&OS{o.root}).Space() }

// Lock implements FS. The lock's file is not made: who could not have locked it does not use this directory.
func (o *Overlay) Lock(name string) (io.Closer, error) {
	f, err := o.root.OpenFile(name, os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, wrap(err)
	}
	return flock(f)
}

// entry is what ReadDir says of a layer.
type entry struct {
	name string
	size int64
	dir  bool
}

func (e entry) Name() string               { return e.name }
func (e entry) IsDir() bool                { return e.dir }
func (e entry) Type() fs.FileMode          { return e.Mode().Type() }
func (e entry) Info() (fs.FileInfo, error) { return e, nil }
func (e entry) Size() int64                { return e.size }
func (e entry) ModTime() time.Time         { return time.Time{} }
func (e entry) Sys() any                   { return nil }
func (e entry) Mode() fs.FileMode {
	if e.dir {
		return fs.ModeDir | 0o700
	}
	return 0o600
}

type overlayFile struct {
	o      *Overlay
	l      *layer
	closed bool // guarded by o.mu
}

func (f *overlayFile) ReadAt(p []byte, off int64) (int, error) {
	f.o.mu.Lock()
	defer f.o.mu.Unlock()
	if err := f.usable(off); err != nil {
		return 0, err
	}
	n := int(min(int64(len(p)), max(0, f.l.size-off)))
	if err := f.l.read(p[:n], off); err != nil {
		return 0, err
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (f *overlayFile) WriteAt(p []byte, off int64) (int, error) {
	f.o.mu.Lock()
	defer f.o.mu.Unlock()
	if err := f.usable(off); err != nil {
		return 0, err
	}
	for done := 0; done < len(p); {
		pos := off + int64(done)
		page, err := f.l.page(pos / pageSize)
		if err != nil {
			return done, err
		}
		done += copy(page[pos%pageSize:], p[done:])
		f.l.size = max(f.l.size, off+int64(done))
	}
	return len(p), nil
}

func (f *overlayFile) Truncate(size int64) error {
	f.o.mu.Lock()
	defer f.o.mu.Unlock()
	if err := f.usable(size); err != nil {
		return err
	}
	// What is cut off must not come back when the file grows again.
	f.l.clear(size, f.l.size)
	f.l.size = size
	return nil
}

func (f *overlayFile) Reserve(end int64) error {
	f.o.mu.Lock()
	defer f.o.mu.Unlock()
	return f.usable(end)
}

func (f *overlayFile) PunchHole(off, end int64) error {
	f.o.mu.Lock()
	defer f.o.mu.Unlock()
	if err := f.usable(off); err != nil {
		return err
	}
	f.l.clear(off, min(end, f.l.size))
	return nil
}

func (f *overlayFile) Size() (int64, error) {
	f.o.mu.Lock()
	defer f.o.mu.Unlock()
	return f.l.size, f.usable(0)
}

func (f *overlayFile) Sync() error { return nil }

func (f *overlayFile) Close() error {
	f.o.mu.Lock()
	defer f.o.mu.Unlock()
	if err := f.usable(0); err != nil {
		return err
	}
	f.closed = true
	f.l.refs--
	if f.l.refs > 0 || f.l.file == nil {
		return nil
	}
	err := f.l.file.Close()
	f.l.file = nil
	return wrap(err)
}

func (f *overlayFile) usable(off int64) error {
	switch {
	case f.closed:
		return fmt.Errorf("%w: %w", ErrIO, fs.ErrClosed)
	case off < 0:
		return fmt.Errorf("%w: offset %d: %w", ErrIO, off, fs.ErrInvalid)
	}
	return nil
}

// read fills p with what the file shows from off on; it ends within the file.
func (l *layer) read(p []byte, off int64) error {
	clear(p)
	if l.file != nil {
		if _, err := l.file.ReadAt(p, off); err != nil && !errors.Is(err, io.EOF) {
			return wrap(err)
		}
	}
	end := off + int64(len(p))
	for i := l.search(off); i < len(l.blank) && l.blank[i].off < end; i++ {
		clear(p[max(off, l.blank[i].off)-off : min(end, l.blank[i].end)-off])
	}
	if len(l.pages) == 0 {
		return nil
	}
	for i := off / pageSize; i*pageSize < end; i++ {
		page, ok := l.pages[i]
		if !ok {
			continue
		}
		from, to := max(off, i*pageSize), min(end, (i+1)*pageSize)
		copy(p[from-off:to-off], page[from-i*pageSize:])
	}
	return nil
}

// page returns a page for writing.
func (l *layer) page(i int64) ([]byte, error) {
	if page, ok := l.pages[i]; ok {
		return page, nil
	}
	page := make([]byte, pageSize)
	if n := min(pageSize, l.size-i*pageSize); n > 0 {
		if err := l.read(page[:n], i*pageSize); err != nil {
			return nil, err
		}
	}
	if l.pages == nil {
		l.pages = map[int64][]byte{}
	}
	l.pages[i] = page
	return page, nil
}

// clear makes [off, end) zero.
func (l *layer) clear(off, end int64) {
	if off >= end {
		return
	}
	if first, last := off/pageSize, (end-1)/pageSize; last-first < int64(len(l.pages)) {
		for i := first; i <= last; i++ {
			l.clearPage(i, off, end)
		}
	} else {
		for i := range l.pages {
			l.clearPage(i, off, end)
		}
	}
	i := l.search(off - 1)
	j := i
	for j < len(l.blank) && l.blank[j].off <= end {
		off, end = min(off, l.blank[j].off), max(end, l.blank[j].end)
		j++
	}
	l.blank = slices.Replace(l.blank, i, j, span{off, end})
}

func (l *layer) clearPage(i, off, end int64) {
	page, at := l.pages[i], i*pageSize
	from, to := max(off, at), min(end, at+pageSize)
	switch {
	case page == nil || from >= to:
	case to-from == pageSize:
		delete(l.pages, i)
	default:
		clear(page[from-at : to-at])
	}
}

// search is the first blank span that ends after off.
func (l *layer) search(off int64) int {
	i, _ := slices.BinarySearchFunc(l.blank, off, func(s span, off int64) int {
		if s.end <= off {
			return -1
		}
		return 1
	})
	return i
}
