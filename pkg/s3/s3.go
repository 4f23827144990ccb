package s3

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"
)

// Key is the full key of an object in its bucket: bytes, not a path. No normalisation is applied anywhere.
type Key string

// ETag is an entity tag without quotes and without a weak prefix, compared byte by byte.
type ETag string

// UploadID names one open multipart upload of one key.
type UploadID string

// NormalizeETag strips the quotes and a W/ prefix from a header value.
func NormalizeETag(h string) ETag {
	return ETag(strings.Trim(strings.TrimPrefix(h, "W/"), `"`))
}

// Sentinels. A wrapped error may carry more detail; errors.Is is the only way to classify.
var (
	// ErrNotExist: the key (404 NoSuchKey) does not exist. Never returned for a failure of any other kind.
	ErrNotExist = errors.New("no such object")
	// ErrNoBucket: the bucket does not exist (NoSuchBucket).
	ErrNoBucket = errors.New("no such bucket")
	// ErrBucketExists: CreateBucket found a bucket of that name, ours or not (409).
	ErrBucketExists = errors.New("bucket already exists")
	// ErrBucketNotEmpty: DeleteBucket found objects (409 BucketNotEmpty).
	ErrBucketNotEmpty = errors.New("bucket is not empty")
	// ErrPrecondition: an If-Match or If-None-Match did not hold (412, or 409 ConditionalRequestConflict).
	ErrPrecondition = errors.New("precondition failed")
	// ErrNotModified: a GET or HEAD with IfNoneMatch found the same ETag (304).
	ErrNotModified = errors.New("not modified")
	// ErrNoUpload: the multipart upload is unknown: completed, aborted or expired (404 NoSuchUpload).
	ErrNoUpload = errors.New("no such upload")
	// ErrRange: the requested range lies outside the object (416).
	ErrRange = errors.New("range not satisfiable")
	// ErrAuth: the credentials are wrong, expired or not allowed to do this (403, or 401).
	ErrAuth = errors.New("access denied")
	// ErrKeys: an ErrAuth that is not about this request: the server takes the credentials for none, because they expired
	// or were replaced. Others take their place, or they come back: retrying is right.
	ErrKeys = fmt.Errorf("the keys are not valid: %w", ErrAuth)
	// ErrFull: the server has no room or the quota is used up (507, QuotaExceeded).
	ErrFull = errors.New("storage is full")
	// ErrUnavailable: the server could not be reached, timed out, answered 5xx or 429, or broke off. The request
	// may have been applied: the caller settles that with Head where it matters. Retrying is right.
	ErrUnavailable = errors.New("server unavailable")
	// ErrCorrupt: a body's length or checksum differs from what was announced. Retrying is right.
	ErrCorrupt = errors.New("corrupt transfer")
	// ErrInvalid: the server refuses this request for good (400: key too long, illegal key, part too small).
	ErrInvalid = errors.New("invalid request")
	// ErrNotSupported: the server does not know this operation (501, or found missing by a probe).
	ErrNotSupported = errors.New("not supported by the server")
)

// Info describes an object as a HEAD, GET or LIST reports it.
type Info struct {
	Key      Key
	Size     int64 // bytes
	ETag     ETag
	Modified time.Time         // the server's Last-Modified, whole seconds on most servers
	Meta     map[string]string // user metadata without the x-amz-meta- prefix, keys in lower case; nil in listings
	// ContentType, StorageClass are empty when the server does not say.
	ContentType  string
	StorageClass string
	// Checked: the body that Get returned with it is held to a checksum that is stored with the object.
	Checked bool
}

// Condition guards a mutation. At most one of IfMatch and IfNoneMatch is set; the zero value guards nothing.
type Condition struct {
	IfMatch     ETag // apply only when the object exists with this ETag
	IfNoneMatch bool // apply only when no object exists (If-None-Match: *)
	// Compared says that the caller has just seen that the condition holds: where the server does not know it, s3probe.Guard
	// does not look once more.
	Compared bool
}

// Attributes go with an object when it is written. The zero value means none.
type Attributes struct {
	Meta        map[string]string // user metadata: keys [a-z0-9-], values printable ASCII, 2 KB in all
	ContentType string
}

// maxMeta is the most bytes of all metadata keys and values that every server takes.
const maxMeta = 2 << 10

// Validate returns ErrInvalid for metadata that a server refuses or does not give back unchanged. Upper case in keys
// is let through: it comes back as lower case.
func (a Attributes) Validate() error {
	size := 0
	for k, v := range a.Meta {
		if k == "" || strings.ContainsFunc(k, notInMetaKey) {
			return fmt.Errorf("%w: metadata key %q has more than letters, digits, '-', '_' and '.'", ErrInvalid, k)
		}
		if strings.ContainsFunc(v, func(r rune) bool { return r < ' ' || r > '~' }) {
			return fmt.Errorf("%w: metadata %q is not printable ASCII", ErrInvalid, k)
		}
		size += len(k) + len(v)
	}
	if size > maxMeta {
		return fmt.Errorf("%w: metadata of %d bytes, the most is %d", ErrInvalid, size, maxMeta)
	}
	return nil
}

func notInMetaKey(r rune) bool {
	return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '-' || r == '_' || r == '.')
}

// Body is what an upload sends: exactly Size bytes of R from offset 0. R must return the same bytes on every read.
type Body struct {
	R    io.ReaderAt
	Size int64
}

// Part is an uploaded part, as CompleteUpload needs it.
type Part struct {
	Number int // 1 to 10,000
	ETag   ETag
	Size   int64
	CRC32C string // base64 of the big-endian CRC-32C, empty when the part was copied
}

// Range is a half-open byte range [Off, End) of an object.
type Range struct{ Off, End int64 }

// ListInput selects a page of a listing.
type ListInput struct {
	Prefix     Key
	Delimiter  string // "" or "/"
	StartAfter Key    // list keys greater than this; ignored when Token is set
	Token      string // continuation token of the previous page
	MaxKeys    int    // page size, 0 means 1000
}

// Page is one page of a listing. Objects and Prefixes are each in the server's order, which is byte order on
// nearly all servers; do not rely on it for merging.
type Page struct {
	Objects  []Info
	Prefixes []Key  // common prefixes, with the delimiter
	Token    string // empty on the last page
}

// Bucket is one bucket of one server.
//
// A condition that the server does not know is ErrNotSupported, or without effect: no answer tells. s3probe.Guard makes
// every condition count.
//
// A mutation's Info holds what its answer says: the key, the ETag and the size sent. Modified is zero after Put and
// CompleteUpload; after Copy it is set and Size is -1 (the caller knows the source); Meta is nil.
type Bucket interface {
	// Name is the bucket's name.
	Name() string

	// Head describes the object. ErrNotExist only on a definite 404 of an existing bucket.
	Head(ctx context.Context, key Key) (Info, error)

	// Get opens r of the object for reading, or all of it when r is nil. With ifMatch set it fails with
	// ErrPrecondition unless the object still has that ETag. The returned Info is of the whole object. The body
	// yields exactly the range (or fails with ErrUnavailable or ErrCorrupt, never with io.EOF early); the caller
	// closes it. A range beyond the end is ErrRange; one that reaches over the end is cut.
	Get(ctx context.Context, key Key, r *Range, ifMatch ETag) (io.ReadCloser, Info, error)

	// Put stores the object in one request, at most 5 GiB. Readers see the old object or the whole new one.
	// A CRC-32C of the body goes with the request, so that no server can commit a truncated body.
	Put(ctx context.Context, key Key, body Body, attr Attributes, cond Condition) (Info, error)

	// Copy stores src, when it still has srcMatch (if set), at dst: same bytes, and the given attributes if attr is
	// not nil, else the source's. At most 5 GiB. cond guards dst.
	Copy(ctx context.Context, src Key, srcMatch ETag, dst Key, attr *Attributes, cond Condition) (Info, error)

	// Delete removes the object. An absent key is success.
	Delete(ctx context.Context, key Key) error

	// DeleteIf removes the object if it still has that ETag, and fails with ErrPrecondition if another one is there. An
	// absent key is success.
	DeleteIf(ctx context.Context, key Key, match ETag) error

	// DeleteMany removes up to 1,000 objects. failed holds the keys that were not removed, each with its error;
	// err is set when the request as a whole failed (then any subset may be gone).
	DeleteMany(ctx context.Context, keys []Key) (failed map[Key]error, err error)

	// List returns one page. Keys come back verbatim, whatever bytes they hold.
	List(ctx context.Context, in ListInput) (Page, error)

	// CreateUpload starts a multipart upload. attr belongs to the finished object.
	CreateUpload(ctx context.Context, key Key, attr Attributes) (UploadID, error)

	// UploadPart stores part number n (1 to 10,000; at least 5 MiB except the last; at most 5 GiB).
	UploadPart(ctx context.Context, key Key, id UploadID, n int, body Body) (Part, error)

	// CopyPart stores the range r of src, which must still have srcMatch (if set), as part number n.
	CopyPart(ctx context.Context, key Key, id UploadID, n int, src Key, srcMatch ETag, r Range) (Part, error)

	// ListParts returns the parts that the server holds for an open upload, by number.
	ListParts(ctx context.Context, key Key, id UploadID) ([]Part, error)

	// CompleteUpload makes the object of parts, in ascending order of number. ErrNoUpload after an ambiguous first
	// try may mean success: settle it with Head.
	CompleteUpload(ctx context.Context, key Key, id UploadID, parts []Part, cond Condition) (Info, error)

	// AbortUpload drops an upload and its parts. An unknown upload is success.
	AbortUpload(ctx context.Context, key Key, id UploadID) error

	// ListUploads lists open uploads whose key starts with prefix (all pages). at is when it answered, by the clock that
	// Upload.Initiated is of, in whole seconds; zero where the server does not say.
	ListUploads(ctx context.Context, prefix Key) (open []Upload, at time.Time, err error)

	// CreateBucket, HeadBucket and DeleteBucket act on the bucket itself. HeadBucket returns ErrNoBucket when it is
	// absent. DeleteBucket returns ErrBucketNotEmpty when it holds objects, and succeeds when it is absent.
	CreateBucket(ctx context.Context) error
	HeadBucket(ctx context.Context) error
	DeleteBucket(ctx context.Context) error

	// ListVersions lists all versions and delete markers below prefix, one page; a server without versioning
	// reports each object once with an empty VersionID. DeleteVersions removes them like DeleteMany.
	ListVersions(ctx context.Context, prefix Key, token string) (versions []Version, next string, err error)
	DeleteVersions(ctx context.Context, versions []Version) (failed map[Version]error, err error)
}

// Upload is an open multipart upload.
type Upload struct {
	Key       Key
	ID        UploadID
	Initiated time.Time // by the server's clock, in whole seconds on some; zero where it does not say
}

// Version is one version or delete marker of a key.
type Version struct {
	Key       Key
	VersionID string
}
