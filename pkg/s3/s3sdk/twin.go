package s3sdk

import (
	"context"
	"errors"
	"hash/crc32"
	"io"

	"github.com/aws/aws-sdk-go-v2/aws"
	sdk "github.com/aws/aws-sdk-go-v2/service/s3"

	"github.com/csi-s3/csi-s3/pkg/s3"
)

// twin is a body that is asked for a second time and not kept: over plain HTTP a range has nothing else to be compared
// with. No server gives a checksum for a range, MinIO gives that of a part only for uploads that may not copy parts, and
// the 16 bits of TCP let through what they let through. A record of TLS is authenticated: there is no twin.
type twin struct {
	cancel context.CancelFunc
	done   chan struct{} // closed when the body is here or failed
	sum    uint32        // CRC-32C, valid once done is closed, as err
	err    error
}

// second asks for what in names once more, on a connection of its own. It is not tried twice: whoever reads the first
// copy asks for both again.
func (b *bucket) second(ctx context.Context, key s3.Key, in sdk.GetObjectInput, r *s3.Range, tag s3.ETag) *twin {
	b.pool.compared.Add(1)
	in.IfMatch = quoted(tag)
	t := &twin{done: make(chan struct{})}
	ctx, t.cancel = context.WithCancel(ctx)
	// Ends with its request, or soon after stop, which waits for it.
	go func() {
		defer close(t.done)
		e := b.once(ctx, call{op: "get", key: key, kind: reads, rides: true}, func(ctx context.Context, api *sdk.Client) error {
			out, release, err := b.ask(ctx, api, &in, r)
			if err != nil {
				return err
			}
			defer release()
			defer out.Body.Close() //nolint:errcheck // it was only read
			d := &download{rc: out.Body, ctx: ctx, bucket: b, key: key, left: aws.ToInt64(out.ContentLength)}
			if _, err := d.describe(out, r, tag); err != nil {
				return err
			}
			return t.read(d, b)
		})
		if e != nil {
			t.err = e
		}
	}()
	return t
}

func (t *twin) read(d *download, b *bucket) error {
	buf := b.buffers.Get().(*[]byte)
	defer b.buffers.Put(buf)
	for {
		n, err := d.Read(*buf)
		t.sum = crc32.Update(t.sum, castagnoli(), (*buf)[:n])
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// stop breaks the request off if it still runs. A nil twin has nothing to stop.
func (t *twin) stop() {
	if t == nil {
		return
	}
	t.cancel()
	<-t.done
}
