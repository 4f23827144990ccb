package s3mem

import (
	"cmp"
	"context"
	"crypto/md5"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"hash/crc32"
	"slices"
	"strings"
	"time"

	"github.com/csi-s3/csi-s3/pkg/s3"
)

type openUpload struct {
	key       s3.Key
	attr      s3.Attributes
	initiated time.Time
	parts     map[int]storedPart
}

type storedPart struct {
	s3.Part
	data []byte
}

func (b *Bucket) uploadLocked(op string, key s3.Key, id s3.UploadID) (*openUpload, error) {
	if err := b.existsLocked(op, key); err != nil {
		return nil, err
	}
	u := b.uploads[id]
	if u == nil || u.key != key {
		return nil, b.fail(op, key, s3.ErrNoUpload)
	}
	return u, nil
}

func (b *Bucket) checkPartNumber(op string, key s3.Key, n int) error {
	if n < 1 || n > maxPartNum {
		return b.failf(op, key, s3.ErrInvalid, "part number %d is not between 1 and %d", n, maxPartNum)
	}
	return nil
}

// CreateUpload starts a multipart upload.
func (b *Bucket) CreateUpload(ctx context.Context, key s3.Key, attr s3.Attributes) (s3.UploadID, error) {
	const op = "create upload"
	if err := b.ended(ctx, op, key); err != nil {
		return "", err
	}
	if err := b.checkKey(op, key); err != nil {
		return "", err
	}
	attr, err := b.attributes(op, key, attr)
	if err != nil {
		return "", err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if err := b.existsLocked(op, key); err != nil {
		return "", err
	}
	b.nextID++
	id := s3.UploadID(fmt.Sprintf("upload-%d", b.nextID))
	b.uploads[id] = &openUpload{key: key, attr: attr, initiated: b.now(), parts: map[int]storedPart{}}
	return id, nil
}

// UploadPart stores part n, in place of an earlier part of that number.
func (b *Bucket) UploadPart(ctx context.Context, key s3.Key, id s3.UploadID, n int, body s3.Body) (s3.Part, error) {
	const op = "upload part"
	if err := b.checkPartNumber(op, key, n); err != nil {
		return s3.Part{}, err
	}
	data, err := b.read(ctx, op, key, body)
	if err != nil {
		return s3.Part{}, err
	}
	sum := binary.BigEndian.AppendUint32(nil, crc32.Checksum(data, crc32.MakeTable(crc32.Castagnoli)))
	part := s3.Part{Number: n, ETag: md5Tag(data), Size: int64(len(data)), CRC32C: base64.StdEncoding.EncodeToString(sum)}
	b.mu.Lock()
	defer b.mu.Unlock()
	u, err := b.uploadLocked(op, key, id)
	if err != nil {
		return s3.Part{}, err
	}
	u.parts[n] = storedPart{Part: part, data: data}
	return part, nil
}

// CopyPart stores a range of src as part n. A range that reaches over the end of src is ErrInvalid, as on Amazon S3.
func (b *Bucket) CopyPart(ctx context.Context, key s3.Key, id s3.UploadID, n int, src s3.Key, srcMatch s3.ETag, r s3.Range) (s3.Part, error) {
	const op = "copy part"
	if err := b.ended(ctx, op, key); err != nil {
		return s3.Part{}, err
	}
	if err := b.checkPartNumber(op, key, n); err != nil {
		return s3.Part{}, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	u, err := b.uploadLocked(op, key, id)
	if err != nil {
		return s3.Part{}, err
	}
	from, err := b.objectLocked(op, src)
	if err != nil {
		return s3.Part{}, err
	}
	if err := b.matchLocked(op, s3.CopyPartIfMatch, src, srcMatch); err != nil {
		return s3.Part{}, err
	}
	if r.Off < 0 || r.End <= r.Off || r.End > from.info.Size || r.End-r.Off > maxPut {
		return s3.Part{}, b.failf(op, src, s3.ErrInvalid, "range [%d, %d) of %d bytes", r.Off, r.End, from.info.Size)
	}
	data := from.data[r.Off:r.End:r.End]
	part := s3.Part{Number: n, ETag: md5Tag(data), Size: r.End - r.Off}
	u.parts[n] = storedPart{Part: part, data: data}
	return part, nil
}

// ListParts returns the parts of an open upload, by number.
func (b *Bucket) ListParts(ctx context.Context, key s3.Key, id s3.UploadID) ([]s3.Part, error) {
	const op = "list parts"
	if err := b.ended(ctx, op, key); err != nil {
		return nil, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	u, err := b.uploadLocked(op, key, id)
	if err != nil {
		return nil, err
	}
	parts := make([]s3.Part, 0, len(u.parts))
	for _, p := range u.parts {
		parts = append(parts, p.Part)
	}
	slices.SortFunc(parts, func(x, y s3.Part) int { return cmp.Compare(x.Number, y.Number) })
	return parts, nil
}

// CompleteUpload makes the object. The upload stays open unless it succeeds.
func (b *Bucket) CompleteUpload(ctx context.Context, key s3.Key, id s3.UploadID, parts []s3.Part, cond s3.Condition) (s3.Info, error) {
	const op = "complete upload"
	if err := b.ended(ctx, op, key); err != nil {
		return s3.Info{}, err
	}
	least := b.MinPart
	if least == 0 {
		least = minPart
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	u, err := b.uploadLocked(op, key, id)
	if err != nil {
		return s3.Info{}, err
	}
	if len(parts) == 0 {
		return s3.Info{}, b.failf(op, key, s3.ErrInvalid, "no parts")
	}
	var size int64
	for _, p := range parts {
		size += u.parts[p.Number].Size
	}
	data := make([]byte, 0, size)
	var sums []byte
	for i, p := range parts {
		if i > 0 && p.Number <= parts[i-1].Number {
			return s3.Info{}, b.failf(op, key, s3.ErrInvalid, "part %d after part %d", p.Number, parts[i-1].Number)
		}
		stored, ok := u.parts[p.Number]
		if !ok || stored.ETag != p.ETag || p.CRC32C != "" && stored.CRC32C != "" && p.CRC32C != stored.CRC32C {
			return s3.Info{}, b.failf(op, key, s3.ErrInvalid, "part %d is not the one uploaded", p.Number)
		}
		if i < len(parts)-1 && stored.Size < least {
			return s3.Info{}, b.failf(op, key, s3.ErrInvalid, "part %d has %d bytes, the least is %d", p.Number, stored.Size, least)
		}
		data = append(data, stored.data...)
		sum, err := hex.DecodeString(string(stored.ETag)) // see md5Tag
		if err != nil {
			return s3.Info{}, b.failf(op, key, s3.ErrCorrupt, "part %d: %v", p.Number, err)
		}
		sums = append(sums, sum...)
	}
	if err := b.absentLocked(op, s3.CompleteIfNoneMatch, key, cond.IfNoneMatch); err != nil {
		return s3.Info{}, err
	}
	if err := b.matchLocked(op, s3.CompleteIfMatch, key, cond.IfMatch); err != nil {
		return s3.Info{}, err
	}
	total := md5.Sum(sums)
	etag := s3.ETag(fmt.Sprintf("%s-%d", hex.EncodeToString(total[:]), len(parts)))
	o := newObject(key, data, etag, u.attr)
	o.info.Modified = b.now()
	b.storeLocked(o)
	delete(b.uploads, id)
	return s3.Info{Key: key, Size: o.info.Size, ETag: etag}, nil
}

// AbortUpload drops an upload and its parts.
func (b *Bucket) AbortUpload(ctx context.Context, key s3.Key, id s3.UploadID) error {
	const op = "abort upload"
	if err := b.ended(ctx, op, key); err != nil {
		return err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if err := b.existsLocked(op, key); err != nil {
		return err
	}
	if u := b.uploads[id]; u != nil && u.key == key {
		delete(b.uploads, id)
	}
	return nil
}

// ListUploads lists open uploads by key, then by age.
func (b *Bucket) ListUploads(ctx context.Context, prefix s3.Key) ([]s3.Upload, time.Time, error) {
	const op = "list uploads"
	if err := b.ended(ctx, op, prefix); err != nil {
		return nil, time.Time{}, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if err := b.existsLocked(op, prefix); err != nil {
		return nil, time.Time{}, err
	}
	var open []s3.Upload
	for id, u := range b.uploads {
		if strings.HasPrefix(string(u.key), string(prefix)) {
			open = append(open, s3.Upload{Key: u.key, ID: id, Initiated: u.initiated})
		}
	}
	slices.SortFunc(open, func(x, y s3.Upload) int {
		return cmp.Or(cmp.Compare(x.Key, y.Key), x.Initiated.Compare(y.Initiated), cmp.Compare(x.ID, y.ID))
	})
	return open, b.now(), nil
}
