package s3test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/csi-s3/csi-s3/pkg/s3"
)

func put(s *suite) {
	for _, size := range []int{0, 1, 4096, 100_000, 6 << 20} {
		key, data := s3.Key(fmt.Sprintf("size/%d", size)), random(uint64(size), size)
		start := time.Now()
		info, err := s.Put(s.ctx, key, bodyOf(data), s3.Attributes{}, s3.Condition{})
		s.ok(err)
		if info.Key != key || info.Size != int64(size) || info.ETag != tagOf(data) {
			s.Errorf("put: %+v", info)
		}
		head, err := s.Head(s.ctx, key)
		s.ok(err)
		if head.Key != key || head.Size != int64(size) || head.ETag != info.ETag {
			s.Errorf("head: %+v", head)
		}
		if head.Modified.Before(start.Add(-2*time.Second)) || head.Modified.After(time.Now().Add(2*time.Second)) {
			s.Errorf("Modified is %v, now is %v", head.Modified, time.Now())
		}
		s.holds(key, string(data))
	}
	s.put("again", "first")
	s.put("again", "the second")
	s.holds("again", "the second")
	_, err := s.Put(s.ctx, "nil", s3.Body{}, s3.Attributes{}, s3.Condition{})
	s.ok(err)
	s.holds("nil", "")
}

// liar yields other bytes on each pass over the body.
type liar struct {
	size   int64
	passes atomic.Int32
}

func (l *liar) ReadAt(p []byte, off int64) (int, error) {
	pass := l.passes.Load()
	if off == 0 {
		pass = l.passes.Add(1)
	}
	n := int(min(int64(len(p)), l.size-off))
	for i := range n {
		p[i] = byte(pass)
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func putWrongBody(s *suite) {
	s.put("k", "old")
	// The body is shorter than its size says.
	_, err := s.Put(s.ctx, "k", s3.Body{R: strings.NewReader("short"), Size: 100}, s3.Attributes{}, s3.Condition{})
	if err == nil {
		s.Fatal("a short body was stored")
	}
	s.holds("k", "old")

	broken := errors.New("broken disk")
	_, err = s.Put(s.ctx, "k", s3.Body{R: failingReader{broken}, Size: 100}, s3.Attributes{}, s3.Condition{})
	if !errors.Is(err, broken) {
		s.Fatalf("got error %v, want the reader's", err)
	}
	s.holds("k", "old")

	// The bytes sent are not those that the checksum was computed of: refused, or the body was read only once.
	l := &liar{size: 1000}
	if _, err = s.Put(s.ctx, "k", s3.Body{R: l, Size: l.size}, s3.Attributes{}, s3.Condition{}); err != nil {
		s.is(err, s3.ErrCorrupt)
		s.holds("k", "old")
	} else if n := l.passes.Load(); n != 1 {
		s.Fatalf("a body that differs on each of %d passes was stored", n)
	}
}

// putBrokenOff: a client that goes away in the middle of its body leaves the old object.
func putBrokenOff(s *suite) {
	s.put("k", "old")
	id := s.create("m", s3.Attributes{})
	for i := range 4 {
		ctx, cancel := context.WithCancel(s.ctx)
		r := &quitter{size: 1<<20 - 1, half: int64(1) << (16 + i), cancel: cancel}
		_, err := s.Put(ctx, "k", s3.Body{R: r, Size: r.size}, s3.Attributes{}, s3.Condition{})
		if ctx.Err() == nil {
			// The body was read only once, so there was no sending to break off.
			s.ok(err)
			s.put("k", "old")
		} else {
			s.is(err, s3.ErrUnavailable)
		}
		cancel()

		ctx, cancel = context.WithCancel(s.ctx)
		r = &quitter{size: 1<<20 - 1, half: int64(1) << (16 + i), cancel: cancel}
		if _, err := s.UploadPart(ctx, "m", id, i+1, s3.Body{R: r, Size: r.size}); ctx.Err() != nil {
			s.is(err, s3.ErrUnavailable)
		}
		cancel()
	}
	time.Sleep(200 * time.Millisecond) // for the server to do what it does with what it got
	s.holds("k", "old")
	parts, err := s.ListParts(s.ctx, "m", id)
	s.ok(err)
	for _, p := range parts {
		if p.Size != 1<<20-1 {
			s.Errorf("a truncated part was stored: %+v", p)
		}
	}
	s.ok(s.AbortUpload(s.ctx, "m", id))
}

// quitter cancels the call in the middle of the second pass over the body: the first is for the checksum.
type quitter struct {
	size, half int64
	cancel     context.CancelFunc
	passes     atomic.Int32
}

func (q *quitter) ReadAt(p []byte, off int64) (int, error) {
	if off == 0 {
		q.passes.Add(1)
	}
	n := min(int64(len(p)), q.size-off)
	if q.passes.Load() > 1 && off+n > q.half {
		time.Sleep(20 * time.Millisecond) // for what is sent so far to arrive
		q.cancel()
	}
	clear(p[:n])
	if n < int64(len(p)) {
		return int(n), io.EOF
	}
	return int(n), nil
}

type failingReader struct{ err error }

func (r failingReader) ReadAt([]byte, int64) (int, error) { return 0, r.err }

func putConditions(s *suite) {
	try := func(data string, cond s3.Condition) (s3.ETag, error) {
		info, err := s.Put(s.ctx, "k", bodyOf([]byte(data)), s3.Attributes{}, cond)
		return info.ETag, err
	}
	_, err := try("x", s3.Condition{IfMatch: tagOf([]byte("nothing"))})
	s.is(err, s3.ErrPrecondition)
	s.gone("k")
	tag, err := try("one", s3.Condition{IfNoneMatch: true})
	s.ok(err)
	_, err = try("two", s3.Condition{IfNoneMatch: true})
	s.is(err, s3.ErrPrecondition)
	s.holds("k", "one")
	_, err = try("two", s3.Condition{IfMatch: tagOf([]byte("other"))})
	s.is(err, s3.ErrPrecondition)
	s.holds("k", "one")
	_, err = try("two", s3.Condition{IfMatch: tag})
	s.ok(err)
	s.holds("k", "two")
	_, err = try("three", s3.Condition{IfMatch: tag})
	s.is(err, s3.ErrPrecondition)
	s.ok(s.Delete(s.ctx, "k"))
	_, err = try("four", s3.Condition{IfNoneMatch: true})
	s.ok(err)
	s.holds("k", "four")
}

// race lets 20 writers put different data under one condition.
func race(s *suite, key s3.Key, cond s3.Condition) (winners int) {
	s.Helper()
	text := func(i int) string { return fmt.Sprintf("writer %02d of %s", i, key) }
	errs := parallel(20, func(i int) error {
		_, err := s.Put(s.ctx, key, bodyOf([]byte(text(i))), s3.Attributes{}, cond)
		return err
	})
	var won []string
	for i, err := range errs {
		if err == nil {
			won = append(won, text(i))
		} else {
			s.is(err, s3.ErrPrecondition)
		}
	}
	if got := string(s.read(key, nil)); !slices.Contains(won, got) {
		s.Fatalf("%q holds %q, but the winners are %q", string(key), got, won)
	}
	return len(won)
}

func putIfNoneMatchRace(s *suite) {
	for i := range 5 {
		n := race(s, s3.Key(fmt.Sprintf("race/%d", i)), s3.Condition{IfNoneMatch: true})
		if n != 1 && !s.opt.RacyConditions || n < 1 {
			s.Errorf("round %d: %d writers created the object", i, n)
		}
	}
}

func putIfMatchRace(s *suite) {
	for i := range 5 {
		key := s3.Key(fmt.Sprintf("race/%d", i))
		n := race(s, key, s3.Condition{IfMatch: s.put(key, "start")})
		if n != 1 && !s.opt.RacyConditions || n < 1 {
			s.Errorf("round %d: %d writers replaced the object", i, n)
		}
	}
}

func putIsAtomic(s *suite) {
	const size = 64 << 10
	content := func(i int) []byte { return bytes.Repeat([]byte{byte('a' + i%26)}, size) }
	_, err := s.Put(s.ctx, "k", bodyOf(content(0)), s3.Attributes{}, s3.Condition{})
	s.ok(err)
	for _, err := range parallel(4, func(w int) error {
		for i := range 10 {
			if w == 0 {
				if _, err := s.Put(s.ctx, "k", bodyOf(content(i)), s3.Attributes{}, s3.Condition{}); err != nil {
					return err
				}
				continue
			}
			rc, info, err := s.Get(s.ctx, "k", nil, "")
			if err != nil {
				return err
			}
			data, err := io.ReadAll(rc)
			if err = errors.Join(err, rc.Close()); err != nil {
				return err
			}
			known := info.ETag == tagOf(data)
			for j := 0; s.opt.RacyTags && j < 10; j++ {
				known = known || info.ETag == tagOf(content(j))
			}
			if len(data) != size || bytes.Count(data, data[:1]) != size || !known {
				return fmt.Errorf("a mix of two objects: %d bytes, %d of the first, ETag %s", len(data), bytes.Count(data, data[:1]), info.ETag)
			}
		}
		return nil
	}) {
		s.ok(err)
	}
}

func get(s *suite) {
	data := random(1, 3<<20)
	_, err := s.Put(s.ctx, "k", bodyOf(data), s3.Attributes{}, s3.Condition{})
	s.ok(err)
	rc, info, err := s.Get(s.ctx, "k", nil, "")
	s.ok(err)
	if info.Key != "k" || info.Size != int64(len(data)) || info.ETag != tagOf(data) || info.Modified.IsZero() {
		s.Errorf("info: %+v", info)
	}
	got, err := io.ReadAll(rc)
	s.ok(err)
	s.ok(rc.Close())
	if !bytes.Equal(got, data) {
		s.Error("the body differs")
	}
	// A body that is closed early does no harm to later calls.
	rc, _, err = s.Get(s.ctx, "k", nil, "")
	s.ok(err)
	_, err = io.ReadFull(rc, make([]byte, 10))
	s.ok(err)
	s.ok(rc.Close())
	s.holds("k", string(data))
}

func getRanges(s *suite) {
	data := random(2, 1000)
	tag := s.put("k", string(data))
	for _, r := range []s3.Range{{Off: 0, End: 1}, {Off: 0, End: 1000}, {Off: 999, End: 1000}, {Off: 10, End: 500}, {Off: 990, End: 5000}, {Off: 0, End: 1 << 40}} {
		rc, info, err := s.Get(s.ctx, "k", &r, tag)
		s.ok(err)
		got, err := io.ReadAll(rc)
		s.ok(err)
		s.ok(rc.Close())
		if !bytes.Equal(got, data[r.Off:min(r.End, 1000)]) {
			s.Errorf("%+v: %d bytes", r, len(got))
		}
		if info.Size != 1000 || info.ETag != tag {
			s.Errorf("%+v: info is not of the whole object: %+v", r, info)
		}
	}
	s.put("empty", "")
	for _, r := range []s3.Range{{Off: 1000, End: 1001}, {Off: 5000, End: 6000}} {
		_, _, err := s.Get(s.ctx, "k", &r, "")
		s.is(err, s3.ErrRange)
	}
	_, _, err := s.Get(s.ctx, "empty", &s3.Range{Off: 0, End: 10}, "")
	s.is(err, s3.ErrRange)
	for _, r := range []s3.Range{{Off: 5, End: 5}, {Off: 6, End: 5}, {Off: -1, End: 5}} {
		_, _, err := s.Get(s.ctx, "k", &r, "")
		s.is(err, s3.ErrInvalid)
	}
}

func getIfMatch(s *suite) {
	old := s.put("k", "old")
	rc, _, err := s.Get(s.ctx, "k", nil, old)
	s.ok(err)
	s.ok(rc.Close())
	s.put("k", "new")
	for _, r := range []*s3.Range{nil, {Off: 0, End: 2}} {
		_, _, err = s.Get(s.ctx, "k", r, old)
		s.is(err, s3.ErrPrecondition)
	}
	_, _, err = s.Get(s.ctx, "absent", nil, old)
	s.is(err, s3.ErrNotExist)
}

func absent(s *suite) {
	s.put("dir/file", "x")
	for _, key := range []s3.Key{"absent", "dir", "dir/", "dir/f", "dir/file2"} {
		s.gone(key)
		_, _, err := s.Get(s.ctx, key, nil, "")
		s.is(err, s3.ErrNotExist)
		_, _, err = s.Get(s.ctx, key, &s3.Range{Off: 0, End: 1}, "")
		s.is(err, s3.ErrNotExist)
		_, err = s.Copy(s.ctx, key, "", "copy", nil, s3.Condition{})
		if s.opt.NoOverlap && err != nil && errors.Is(err, s3.ErrUnavailable) {
			// A server on a file system stumbles over its own directory: unknown, which is honest.
			continue
		}
		s.is(err, s3.ErrNotExist)
	}
	s.gone("copy")
}

func attributes() s3.Attributes {
	return s3.Attributes{ContentType: "text/x-test; charset=utf-8", Meta: map[string]string{
		"mode": "33188", "uid": "0", "--symlink-target": "../a b%20c", "m-9": "!\"#$&'()*+,-./:;<=>?@[\\]^_`{|}~", "mtime": "1700000000.123456789",
	}}
}

func (s *suite) hasAttributes(key s3.Key, want s3.Attributes) {
	s.Helper()
	head, err := s.Head(s.ctx, key)
	s.ok(err)
	rc, info, err := s.Get(s.ctx, key, nil, "")
	s.ok(err)
	s.ok(rc.Close())
	for _, got := range []s3.Info{head, info} {
		if !maps.Equal(got.Meta, want.Meta) {
			s.Errorf("metadata of %q is %v, want %v", string(key), got.Meta, want.Meta)
		}
		if want.ContentType != "" && got.ContentType != want.ContentType && !s.opt.NoContentType {
			s.Errorf("content type of %q is %q, want %q", string(key), got.ContentType, want.ContentType)
		}
	}
}

func metadata(s *suite) {
	attr := attributes()
	_, err := s.Put(s.ctx, "k", bodyOf([]byte("x")), attr, s3.Condition{})
	s.ok(err)
	s.hasAttributes("k", attr)
	_, err = s.Put(s.ctx, "upper", bodyOf(nil), s3.Attributes{Meta: map[string]string{"Mixed-Case": "Value"}}, s3.Condition{})
	s.ok(err)
	s.hasAttributes("upper", s3.Attributes{Meta: map[string]string{"mixed-case": "Value"}})
	// Overwriting leaves nothing of the old attributes.
	s.put("k", "y")
	s.hasAttributes("k", s3.Attributes{})
}

func metadataTooLarge(s *suite) {
	fits := s3.Attributes{Meta: map[string]string{"long": strings.Repeat("v", 1800)}}
	_, err := s.Put(s.ctx, "k", bodyOf([]byte("x")), fits, s3.Condition{})
	s.ok(err)
	s.hasAttributes("k", fits)
	_, err = s.Put(s.ctx, "k", bodyOf([]byte("y")), s3.Attributes{Meta: map[string]string{"long": strings.Repeat("v", 2100)}}, s3.Condition{})
	s.is(err, s3.ErrInvalid)
	s.holds("k", "x")
}

func directoryMarkers(s *suite) {
	attr := s3.Attributes{Meta: attributes().Meta}
	_, err := s.Put(s.ctx, "dir/", s3.Body{}, attr, s3.Condition{})
	s.ok(err)
	s.hasAttributes("dir/", attr)
	s.gone("dir")
	s.put("dir/child", "x")
	s.lists(s3.ListInput{Prefix: "dir/", Delimiter: "/"}, "dir/", "dir/child")
	s.lists(s3.ListInput{Delimiter: "/"}, "dir/|")
	s.ok(s.Delete(s.ctx, "dir/"))
	s.gone("dir/")
	s.holds("dir/child", "x")
	s.ok(s.Delete(s.ctx, "dir/child"))
	s.lists(s3.ListInput{Delimiter: "/"})

	_, err = s.Put(s.ctx, "body/", bodyOf([]byte("content")), s3.Attributes{}, s3.Condition{})
	if s.opt.NoMarkerBody {
		s.is(err, s3.ErrInvalid)
		s.gone("body/")
		return
	}
	s.ok(err)
	s.holds("body/", "content")
}

// keys that every server must keep apart and return verbatim.
func (s *suite) oddKeys() []s3.Key {
	keys := []s3.Key{
		"a b", "a+b", "a%20b", "a%2Bb", "100%", "%", "%zz", "%2F", "a&b<c>\"d'", "question?x=1#frag", "semi;colon:at@,=$!*()",
		"back\\slash", "[x]{y}|^`~", ".hidden", "a..b", "...", "dir.with/dots.", " lead", "trail ", "dir / file", "ü/日本/é", "e\u0301", "😀",
		"nbsp\u00a0\u200b", "upper/CASE", "upper/case", "x-amz-meta-q", "a/b/c/d/e/f", longKey(),
	}
	if !s.opt.NoControl {
		keys = append(keys, "c\x01d", "tab\there", "new\nline", "cr\rhere", "del\x7f")
	}
	return keys
}

func oddKeys(s *suite) {
	keys := s.oddKeys()
	s.verbatim(keys)
	failed, err := s.DeleteMany(s.ctx, keys)
	s.ok(err)
	if len(failed) > 0 {
		s.Errorf("not deleted: %v", failed)
	}
	s.lists(s3.ListInput{})
}

// verbatim checks that keys are put, found, read, copied and listed byte for byte.
func (s *suite) verbatim(keys []s3.Key) {
	s.Helper()
	var want []string
	for _, key := range keys {
		s.put(key, "object "+string(key))
		want = append(want, string(key))
	}
	s.lists(s3.ListInput{}, want...)
	s.lists(s3.ListInput{MaxKeys: 3}, want...)
	for _, key := range keys {
		s.holds(key, "object "+string(key))
		info, err := s.Head(s.ctx, key)
		s.ok(err)
		if info.Key != key {
			s.Errorf("head of %q is of %q", string(key), string(info.Key))
		}
		s.lists(s3.ListInput{Prefix: key, MaxKeys: 2}, prefixed(want, string(key))...)
		_, err = s.Copy(s.ctx, key, info.ETag, "copied", nil, s3.Condition{})
		s.ok(err)
		s.holds("copied", "object "+string(key))
		s.ok(s.Delete(s.ctx, key))
		s.gone(key)
		_, err = s.Copy(s.ctx, "copied", info.ETag, key, nil, s3.Condition{})
		s.ok(err)
		s.holds(key, "object "+string(key))
	}
	s.ok(s.Delete(s.ctx, "copied"))
	s.lists(s3.ListInput{}, want...)
}

func prefixed(keys []string, prefix string) (out []string) {
	for _, k := range keys {
		if strings.HasPrefix(k, prefix) {
			out = append(out, k)
		}
	}
	return out
}

func oddComponents(s *suite) {
	keys := []s3.Key{"a//b", "a//", "/lead", "//", "./x", "x/./y", "x/../y", "x/..", "z/."}
	if !s.opt.NoOddComponents {
		s.verbatim(keys)
		return
	}
	for _, key := range keys {
		_, err := s.Put(s.ctx, key, s3.Body{}, s3.Attributes{}, s3.Condition{})
		if err != nil {
			s.is(err, s3.ErrInvalid, s3.ErrNotExist, s3.ErrAuth, s3.ErrPrecondition)
		}
	}
}

func illegalKeys(s *suite) {
	for _, key := range []s3.Key{s3.Key(strings.Repeat("long/", 300)), ""} {
		_, err := s.Put(s.ctx, key, bodyOf([]byte("x")), s3.Attributes{}, s3.Condition{})
		s.is(err, s3.ErrInvalid)
	}
	s.lists(s3.ListInput{})
}

func overlap(s *suite) {
	s.put("a", "file")
	_, err := s.Put(s.ctx, "a/b", bodyOf([]byte("below")), s3.Attributes{}, s3.Condition{})
	if s.opt.NoOverlap {
		if err != nil {
			s.is(err, s3.ErrInvalid, s3.ErrPrecondition)
		}
		s.holds("a", "file")
		return
	}
	s.ok(err)
	s.put("a/", "")
	s.lists(s3.ListInput{}, "a", "a/", "a/b")
	s.lists(s3.ListInput{Delimiter: "/"}, "a", "a/|")
	s.holds("a", "file")
	s.ok(s.Delete(s.ctx, "a"))
	s.lists(s3.ListInput{}, "a/", "a/b")
}

func copyObject(s *suite) {
	attr := attributes()
	data := random(3, 100_000)
	src, err := s.Put(s.ctx, "src", bodyOf(data), attr, s3.Condition{})
	s.ok(err)
	info, err := s.Copy(s.ctx, "src", src.ETag, "dst", nil, s3.Condition{})
	s.ok(err)
	if info.Key != "dst" || info.ETag != src.ETag || info.Size != -1 || info.Modified.IsZero() {
		s.Errorf("copy: %+v", info)
	}
	s.holds("dst", string(data))
	s.hasAttributes("dst", attr)

	other := s3.Attributes{ContentType: "text/other", Meta: map[string]string{"other": "1"}}
	_, err = s.Copy(s.ctx, "src", "", "dst", &other, s3.Condition{})
	s.ok(err)
	s.hasAttributes("dst", other)
	_, err = s.Copy(s.ctx, "src", "", "dst", &s3.Attributes{}, s3.Condition{})
	s.ok(err)
	s.hasAttributes("dst", s3.Attributes{})
	s.holds("dst", string(data))

	// Onto itself: the way to change attributes.
	_, err = s.Copy(s.ctx, "src", src.ETag, "src", &other, s3.Condition{})
	s.ok(err)
	s.hasAttributes("src", other)
	s.holds("src", string(data))

	s.put("empty", "")
	_, err = s.Copy(s.ctx, "empty", "", "empty2", nil, s3.Condition{})
	s.ok(err)
	s.holds("empty2", "")
}

func copyConditions(s *suite) {
	tag := s.put("src", "source")
	dst := s.put("dst", "destination")
	_, err := s.Copy(s.ctx, "src", dst, "dst", nil, s3.Condition{})
	s.is(err, s3.ErrPrecondition)
	s.holds("dst", "destination")
	for _, c := range []struct {
		dst  s3.Key
		cond s3.Condition
		want error
	}{
		{"dst", s3.Condition{IfNoneMatch: true}, s3.ErrPrecondition},
		{"dst", s3.Condition{IfMatch: tag}, s3.ErrPrecondition},
		{"new", s3.Condition{IfMatch: tag}, s3.ErrPrecondition},
		{"new", s3.Condition{IfNoneMatch: true}, nil},
		{"dst", s3.Condition{IfMatch: dst}, nil},
	} {
		_, err := s.Copy(s.ctx, "src", tag, c.dst, nil, c.cond)
		if c.want != nil {
			s.is(err, c.want)
			continue
		}
		s.ok(err)
		s.holds(c.dst, "source")
	}
}

func deleteObject(s *suite) {
	s.put("k", "x")
	s.put("k2", "x")
	for range 2 {
		s.ok(s.Delete(s.ctx, "k"))
		s.gone("k")
	}
	s.ok(s.Delete(s.ctx, "never/was"))
	s.lists(s3.ListInput{}, "k2")
}

func deleteIf(s *suite) {
	old := s.put("k", "old")
	tag := s.put("k", "new")
	s.is(s.DeleteIf(s.ctx, "k", old), s3.ErrPrecondition)
	s.holds("k", "new")
	s.ok(s.DeleteIf(s.ctx, "k", tag))
	s.gone("k")
	s.ok(s.DeleteIf(s.ctx, "k", tag))
}

func deleteMany(s *suite) {
	failed, err := s.DeleteMany(s.ctx, nil)
	s.ok(err)
	if len(failed) > 0 {
		s.Errorf("failed: %v", failed)
	}
	keys := []s3.Key{"absent/1", "absent/2"}
	for i := range 30 {
		key := s3.Key(fmt.Sprintf("d%d/k & <%d>", i%3, i))
		s.put(key, "x")
		keys = append(keys, key)
	}
	s.put("stays", "x")
	failed, err = s.DeleteMany(s.ctx, keys)
	s.ok(err)
	if len(failed) > 0 {
		s.Errorf("failed: %v", failed)
	}
	s.lists(s3.ListInput{}, "stays")
	_, err = s.DeleteMany(s.ctx, make([]s3.Key, 1001))
	s.is(err, s3.ErrInvalid)
}

func canceled(s *suite) {
	s.put("k", "x")
	ctx, cancel := context.WithCancel(s.ctx)
	cancel()
	_, headErr := s.Head(ctx, "k")
	_, _, getErr := s.Get(ctx, "k", nil, "")
	_, putErr := s.Put(ctx, "new", bodyOf([]byte("x")), s3.Attributes{}, s3.Condition{})
	_, listErr := s.List(ctx, s3.ListInput{})
	for _, err := range []error{headErr, getErr, putErr, listErr, s.Delete(ctx, "k"), s.HeadBucket(ctx)} {
		s.is(err, s3.ErrUnavailable)
		if !errors.Is(err, context.Canceled) {
			s.Errorf("%v does not wrap the context's error", err)
		}
	}
	s.holds("k", "x")
	s.gone("new")
}
