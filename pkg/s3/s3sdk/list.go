package s3sdk

import (
	"context"
	"errors"
	"net/url"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/middleware"
	sdk "github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"

	"github.com/csi-s3/csi-s3/pkg/s3"
)

// notListing: the SDK takes an empty body, or any other document, for a listing of nothing. Believed, it would make
// every key vanish.
const notListing = "the answer is not a listing"

// List implements s3.Bucket.
func (b *bucket) List(ctx context.Context, in s3.ListInput) (s3.Page, error) {
	const op = "list"
	var page s3.Page
	err := b.do(ctx, call{op: op, key: in.Prefix}, func(ctx context.Context, api *sdk.Client) error {
		req := &sdk.ListObjectsV2Input{
			Bucket: &b.name, Prefix: optional(string(in.Prefix)), Delimiter: optional(in.Delimiter),
			EncodingType: types.EncodingTypeUrl, ContinuationToken: optional(in.Token),
		}
		if in.Token == "" {
			req.StartAfter = optional(string(in.StartAfter))
		}
		if in.MaxKeys > 0 {
			req.MaxKeys = aws.Int32(int32(min(in.MaxKeys, maxMany)))
		}
		out, err := api.ListObjectsV2(ctx, req)
		if err != nil {
			return err
		}
		if out.IsTruncated == nil && out.Name == nil {
			return b.fail(op, in.Prefix, s3.ErrUnavailable, notListing)
		}
		d := decoder{encoded: out.EncodingType == types.EncodingTypeUrl}
		page = s3.Page{}
		for _, o := range out.Contents {
			page.Objects = append(page.Objects, s3.Info{
				Key: d.key(o.Key), Size: aws.ToInt64(o.Size), ETag: s3.NormalizeETag(aws.ToString(o.ETag)),
				Modified: aws.ToTime(o.LastModified), StorageClass: string(o.StorageClass),
			})
		}
		for _, p := range out.CommonPrefixes {
			page.Prefixes = append(page.Prefixes, d.key(p.Prefix))
		}
		if d.err != nil {
			return b.fail(op, in.Prefix, s3.ErrUnavailable, "undecodable key in the answer")
		}
		if aws.ToBool(out.IsTruncated) {
			// Taken for the last page, it would make keys vanish.
			if page.Token = aws.ToString(out.NextContinuationToken); page.Token == "" {
				return b.fail(op, in.Prefix, s3.ErrUnavailable, "truncated page without a continuation token")
			}
		}
		return nil
	})
	if err != nil {
		return s3.Page{}, err
	}
	return page, nil
}

// decoder undoes encoding-type=url where the server echoed it: percent escapes, and + for a space.
type decoder struct {
	encoded bool
	err     error
}

func (d *decoder) key(s *string) s3.Key {
	key := aws.ToString(s)
	if d.encoded {
		var err error
		if key, err = url.QueryUnescape(key); err != nil {
			d.err = err
		}
	}
	return s3.Key(key)
}

// null is the ID that servers give to the version of an object in a bucket without versioning.
const null = "null"

// A token of ListVersions is the query form of the two markers, or of the token of List on a server that does not
// know versions.

// ListVersions implements s3.Bucket.
func (b *bucket) ListVersions(ctx context.Context, prefix s3.Key, token string) ([]s3.Version, string, error) {
	const op = "list versions"
	markers, err := url.ParseQuery(token)
	if err != nil {
		return nil, "", b.fail(op, prefix, s3.ErrInvalid, "continuation token")
	}
	if markers.Has("list") {
		return b.listAsVersions(ctx, prefix, markers.Get("list"))
	}
	var versions []s3.Version
	next := ""
	err = b.do(ctx, call{op: op, key: prefix}, func(ctx context.Context, api *sdk.Client) error {
		out, err := api.ListObjectVersions(ctx, &sdk.ListObjectVersionsInput{
			Bucket: &b.name, Prefix: optional(string(prefix)), EncodingType: types.EncodingTypeUrl,
			KeyMarker: optional(markers.Get("key")), VersionIdMarker: optional(markers.Get("version")),
		})
		if err != nil {
			return err
		}
		if out.IsTruncated == nil && out.Name == nil {
			return b.fail(op, prefix, s3.ErrUnavailable, notListing)
		}
		d := decoder{encoded: out.EncodingType == types.EncodingTypeUrl}
		versions, next = nil, ""
		for _, v := range out.Versions {
			versions = append(versions, s3.Version{Key: d.key(v.Key), VersionID: versionID(v.VersionId)})
		}
		for _, v := range out.DeleteMarkers {
			versions = append(versions, s3.Version{Key: d.key(v.Key), VersionID: versionID(v.VersionId)})
		}
		key := d.key(out.NextKeyMarker)
		if d.err != nil {
			return b.fail(op, prefix, s3.ErrUnavailable, "undecodable key in the answer")
		}
		if aws.ToBool(out.IsTruncated) {
			if key == "" {
				return b.fail(op, prefix, s3.ErrUnavailable, "truncated page without a marker")
			}
			next = url.Values{"key": {string(key)}, "version": {aws.ToString(out.NextVersionIdMarker)}}.Encode()
		}
		return nil
	})
	if errors.Is(err, s3.ErrNotSupported) && token == "" {
		return b.listAsVersions(ctx, prefix, "")
	}
	if err != nil {
		return nil, "", err
	}
	return versions, next, nil
}

func versionID(id *string) string {
	if v := aws.ToString(id); v != null {
		return v
	}
	return ""
}

func (b *bucket) listAsVersions(ctx context.Context, prefix s3.Key, token string) ([]s3.Version, string, error) {
	page, err := b.List(ctx, s3.ListInput{Prefix: prefix, Token: token})
	if err != nil {
		return nil, "", err
	}
	var versions []s3.Version
	for _, o := range page.Objects {
		versions = append(versions, s3.Version{Key: o.Key})
	}
	if page.Token == "" {
		return versions, "", nil
	}
	return versions, url.Values{"list": {page.Token}}.Encode(), nil
}

// DeleteVersions implements s3.Bucket. A version without an ID is asked for as "null": without any, a bucket that has
// versioning would keep it and add a delete marker.
func (b *bucket) DeleteVersions(ctx context.Context, versions []s3.Version) (map[s3.Version]error, error) {
	failed, err := b.deleteMany(ctx, "delete versions", versions, func(v s3.Version) *string {
		if v.VersionID == "" {
			return aws.String(null)
		}
		return &v.VersionID
	})
	if len(failed) == 0 {
		return nil, err
	}
	return failed, err
}

// ListUploads implements s3.Bucket. MinIO takes a prefix for a whole key and answers with nothing, so an empty answer
// is checked against the bucket's full list. Where the credentials may not see that, the empty answer stands.
func (b *bucket) ListUploads(ctx context.Context, prefix s3.Key) ([]s3.Upload, time.Time, error) {
	open, at, err := b.listUploads(ctx, prefix)
	if err != nil || len(open) > 0 && !strings.HasSuffix(string(prefix), "/") && prefix != "" || prefix == "" {
		return open, at, err
	}
	all, later, err := b.listUploads(ctx, "")
	if errors.Is(err, s3.ErrAuth) {
		return open, at, nil
	}
	if err != nil {
		return nil, time.Time{}, err
	}
	open = nil
	for _, u := range all {
		if strings.HasPrefix(string(u.Key), string(prefix)) {
			open = append(open, u)
		}
	}
	return open, later, nil
}

// listUploads lists all pages. at is when the server answered with the last one.
func (b *bucket) listUploads(ctx context.Context, prefix s3.Key) (open []s3.Upload, at time.Time, err error) {
	const op = "list uploads"
	in := &sdk.ListMultipartUploadsInput{Bucket: &b.name, Prefix: optional(string(prefix)), EncodingType: types.EncodingTypeUrl}
	for {
		var page []s3.Upload
		more := false
		err := b.do(ctx, call{op: op, key: prefix}, func(ctx context.Context, api *sdk.Client) error {
			out, err := api.ListMultipartUploads(ctx, in)
			if err != nil {
				return err
			}
			if out.IsTruncated == nil && out.Bucket == nil {
				return b.fail(op, prefix, s3.ErrUnavailable, notListing)
			}
			at, _ = middleware.GetServerTime(out.ResultMetadata)
			d := decoder{encoded: out.EncodingType == types.EncodingTypeUrl}
			page = nil
			for _, u := range out.Uploads {
				page = append(page, s3.Upload{Key: d.key(u.Key), ID: s3.UploadID(aws.ToString(u.UploadId)), Initiated: aws.ToTime(u.Initiated)})
			}
			key, id := string(d.key(out.NextKeyMarker)), aws.ToString(out.NextUploadIdMarker)
			if d.err != nil {
				return b.fail(op, prefix, s3.ErrUnavailable, "undecodable key in the answer")
			}
			if more = aws.ToBool(out.IsTruncated); more {
				if key == aws.ToString(in.KeyMarker) && id == aws.ToString(in.UploadIdMarker) {
					return b.fail(op, prefix, s3.ErrUnavailable, "truncated page without a marker")
				}
				in.KeyMarker, in.UploadIdMarker = optional(key), optional(id)
			}
			return nil
		})
		if err != nil {
			return nil, time.Time{}, err
		}
		open = append(open, page...)
		if !more {
			return open, at, nil
		}
	}
}
