package s3sdk

import (
	"context"
	"errors"
	"fmt"

	"github.com/aws/aws-sdk-go-v2/aws"
	sdk "github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"

	"github.com/csi-s3/csi-s3/pkg/s3"
)

const maxPart = 10_000

// CreateUpload implements s3.Bucket. When no answer comes the upload may be open: only its caller can find it. A key that XML cannot hold is ErrInvalid: the answer names it.
func (b *bucket) CreateUpload(ctx context.Context, key s3.Key, attr s3.Attributes) (s3.UploadID, error) {
	const op = "create upload"
	if err := attr.Validate(); err != nil {
		return "", b.fail(op, key, s3.ErrInvalid, "%v", err)
	}
	if !inXML(key) {
		return "", b.fail(op, key, s3.ErrInvalid, "the key has a character that an answer cannot hold")
	}
	var id s3.UploadID
	err := b.do(ctx, call{op: op, key: key, kind: writes, adds: true}, func(ctx context.Context, api *sdk.Client) error {
		in := &sdk.CreateMultipartUploadInput{
			Bucket: &b.name, Key: aws.String(string(key)), Metadata: attr.Meta, ContentType: optional(attr.ContentType),
		}
		if b.declare {
			in.ChecksumAlgorithm = types.ChecksumAlgorithmCrc32c
		}
		out, err := api.CreateMultipartUpload(ctx, in)
		if err != nil {
			return err
		}
		if id = s3.UploadID(aws.ToString(out.UploadId)); id == "" {
			return b.fail(op, key, s3.ErrUnavailable, "answer without an upload ID")
		}
		return nil
	})
	return id, err
}

func (b *bucket) checkPart(op string, key s3.Key, n int) error {
	if n < 1 || n > maxPart {
		return b.fail(op, key, s3.ErrInvalid, "part number %d is not between 1 and %d", n, maxPart)
	}
	return nil
}

// UploadPart implements s3.Bucket.
func (b *bucket) UploadPart(ctx context.Context, key s3.Key, id s3.UploadID, n int, body s3.Body) (s3.Part, error) {
	const op = "upload part"
	if err := b.checkPart(op, key, n); err != nil {
		return s3.Part{}, err
	}
	sum, err := b.checksum(ctx, op, key, body)
	if err != nil {
		return s3.Part{}, err
	}
	part := s3.Part{Number: n, Size: body.Size, CRC32C: sum}
	err = b.do(ctx, call{op: op, key: key, kind: writes}, func(ctx context.Context, api *sdk.Client) error {
		return b.send(op, key, body, func(u *upload) error {
			out, err := api.UploadPart(ctx, &sdk.UploadPartInput{
				Bucket: &b.name, Key: aws.String(string(key)), UploadId: aws.String(string(id)), PartNumber: aws.Int32(int32(n)),
				Body: u, ContentLength: &body.Size, ChecksumCRC32C: &sum,
			}, unsigned)
			if err != nil {
				return err
			}
			part.ETag = s3.NormalizeETag(aws.ToString(out.ETag))
			return b.tagged(op, s3.Info{Key: key, ETag: part.ETag})
		})
	})
	if err != nil {
		return s3.Part{}, err
	}
	return part, nil
}

// CopyPart implements s3.Bucket.
func (b *bucket) CopyPart(ctx context.Context, key s3.Key, id s3.UploadID, n int, src s3.Key, srcMatch s3.ETag, r s3.Range) (s3.Part, error) {
	const op = "copy part"
	if err := b.checkPart(op, key, n); err != nil {
		return s3.Part{}, err
	}
	if r.Off < 0 || r.End <= r.Off || r.End-r.Off > maxPut {
		return s3.Part{}, b.fail(op, src, s3.ErrInvalid, "range [%d, %d)", r.Off, r.End)
	}
	part := s3.Part{Number: n, Size: r.End - r.Off}
	err := b.do(ctx, call{op: op, key: key, kind: writes, long: true}, func(ctx context.Context, api *sdk.Client) error {
		out, err := api.UploadPartCopy(ctx, &sdk.UploadPartCopyInput{
			Bucket: &b.name, Key: aws.String(string(key)), UploadId: aws.String(string(id)), PartNumber: aws.Int32(int32(n)),
			CopySource: aws.String(copySource(b.name, src)), CopySourceIfMatch: quoted(srcMatch),
			CopySourceRange: aws.String(fmt.Sprintf("bytes=%d-%d", r.Off, r.End-1)),
		})
		if err != nil {
			return err
		}
		if c := out.CopyPartResult; c != nil {
			part.ETag, part.CRC32C = s3.NormalizeETag(aws.ToString(c.ETag)), aws.ToString(c.ChecksumCRC32C)
		}
		return b.tagged(op, s3.Info{Key: key, ETag: part.ETag})
	})
	if err != nil {
		return s3.Part{}, err
	}
	return part, nil
}

// ListParts implements s3.Bucket.
func (b *bucket) ListParts(ctx context.Context, key s3.Key, id s3.UploadID) ([]s3.Part, error) {
	const op = "list parts"
	var parts []s3.Part
	in := &sdk.ListPartsInput{Bucket: &b.name, Key: aws.String(string(key)), UploadId: aws.String(string(id))}
	for {
		var page []s3.Part
		more := false
		err := b.do(ctx, call{op: op, key: key}, func(ctx context.Context, api *sdk.Client) error {
			out, err := api.ListParts(ctx, in)
			if err != nil {
				return err
			}
			if out.IsTruncated == nil && out.UploadId == nil {
				return b.fail(op, key, s3.ErrUnavailable, notListing)
			}
			page = nil
			for _, p := range out.Parts {
				page = append(page, s3.Part{
					Number: int(aws.ToInt32(p.PartNumber)), ETag: s3.NormalizeETag(aws.ToString(p.ETag)),
					Size: aws.ToInt64(p.Size), CRC32C: aws.ToString(p.ChecksumCRC32C),
				})
			}
			if more = aws.ToBool(out.IsTruncated); more {
				if aws.ToString(out.NextPartNumberMarker) == aws.ToString(in.PartNumberMarker) {
					return b.fail(op, key, s3.ErrUnavailable, "truncated page without a marker")
				}
				in.PartNumberMarker = out.NextPartNumberMarker
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
		parts = append(parts, page...)
		if !more {
			return parts, nil
		}
	}
}

// CompleteUpload implements s3.Bucket.
func (b *bucket) CompleteUpload(ctx context.Context, key s3.Key, id s3.UploadID, parts []s3.Part, cond s3.Condition) (s3.Info, error) {
	const op = "complete upload"
	if len(parts) == 0 {
		return s3.Info{}, b.fail(op, key, s3.ErrInvalid, "no parts")
	}
	info := s3.Info{Key: key}
	done := make([]types.CompletedPart, len(parts))
	for i, p := range parts {
		if err := b.checkPart(op, key, p.Number); err != nil {
			return s3.Info{}, err
		}
		done[i] = types.CompletedPart{PartNumber: aws.Int32(int32(p.Number)), ETag: quoted(p.ETag)}
		if b.declare {
			done[i].ChecksumCRC32C = optional(p.CRC32C)
		}
		info.Size += p.Size
	}
	err := b.do(ctx, call{op: op, key: key, kind: writes, long: true, settle: conditional(cond), echo: echo(cond)}, func(ctx context.Context, api *sdk.Client) error {
		out, err := api.CompleteMultipartUpload(ctx, &sdk.CompleteMultipartUploadInput{
			Bucket: &b.name, Key: aws.String(string(key)), UploadId: aws.String(string(id)),
			MultipartUpload: &types.CompletedMultipartUpload{Parts: done},
			IfMatch:         quoted(cond.IfMatch), IfNoneMatch: star(cond.IfNoneMatch),
		})
		if err != nil {
			return err
		}
		info.ETag = s3.NormalizeETag(aws.ToString(out.ETag))
		return b.tagged(op, info)
	})
	if err != nil {
		return s3.Info{}, err
	}
	return info, nil
}

// AbortUpload implements s3.Bucket.
func (b *bucket) AbortUpload(ctx context.Context, key s3.Key, id s3.UploadID) error {
	err := b.do(ctx, call{op: "abort upload", key: key, kind: writes}, func(ctx context.Context, api *sdk.Client) error {
		_, err := api.AbortMultipartUpload(ctx, &sdk.AbortMultipartUploadInput{
			Bucket: &b.name, Key: aws.String(string(key)), UploadId: aws.String(string(id)),
		})
		return err
	})
	if errors.Is(err, s3.ErrNoUpload) {
		return nil
	}
	return err
}
