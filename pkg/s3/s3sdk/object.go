package s3sdk

import (
	"context"
	"errors"
	"net/http"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	sdk "github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"

	"github.com/csi-s3/csi-s3/pkg/s3"
)

const (
	maxPut  = 5 << 30 // bytes of one PUT, part or copy
	maxMany = 1000    // keys of a DeleteObjects, entries of a listing page
)

// Head implements s3.Bucket.
func (b *bucket) Head(ctx context.Context, key s3.Key) (s3.Info, error) {
	var info s3.Info
	err := b.do(ctx, call{op: "head", key: key, settle: b.settleHead}, func(ctx context.Context, api *sdk.Client) error {
		out, err := api.HeadObject(ctx, &sdk.HeadObjectInput{Bucket: &b.name, Key: aws.String(string(key))})
		if err != nil {
			return err
		}
		if out.ContentLength == nil {
			return b.fail("head", key, s3.ErrUnavailable, "answer without a length")
		}
		info = s3.Info{
			Key:          key,
			Size:         *out.ContentLength,
			ETag:         s3.NormalizeETag(aws.ToString(out.ETag)),
			Modified:     aws.ToTime(out.LastModified),
			Meta:         lower(out.Metadata),
			ContentType:  aws.ToString(out.ContentType),
			StorageClass: string(out.StorageClass),
		}
		return b.tagged("head", info)
	})
	if err != nil {
		return s3.Info{}, err
	}
	return info, nil
}

// settleHead finds out what a 404 without a body means, or a 403: a GET of one byte says in its own body what is absent, and
// whether it is the object or the keys that nobody gets anything with.
func (b *bucket) settleHead(ctx context.Context, x *exchange, e *Error) *Error {
	switch {
	case x.code != "":
		return e
	case x.status == http.StatusForbidden, x.status == http.StatusBadRequest: // the latter is how AWS says that a token expired
	case x.status != http.StatusNotFound:
		return e
	case x.requestID != "" && b.seenLately():
		e.kind, e.Detail = s3.ErrNotExist, ""
		return e
	}
	settled := b.once(ctx, call{op: "head", key: e.Key}, func(ctx context.Context, api *sdk.Client) error {
		out, err := api.GetObject(ctx, &sdk.GetObjectInput{Bucket: &b.name, Key: aws.String(string(e.Key)), Range: aws.String("bytes=0-0")})
		if err != nil {
			return err
		}
		return out.Body.Close()
	})
	if settled == nil || errors.Is(settled, s3.ErrRange) {
		return b.fail("head", e.Key, s3.ErrUnavailable, "HEAD was answered with %d, and then GET with the object", x.status)
	}
	return settled
}

// Put implements s3.Bucket.
func (b *bucket) Put(ctx context.Context, key s3.Key, body s3.Body, attr s3.Attributes, cond s3.Condition) (s3.Info, error) {
	const op = "put"
	if err := attr.Validate(); err != nil {
		return s3.Info{}, b.fail(op, key, s3.ErrInvalid, "%v", err)
	}
	sum, err := b.checksum(ctx, op, key, body)
	if err != nil {
		return s3.Info{}, err
	}
	var info s3.Info
	err = b.do(ctx, call{op: op, key: key, kind: writes, settle: conditional(cond), echo: echo(cond)}, func(ctx context.Context, api *sdk.Client) error {
		return b.send(op, key, body, func(u *upload) error {
			out, err := api.PutObject(ctx, &sdk.PutObjectInput{
				Bucket: &b.name, Key: aws.String(string(key)), Body: u, ContentLength: &body.Size, ChecksumCRC32C: &sum,
				Metadata: attr.Meta, ContentType: optional(attr.ContentType),
				IfMatch: quoted(cond.IfMatch), IfNoneMatch: star(cond.IfNoneMatch),
			}, unsigned)
			if err != nil {
				return err
			}
			info = s3.Info{Key: key, Size: body.Size, ETag: s3.NormalizeETag(aws.ToString(out.ETag))}
			return b.tagged(op, info)
		})
	})
	if err != nil {
		return s3.Info{}, err
	}
	return info, nil
}

// tagged refuses a success without an ETag: it is not an S3 server's.
func (b *bucket) tagged(op string, info s3.Info) error {
	if info.ETag == "" {
		return b.fail(op, info.Key, s3.ErrUnavailable, "answer without an ETag")
	}
	return nil
}

// conditional reads the 404 that some servers give to an If-Match on an absent key.
func conditional(cond s3.Condition) func(context.Context, *exchange, *Error) *Error {
	if cond.IfMatch == "" {
		return nil
	}
	return func(_ context.Context, _ *exchange, e *Error) *Error {
		if errors.Is(e.kind, s3.ErrNotExist) {
			e.kind = s3.ErrPrecondition
		}
		return e
	}
}

func echo(cond s3.Condition) error {
	if cond.IfMatch == "" && !cond.IfNoneMatch {
		return nil
	}
	return s3.ErrPrecondition
}

func star(ifNoneMatch bool) *string {
	if !ifNoneMatch {
		return nil
	}
	return aws.String("*")
}

func optional(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}

// Copy implements s3.Bucket.
func (b *bucket) Copy(ctx context.Context, src s3.Key, srcMatch s3.ETag, dst s3.Key, attr *s3.Attributes, cond s3.Condition) (s3.Info, error) {
	const op = "copy"
	in := &sdk.CopyObjectInput{
		Bucket: &b.name, Key: aws.String(string(dst)), CopySource: aws.String(copySource(b.name, src)), CopySourceIfMatch: quoted(srcMatch),
		MetadataDirective: types.MetadataDirectiveCopy, IfMatch: quoted(cond.IfMatch), IfNoneMatch: star(cond.IfNoneMatch),
	}
	if attr != nil {
		if err := attr.Validate(); err != nil {
			return s3.Info{}, b.fail(op, dst, s3.ErrInvalid, "%v", err)
		}
		in.MetadataDirective, in.Metadata, in.ContentType = types.MetadataDirectiveReplace, attr.Meta, optional(attr.ContentType)
	}
	var info s3.Info
	err := b.do(ctx, call{op: op, key: dst, kind: writes, long: true, settle: conditional(cond), echo: echo(cond)}, func(ctx context.Context, api *sdk.Client) error {
		out, err := api.CopyObject(ctx, in)
		if err != nil {
			return err
		}
		info = s3.Info{Key: dst, Size: -1}
		if r := out.CopyObjectResult; r != nil {
			info.ETag, info.Modified = s3.NormalizeETag(aws.ToString(r.ETag)), aws.ToTime(r.LastModified)
		}
		return b.tagged(op, info)
	})
	if err != nil {
		return s3.Info{}, err
	}
	return info, nil
}

// copySource escapes every byte but the unreserved and the slash: servers differ in how they read the rest.
func copySource(bucket string, key s3.Key) string {
	const hex = "0123456789ABCDEF"
	var s strings.Builder
	for _, c := range []byte(bucket + "/" + string(key)) {
		if c >= '0' && c <= '9' || c >= 'A' && c <= 'Z' || c >= 'a' && c <= 'z' || c == '-' || c == '.' || c == '_' || c == '~' || c == '/' {
			s.WriteByte(c)
		} else {
			s.WriteString(string([]byte{'%', hex[c>>4], hex[c&15]}))
		}
	}
	return s.String()
}

// Delete implements s3.Bucket.
func (b *bucket) Delete(ctx context.Context, key s3.Key) error {
	err := b.do(ctx, call{op: "delete", key: key, kind: writes}, func(ctx context.Context, api *sdk.Client) error {
		_, err := api.DeleteObject(ctx, &sdk.DeleteObjectInput{Bucket: &b.name, Key: aws.String(string(key))})
		return err
	})
	if errors.Is(err, s3.ErrNotExist) {
		return nil
	}
	return err
}

// DeleteIf implements s3.Bucket.
func (b *bucket) DeleteIf(ctx context.Context, key s3.Key, match s3.ETag) error {
	err := b.do(ctx, call{op: "delete", key: key, kind: writes, echo: s3.ErrPrecondition}, func(ctx context.Context, api *sdk.Client) error {
		_, err := api.DeleteObject(ctx, &sdk.DeleteObjectInput{Bucket: &b.name, Key: aws.String(string(key)), IfMatch: quoted(match)})
		return err
	})
	if errors.Is(err, s3.ErrNotExist) {
		return nil
	}
	return err
}

// DeleteMany implements s3.Bucket. Keys that XML cannot hold are removed one by one.
func (b *bucket) DeleteMany(ctx context.Context, keys []s3.Key) (map[s3.Key]error, error) {
	versions := make([]s3.Version, len(keys))
	for i, key := range keys {
		versions[i].Key = key
	}
	failures, err := b.deleteMany(ctx, "delete many", versions, func(s3.Version) *string { return nil })
	if len(failures) == 0 {
		return nil, err
	}
	failed := make(map[s3.Key]error, len(failures))
	for v, ferr := range failures {
		failed[v.Key] = ferr
	}
	return failed, err
}

// deleteMany removes versions, sending of each the ID that id returns.
func (b *bucket) deleteMany(ctx context.Context, op string, versions []s3.Version, id func(s3.Version) *string) (map[s3.Version]error, error) {
	if len(versions) > maxMany {
		return nil, b.fail(op, "", s3.ErrInvalid, "%d keys, the most is %d", len(versions), maxMany)
	}
	failed := map[s3.Version]error{}
	var odd []s3.Version
	var objects []types.ObjectIdentifier
	pending := map[s3.Version]bool{}
	for _, v := range versions {
		if !inXML(v.Key) {
			odd = append(odd, v)
			continue
		}
		objects = append(objects, types.ObjectIdentifier{Key: aws.String(string(v.Key)), VersionId: id(v)})
		pending[v] = true
	}
	if len(objects) > 0 {
		err := b.do(ctx, call{op: op, kind: writes}, func(ctx context.Context, api *sdk.Client) error {
			out, err := api.DeleteObjects(ctx, &sdk.DeleteObjectsInput{Bucket: &b.name, Delete: &types.Delete{Objects: objects}})
			if err != nil {
				return err
			}
			clear(failed)
			for _, v := range versions {
				// Not mentioned in the answer is not removed.
				if pending[v] {
					failed[v] = b.fail(op, v.Key, s3.ErrUnavailable, "the answer does not mention it")
				}
			}
			for _, d := range out.Deleted {
				delete(failed, s3.Version{Key: s3.Key(aws.ToString(d.Key)), VersionID: versionID(d.VersionId)})
			}
			for _, f := range out.Errors {
				v := s3.Version{Key: s3.Key(aws.ToString(f.Key)), VersionID: versionID(f.VersionId)}
				e := b.fail(op, v.Key, kindOf(http.StatusInternalServerError, aws.ToString(f.Code)), "")
				if e.Code = b.redact(token(aws.ToString(f.Code))); errors.Is(e.kind, s3.ErrNotExist) {
					delete(failed, v)
				} else {
					failed[v] = e
				}
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	for _, v := range odd {
		err := b.do(ctx, call{op: op, key: v.Key, kind: writes}, func(ctx context.Context, api *sdk.Client) error {
			_, err := api.DeleteObject(ctx, &sdk.DeleteObjectInput{Bucket: &b.name, Key: aws.String(string(v.Key)), VersionId: id(v)})
			return err
		})
		if err != nil && !errors.Is(err, s3.ErrNotExist) {
			failed[v] = err
		}
	}
	return failed, nil
}

// inXML reports whether XML 1.0 holds the key and gives it back unchanged.
func inXML(key s3.Key) bool {
	return !strings.ContainsFunc(string(key), func(r rune) bool {
		return r < ' ' || r == 0xFFFD || r == 0xFFFE || r == 0xFFFF
	})
}
