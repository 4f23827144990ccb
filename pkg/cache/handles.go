package cache

import (
	"container/list"
	"errors"
	"io/fs"
	"sync"

	"github.com/csi-s3/csi-s3/pkg/disk"
)

// maxHandles is how many data files stay open.
const maxHandles = 512

// handles keeps the most recently used data files open.
type handles struct {
	fs  disk.FS
	mu  sync.Mutex
	lru list.List // of *handle, most recently used first
}

// handle is an open data file.
type handle struct {
	disk.File
	of     *File
	refs   int
	doomed bool // close with the last reference
	elem   *list.Element
}

func (x *handles) init(fs disk.FS) {
	x.fs = fs
	x.lru.Init()
}

// get opens the data file of f, making it if create is set. put follows.
func (x *handles) get(f *File, create bool) (*handle, error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	h := f.handle
	if h == nil {
		name := f.id.path(dataDir)
		file, err := x.fs.OpenFile(name, create)
		if create && errors.Is(err, fs.ErrNotExist) {
			if err = x.fs.MkdirAll(f.id.shard()); err == nil {
				file, err = x.fs.OpenFile(name, true)
			}
		}
		if err != nil {
			return nil, err
		}
		h = &handle{File: file, of: f}
		h.elem = x.lru.PushFront(h)
		f.handle = h
		x.shrink()
	}
	h.refs++
	x.lru.MoveToFront(h.elem)
	return h, nil
}

func (x *handles) put(h *handle) {
	x.mu.Lock()
	defer x.mu.Unlock()
	h.refs--
	if h.refs == 0 && h.doomed {
		h.of.poison(h.Close())
	}
}

// shrink closes the least recently used files that nobody is using.
func (x *handles) shrink() {
	for e := x.lru.Back(); e != nil && x.lru.Len() > maxHandles; {
		h, before := e.Value.(*handle), e.Prev()
		if h.refs == 0 && h.of.handle == h && e != x.lru.Front() {
			x.lru.Remove(e)
			h.of.handle = nil
			h.of.poison(h.Close())
		}
		e = before
	}
}

// drop closes the data file of f as soon as nobody uses it.
func (x *handles) drop(f *File) {
	x.mu.Lock()
	defer x.mu.Unlock()
	h := f.handle
	if h == nil {
		return
	}
	f.handle = nil
	x.lru.Remove(h.elem)
	if h.refs > 0 {
		h.doomed = true
		return
	}
	f.poison(h.Close())
}

func (x *handles) close() error {
	x.mu.Lock()
	defer x.mu.Unlock()
	var errs []error
	for e := x.lru.Front(); e != nil; e = e.Next() {
		h := e.Value.(*handle)
		h.of.handle = nil
		if h.refs > 0 {
			h.doomed = true
			continue
		}
		errs = append(errs, h.Close())
	}
	x.lru.Init()
	return errors.Join(errs...)
}
