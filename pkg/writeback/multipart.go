package writeback

import (
	"context"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"maps"
	"math"
	"slices"
	"sync"
	"time"

	"github.com/csi-s3/csi-s3/pkg/fetch"
	"github.com/csi-s3/csi-s3/pkg/namespace"
	"github.com/csi-s3/csi-s3/pkg/s3"
)

// sweepEvery is how often uploads are looked for that nothing needs any more.
const sweepEvery = 5 * time.Second

// clockStep is how coarse a server tells the time. maxCreate is how long the answer to a creation is taken to have been
// waited for when the process ended meanwhile.
const (
	clockStep = time.Second
	maxCreate = time.Minute
)

// errChanged: an upload whose parts are all on the server, and that may have been completed, is of an older content.
var errChanged = errors.New("the file changed since its upload was begun")

// errUnneeded: the file was removed while its object was made.
var errUnneeded = errors.New("the file was removed")

// multipart makes the object of parts. c may be nil when all are copied. What a failed attempt has sent is kept, and the
// next one goes on with it, also after a restart.
func (e *Executor) multipart(ctx context.Context, k *namespace.Task, c *content, size int64, parts []part) (s3.Info, error) {
	u, err := e.resume(ctx, k)
	if err == nil && u == nil {
		u, err = e.begin(ctx, k)
	}
	if err != nil {
		return s3.Info{}, err
	}
	sent, err := e.sendParts(ctx, k, c, u, parts)
	var info s3.Info
	settled := false
	if err == nil {
		info, settled, err = e.complete(ctx, k, u.id, sent, size)
	}
	switch {
	case err == nil && settled:
		e.abort(ctx, u) // the object may be that of an earlier upload, whose end a crash has hidden
	case err == nil || errors.Is(err, s3.ErrNoUpload):
		err = errors.Join(err, e.ledger.over(u))
	case ctx.Err() != nil || transient(err):
		e.ledger.leave(u)
	default:
		e.abort(ctx, u)
	}
	return info, err
}

// resume finds the upload that an earlier attempt has begun; nil when there is none that would make the same object.
func (e *Executor) resume(ctx context.Context, k *namespace.Task) (*upload, error) {
	u := e.ledger.find(k.Key)
	if u == nil {
		return nil, nil
	}
	if u.id == "" || !sameAttributes(u.attr, k.Attr) {
		e.abort(ctx, u)
		return nil, nil
	}
	parts, err := e.bucket.ListParts(ctx, k.Key, u.id)
	switch {
	case errors.Is(err, s3.ErrNoUpload):
		return nil, e.ledger.over(u)
	case err != nil:
		e.ledger.leave(u)
		return nil, err
	}
	e.ledger.mu.Lock()
	defer e.ledger.mu.Unlock()
	for n, p := range u.sent {
		if !slices.ContainsFunc(parts, func(s s3.Part) bool { return s.Number == n && s.ETag == p.ETag }) {
			delete(u.sent, n)
		}
	}
	k.Attr = u.attr
	return u, nil
}

// sameAttributes compares all but the write-ids.
func sameAttributes(a, b s3.Attributes) bool {
	rest := func(m map[string]string) map[string]string {
		m = maps.Clone(m)
		delete(m, namespace.MetaWriteID)
		return m
	}
	return a.ContentType == b.ContentType && maps.Equal(rest(a.Meta), rest(b.Meta))
}

// mayListAgain is how many attempts of a task wait for a right to list uploads that there was before: some minutes of them.
const mayListAgain = 30

// begin creates an upload. It is in the journal before the server hears of it.
func (e *Executor) begin(ctx context.Context, k *namespace.Task) (*upload, error) {
	u := &upload{ino: k.Ino, key: k.Key, attr: k.Attr, sent: map[int]sentPart{}, busy: true}
	var listed time.Time // by this node's clock
	if !e.opt.Shared {
		open, since, err := e.bucket.ListUploads(ctx, k.Key)
		listed = time.Now()
		switch {
		case err == nil:
			e.lists.Store(true)
			u.alone = true
			for _, o := range open {
				if o.Key == k.Key {
					u.others = append(u.others, o.ID)
				}
			}
			if !since.IsZero() {
				u.since, u.until = since, since.Add(maxCreate)
			}
		case errors.Is(err, s3.ErrAuth) && !errors.Is(err, s3.ErrKeys) && !(e.lists.Load() && k.Attempts < mayListAgain):
			// not every key may list uploads
		case transient(err):
			return nil, err
		}
	}
	if err := e.ledger.add(u); err != nil {
		return nil, err
	}
	id, err := e.bucket.CreateUpload(ctx, k.Key, k.Attr)
	switch {
	case err == nil:
		return u, e.ledger.created(u, id)
	case errors.Is(err, s3.ErrUnavailable): // it may be there
		if !u.since.IsZero() {
			err = errors.Join(err, e.ledger.unanswered(u, u.since.Add(time.Since(listed)+clockStep)))
		}
		e.ledger.leave(u)
		return nil, err
	}
	return nil, errors.Join(err, e.ledger.over(u))
}

// abort ends an upload of ours, also when the task itself was broken off. Where that fails, sweep tries again.
func (e *Executor) abort(ctx context.Context, u *upload) {
	stopped := ctx
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), abortWait)
	defer cancel()
	defer context.AfterFunc(stopped, func() { time.AfterFunc(lastAbortWait, cancel) })()
	id := u.id
	var err error
	if id == "" {
		var sure bool
		if id, sure, err = e.lost(ctx, u); err == nil && !sure {
			e.ledger.leave(u)
			return
		}
	}
	if err == nil && id != "" {
		err = e.bucket.AbortUpload(ctx, u.key, id)
	}
	if err == nil {
		err = e.ledger.over(u)
	}
	if err != nil {
		e.ledger.leave(u)
		e.log.Warn("upload is not aborted yet", "key", string(u.key), "upload", string(u.id), "err", err)
	}
}

// lost finds the upload whose creation was not answered; none when the server did not make it, or when it cannot be told
// from those of others. Not sure means that a later look may find more.
//
// It is the only new one that was begun while the answer was waited for. So two mistakes are left. When the server did not
// make ours, and somebody else began one on the same key in that time, theirs is taken for it. And when the server made it
// only after that time, it stays there, empty, until the server's own rules or the volume's removal end it.
func (e *Executor) lost(ctx context.Context, u *upload) (id s3.UploadID, sure bool, err error) {
	if !u.alone {
		e.log.Warn("an upload may be left on the server: it was not answered, and others write here too", "key", string(u.key))
		return "", true, nil
	}
	open, now, err := e.bucket.ListUploads(ctx, u.key)
	if err != nil {
		return "", false, err
	}
	found, later := e.ledger.strange(u, open)
	if later {
		return "", false, nil
	}
	found = slices.DeleteFunc(found, func(o s3.Upload) bool {
		timed := !u.since.IsZero() && !o.Initiated.IsZero()
		return timed && (o.Initiated.Before(u.since) || o.Initiated.After(u.until))
	})
	switch {
	case len(found) == 0:
		return "", now.IsZero() || now.After(u.until), nil
	case len(found) == 1 && !u.since.IsZero() && !found[0].Initiated.IsZero():
		return found[0].ID, true, nil
	}
	e.log.Warn("an upload may be left on the server: it was not answered, and cannot be told from those of others",
		"key", string(u.key), "uploads", len(found))
	return "", true, nil
}

// sweep aborts the uploads of inodes that have nothing to send any more: the last one first, since one that was not answered
// waits for those after it.
func (e *Executor) sweep(ctx context.Context) {
	for _, u := range slices.Backward(e.ledger.idle()) {
		if n, _ := e.tree.Pending(u.ino, math.MaxUint64); n > 0 || ctx.Err() != nil || !e.ledger.take(u) {
			continue
		}
		e.abort(ctx, u)
	}
}

// sweeper sweeps now and then.
func (e *Executor) sweeper() {
	defer e.wg.Done()
	for sleep(e.stopping, sweepEvery) == nil {
		e.sweep(e.ctx)
	}
}

// sendParts uploads or copies all parts that the server does not have, Options.Parts at once over all uploads.
func (e *Executor) sendParts(ctx context.Context, k *namespace.Task, c *content, u *upload, parts []part) ([]s3.Part, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	e.ledger.mu.Lock()
	whole := len(u.sent) >= len(parts)
	e.ledger.mu.Unlock()
	sent := make([]s3.Part, len(parts))
	var wg sync.WaitGroup
	for i, p := range parts {
		if e.parts.acquire(ctx) != nil {
			break
		}
		if c != nil && !e.tree.Needed(k) {
			e.parts.release()
			cancel(errUnneeded)
			break
		}
		wg.Add(1)
		// Ends with its request, or soon after ctx does; this call waits for it.
		go func() {
			defer wg.Done()
			defer e.parts.release()
			s, err := persist(ctx, func() (s3.Part, error) {
				old, ok, err := e.sentBefore(ctx, c, u, p)
				switch {
				case err != nil || ok:
					return old, err
				case whole:
					return s3.Part{}, errChanged
				}
				return e.sendPart(ctx, k, c, u, p)
			})
			if err != nil {
				cancel(fmt.Errorf("part %d of %q: %w", p.number, string(k.Key), err))
				return
			}
			sent[i] = s
		}()
	}
	wg.Wait()
	return sent, context.Cause(ctx)
}

// sentBefore finds a part that the server has already, of the same bytes.
func (e *Executor) sentBefore(ctx context.Context, c *content, u *upload, p part) (s3.Part, bool, error) {
	old, ok := e.ledger.part(u, p.number)
	if !ok || old.off != p.off || old.end != p.end || old.from != p.from.Key || old.fromETag != p.from.ETag {
		return s3.Part{}, false, nil
	}
	if p.copied() {
		return old.Part, true, nil
	}
	sum := crc32.New(crc32.MakeTable(crc32.Castagnoli))
	if err := c.prepare(ctx, p.off, p.end); err != nil {
		return s3.Part{}, false, err
	}
	if _, err := io.Copy(sum, io.NewSectionReader(c.section(ctx, p.off, p.end), 0, p.end-p.off)); err != nil {
		return s3.Part{}, false, err
	}
	text := base64.StdEncoding.EncodeToString(binary.BigEndian.AppendUint32(nil, sum.Sum32()))
	return old.Part, text == old.CRC32C, nil
}

func (e *Executor) sendPart(ctx context.Context, k *namespace.Task, c *content, u *upload, p part) (s3.Part, error) {
	var s s3.Part
	var err error
	if p.copied() {
		r := s3.Range{Off: p.off - p.from.Off, End: p.end - p.from.Off}
		s, err = e.bucket.CopyPart(ctx, k.Key, u.id, p.number, p.from.Key, p.from.ETag, r)
		if errors.Is(err, s3.ErrNotExist) || errors.Is(err, s3.ErrPrecondition) {
			err = &sourceError{err}
		}
		if errors.Is(err, s3.ErrNotSupported) && c != nil {
			p.from = fetch.Source{}
			return e.sendPart(ctx, k, c, u, p)
		}
	} else if err = c.prepare(ctx, p.off, p.end); err == nil {
		s, err = e.bucket.UploadPart(ctx, k.Key, u.id, p.number, s3.Body{R: c.section(ctx, p.off, p.end), Size: p.end - p.off})
	}
	if err != nil {
		e.failing.Store(true)
		return s3.Part{}, err
	}
	e.stepped()
	s.Number, s.Size = p.number, p.end-p.off
	return s, e.ledger.note(u, sentPart{Part: s, off: p.off, end: p.end, from: p.from.Key, fromETag: p.from.ETag})
}

// complete makes the object of an upload's parts. A completion may be repeated: some servers then say that it is done,
// others that they do not know the upload any more. settled says that the object was found, not made by an answer.
func (e *Executor) complete(ctx context.Context, k *namespace.Task, id s3.UploadID, parts []s3.Part, size int64) (info s3.Info, settled bool, err error) {
	info, err = persist(ctx, func() (s3.Info, error) {
		info, err := e.bucket.CompleteUpload(ctx, k.Key, id, parts, k.Cond)
		if settled = err != nil; settled {
			return e.settle(ctx, k, size, err)
		}
		k.Told = namespace.ToUpload
		return info, nil
	})
	info.Size = size
	return info, settled, err
}
