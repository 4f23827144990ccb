package writeback_test

import (
	"context"
	"io"
	"testing"
	"time"

	"github.com/csi-s3/csi-s3/pkg/namespace"
	"github.com/csi-s3/csi-s3/pkg/s3"
	"github.com/csi-s3/csi-s3/pkg/s3/s3mem"
)

// line is a bucket at the end of a line of so many bytes a second, which all requests share.
type line struct {
	s3.Bucket
	rate float64
	free chan time.Time // when the line is free again
}

func newLine(b s3.Bucket, rate float64) *line {
	l := &line{Bucket: b, rate: rate, free: make(chan time.Time, 1)}
	l.free <- time.Time{}
	return l
}

// pass returns when n bytes went over the line.
func (l *line) pass(n int) {
	at := <-l.free
	if now := time.Now(); at.Before(now) {
		at = now
	}
	at = at.Add(time.Duration(float64(n) / l.rate * float64(time.Second)))
	l.free <- at
	time.Sleep(time.Until(at))
}

type passing struct {
	io.ReaderAt
	line *line
}

func (p passing) ReadAt(b []byte, off int64) (int, error) {
	n, err := p.ReaderAt.ReadAt(b, off)
	p.line.pass(n)
	return n, err
}

func (l *line) Put(ctx context.Context, key s3.Key, body s3.Body, attr s3.Attributes, cond s3.Condition) (s3.Info, error) {
	body.R = passing{body.R, l}
	return l.Bucket.Put(ctx, key, body, attr, cond)
}

func (l *line) UploadPart(ctx context.Context, key s3.Key, id s3.UploadID, n int, body s3.Body) (s3.Part, error) {
	body.R = passing{body.R, l}
	return l.Bucket.UploadPart(ctx, key, id, n, body)
}

// A file of 512 MiB in front of a line of 50 MB/s, until it is in the bucket: sent when it is closed, and while it is
// written, by a fast and by a slow writer.
func BenchmarkLargeFile(b *testing.B) {
	for _, v := range []struct {
		name   string
		pace   float64
		stream bool
	}{
		{"fast/closed", 250e6, false},
		{"fast/streamed", 250e6, true},
		{"slow/closed", 60e6, false},
		{"slow/streamed", 60e6, true},
	} {
		b.Run(v.name, func(b *testing.B) {
			for b.Loop() {
				largeFile(b, v.pace, v.stream)
			}
		})
	}
}

func largeFile(b *testing.B, pace float64, stream bool) {
	const size, step = 512 << 20, 1 << 20
	r := &rig{t: b, dir: b.TempDir(), bucket: s3mem.New("bucket"), names: namespace.Options{WriterID: "0123456789abcdef", Settle: time.Second, MaxAge: 30 * time.Second}}
	r.server = func(s s3.Bucket) s3.Bucket { return newLine(s, 50e6) }
	r.start()
	defer r.stop()
	ino := r.create("large")
	r.ok(r.tree.Opened(ino))
	p := noise(step)
	start := time.Now()
	for off := int64(0); off < size; off += step {
		r.ok(r.writeWhenRoom(b.Context(), ino, off, p))
		if stream {
			r.exec.Grew(ino, off, off+step)
		}
		time.Sleep(time.Until(start.Add(time.Duration(float64(off+step) / pace * float64(time.Second)))))
	}
	r.tree.Released(ino)
	for n := 1; n > 0; n, _ = r.tree.Pending(0, r.tree.Seq()) {
		time.Sleep(time.Millisecond)
	}
	b.ReportMetric(time.Since(start).Seconds(), "s/file")
	b.ReportMetric(0, "ns/op")
}
