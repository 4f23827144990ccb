package s3mem

import (
	"context"
	"crypto/md5"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/csi-s3/csi-s3/pkg/s3"
)

const (
	maxKey     = 1024    // bytes of a key
	maxPut     = 5 << 30 // bytes of one PUT, part or copy
	maxPage    = 1000    // entries of a listing page, keys of a DeleteMany
	minPart    = 5 << 20 // bytes of every part but the last
	maxPartNum = 10_000  // highest part number
)

// Bucket is an s3.Bucket in memory. The fields may be set before the first call.
type Bucket struct {
	// MinPart is the least size in bytes of every part but the last, 0 means 5 MiB.
	MinPart int64
	// EmptyPrefixes makes List go on to show the common prefixes of keys that were removed, as MinIO does for a while.
	EmptyPrefixes bool
	// Quirks says which conditions the server does not honour. A server as Amazon's has none.
	Quirks Quirks
	// OwnTags gives every object that is put or copied in one piece an ETag of its own, as SSE-KMS does. Else it is the MD5.
	OwnTags bool
	// Now is the server's clock, nil means time.Now.
	Now func() time.Time

	name string

	mu      sync.Mutex
	absent  bool                        // guarded by mu: the bucket does not exist
	keys    []s3.Key                    // guarded by mu: keys of objects in byte order
	removed []s3.Key                    // guarded by mu: what EmptyPrefixes shows the prefixes of
	objects map[s3.Key]*object          // guarded by mu
	uploads map[s3.UploadID]*openUpload // guarded by mu
	nextID  int                         // guarded by mu: of uploads and of objects with OwnTags
}

var _ s3.Bucket = (*Bucket)(nil)

// object is immutable once it is in the map.
type object struct {
	info s3.Info // with Meta
	data []byte
}

// New returns an existing, empty bucket.
func New(name string) *Bucket {
	return &Bucket{name: name, objects: map[s3.Key]*object{}, uploads: map[s3.UploadID]*openUpload{}}
}

// Name is the bucket's name.
func (b *Bucket) Name() string { return b.name }

func (b *Bucket) fail(op string, key s3.Key, err error) error {
	return fmt.Errorf("s3mem: %s %s/%q: %w", op, b.name, string(key), err)
}

func (b *Bucket) failf(op string, key s3.Key, err error, format string, args ...any) error {
	return b.fail(op, key, fmt.Errorf("%s: %w", fmt.Sprintf(format, args...), err))
}

// ended reports a context that is over before the request was sent.
func (b *Bucket) ended(ctx context.Context, op string, key s3.Key) error {
	if err := ctx.Err(); err != nil {
		return b.fail(op, key, errors.Join(s3.ErrUnavailable, err))
	}
	return nil
}

// now is the time that the server would write into Last-Modified.
func (b *Bucket) now() time.Time {
	clock := b.Now
	if clock == nil {
		clock = time.Now
	}
	return clock().UTC().Truncate(time.Second)
}

func (b *Bucket) existsLocked(op string, key s3.Key) error {
	if b.absent {
		return b.fail(op, key, s3.ErrNoBucket)
	}
	return nil
}

func (b *Bucket) objectLocked(op string, key s3.Key) (*object, error) {
	if err := b.existsLocked(op, key); err != nil {
		return nil, err
	}
	o := b.objects[key]
	if o == nil {
		return nil, b.fail(op, key, s3.ErrNotExist)
	}
	return o, nil
}

// absentLocked evaluates an If-None-Match: * for key, matchLocked an If-Match; a condition that is not set holds.
func (b *Bucket) absentLocked(op string, f s3.Feature, key s3.Key, set bool) error {
	if !set {
		return nil
	}
	return b.quirk(op, f, key, b.objects[key] == nil)
}

func (b *Bucket) matchLocked(op string, f s3.Feature, key s3.Key, tag s3.ETag) error {
	if tag == "" {
		return nil
	}
	o := b.objects[key]
	return b.quirk(op, f, key, o != nil && o.info.ETag == tag)
}

// tagLocked is the ETag of an object that is put or copied in one piece, given the MD5.
func (b *Bucket) tagLocked(sum s3.ETag) s3.ETag {
	if !b.OwnTags {
		return sum
	}
	b.nextID++
	return md5Tag(fmt.Append(nil, "object ", b.nextID))
}

func (b *Bucket) storeLocked(o *object) {
	if b.objects[o.info.Key] == nil {
		i, _ := slices.BinarySearch(b.keys, o.info.Key)
		b.keys = slices.Insert(b.keys, i, o.info.Key)
	}
	b.objects[o.info.Key] = o
}

func (b *Bucket) removeLocked(key s3.Key) {
	if b.objects[key] == nil {
		return
	}
	delete(b.objects, key)
	if b.EmptyPrefixes {
		b.removed = append(b.removed, key)
	}
	i, _ := slices.BinarySearch(b.keys, key)
	b.keys = slices.Delete(b.keys, i, i+1)
}

func (b *Bucket) checkKey(op string, key s3.Key) error {
	switch {
	case key == "":
		return b.failf(op, key, s3.ErrInvalid, "empty key")
	case len(key) > maxKey:
		return b.failf(op, key, s3.ErrInvalid, "key has %d bytes, the most is %d", len(key), maxKey)
	case !utf8.ValidString(string(key)):
		return b.failf(op, key, s3.ErrInvalid, "key is not UTF-8")
	}
	return nil
}

// attributes returns attr as the server stores it.
func (b *Bucket) attributes(op string, key s3.Key, attr s3.Attributes) (s3.Attributes, error) {
	if err := attr.Validate(); err != nil {
		return attr, b.fail(op, key, err)
	}
	if len(attr.Meta) == 0 {
		return s3.Attributes{ContentType: attr.ContentType}, nil
	}
	stored := make(map[string]string, len(attr.Meta))
	for k, v := range attr.Meta {
		stored[strings.ToLower(k)] = strings.TrimSpace(v)
	}
	return s3.Attributes{Meta: stored, ContentType: attr.ContentType}, nil
}

// read takes the bytes of a request's body off the caller's reader.
func (b *Bucket) read(ctx context.Context, op string, key s3.Key, body s3.Body) ([]byte, error) {
	if body.Size < 0 || body.Size > maxPut {
		return nil, b.failf(op, key, s3.ErrInvalid, "body of %d bytes, the most is %d", body.Size, int64(maxPut))
	}
	data := make([]byte, body.Size)
	if body.Size > 0 {
		if _, err := io.ReadFull(io.NewSectionReader(body.R, 0, body.Size), data); err != nil {
			return nil, b.failf(op, key, err, "read the body to send")
		}
	}
	return data, b.ended(ctx, op, key)
}

func md5Tag(data []byte) s3.ETag {
	sum := md5.Sum(data)
	return s3.ETag(hex.EncodeToString(sum[:]))
}

// CreateBucket makes the bucket again after DeleteBucket.
func (b *Bucket) CreateBucket(ctx context.Context) error {
	if err := b.ended(ctx, "create bucket", ""); err != nil {
		return err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.absent {
		return b.fail("create bucket", "", s3.ErrBucketExists)
	}
	b.absent = false
	return nil
}

// HeadBucket returns ErrNoBucket when the bucket does not exist.
func (b *Bucket) HeadBucket(ctx context.Context) error {
	if err := b.ended(ctx, "head bucket", ""); err != nil {
		return err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.existsLocked("head bucket", "")
}

// DeleteBucket removes an empty bucket, with its open uploads.
func (b *Bucket) DeleteBucket(ctx context.Context) error {
	if err := b.ended(ctx, "delete bucket", ""); err != nil {
		return err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.keys) > 0 {
		return b.fail("delete bucket", "", s3.ErrBucketNotEmpty)
	}
	b.absent = true
	clear(b.uploads)
	return nil
}
