package s3test

import (
	"bytes"
	"context"
	"crypto/md5"
	"encoding/hex"
	"errors"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/csi-s3/csi-s3/pkg/s3"
)

// Options name what a server is known not to do. The zero value is a server that does all that the seam promises.
type Options struct {
	// NoOddComponents: keys with an empty, "." or ".." component are refused or stored under another name.
	NoOddComponents bool
	// NoControl: keys with control bytes are refused.
	NoControl bool
	// NoOverlap: an object "a" and objects below "a/" exclude or hide each other.
	NoOverlap bool
	// NoMarkerBody: an object whose key ends in "/" must be empty.
	NoMarkerBody bool
	// NoContentType: the content type of an object is not kept.
	NoContentType bool
	// RacyConditions: of concurrent Puts under the same condition more than one may win.
	RacyConditions bool
	// RacyTags: a Get that meets a Put of the same key may answer with the bytes of one object and the ETag of the other.
	RacyTags bool
}

// minPart is the least size in bytes of a part that is not the last.
const minPart = 5 << 20

type suite struct {
	*testing.T
	s3.Bucket
	opt Options
	ctx context.Context
}

// Run runs the suite. open returns a fresh, empty bucket that nobody else uses, and registers its removal.
func Run(t *testing.T, open func(t *testing.T) s3.Bucket, opt Options) {
	for _, c := range []struct {
		name string
		run  func(s *suite)
	}{
		{"Put", put},
		{"PutWrongBody", putWrongBody},
		{"PutBrokenOff", putBrokenOff},
		{"PutConditions", putConditions},
		{"PutIfNoneMatchRace", putIfNoneMatchRace},
		{"PutIfMatchRace", putIfMatchRace},
		{"PutIsAtomic", putIsAtomic},
		{"Get", get},
		{"GetRanges", getRanges},
		{"GetIfMatch", getIfMatch},
		{"Absent", absent},
		{"Metadata", metadata},
		{"MetadataTooLarge", metadataTooLarge},
		{"DirectoryMarkers", directoryMarkers},
		{"OddKeys", oddKeys},
		{"OddComponents", oddComponents},
		{"IllegalKeys", illegalKeys},
		{"Overlap", overlap},
		{"Copy", copyObject},
		{"CopyConditions", copyConditions},
		{"Delete", deleteObject},
		{"DeleteIf", deleteIf},
		{"DeleteMany", deleteMany},
		{"Canceled", canceled},
		{"ListEmpty", listEmpty},
		{"ListPages", listPages},
		{"ListThousand", listThousand},
		{"ListDelimiter", listDelimiter},
		{"ListDelimiterPages", listDelimiterPages},
		{"ListStartAfter", listStartAfter},
		{"ListVersions", listVersions},
		{"Multipart", multipart},
		{"MultipartMetadata", multipartMetadata},
		{"MultipartCopyPart", copyPart},
		{"MultipartRefused", multipartRefused},
		{"MultipartConditions", multipartConditions},
		{"MultipartCompleteTwice", completeTwice},
		{"MultipartUnknown", unknownUpload},
		{"MultipartAbort", abort},
		{"ListUploads", listUploads},
		{"Bucket", bucket},
		{"NoBucket", noBucket},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.run(&suite{T: t, Bucket: open(t), opt: opt, ctx: t.Context()})
		})
	}
}

// Name disambiguates the two embedded Name methods.
func (s *suite) Name() string { return s.T.Name() }

func bodyOf(data []byte) s3.Body {
	return s3.Body{R: bytes.NewReader(data), Size: int64(len(data))}
}

// random returns n bytes that differ for each seed.
func random(seed uint64, n int) []byte {
	var key [32]byte
	key[0], key[1] = byte(seed), byte(seed>>8)
	data := make([]byte, n)
	_, _ = rand.NewChaCha8(key).Read(data) // never fails
	return data
}

func tagOf(data []byte) s3.ETag {
	sum := md5.Sum(data)
	return s3.ETag(hex.EncodeToString(sum[:]))
}

func (s *suite) ok(err error) {
	s.Helper()
	if err != nil {
		s.Fatal(err)
	}
}

// is fails unless err is one of the wanted sentinels and no other.
func (s *suite) is(err error, want ...error) {
	s.Helper()
	if !slices.ContainsFunc(want, func(w error) bool { return errors.Is(err, w) }) {
		s.Fatalf("got error %v, want %v", err, want)
	}
	for _, other := range sentinels() {
		if errors.Is(err, other) && !slices.Contains(want, other) {
			s.Fatalf("error %v is also %v", err, other)
		}
	}
}

func sentinels() []error {
	return []error{
		s3.ErrNotExist, s3.ErrNoBucket, s3.ErrBucketExists, s3.ErrBucketNotEmpty, s3.ErrPrecondition, s3.ErrNotModified,
		s3.ErrNoUpload, s3.ErrRange, s3.ErrAuth, s3.ErrFull, s3.ErrUnavailable, s3.ErrCorrupt, s3.ErrInvalid,
		s3.ErrNotSupported,
	}
}

func (s *suite) put(key s3.Key, data string) s3.ETag {
	s.Helper()
	info, err := s.Put(s.ctx, key, bodyOf([]byte(data)), s3.Attributes{}, s3.Condition{})
	s.ok(err)
	return info.ETag
}

func (s *suite) read(key s3.Key, r *s3.Range) []byte {
	s.Helper()
	rc, _, err := s.Get(s.ctx, key, r, "")
	s.ok(err)
	data, err := io.ReadAll(rc)
	s.ok(err)
	s.ok(rc.Close())
	return data
}

// holds fails unless the object's bytes are want.
func (s *suite) holds(key s3.Key, want string) {
	s.Helper()
	if got := s.read(key, nil); string(got) != want {
		s.Fatalf("%q holds %d bytes %.40q, want %d bytes %.40q", string(key), len(got), got, len(want), want)
	}
}

func (s *suite) gone(key s3.Key) {
	s.Helper()
	_, err := s.Head(s.ctx, key)
	s.is(err, s3.ErrNotExist)
}

// list returns all pages.
func (s *suite) list(in s3.ListInput) (objects []s3.Info, prefixes []s3.Key) {
	s.Helper()
	limit := in.MaxKeys
	if limit == 0 {
		limit = 1000
	}
	for {
		page, err := s.List(s.ctx, in)
		s.ok(err)
		if n := len(page.Objects) + len(page.Prefixes); n > limit {
			s.Fatalf("a page of %d entries, want at most %d", n, limit)
		}
		objects, prefixes = append(objects, page.Objects...), append(prefixes, page.Prefixes...)
		if page.Token == "" {
			return objects, prefixes
		}
		if page.Token == in.Token {
			s.Fatal("the listing does not advance")
		}
		in.Token = page.Token
	}
}

// lists fails unless a listing has exactly these keys; a key that ends in "|" is a common prefix.
func (s *suite) lists(in s3.ListInput, want ...string) {
	s.Helper()
	objects, prefixes := s.list(in)
	var got []string
	for _, o := range objects {
		got = append(got, string(o.Key))
	}
	for _, p := range prefixes {
		got = append(got, string(p)+"|")
	}
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		s.Fatalf("list %+v:\n got %q\nwant %q", in, got, want)
	}
}

// parallel runs f for 0 to n-1 at the same time and returns the errors.
func parallel(n int, f func(i int) error) []error {
	errs := make([]error, n)
	start := make(chan struct{})
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			<-start
			errs[i] = f(i)
		})
	}
	close(start)
	wg.Wait()
	return errs
}

// longKey has 1,023 bytes in components of at most 255.
func longKey() s3.Key {
	c := strings.Repeat("k", 255)
	return s3.Key(c + "/" + c + "/" + c + "/" + c)
}
