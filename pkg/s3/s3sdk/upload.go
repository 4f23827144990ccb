package s3sdk

import (
	"context"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
	"sync"

	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	sdk "github.com/aws/aws-sdk-go-v2/service/s3"

	"github.com/csi-s3/csi-s3/pkg/s3"
)

const crcBuffer = 256 << 10 // bytes

func castagnoli() *crc32.Table { return crc32.MakeTable(crc32.Castagnoli) }

func encodeCRC(sum uint32) string {
	return base64.StdEncoding.EncodeToString(binary.BigEndian.AppendUint32(nil, sum))
}

// checksum reads the body once.
func (b *bucket) checksum(ctx context.Context, op string, key s3.Key, body s3.Body) (string, error) {
	if body.Size < 0 || body.Size > maxPut {
		return "", b.fail(op, key, s3.ErrInvalid, "body of %d bytes, the most is %d", body.Size, int64(maxPut))
	}
	buf := b.buffers.Get().(*[]byte)
	defer b.buffers.Put(buf)
	sum := uint32(0)
	for off := int64(0); off < body.Size; {
		if err := ctx.Err(); err != nil {
			e := b.fail(op, key, s3.ErrUnavailable, "")
			e.cause, e.refused = err, true
			return "", e
		}
		p := (*buf)[:min(int64(len(*buf)), body.Size-off)]
		n, err := body.R.ReadAt(p, off)
		if n < len(p) {
			if err == nil || errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return "", b.unreadable(op, key, err)
		}
		sum = crc32.Update(sum, castagnoli(), p)
		off += int64(n)
	}
	return encodeCRC(sum), nil
}

// unreadable is the caller's own failure to deliver the body: no sentinel, so nobody retries it as the server's.
func (b *bucket) unreadable(op string, key s3.Key, err error) *Error {
	e := b.fail(op, key, nil, "read the body to send")
	e.cause = err
	return e
}

// upload is a body on its way. The transport may still read it after the call has returned; finish ends that, so the
// caller may reuse the memory behind it.
type upload struct {
	mu   sync.Mutex
	r    *io.SectionReader // guarded by mu, nil when finished
	err  error             // guarded by mu: the reader's
	size int64
}

func newUpload(body s3.Body) *upload {
	r := body.R
	if r == nil {
		r = noBytes{}
	}
	return &upload{r: io.NewSectionReader(r, 0, body.Size), size: body.Size}
}

type noBytes struct{}

func (noBytes) ReadAt([]byte, int64) (int, error) { return 0, io.EOF }

var errFinished = errors.New("the request is over")

func (u *upload) Read(p []byte) (int, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.r == nil {
		return 0, errFinished
	}
	n, err := u.r.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		u.err = err
	}
	return n, err
}

func (u *upload) Seek(off int64, whence int) (int64, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.r == nil {
		return 0, errFinished
	}
	return u.r.Seek(off, whence)
}

// finish returns the error with which the body's reader failed, if it did.
func (u *upload) finish() error {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.r = nil
	return u.err
}

// unsigned leaves the body out of the signature, over TLS and without: the CRC-32C guards it at a tenth of the cost.
func unsigned(o *sdk.Options) {
	o.APIOptions = append(o.APIOptions, v4.SwapComputePayloadSHA256ForUnsignedPayloadMiddleware)
}

// send runs one attempt of an upload.
func (b *bucket) send(op string, key s3.Key, body s3.Body, request func(u *upload) error) error {
	u := newUpload(body)
	err := request(u)
	if rerr := u.finish(); rerr != nil && err != nil {
		return b.unreadable(op, key, rerr)
	}
	return err
}
