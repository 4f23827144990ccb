package writeback

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/csi-s3/csi-s3/pkg/cache"
	"github.com/csi-s3/csi-s3/pkg/extent"
	"github.com/csi-s3/csi-s3/pkg/fetch"
	"github.com/csi-s3/csi-s3/pkg/inode"
	"github.com/csi-s3/csi-s3/pkg/namespace"
	"github.com/csi-s3/csi-s3/pkg/s3"
)

// sourceError: the object behind a file's missing ranges was removed or changed by somebody else.
type sourceError struct{ error }

func (s *sourceError) Unwrap() error { return s.error }

// content is a frozen file as the body of an upload.
type content struct {
	exec   *Executor
	file   *cache.File
	snap   *cache.Snapshot
	source namespace.Source
	ino    inode.Ino
}

// locate tells which object has a missing byte. While the task runs nobody else touches these objects, so the answer
// cannot change.
func (c *content) locate(off int64) (fetch.Source, int64, error) {
	n, end := c.snap.Spilled(off)
	if n != 0 {
		src, at, err := c.exec.tree.Spilled(c.ino, n)
		return fetch.Source{Key: src.Key, ETag: src.ETag, Size: src.Size, Off: at}, end, err
	}
	src := c.source
	if src.Key == "" {
		return fetch.Source{}, 0, fmt.Errorf("bytes that no object holds: %w", s3.ErrNotExist)
	}
	return fetch.Source{Key: src.Key, ETag: src.ETag, Size: src.Size}, end, nil
}

// whole is the object that has all of [off, end) of the content, if one has.
func (c *content) whole(off, end int64) fetch.Source {
	if _, ok := c.snap.Whole(off, end); !ok {
		return fetch.Source{}
	}
	src, _, err := c.locate(off)
	if err != nil || end > src.Off+src.Size {
		return fetch.Source{} // to be uploaded, which will say what is wrong
	}
	return src
}

// lacks is how many bytes of [off, end) have to be fetched before they can be sent.
func (c *content) lacks(off, end int64) (n int64) {
	for _, r := range c.snap.Missing(off, end) {
		n += r.Len()
	}
	return n
}

// prepare brings what the snapshot misses of [off, end) into the cache, if there is room for it.
func (c *content) prepare(ctx context.Context, off, end int64) error {
	err := c.exec.fetcher.EnsureSnapshot(ctx, c.file, c.snap, c.locate, off, end)
	if errors.Is(err, cache.ErrNoSpace) {
		return nil // section reads past the cache: an upload is what makes room in it
	}
	return lost(err)
}

func lost(err error) error {
	if errors.Is(err, s3.ErrNotExist) || errors.Is(err, s3.ErrPrecondition) {
		return &sourceError{err}
	}
	return err
}

// section is [off, end) of the content, for one request. ctx is of the request.
func (c *content) section(ctx context.Context, off, end int64) io.ReaderAt {
	return io.NewSectionReader(&patched{content: c, ctx: ctx}, off, end-off)
}

// window is how many bytes past the cache are held in memory for one request.
const window = 256 << 10

// patched reads the snapshot, and what is neither in it nor in the cache from the bucket.
type patched struct {
	*content
	ctx context.Context

	mu  sync.Mutex
	buf []byte       // guarded by mu
	has extent.Range // guarded by mu: what of the object is in buf
}

// ReadAt implements io.ReaderAt.
func (r *patched) ReadAt(p []byte, off int64) (int, error) {
	r.exec.sending()
	n, err := r.snap.ReadAt(p, off)
	if !errors.Is(err, cache.ErrMissing) {
		return n, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	end := off + int64(len(p))
	for pos := off; pos < end; {
		q := p[pos-off:]
		missing := r.snap.Missing(pos, end)
		switch {
		case len(missing) == 0:
		case missing[0].Off > pos:
			q = q[:missing[0].Off-pos]
		default:
			n, err := r.past(q, missing[0])
			if err != nil {
				return int(pos - off), lost(err)
			}
			pos += int64(n)
			continue
		}
		n, err := r.snap.ReadAt(q, pos)
		pos += int64(n)
		if err != nil && !(errors.Is(err, io.EOF) && pos == end) {
			return int(pos - off), err
		}
	}
	return len(p), nil
}

// past reads the start of a missing range from the bucket.
func (r *patched) past(p []byte, missing extent.Range) (int, error) {
	if missing.Off < r.has.Off || missing.Off >= r.has.End {
		if r.buf == nil {
			r.buf = make([]byte, window)
		}
		// Readers go forward, in pieces smaller than the window: take what follows, too.
		has := extent.Range{Off: missing.Off, End: missing.Off}
		for _, m := range r.snap.Missing(missing.Off, missing.Off+window) {
			if m.Off == missing.Off {
				has.End = m.End
			}
		}
		r.has = extent.Range{}
		if err := r.exec.fetcher.Direct(r.ctx, r.file, r.locate, r.buf[:has.Len()], has.Off); err != nil {
			return 0, err
		}
		r.has = has
	}
	end := min(missing.End, r.has.End, missing.Off+int64(len(p)))
	return copy(p, r.buf[missing.Off-r.has.Off:end-r.has.Off]), nil
}
