package s3test

import (
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

func (s *suite) create(key s3.Key, attr s3.Attributes) s3.UploadID {
	s.Helper()
	id, err := s.CreateUpload(s.ctx, key, attr)
	s.ok(err)
	return id
}

func (s *suite) part(key s3.Key, id s3.UploadID, n int, data []byte) s3.Part {
	s.Helper()
	p, err := s.UploadPart(s.ctx, key, id, n, bodyOf(data))
	s.ok(err)
	sum := binary.BigEndian.AppendUint32(nil, crc32.Checksum(data, crc32.MakeTable(crc32.Castagnoli)))
	want := s3.Part{Number: n, ETag: tagOf(data), Size: int64(len(data)), CRC32C: base64.StdEncoding.EncodeToString(sum)}
	if p != want {
		s.Fatalf("part is %+v, want %+v", p, want)
	}
	return p
}

func multipartTag(parts ...[]byte) s3.ETag {
	var sums []byte
	for _, p := range parts {
		sum := md5.Sum(p)
		sums = append(sums, sum[:]...)
	}
	total := md5.Sum(sums)
	return s3.ETag(fmt.Sprintf("%s-%d", hex.EncodeToString(total[:]), len(parts)))
}

// listed fails unless the server holds exactly these parts. A listing need not tell the checksum.
func (s *suite) listed(key s3.Key, id s3.UploadID, want ...s3.Part) {
	s.Helper()
	got, err := s.ListParts(s.ctx, key, id)
	s.ok(err)
	if !slices.EqualFunc(got, want, func(g, w s3.Part) bool {
		return g.Number == w.Number && g.ETag == w.ETag && g.Size == w.Size && (g.CRC32C == "" || w.CRC32C == "" || g.CRC32C == w.CRC32C)
	}) {
		s.Fatalf("parts are %+v, want %+v", got, want)
	}
}

func multipart(s *suite) {
	const key = "multi part+é"
	data := [][]byte{random(1, minPart), random(2, minPart+100), random(3, 7)}
	id := s.create(key, s3.Attributes{})
	s.listed(key, id)
	s.put(key, "old")
	p3 := s.part(key, id, 300, data[2])
	p2 := s.part(key, id, 2, data[1])
	s.part(key, id, 1, []byte("replaced"))
	p1 := s.part(key, id, 1, data[0])
	s.listed(key, id, p1, p2, p3)
	s.holds(key, "old")
	info, err := s.CompleteUpload(s.ctx, key, id, []s3.Part{p1, p2, p3}, s3.Condition{})
	s.ok(err)
	want := slices.Concat(data...)
	if info.Key != key || info.Size != int64(len(want)) || info.ETag != multipartTag(data...) {
		s.Errorf("complete: %+v", info)
	}
	head, err := s.Head(s.ctx, key)
	s.ok(err)
	if head.Size != info.Size || head.ETag != info.ETag {
		s.Errorf("head %+v after complete %+v", head, info)
	}
	s.holds(key, string(want))
	if got := s.read(key, &s3.Range{Off: minPart - 5, End: minPart + 5}); string(got) != string(want[minPart-5:minPart+5]) {
		s.Error("a range over the border of two parts differs")
	}
	_, err = s.ListParts(s.ctx, key, id)
	s.is(err, s3.ErrNoUpload)
}

func multipartMetadata(s *suite) {
	attr := attributes()
	id := s.create("k", attr)
	p := s.part("k", id, 1, []byte("one small part"))
	_, err := s.CompleteUpload(s.ctx, "k", id, []s3.Part{p}, s3.Condition{})
	s.ok(err)
	s.hasAttributes("k", attr)
	s.holds("k", "one small part")
	// A copy keeps the bytes and attributes of an object made of parts.
	_, err = s.Copy(s.ctx, "k", "", "copy", nil, s3.Condition{})
	s.ok(err)
	s.hasAttributes("copy", attr)
	s.holds("copy", "one small part")
}

func copyPart(s *suite) {
	const src, dst = "src + é%20", "dst"
	from := random(4, 2*minPart)
	info, err := s.Put(s.ctx, src, bodyOf(from), s3.Attributes{}, s3.Condition{})
	s.ok(err)
	id := s.create(dst, s3.Attributes{})
	cp := func(n int, r s3.Range) s3.Part {
		s.Helper()
		p, err := s.CopyPart(s.ctx, dst, id, n, src, info.ETag, r)
		s.ok(err)
		if p.Number != n || p.Size != r.End-r.Off || p.ETag != tagOf(from[r.Off:r.End]) {
			s.Errorf("part: %+v", p)
		}
		return p
	}
	tail := []byte("a new tail")
	middle := random(5, minPart)
	parts := []s3.Part{cp(1, s3.Range{Off: 3, End: minPart + 10}), s.part(dst, id, 2, middle), cp(3, s3.Range{Off: minPart, End: 2 * minPart}), s.part(dst, id, 4, tail)}
	_, err = s.CopyPart(s.ctx, dst, id, 5, src, tagOf(tail), s3.Range{Off: 0, End: minPart})
	s.is(err, s3.ErrPrecondition)
	_, err = s.CopyPart(s.ctx, dst, id, 5, "absent", "", s3.Range{Off: 0, End: minPart})
	s.is(err, s3.ErrNotExist)
	_, err = s.CopyPart(s.ctx, dst, id, 5, src, "", s3.Range{Off: minPart, End: 2*minPart + 1})
	s.is(err, s3.ErrInvalid, s3.ErrRange)
	s.listed(dst, id, parts...)
	// As after a restart: the parts are those that the server tells.
	_, err = s.CompleteUpload(s.ctx, dst, id, parts, s3.Condition{})
	s.ok(err)
	s.holds(dst, string(slices.Concat(from[3:minPart+10], middle, from[minPart:], tail)))
}

func multipartRefused(s *suite) {
	s.put("k", "old")
	id := s.create("k", s3.Attributes{})
	small := s.part("k", id, 1, []byte("small"))
	last := s.part("k", id, 2, []byte("last"))
	wrong := small
	wrong.ETag = tagOf([]byte("other"))
	wrong.CRC32C = ""
	for name, parts := range map[string][]s3.Part{
		"no parts":   nil,
		"descending": {last, small},
		"too small":  {small, last},
		"wrong ETag": {wrong},
		"not there":  {small, {Number: 3, ETag: last.ETag}},
	} {
		_, err := s.CompleteUpload(s.ctx, "k", id, parts, s3.Condition{})
		s.Log(name, err)
		s.is(err, s3.ErrInvalid)
		s.holds("k", "old")
	}
	for _, n := range []int{0, -1, 10_001} {
		_, err := s.UploadPart(s.ctx, "k", id, n, bodyOf([]byte("x")))
		s.is(err, s3.ErrInvalid)
	}
	if _, err := s.UploadPart(s.ctx, "k", id, 1, s3.Body{R: strings.NewReader("short"), Size: 100}); err == nil {
		s.Error("a short part was stored")
	}
	l := &liar{size: 1000}
	if _, err := s.UploadPart(s.ctx, "k", id, 1, s3.Body{R: l, Size: l.size}); err != nil {
		s.is(err, s3.ErrCorrupt)
		s.listed("k", id, small, last)
	} else if n := l.passes.Load(); n != 1 {
		s.Errorf("a part that differs on each of %d passes was stored", n)
	}
	s.ok(s.AbortUpload(s.ctx, "k", id))
	s.holds("k", "old")
}

func multipartConditions(s *suite) {
	complete := func(data string, cond s3.Condition) error {
		s.Helper()
		id := s.create("k", s3.Attributes{})
		p := s.part("k", id, 1, []byte(data))
		_, err := s.CompleteUpload(s.ctx, "k", id, []s3.Part{p}, cond)
		if err != nil {
			s.listed("k", id, p)
			s.ok(s.AbortUpload(s.ctx, "k", id))
		}
		return err
	}
	s.is(complete("x", s3.Condition{IfMatch: tagOf([]byte("x"))}), s3.ErrPrecondition)
	s.gone("k")
	s.ok(complete("one", s3.Condition{IfNoneMatch: true}))
	s.holds("k", "one")
	s.is(complete("two", s3.Condition{IfNoneMatch: true}), s3.ErrPrecondition)
	s.holds("k", "one")
	s.is(complete("two", s3.Condition{IfMatch: tagOf([]byte("one"))}), s3.ErrPrecondition)
	s.holds("k", "one")
	s.ok(complete("two", s3.Condition{IfMatch: multipartTag([]byte("one"))}))
	s.holds("k", "two")
}

func completeTwice(s *suite) {
	id := s.create("k", s3.Attributes{})
	p := s.part("k", id, 1, []byte("content"))
	first, err := s.CompleteUpload(s.ctx, "k", id, []s3.Part{p}, s3.Condition{})
	s.ok(err)
	// Success with the same object, or ErrNoUpload: the caller then settles it with Head.
	second, err := s.CompleteUpload(s.ctx, "k", id, []s3.Part{p}, s3.Condition{})
	if err != nil {
		s.is(err, s3.ErrNoUpload)
	} else if second.ETag != first.ETag {
		s.Errorf("the second answer is %+v, the first %+v", second, first)
	}
	s.holds("k", "content")
	s.ok(s.AbortUpload(s.ctx, "k", id))
	s.holds("k", "content")
}

func unknownUpload(s *suite) {
	// The ID of another upload has the right form, whatever that is on this server.
	id := s.create("k", s3.Attributes{})
	p := s.part("k", id, 1, []byte("x"))
	s.ok(s.AbortUpload(s.ctx, "k", id))
	s.ok(s.AbortUpload(s.ctx, "k", id))
	_, err := s.UploadPart(s.ctx, "k", id, 1, bodyOf([]byte("x")))
	s.is(err, s3.ErrNoUpload)
	s.put("src", "x")
	_, err = s.CopyPart(s.ctx, "k", id, 1, "src", "", s3.Range{Off: 0, End: 1})
	s.is(err, s3.ErrNoUpload)
	_, err = s.ListParts(s.ctx, "k", id)
	s.is(err, s3.ErrNoUpload)
	_, err = s.CompleteUpload(s.ctx, "k", id, []s3.Part{p}, s3.Condition{})
	s.is(err, s3.ErrNoUpload)
	s.gone("k")
}

func abort(s *suite) {
	id := s.create("k", s3.Attributes{})
	s.part("k", id, 1, []byte("x"))
	other := s.create("k", s3.Attributes{})
	p := s.part("k", other, 1, []byte("y"))
	s.ok(s.AbortUpload(s.ctx, "k", id))
	s.gone("k")
	s.listed("k", other, p)
	_, err := s.CompleteUpload(s.ctx, "k", other, []s3.Part{p}, s3.Condition{})
	s.ok(err)
	s.holds("k", "y")
	open, _, err := s.ListUploads(s.ctx, "")
	s.ok(err)
	if len(open) > 0 {
		s.Errorf("still open: %+v", open)
	}
}

func listUploads(s *suite) {
	_, before, err := s.ListUploads(s.ctx, "")
	s.ok(err)
	open := map[s3.UploadID]s3.Key{}
	for _, key := range []s3.Key{"d/x", "d/x", "d/y +é", "d2/z", "e"} {
		open[s.create(key, s3.Attributes{})] = key
	}
	if len(open) != 5 {
		s.Fatalf("upload IDs are not unique: %v", open)
	}
	for _, prefix := range []s3.Key{"", "d", "d/", "d/x", "d/y", "e", "absent"} {
		got, at, err := s.ListUploads(s.ctx, prefix)
		s.ok(err)
		if before.IsZero() || at.Before(before) || at.Sub(before) > time.Minute {
			s.Errorf("prefix %q: listed at %v, before the uploads were begun at %v", string(prefix), at, before)
		}
		want := 0
		for _, key := range open {
			if strings.HasPrefix(string(key), string(prefix)) {
				want++
			}
		}
		if len(got) != want {
			s.Errorf("prefix %q: %d uploads, want %d", string(prefix), len(got), want)
		}
		for _, u := range got {
			if open[u.ID] != u.Key || !strings.HasPrefix(string(u.Key), string(prefix)) || u.Initiated.Before(before) || u.Initiated.After(at.Add(time.Second)) {
				s.Errorf("prefix %q: %+v, listed between %v and %v", string(prefix), u, before, at)
			}
		}
	}
	for id, key := range open {
		s.ok(s.AbortUpload(s.ctx, key, id))
	}
}
