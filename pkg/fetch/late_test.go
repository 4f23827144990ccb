package fetch_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/csi-s3/csi-s3/pkg/fetch"
	"github.com/csi-s3/csi-s3/pkg/s3"
)

// late is a bucket with whose GETs something happens after the answer was made: late takes the whole body and returns
// what the caller reads, and the error at its end.
type late struct {
	s3.Bucket
	answer func(body []byte) ([]byte, error)
}

func (l *late) Get(_ context.Context, key s3.Key, r *s3.Range, ifMatch s3.ETag) (io.ReadCloser, s3.Info, error) {
	// Not the caller's context: the answer is on its way already.
	rc, info, err := l.Bucket.Get(context.Background(), key, r, ifMatch)
	if err != nil {
		return nil, info, err
	}
	body, err := io.ReadAll(rc)
	if err = errors.Join(err, rc.Close()); err != nil {
		return nil, info, err
	}
	body, err = l.answer(body)
	return io.NopCloser(io.MultiReader(bytes.NewReader(body), &ending{err})), info, nil
}

// ending is the end of a body.
type ending struct{ err error }

func (e *ending) Read([]byte) (int, error) {
	if e.err != nil {
		return 0, e.err
	}
	return 0, io.EOF
}

// An upload that is committed when the old object's bytes are here already, but not in the file: they stay out.
func TestCommitBeforeFill(t *testing.T) {
	r := newRig(t, fetch.Options{}, 1<<30)
	old := noise(10 << 10)
	r.put("key", old)
	f := r.store.File(1, int64(len(old)))
	fresh := bytes.Clone(old)
	copy(fresh[5000:], "what the new object has")
	var once sync.Once
	x := fetch.New(&late{r.bucket, func(body []byte) ([]byte, error) {
		once.Do(func() {
			r.ok(f.WriteAt(fresh[:1], 0, time.Now()))
			snap, err := f.Snapshot()
			r.ok(err)
			defer snap.Release()
			r.put("key", fresh)
			r.ok(snap.Commit())
		})
		return body, nil
	}}, fetch.Options{Chunk: chunk})
	defer x.Close()
	r.ok(x.Ensure(t.Context(), f, r.locate, 0, int64(len(old))))
	r.reads(f, 0, fresh)
}

// A checksum that does not fit is known only behind the last byte; one byte too many is wrong as well.
func TestJudgedAtTheEnd(t *testing.T) {
	for name, spoil := range map[string]func(body []byte) ([]byte, error){
		"checksum": func(body []byte) ([]byte, error) {
			body[3] ^= 1
			return body, s3.ErrCorrupt
		},
		"too long":   func(body []byte) ([]byte, error) { return append([]byte("x"), body...), nil },
		"too short":  func(body []byte) ([]byte, error) { return body[1:], nil },
		"broken off": func(body []byte) ([]byte, error) { return body[:len(body)-1], s3.ErrUnavailable },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t, fetch.Options{}, 1<<30)
				body := noise(10 << 10)
				r.put("key", body)
				f := r.store.File(1, int64(len(body)))
				n := 0
				x := fetch.New(&late{r.bucket, func(body []byte) ([]byte, error) {
					if n++; n < 4 {
						return spoil(body)
					}
					return body, nil
				}}, fetch.Options{Chunk: chunk})
				defer x.Close()
				r.ok(x.Ensure(t.Context(), f, r.locate, 0, int64(len(body))))
				r.reads(f, 0, body)
				n = 0
				p := make([]byte, 100)
				r.ok(x.Direct(t.Context(), f, r.locate, p, 200))
				if !bytes.Equal(p, body[200:300]) {
					t.Error("Direct read something else")
				}
			})
		})
	}
}

// A reader who comes after the last one gave up, before the request has noticed, makes a request of his own.
func TestAfterTheLastOneGaveUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, fetch.Options{}, 1<<30)
		body := noise(10 << 10)
		r.put("key", body)
		f := r.store.File(1, int64(len(body)))
		x := fetch.New(&late{r.bucket, func(body []byte) ([]byte, error) {
			time.Sleep(time.Minute)
			return body, nil
		}}, fetch.Options{Chunk: chunk})
		defer x.Close()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := x.Ensure(ctx, f, r.locate, 0, 100); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("the first: %v", err)
		}
		r.ok(x.Ensure(t.Context(), f, r.locate, 0, 100))
		r.reads(f, 0, body[:100])
		if n := x.Stats().Requests; n != 2 {
			t.Errorf("%d requests", n)
		}
	})
}
