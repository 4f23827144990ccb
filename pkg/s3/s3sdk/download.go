package s3sdk

import (
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"net"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	sdk "github.com/aws/aws-sdk-go-v2/service/s3"
	smithyhttp "github.com/aws/smithy-go/transport/http"

	"github.com/csi-s3/csi-s3/pkg/s3"
)

// Get implements s3.Bucket. Without a range, the body is checked against the checksum that is stored with the object, if
// one is. Over plain HTTP every other body is asked for twice and compared.
func (b *bucket) Get(ctx context.Context, key s3.Key, r *s3.Range, ifMatch s3.ETag) (io.ReadCloser, s3.Info, error) {
	const op = "get"
	in := &sdk.GetObjectInput{Bucket: &b.name, Key: aws.String(string(key)), IfMatch: quoted(ifMatch)}
	var opts []func(*sdk.Options)
	if r != nil {
		if r.Off < 0 || r.End <= r.Off {
			return nil, s3.Info{}, b.fail(op, key, s3.ErrInvalid, "range [%d, %d)", r.Off, r.End)
		}
		in.Range = aws.String(fmt.Sprintf("bytes=%d-%d", r.Off, r.End-1))
	} else {
		opts = append(opts, withChecksum)
	}
	var copied *twin
	if b.plain && r != nil && ifMatch != "" {
		copied = b.second(ctx, key, *in, r, ifMatch)
	}
	var body *download
	var info s3.Info
	err := b.do(ctx, call{op: op, key: key, kind: reads}, func(ctx context.Context, api *sdk.Client) error {
		out, release, err := b.ask(ctx, api, in, r, opts...)
		if err != nil {
			return err
		}
		d := &download{rc: out.Body, release: release, ctx: ctx, bucket: b, key: key, left: aws.ToInt64(out.ContentLength)}
		if info, err = d.describe(out, r, ifMatch); err != nil {
			err = errors.Join(err, out.Body.Close())
			release()
			return err
		}
		if r == nil {
			d.proof = stored(out)
			info.Checked = d.proof != nil
		}
		d.place = exchangeOf(ctx).keep()
		body = d
		return nil
	})
	if err != nil {
		copied.stop()
		return nil, s3.Info{}, err
	}
	if b.plain && copied == nil && body.proof == nil && body.left > 0 {
		// Only now it is known what to compare with.
		copied = b.second(ctx, key, *in, r, info.ETag)
	}
	body.twin = copied
	return body, info, nil
}

// withChecksum asks for the object's checksum without the SDK's own check of it, whose error nobody can tell from a
// broken connection.
func withChecksum(o *sdk.Options) {
	o.APIOptions = append(o.APIOptions, smithyhttp.SetHeaderValue("x-amz-checksum-mode", "ENABLED"))
}

// download is the body of a Get: exactly left bytes more, or an error.
type download struct {
	rc      io.ReadCloser
	release func()          // ends the request; called by Close
	ctx     context.Context // of the request: its end ends the body
	bucket  *bucket
	key     s3.Key
	left    int64
	proof   *proof // nil: no checksum to check the bytes against
	twin    *twin  // nil: not asked for twice
	sum     uint32 // CRC-32C, to compare with the twin's
	place   *place // given up with the last byte
	err     error
}

// describe checks that the answer is what was asked for: a server may not know ranges or conditions.
func (d *download) describe(out *sdk.GetObjectOutput, r *s3.Range, ifMatch s3.ETag) (s3.Info, error) {
	b := d.bucket
	info := s3.Info{
		Key:          d.key,
		Size:         d.left,
		ETag:         s3.NormalizeETag(aws.ToString(out.ETag)),
		Modified:     aws.ToTime(out.LastModified),
		Meta:         lower(out.Metadata),
		ContentType:  aws.ToString(out.ContentType),
		StorageClass: string(out.StorageClass),
	}
	if out.ContentLength == nil || d.left < 0 {
		return info, b.fail("get", d.key, s3.ErrCorrupt, "answer without a length")
	}
	if err := b.tagged("get", info); err != nil {
		return info, err
	}
	if ifMatch != "" && info.ETag != ifMatch {
		return info, b.fail("get", d.key, s3.ErrPrecondition, "the answer has ETag %q, asked for %q", info.ETag, ifMatch)
	}
	if r == nil {
		return info, nil
	}
	var first, last int64
	if n, err := fmt.Sscanf(aws.ToString(out.ContentRange), "bytes %d-%d/%d", &first, &last, &info.Size); n != 3 || err != nil {
		return info, b.fail("get", d.key, s3.ErrCorrupt, "asked for a range, got an answer without one")
	}
	if first != r.Off || last != min(r.End, info.Size)-1 || d.left != last-first+1 {
		return info, b.fail("get", d.key, s3.ErrCorrupt, "asked for [%d, %d), got %d bytes of [%d, %d]", r.Off, r.End, d.left, first, last)
	}
	return info, nil
}

func (d *download) Read(p []byte) (int, error) {
	if d.err != nil {
		return 0, d.err
	}
	n, err := d.rc.Read(p[:min(int64(len(p)), max(d.left, 1))])
	if int64(n) > d.left {
		return 0, d.fail(s3.ErrCorrupt, "more bytes than announced", nil)
	}
	d.left -= int64(n)
	if d.proof != nil {
		_, _ = d.proof.Write(p[:n]) // a hash never fails
	}
	if d.twin != nil {
		d.sum = crc32.Update(d.sum, castagnoli(), p[:n])
	}
	switch {
	case d.left > 0 && errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return n, d.fail(s3.ErrUnavailable, "the body broke off", nil)
	case err != nil && !errors.Is(err, io.EOF):
		return n, d.fail(s3.ErrUnavailable, "the body broke off", err)
	case d.left > 0:
		return n, nil
	}
	// The last bytes are held back when the sum is wrong: a caller that reads exactly the length would see no error.
	if err := d.judge(); err != nil {
		return 0, err
	}
	d.place.leave(answered)
	d.err = io.EOF
	if n == 0 && len(p) > 0 {
		return 0, io.EOF
	}
	return n, nil
}

// judge says what the checksums of the whole body mean.
func (d *download) judge() error {
	if d.proof != nil && !d.proof.holds() {
		d.bucket.pool.corrupt.Add(1)
		return d.fail(s3.ErrCorrupt, "the checksum is not the object's", nil)
	}
	if d.twin == nil {
		return nil
	}
	<-d.twin.done
	switch {
	case errors.Is(d.twin.err, s3.ErrPrecondition), errors.Is(d.twin.err, s3.ErrNotExist):
		return d.fail(s3.ErrUnavailable, "the object changed between two copies of it", nil)
	case d.twin.err != nil:
		return d.fail(s3.ErrUnavailable, "no second copy to compare with", d.twin.err)
	case d.twin.sum != d.sum:
		d.bucket.pool.corrupt.Add(1)
		return d.fail(s3.ErrCorrupt, "two copies differ", nil)
	}
	return nil
}

func (d *download) fail(kind error, detail string, cause error) error {
	e := d.bucket.fail("read body of", d.key, kind, "%s", detail)
	e.cause = errors.Join(d.bucket.clean(cause), d.ctx.Err())
	e.Detail += fmt.Sprintf(" with %d bytes to come", d.left)
	var network net.Error
	if errors.As(cause, &network) && network.Timeout() && d.ctx.Err() == nil {
		d.place.leave(overloaded)
	}
	d.place.leave(unjudged)
	d.err = e
	return e
}

func (d *download) Close() error {
	d.err = errors.Join(d.err, errClosed)
	d.twin.stop()
	d.place.leave(unjudged)
	err := d.rc.Close()
	d.release()
	return err
}

var errClosed = errors.New("read of a closed body")

func lower(meta map[string]string) map[string]string {
	out := make(map[string]string, len(meta))
	for k, v := range meta {
		out[strings.ToLower(k)] = v
	}
	return out
}

func quoted(tag s3.ETag) *string {
	if tag == "" {
		return nil
	}
	return aws.String(`"` + string(tag) + `"`)
}
