package s3fault

import (
	"context"
	"time"

	"github.com/csi-s3/csi-s3/pkg/s3"
)

// one runs a call with one result through the script. A failed operation's result is the zero value, except the
// per-key failures of the Many calls, which come from the inner bucket with a nil error.
func one[T any](ctx context.Context, b *Bucket, name string, key s3.Key, call func() (T, error)) (T, error) {
	var out T
	err := b.run(ctx, name, key, func() (err error) {
		out, err = call()
		return err
	})
	if err != nil {
		var zero T
		return zero, err
	}
	return out, nil
}

// Head is scripted.
func (b *Bucket) Head(ctx context.Context, key s3.Key) (s3.Info, error) {
	return one(ctx, b, "Head", key, func() (s3.Info, error) { return b.inner.Head(ctx, key) })
}

// Put is scripted.
func (b *Bucket) Put(ctx context.Context, key s3.Key, body s3.Body, attr s3.Attributes, cond s3.Condition) (s3.Info, error) {
	return one(ctx, b, "Put", key, func() (s3.Info, error) { return b.inner.Put(ctx, key, body, attr, cond) })
}

// Copy is scripted.
func (b *Bucket) Copy(ctx context.Context, src s3.Key, srcMatch s3.ETag, dst s3.Key, attr *s3.Attributes, cond s3.Condition) (s3.Info, error) {
	return one(ctx, b, "Copy", dst, func() (s3.Info, error) { return b.inner.Copy(ctx, src, srcMatch, dst, attr, cond) })
}

// Delete is scripted.
func (b *Bucket) Delete(ctx context.Context, key s3.Key) error {
	return b.run(ctx, "Delete", key, func() error { return b.inner.Delete(ctx, key) })
}

// DeleteIf is scripted as a Delete.
func (b *Bucket) DeleteIf(ctx context.Context, key s3.Key, match s3.ETag) error {
	return b.run(ctx, "Delete", key, func() error { return b.inner.DeleteIf(ctx, key, match) })
}

// DeleteMany is scripted.
func (b *Bucket) DeleteMany(ctx context.Context, keys []s3.Key) (map[s3.Key]error, error) {
	return one(ctx, b, "DeleteMany", first(keys), func() (map[s3.Key]error, error) { return b.inner.DeleteMany(ctx, keys) })
}

// List is scripted.
func (b *Bucket) List(ctx context.Context, in s3.ListInput) (s3.Page, error) {
	return one(ctx, b, "List", in.Prefix, func() (s3.Page, error) { return b.inner.List(ctx, in) })
}

// CreateUpload is scripted.
func (b *Bucket) CreateUpload(ctx context.Context, key s3.Key, attr s3.Attributes) (s3.UploadID, error) {
	return one(ctx, b, "CreateUpload", key, func() (s3.UploadID, error) { return b.inner.CreateUpload(ctx, key, attr) })
}

// UploadPart is scripted.
func (b *Bucket) UploadPart(ctx context.Context, key s3.Key, id s3.UploadID, n int, body s3.Body) (s3.Part, error) {
	return one(ctx, b, "UploadPart", key, func() (s3.Part, error) { return b.inner.UploadPart(ctx, key, id, n, body) })
}

// CopyPart is scripted.
func (b *Bucket) CopyPart(ctx context.Context, key s3.Key, id s3.UploadID, n int, src s3.Key, srcMatch s3.ETag, r s3.Range) (s3.Part, error) {
	return one(ctx, b, "CopyPart", key, func() (s3.Part, error) { return b.inner.CopyPart(ctx, key, id, n, src, srcMatch, r) })
}

// ListParts is scripted.
func (b *Bucket) ListParts(ctx context.Context, key s3.Key, id s3.UploadID) ([]s3.Part, error) {
	return one(ctx, b, "ListParts", key, func() ([]s3.Part, error) { return b.inner.ListParts(ctx, key, id) })
}

// CompleteUpload is scripted.
func (b *Bucket) CompleteUpload(ctx context.Context, key s3.Key, id s3.UploadID, parts []s3.Part, cond s3.Condition) (s3.Info, error) {
	return one(ctx, b, "CompleteUpload", key, func() (s3.Info, error) { return b.inner.CompleteUpload(ctx, key, id, parts, cond) })
}

// AbortUpload is scripted.
func (b *Bucket) AbortUpload(ctx context.Context, key s3.Key, id s3.UploadID) error {
	return b.run(ctx, "AbortUpload", key, func() error { return b.inner.AbortUpload(ctx, key, id) })
}

// ListUploads is scripted.
func (b *Bucket) ListUploads(ctx context.Context, prefix s3.Key) (open []s3.Upload, at time.Time, err error) {
	open, err = one(ctx, b, "ListUploads", prefix, func() (u []s3.Upload, err error) {
		u, at, err = b.inner.ListUploads(ctx, prefix)
		return u, err
	})
	if err != nil {
		return nil, time.Time{}, err
	}
	return open, at, nil
}

// CreateBucket is scripted.
func (b *Bucket) CreateBucket(ctx context.Context) error {
	return b.run(ctx, "CreateBucket", "", func() error { return b.inner.CreateBucket(ctx) })
}

// HeadBucket is scripted.
func (b *Bucket) HeadBucket(ctx context.Context) error {
	return b.run(ctx, "HeadBucket", "", func() error { return b.inner.HeadBucket(ctx) })
}

// DeleteBucket is scripted.
func (b *Bucket) DeleteBucket(ctx context.Context) error {
	return b.run(ctx, "DeleteBucket", "", func() error { return b.inner.DeleteBucket(ctx) })
}

// DeleteVersions is scripted.
func (b *Bucket) DeleteVersions(ctx context.Context, versions []s3.Version) (map[s3.Version]error, error) {
	return one(ctx, b, "DeleteVersions", firstVersion(versions), func() (map[s3.Version]error, error) { return b.inner.DeleteVersions(ctx, versions) })
}

// ListVersions is scripted.
func (b *Bucket) ListVersions(ctx context.Context, prefix s3.Key, token string) (versions []s3.Version, next string, err error) {
	versions, err = one(ctx, b, "ListVersions", prefix, func() (v []s3.Version, err error) {
		v, next, err = b.inner.ListVersions(ctx, prefix, token)
		return v, err
	})
	if err != nil {
		return nil, "", err
	}
	return versions, next, nil
}

func first(keys []s3.Key) s3.Key {
	if len(keys) == 0 {
		return ""
	}
	return keys[0]
}

func firstVersion(versions []s3.Version) s3.Key {
	if len(versions) == 0 {
		return ""
	}
	return versions[0].Key
}
