package volume

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"math/rand/v2"
	"strings"
	"sync"
	"time"

	"github.com/csi-s3/csi-s3/pkg/s3"
	"github.com/csi-s3/csi-s3/pkg/s3/s3fault"
	"github.com/csi-s3/csi-s3/pkg/s3/s3mem"
)

// weather is what goes wrong on the way to the server: one request in so many, and times in which nothing comes through.
type weather struct {
	seed    uint64
	oneIn   int // 0: none
	outages []outage

	mu    sync.Mutex
	calls map[string]uint64 // guarded by mu: by method and key
}

// outage is a time in which requests fail, or wait for its end.
type outage struct {
	from, to time.Time
	kind     int
}

// The kinds of outages.
const (
	refusing = iota // 503 for all
	hanging         // no answer until the end
	denying         // the credentials are expired
	outageKinds
)

// draw is the randomness of one request: it depends on what is asked and how often that was asked before, and not on
// what happens beside it.
func (w *weather) draw(name string, key s3.Key) *rand.Rand {
	id := name + " " + string(key)
	w.mu.Lock()
	w.calls[id]++
	n := w.calls[id]
	w.mu.Unlock()
	h := fnv.New64a()
	_, _ = io.WriteString(h, id) // never fails
	return rand.New(rand.NewPCG(w.seed^n<<32, h.Sum64()))
}

// fault decides about one request.
func (w *weather) fault(op s3fault.Op, rnd *rand.Rand, count func(string)) s3fault.Action {
	now := time.Now()
	for _, o := range w.outages {
		if now.Before(o.from) || now.After(o.to) {
			continue
		}
		switch o.kind {
		case hanging:
			count("hang")
			return s3fault.Delay(o.to.Sub(now))
		case denying:
			count("auth")
			return s3fault.FailBefore(s3.ErrAuth)
		}
		count("outage")
		return s3fault.FailBefore(nil)
	}
	if w.oneIn == 0 || rnd.IntN(w.oneIn) > 0 {
		return s3fault.Action{}
	}
	body := op.Name == "Get" || op.Name == "Put" || op.Name == "UploadPart"
	switch k := rnd.IntN(7); {
	case k == 0:
		count("before")
		return s3fault.FailBefore(nil)
	case k == 1 && body:
		count("short")
		return s3fault.ShortBody(int64(rnd.IntN(3000)))
	case k == 2 && body:
		count("corrupt")
		return s3fault.CorruptBody()
	case k == 3:
		count("delay")
		return s3fault.Delay(time.Duration(rnd.Int64N(int64(20 * time.Second))))
	case k == 4:
		count("error200")
		return s3fault.Error200()
	default:
		count("after")
		return s3fault.FailAfter(nil)
	}
}

// server is the bucket as one process reaches it: requests take their time, those of a dead process come to nothing, and
// all that changes the bucket is checked.
type server struct {
	s3.Bucket
	life *life
	proc *process
}

// received is what the server has of a body that is sent in two pieces, with time in between.
func (s server) received(ctx context.Context, key s3.Key, body s3.Body) (s3.Body, error) {
	data := make([]byte, body.Size)
	half := body.Size / 2
	if _, err := io.ReadFull(io.NewSectionReader(body.R, 0, half), data[:half]); err != nil {
		return s3.Body{}, err
	}
	if !s.life.healed() {
		rnd := s.life.weather.draw("sending", key)
		if err := wait(ctx, time.Duration(1+rnd.Int64N(int64(20*time.Millisecond)))); err != nil {
			return s3.Body{}, errors.Join(s3.ErrUnavailable, err)
		}
	}
	if _, err := io.ReadFull(io.NewSectionReader(body.R, half, body.Size-half), data[half:]); err != nil {
		return s3.Body{}, err
	}
	return s3.Body{R: bytes.NewReader(data), Size: body.Size}, nil
}

// did runs one request: name and key are those of the call.
func did[T any](ctx context.Context, s server, name string, key s3.Key, call func() (T, error), check func() error) (T, error) {
	var zero T
	rnd := s.life.weather.draw("latency of "+name, key)
	gone := fmt.Errorf("%s %q of a process that is gone: %w", name, string(key), s3.ErrUnavailable)
	if !s.life.healed() {
		if err := wait(ctx, time.Duration(1+rnd.Int64N(int64(30*time.Millisecond)))); err != nil {
			return zero, errors.Join(s3.ErrUnavailable, err)
		}
	}
	s.proc.requested()
	s.life.mu.Lock()
	if s.proc.dead {
		s.life.mu.Unlock()
		return zero, gone
	}
	v, err := call()
	s.life.trace("%s %q: %v", name, string(key), err)
	if err == nil {
		s.life.count("s3 " + name)
		if check != nil {
			if cerr := check(); cerr != nil {
				s.life.broke(fmt.Errorf("%s: %w", name, cerr))
			}
		}
	}
	s.life.mu.Unlock()
	if !s.life.healed() {
		if werr := wait(ctx, time.Duration(1+rnd.Int64N(int64(10*time.Millisecond)))); werr != nil {
			return zero, errors.Join(s3.ErrUnavailable, werr) // done, and the answer is lost
		}
	}
	return v, err
}

func wait(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// changed checks what the bucket has under a key now. The life's mutex is held.
func (l *life) changed(key s3.Key) error {
	name := string(key)
	if strings.HasPrefix(name, ".csi-s3/") || strings.HasSuffix(name, "/") {
		return nil
	}
	b := l.bookOf(name)
	if b == nil {
		return fmt.Errorf("%q is nobody's name", name)
	}
	content, err := stored(l.bucket, key)
	l.trace("now%s", describe(map[string]string{name: string(content)}))
	if plain, _, kept := strings.Cut(name, ".conflict-"); b.alien[plain] != nil {
		a := b.alien[plain]
		switch {
		case errors.Is(err, s3.ErrNotExist) && a.put && !kept:
			return fmt.Errorf("the stranger's object %q was removed", name)
		case errors.Is(err, s3.ErrNotExist):
			return nil
		case string(content) == string(a.ours) && (kept || !a.put):
			return nil
		case string(content) == string(a.theirs) && !kept, len(content) == 0 && !a.put:
			return nil
		}
		return fmt.Errorf("the bytes of %q are%s", name, describe(map[string]string{"": string(content)}))
	}
	if strings.Contains(name, ".conflict-") {
		return fmt.Errorf("%q: a conflict with itself", name)
	}
	if errors.Is(err, s3.ErrNotExist) {
		return b.removed(name)
	}
	if err != nil {
		return err
	}
	return b.stored(name, content)
}

func stored(b *s3mem.Bucket, key s3.Key) ([]byte, error) {
	body, _, err := b.Get(context.Background(), key, nil, "")
	if err != nil {
		return nil, err
	}
	content, err := io.ReadAll(body)
	return content, errors.Join(err, body.Close())
}

func (s server) Put(ctx context.Context, key s3.Key, body s3.Body, attr s3.Attributes, cond s3.Condition) (s3.Info, error) {
	body, err := s.received(ctx, key, body)
	if err != nil {
		return s3.Info{}, err
	}
	return did(ctx, s, "Put", key, func() (s3.Info, error) { return s.Bucket.Put(ctx, key, body, attr, cond) },
		func() error { return s.life.changed(key) })
}

func (s server) Copy(ctx context.Context, src s3.Key, srcMatch s3.ETag, dst s3.Key, attr *s3.Attributes, cond s3.Condition) (s3.Info, error) {
	return did(ctx, s, "Copy", dst, func() (s3.Info, error) { return s.Bucket.Copy(ctx, src, srcMatch, dst, attr, cond) },
		func() error { return s.life.changed(dst) })
}

func (s server) CompleteUpload(ctx context.Context, key s3.Key, id s3.UploadID, parts []s3.Part, cond s3.Condition) (s3.Info, error) {
	return did(ctx, s, "CompleteUpload", key, func() (s3.Info, error) { return s.Bucket.CompleteUpload(ctx, key, id, parts, cond) },
		func() error { return s.life.changed(key) })
}

func (s server) Delete(ctx context.Context, key s3.Key) error {
	_, err := did(ctx, s, "Delete", key, func() (struct{}, error) { return struct{}{}, s.Bucket.Delete(ctx, key) },
		func() error { return s.life.changed(key) })
	return err
}

func (s server) DeleteIf(ctx context.Context, key s3.Key, match s3.ETag) error {
	_, err := did(ctx, s, "Delete", key, func() (struct{}, error) { return struct{}{}, s.Bucket.DeleteIf(ctx, key, match) },
		func() error { return s.life.changed(key) })
	return err
}

func (s server) DeleteMany(ctx context.Context, keys []s3.Key) (map[s3.Key]error, error) {
	var first s3.Key
	if len(keys) > 0 {
		first = keys[0]
	}
	return did(ctx, s, "DeleteMany", first, func() (map[s3.Key]error, error) { return s.Bucket.DeleteMany(ctx, keys) },
		func() error {
			var all error
			for _, key := range keys {
				all = errors.Join(all, s.life.changed(key))
			}
			return all
		})
}

func (s server) Head(ctx context.Context, key s3.Key) (s3.Info, error) {
	return did(ctx, s, "Head", key, func() (s3.Info, error) { return s.Bucket.Head(ctx, key) }, nil)
}

func (s server) Get(ctx context.Context, key s3.Key, r *s3.Range, ifMatch s3.ETag) (io.ReadCloser, s3.Info, error) {
	var info s3.Info
	body, err := did(ctx, s, "Get", key, func() (body io.ReadCloser, err error) {
		body, info, err = s.Bucket.Get(ctx, key, r, ifMatch)
		return body, err
	}, nil)
	if err != nil {
		return nil, s3.Info{}, err
	}
	return body, info, nil
}

func (s server) List(ctx context.Context, in s3.ListInput) (s3.Page, error) {
	return did(ctx, s, "List", in.Prefix, func() (s3.Page, error) { return s.Bucket.List(ctx, in) }, nil)
}

func (s server) CreateUpload(ctx context.Context, key s3.Key, attr s3.Attributes) (s3.UploadID, error) {
	return did(ctx, s, "CreateUpload", key, func() (s3.UploadID, error) { return s.Bucket.CreateUpload(ctx, key, attr) }, nil)
}

func (s server) UploadPart(ctx context.Context, key s3.Key, id s3.UploadID, n int, body s3.Body) (s3.Part, error) {
	body, err := s.received(ctx, key, body)
	if err != nil {
		return s3.Part{}, err
	}
	return did(ctx, s, fmt.Sprint("UploadPart ", n), key, func() (s3.Part, error) { return s.Bucket.UploadPart(ctx, key, id, n, body) }, nil)
}

func (s server) CopyPart(ctx context.Context, key s3.Key, id s3.UploadID, n int, src s3.Key, srcMatch s3.ETag, r s3.Range) (s3.Part, error) {
	return did(ctx, s, fmt.Sprint("CopyPart ", n), key, func() (s3.Part, error) { return s.Bucket.CopyPart(ctx, key, id, n, src, srcMatch, r) }, nil)
}

func (s server) ListParts(ctx context.Context, key s3.Key, id s3.UploadID) ([]s3.Part, error) {
	return did(ctx, s, "ListParts", key, func() ([]s3.Part, error) { return s.Bucket.ListParts(ctx, key, id) }, nil)
}

func (s server) AbortUpload(ctx context.Context, key s3.Key, id s3.UploadID) error {
	_, err := did(ctx, s, "AbortUpload", key, func() (struct{}, error) { return struct{}{}, s.Bucket.AbortUpload(ctx, key, id) }, nil)
	return err
}

func (s server) ListUploads(ctx context.Context, prefix s3.Key) (open []s3.Upload, at time.Time, err error) {
	open, err = did(ctx, s, "ListUploads", prefix, func() (u []s3.Upload, err error) {
		u, at, err = s.Bucket.ListUploads(ctx, prefix)
		return u, err
	}, nil)
	return open, at, err
}
