package s3mem

import (
	"bytes"
	"context"
	"io"
	"maps"
	"strings"

	"github.com/csi-s3/csi-s3/pkg/s3"
)

// described is o's Info with metadata that the caller may change.
func (o *object) described() s3.Info {
	info := o.info
	info.Meta = maps.Clone(o.info.Meta)
	return info
}

// Head describes the object.
func (b *Bucket) Head(ctx context.Context, key s3.Key) (s3.Info, error) {
	const op = "head"
	if err := b.ended(ctx, op, key); err != nil {
		return s3.Info{}, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	o, err := b.objectLocked(op, key)
	if err != nil {
		return s3.Info{}, err
	}
	return o.described(), nil
}

// Get opens a range of the object as it is now: later writes do not change what the body yields.
func (b *Bucket) Get(ctx context.Context, key s3.Key, r *s3.Range, ifMatch s3.ETag) (io.ReadCloser, s3.Info, error) {
	const op = "get"
	if err := b.ended(ctx, op, key); err != nil {
		return nil, s3.Info{}, err
	}
	if r != nil && (r.Off < 0 || r.End <= r.Off) {
		return nil, s3.Info{}, b.failf(op, key, s3.ErrInvalid, "range [%d, %d)", r.Off, r.End)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	o, err := b.objectLocked(op, key)
	if err != nil {
		return nil, s3.Info{}, err
	}
	if ifMatch != "" && o.info.ETag != ifMatch {
		return nil, s3.Info{}, b.failf(op, key, s3.ErrPrecondition, "ETag is not %s", ifMatch)
	}
	data := o.data
	if r != nil {
		if r.Off >= o.info.Size {
			return nil, s3.Info{}, b.failf(op, key, s3.ErrRange, "range [%d, %d) of %d bytes", r.Off, r.End, o.info.Size)
		}
		data = data[r.Off:min(r.End, o.info.Size)]
	}
	info := o.described()
	f := s3.StoredChecksum
	if strings.Contains(string(info.ETag), "-") {
		f = s3.MultipartChecksum
	}
	info.Checked = r == nil && b.Quirks[f] == Honours
	return io.NopCloser(bytes.NewReader(data)), info, nil
}

// Put stores the object.
func (b *Bucket) Put(ctx context.Context, key s3.Key, body s3.Body, attr s3.Attributes, cond s3.Condition) (s3.Info, error) {
	const op = "put"
	if err := b.checkKey(op, key); err != nil {
		return s3.Info{}, err
	}
	attr, err := b.attributes(op, key, attr)
	if err != nil {
		return s3.Info{}, err
	}
	data, err := b.read(ctx, op, key, body)
	if err != nil {
		return s3.Info{}, err
	}
	o := newObject(key, data, md5Tag(data), attr)
	b.mu.Lock()
	defer b.mu.Unlock()
	if err := b.existsLocked(op, key); err != nil {
		return s3.Info{}, err
	}
	if err := b.absentLocked(op, s3.PutIfNoneMatch, key, cond.IfNoneMatch); err != nil {
		return s3.Info{}, err
	}
	if err := b.matchLocked(op, s3.PutIfMatch, key, cond.IfMatch); err != nil {
		return s3.Info{}, err
	}
	o.info.ETag, o.info.Modified = b.tagLocked(o.info.ETag), b.now()
	b.storeLocked(o)
	return s3.Info{Key: key, Size: o.info.Size, ETag: o.info.ETag}, nil
}

func newObject(key s3.Key, data []byte, etag s3.ETag, attr s3.Attributes) *object {
	contentType := attr.ContentType
	if contentType == "" {
		contentType = "binary/octet-stream"
	}
	return &object{data: data, info: s3.Info{
		Key: key, Size: int64(len(data)), ETag: etag, Meta: attr.Meta, ContentType: contentType, StorageClass: "STANDARD",
	}}
}

// Copy stores the bytes of src at dst. A copy gets the ETag of a single PUT whatever the source's was.
func (b *Bucket) Copy(ctx context.Context, src s3.Key, srcMatch s3.ETag, dst s3.Key, attr *s3.Attributes, cond s3.Condition) (s3.Info, error) {
	const op = "copy"
	if err := b.ended(ctx, op, dst); err != nil {
		return s3.Info{}, err
	}
	if err := b.checkKey(op, dst); err != nil {
		return s3.Info{}, err
	}
	if src == dst && attr == nil {
		return s3.Info{}, b.failf(op, dst, s3.ErrInvalid, "copy onto itself without new attributes")
	}
	var replaced s3.Attributes
	if attr != nil {
		var err error
		if replaced, err = b.attributes(op, dst, *attr); err != nil {
			return s3.Info{}, err
		}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	from, err := b.objectLocked(op, src)
	if err != nil {
		return s3.Info{}, err
	}
	if err := b.matchLocked(op, s3.CopySourceIfMatch, src, srcMatch); err != nil {
		return s3.Info{}, err
	}
	if from.info.Size > maxPut {
		return s3.Info{}, b.failf(op, src, s3.ErrInvalid, "source has %d bytes, the most is %d", from.info.Size, int64(maxPut))
	}
	if err := b.absentLocked(op, s3.CopyIfNoneMatch, dst, cond.IfNoneMatch); err != nil {
		return s3.Info{}, err
	}
	if err := b.matchLocked(op, s3.CopyIfMatch, dst, cond.IfMatch); err != nil {
		return s3.Info{}, err
	}
	if attr == nil {
		replaced = s3.Attributes{Meta: from.info.Meta, ContentType: from.info.ContentType}
	}
	o := newObject(dst, from.data, md5Tag(from.data), replaced)
	o.info.ETag, o.info.Modified = b.tagLocked(o.info.ETag), b.now()
	b.storeLocked(o)
	return s3.Info{Key: dst, Size: -1, ETag: o.info.ETag, Modified: o.info.Modified}, nil
}

// Delete removes the object.
func (b *Bucket) Delete(ctx context.Context, key s3.Key) error { return b.DeleteIf(ctx, key, "") }

// DeleteIf removes the object if it has that ETag.
func (b *Bucket) DeleteIf(ctx context.Context, key s3.Key, match s3.ETag) error {
	const op = "delete"
	if err := b.ended(ctx, op, key); err != nil {
		return err
	}
	if err := b.checkKey(op, key); err != nil {
		return err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if err := b.existsLocked(op, key); err != nil {
		return err
	}
	if b.objects[key] == nil {
		return nil
	}
	if err := b.matchLocked(op, s3.DeleteIfMatch, key, match); err != nil {
		return err
	}
	b.removeLocked(key)
	return nil
}

// DeleteMany removes up to 1,000 objects at once.
func (b *Bucket) DeleteMany(ctx context.Context, keys []s3.Key) (map[s3.Key]error, error) {
	const op = "delete many"
	if err := b.ended(ctx, op, ""); err != nil {
		return nil, err
	}
	if len(keys) > maxPage {
		return nil, b.failf(op, "", s3.ErrInvalid, "%d keys, the most is %d", len(keys), maxPage)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if err := b.existsLocked(op, ""); err != nil {
		return nil, err
	}
	var failed map[s3.Key]error
	for _, key := range keys {
		if err := b.checkKey(op, key); err != nil {
			if failed == nil {
				failed = map[s3.Key]error{}
			}
			failed[key] = err
			continue
		}
		b.removeLocked(key)
	}
	return failed, nil
}
