package cache_test

import (
	"bytes"
	"fmt"
	"slices"
	"time"

	"github.com/csi-s3/csi-s3/pkg/cache"
)

// image is a file as the model sees it.
type image struct {
	b       []byte
	kind    []byte
	changed bool // since it was last clean
	// Since the snapshot: which offsets were overwritten, the smallest size, whether there was a change at all.
	over     []bool
	smallest int64
	touched  bool
}

func remoteImage(remote []byte) image {
	return image{b: slices.Clone(remote), kind: make([]byte, len(remote))}
}

func (m image) clone() image {
	m.b, m.kind, m.over = slices.Clone(m.b), slices.Clone(m.kind), slices.Clone(m.over)
	return m
}

func (m *image) resize(size int64) {
	m.changed, m.touched, m.smallest = true, true, min(m.smallest, size)
	n := int64(len(m.b))
	if size <= n {
		m.b, m.kind = m.b[:size], m.kind[:size]
		return
	}
	m.b = append(m.b, make([]byte, size-n)...)
	m.kind = append(m.kind, bytes.Repeat([]byte{holeByte}, int(size-n))...)
}

func (m *image) write(p []byte, off int64) {
	m.changed, m.touched = true, true
	if end := off + int64(len(p)); end > int64(len(m.b)) {
		m.resize(end)
	}
	copy(m.b[off:], p)
	for int64(len(m.over)) < off+int64(len(p)) {
		m.over = append(m.over, false)
	}
	for i := off; i < off+int64(len(p)); i++ {
		m.kind[i], m.over[i] = dirtyByte, true
	}
}

func (m *image) punch(off, end int64) {
	if end = min(end, int64(len(m.b))); off < end {
		m.write(make([]byte, end-off), off)
	}
}

func (m *image) count(kind byte) (n int64) {
	return int64(bytes.Count(m.kind, []byte{kind}))
}

// freeze begins a snapshot, commit makes it the remote object.
func (m *image) freeze() { m.over, m.smallest, m.touched = nil, int64(len(m.b)), false }

func (m *image) commit(size int64) {
	for i := range min(size, m.smallest, int64(len(m.b))) {
		if i >= int64(len(m.over)) || !m.over[i] {
			m.kind[i] = remoteByte
		}
	}
	for i, k := range m.kind {
		if k == spilledByte {
			m.kind[i] = remoteByte
		}
	}
	m.changed = m.touched
}

// spill moves what was not changed since the snapshot to an object of its own.
func (m *image) spill(off, end int64) {
	for i := off; i < min(end, m.smallest, int64(len(m.b))); i++ {
		if i >= int64(len(m.over)) || !m.over[i] {
			m.kind[i] = spilledByte
		}
	}
}

// modelSnap is what the model knows of a live snapshot.
type modelSnap struct {
	*cache.Snapshot
	content []byte
	mtime   time.Time
	synced  bool // a Sync returned since, after a change
}

// modelFile is a file beside what it must be.
type modelFile struct {
	id     cache.ID
	f      *cache.File
	remote []byte
	apart  spilled // all that there ever were
	needed spilled // those that were not replaced by a commit
	// alts are what the file may be, byte by byte: one, but for changes that are under way or failed.
	alts []image
	// past are what a power cut may leave: all since the last barrier that returned.
	past      []image
	barriered bool // a Sync returned since the file was last clean
	fresh     bool // it was changed since the last Sync
	snap      *modelSnap
	mtimes    []time.Time
	gone      bool // Remove was called
	removed   bool // and returned
}

// touched says that the file was surely changed since its snapshot.
func (m *modelFile) touched() bool {
	return !slices.ContainsFunc(m.alts, func(a image) bool { return !a.touched })
}

// difference is the first offset in which a and b differ, -1 when they are equal.
func difference(a, b []byte) int {
	for i := range min(len(a), len(b)) {
		if a[i] != b[i] {
			return i
		}
	}
	if len(a) != len(b) {
		return min(len(a), len(b))
	}
	return -1
}

// among says whether content is, byte by byte, one of the images, and of the size of one. zeros allows zeros where one of
// them ended before.
func among(got []byte, images []image, zeros bool) error {
	if !slices.ContainsFunc(images, func(m image) bool { return len(m.b) == len(got) }) {
		sizes := map[int]bool{}
		for _, m := range images {
			sizes[len(m.b)] = true
		}
		return fmt.Errorf("size is %d, may be %v", len(got), sizes)
	}
	if last := images[len(images)-1]; bytes.Equal(last.b, got) {
		return nil
	}
next:
	for i, c := range got {
		for _, m := range images {
			if i < len(m.b) && m.b[i] == c || zeros && c == 0 && i >= len(m.b) {
				continue next
			}
		}
		return fmt.Errorf("byte %d of %d is %#x, which none of %d states has", i, len(got), c, len(images))
	}
	return nil
}
