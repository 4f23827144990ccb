package volume

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/csi-s3/csi-s3/pkg/cache"
	"github.com/csi-s3/csi-s3/pkg/disk"
	"github.com/csi-s3/csi-s3/pkg/s3"
	"github.com/csi-s3/csi-s3/pkg/writeback"
)

// health knows how long the server of a bucket has not answered. Write-back says why a change did not get into the
// bucket only when it gives an attempt up, which may be minutes after the server fell silent.
type health struct {
	now func() time.Time

	mu       sync.Mutex
	inFlight int       // guarded by mu: requests
	since    time.Time // guarded by mu: when the present wait for any answer began
	moved    time.Time // guarded by mu: when a body was last read
	err      error     // guarded by mu: how the last request ended that brought no answer; nil after an answer
}

// begin notes a request; the caller calls end with its outcome.
func (h *health) begin() (end func(ctx context.Context, err error)) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.inFlight == 0 && h.err == nil {
		h.since = h.now()
	}
	h.inFlight++
	return h.end
}

func (h *health) end(ctx context.Context, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.inFlight--
	switch {
	case errors.Is(err, s3.ErrUnavailable):
		if ctx.Err() == nil || h.err == nil {
			h.err = err
		}
	case ctx.Err() != nil: // nothing is known
	default:
		h.since, h.err = h.now(), nil
	}
}

func (h *health) move() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.moved = h.now()
}

// moving is for how long a server that takes a body is not called silent.
const moving = 10 * time.Second

// silence is how long the server was asked and did not answer, and how the last request failed, if one did. It is 0 for a
// server that answers, that takes what it is sent, or that nobody asks.
func (h *health) silence() (time.Duration, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	now := h.now()
	switch {
	case h.err != nil:
	case h.inFlight == 0, now.Sub(h.moved) < moving:
		return 0, nil
	}
	return now.Sub(h.since), h.err
}

// quiet is how long a server may take to answer before a status says so.
const quiet = 3 * time.Second

// errJournal: no change of the volume is possible any more in this mount.
var errJournal = errors.New("the journal in the cache directory cannot be written")

// trouble is why changes are not in the bucket: a cache that failed, the last failure of write-back, or else the silence
// of the server.
func (c *core) trouble(w writeback.Status) error {
	if sick := c.sick.Load(); sick != nil {
		return *sick
	}
	silence, err := c.health.silence()
	switch {
	case w.LastError != nil:
		return w.LastError
	case err != nil:
		return err
	case silence > quiet:
		return fmt.Errorf("no answer for %v: %w", silence.Round(time.Second), s3.ErrUnavailable)
	}
	return nil
}

// class is a short word for an error, for metrics: their labels have few values.
func class(err error) string {
	for _, c := range []struct {
		is   error
		word string
	}{
		{nil, ""},
		{writeback.ErrHalted, classLost},
		{errJournal, classDisk}, {cache.ErrPoisoned, classDisk}, {disk.ErrIO, classDisk}, {disk.ErrReadOnly, classDisk},
		{disk.ErrNoSpace, "cache-full"},
		{s3.ErrAuth, "denied"}, {s3.ErrNoBucket, "no-bucket"}, {s3.ErrFull, "server-full"},
		{s3.ErrUnavailable, classAway}, {s3.ErrCorrupt, "corrupt-transfer"}, {s3.ErrPrecondition, "conflict"},
		{s3.ErrInvalid, "refused"}, {s3.ErrNotSupported, "refused"}, {s3.ErrNotExist, "object-gone"},
	} {
		if errors.Is(err, c.is) {
			return c.word
		}
	}
	return "other"
}

const (
	classDisk = "cache-disk"
	classAway = "unavailable"
	classLost = "lease-lost"
)

// watched is a bucket whose health is known.
type watched struct {
	s3.Bucket
	health *health
}

func watch[T any](ctx context.Context, h *health, request func() (T, error)) (T, error) {
	end := h.begin()
	v, err := request()
	end(ctx, err)
	return v, err
}

// body tells health that the server takes it.
type body struct {
	io.ReaderAt
	health *health
}

// ReadAt implements io.ReaderAt.
func (b body) ReadAt(p []byte, off int64) (int, error) {
	b.health.move()
	return b.ReaderAt.ReadAt(p, off)
}

// The methods are those of s3.Bucket that a mount uses.

func (w watched) Head(ctx context.Context, key s3.Key) (s3.Info, error) {
	return watch(ctx, w.health, func() (s3.Info, error) { return w.Bucket.Head(ctx, key) })
}

func (w watched) Get(ctx context.Context, key s3.Key, r *s3.Range, ifMatch s3.ETag) (io.ReadCloser, s3.Info, error) {
	end := w.health.begin()
	b, info, err := w.Bucket.Get(ctx, key, r, ifMatch)
	end(ctx, err)
	return b, info, err
}

func (w watched) Put(ctx context.Context, key s3.Key, b s3.Body, attr s3.Attributes, cond s3.Condition) (s3.Info, error) {
	b.R = body{b.R, w.health}
	return watch(ctx, w.health, func() (s3.Info, error) { return w.Bucket.Put(ctx, key, b, attr, cond) })
}

func (w watched) Copy(ctx context.Context, src s3.Key, srcMatch s3.ETag, dst s3.Key, attr *s3.Attributes, cond s3.Condition) (s3.Info, error) {
	return watch(ctx, w.health, func() (s3.Info, error) { return w.Bucket.Copy(ctx, src, srcMatch, dst, attr, cond) })
}

func (w watched) Delete(ctx context.Context, key s3.Key) error {
	_, err := watch(ctx, w.health, func() (struct{}, error) { return struct{}{}, w.Bucket.Delete(ctx, key) })
	return err
}

func (w watched) DeleteIf(ctx context.Context, key s3.Key, match s3.ETag) error {
	_, err := watch(ctx, w.health, func() (struct{}, error) { return struct{}{}, w.Bucket.DeleteIf(ctx, key, match) })
	return err
}

func (w watched) DeleteMany(ctx context.Context, keys []s3.Key) (map[s3.Key]error, error) {
	return watch(ctx, w.health, func() (map[s3.Key]error, error) { return w.Bucket.DeleteMany(ctx, keys) })
}

func (w watched) List(ctx context.Context, in s3.ListInput) (s3.Page, error) {
	return watch(ctx, w.health, func() (s3.Page, error) { return w.Bucket.List(ctx, in) })
}

func (w watched) CreateUpload(ctx context.Context, key s3.Key, attr s3.Attributes) (s3.UploadID, error) {
	return watch(ctx, w.health, func() (s3.UploadID, error) { return w.Bucket.CreateUpload(ctx, key, attr) })
}

func (w watched) UploadPart(ctx context.Context, key s3.Key, id s3.UploadID, n int, b s3.Body) (s3.Part, error) {
	b.R = body{b.R, w.health}
	return watch(ctx, w.health, func() (s3.Part, error) { return w.Bucket.UploadPart(ctx, key, id, n, b) })
}

func (w watched) CopyPart(ctx context.Context, key s3.Key, id s3.UploadID, n int, src s3.Key, srcMatch s3.ETag, r s3.Range) (s3.Part, error) {
	return watch(ctx, w.health, func() (s3.Part, error) { return w.Bucket.CopyPart(ctx, key, id, n, src, srcMatch, r) })
}

func (w watched) ListParts(ctx context.Context, key s3.Key, id s3.UploadID) ([]s3.Part, error) {
	return watch(ctx, w.health, func() ([]s3.Part, error) { return w.Bucket.ListParts(ctx, key, id) })
}

func (w watched) CompleteUpload(ctx context.Context, key s3.Key, id s3.UploadID, parts []s3.Part, cond s3.Condition) (s3.Info, error) {
	return watch(ctx, w.health, func() (s3.Info, error) { return w.Bucket.CompleteUpload(ctx, key, id, parts, cond) })
}

func (w watched) AbortUpload(ctx context.Context, key s3.Key, id s3.UploadID) error {
	_, err := watch(ctx, w.health, func() (struct{}, error) { return struct{}{}, w.Bucket.AbortUpload(ctx, key, id) })
	return err
}
