package s3sdk

import (
	"context"
	"errors"
	"net/http"

	"github.com/aws/aws-sdk-go-v2/aws"
	sdk "github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"

	"github.com/csi-s3/csi-s3/pkg/s3"
)

// CreateBucket implements s3.Bucket. It looks first: some servers answer the owner of an existing bucket with success.
func (b *bucket) CreateBucket(ctx context.Context) error {
	const op = "create bucket"
	switch err := b.HeadBucket(ctx); {
	case err == nil:
		return b.fail(op, "", s3.ErrBucketExists, "")
	case !errors.Is(err, s3.ErrNoBucket) && !errors.Is(err, s3.ErrAuth):
		return err
	}
	in := &sdk.CreateBucketInput{Bucket: &b.name}
	// Amazon S3 refuses the name of its first region here, R2 that of its only one.
	if r := b.cfg.Region; r != defaultRegion && r != "auto" {
		in.CreateBucketConfiguration = &types.CreateBucketConfiguration{LocationConstraint: types.BucketLocationConstraint(r)}
	}
	mine := false
	err := b.do(ctx, call{op: op, kind: writes, echo: s3.ErrBucketExists, settle: func(_ context.Context, x *exchange, e *Error) *Error {
		mine = x.code == "BucketAlreadyOwnedByYou"
		return e
	}}, func(ctx context.Context, api *sdk.Client) error {
		_, err := api.CreateBucket(ctx, in)
		return err
	})
	if errors.Is(err, s3.ErrUnavailable) && mine {
		// It was absent, a request of ours went unanswered, and now it is ours.
		return nil
	}
	return err
}

// HeadBucket implements s3.Bucket.
func (b *bucket) HeadBucket(ctx context.Context) error {
	const op = "head bucket"
	return b.do(ctx, call{op: op, settle: func(ctx context.Context, x *exchange, e *Error) *Error {
		if x.status != http.StatusNotFound || x.code != "" {
			return e
		}
		// A 404 without a body is not certain; a listing says in its body what is absent.
		settled := b.once(ctx, call{op: op}, func(ctx context.Context, api *sdk.Client) error {
			out, err := api.ListObjectsV2(ctx, &sdk.ListObjectsV2Input{Bucket: &b.name, MaxKeys: aws.Int32(1), EncodingType: types.EncodingTypeUrl})
			if err == nil && out.IsTruncated == nil && out.Name == nil {
				return b.fail(op, "", s3.ErrUnavailable, notListing)
			}
			return err
		})
		return settled
	}}, func(ctx context.Context, api *sdk.Client) error {
		_, err := api.HeadBucket(ctx, &sdk.HeadBucketInput{Bucket: &b.name})
		return err
	})
}

// DeleteBucket implements s3.Bucket. It looks first: some servers delete the objects too.
func (b *bucket) DeleteBucket(ctx context.Context) error {
	const op = "delete bucket"
	page, err := b.List(ctx, s3.ListInput{MaxKeys: 1})
	if errors.Is(err, s3.ErrNoBucket) {
		return nil
	}
	if err != nil {
		return err
	}
	if len(page.Objects) > 0 {
		return b.fail(op, "", s3.ErrBucketNotEmpty, "")
	}
	err = b.do(ctx, call{op: op, kind: writes}, func(ctx context.Context, api *sdk.Client) error {
		_, err := api.DeleteBucket(ctx, &sdk.DeleteBucketInput{Bucket: &b.name})
		return err
	})
	b.exists(false)
	if errors.Is(err, s3.ErrNoBucket) {
		return nil
	}
	return err
}
