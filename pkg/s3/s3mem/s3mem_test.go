package s3mem_test

import (
	"context"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/csi-s3/csi-s3/pkg/s3"
	"github.com/csi-s3/csi-s3/pkg/s3/s3mem"
)

func body(s string) s3.Body {
	return s3.Body{R: strings.NewReader(s), Size: int64(len(s))}
}

func TestModifiedHasWholeSeconds(t *testing.T) {
	b := s3mem.New("b")
	b.Now = func() time.Time { return time.Unix(100, 999) }
	if _, err := b.Put(t.Context(), "k", body("x"), s3.Attributes{}, s3.Condition{}); err != nil {
		t.Fatal(err)
	}
	info, err := b.Head(t.Context(), "k")
	if err != nil || !info.Modified.Equal(time.Unix(100, 0)) {
		t.Fatalf("Modified %v, %v", info.Modified, err)
	}
}

func TestMinPartIsAnOption(t *testing.T) {
	for _, c := range []struct {
		least int64
		want  error
	}{{0, s3.ErrInvalid}, {3, s3.ErrInvalid}, {2, nil}} {
		b := s3mem.New("b")
		b.MinPart = c.least
		id, err := b.CreateUpload(t.Context(), "k", s3.Attributes{})
		if err != nil {
			t.Fatal(err)
		}
		var parts []s3.Part
		for n := 1; n <= 2; n++ {
			p, err := b.UploadPart(t.Context(), "k", id, n, body("ab"))
			if err != nil {
				t.Fatal(err)
			}
			parts = append(parts, p)
		}
		if _, err := b.CompleteUpload(t.Context(), "k", id, parts, s3.Condition{}); !errors.Is(err, c.want) {
			t.Errorf("least %d: %v, want %v", c.least, err, c.want)
		}
	}
}

func TestCompletingTwiceIsNoUpload(t *testing.T) {
	b := s3mem.New("b")
	id, _ := b.CreateUpload(t.Context(), "k", s3.Attributes{})
	p, err := b.UploadPart(t.Context(), "k", id, 1, body("ab"))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []error{nil, s3.ErrNoUpload} {
		if _, err := b.CompleteUpload(t.Context(), "k", id, []s3.Part{p}, s3.Condition{}); !errors.Is(err, want) {
			t.Errorf("%v, want %v", err, want)
		}
	}
}

func TestQuirks(t *testing.T) {
	for _, c := range []struct {
		quirk        s3mem.Quirk
		holds, fails error
	}{
		{s3mem.Honours, nil, s3.ErrPrecondition},
		{s3mem.Ignores, nil, nil},
		{s3mem.Refuses, s3.ErrNotSupported, s3.ErrNotSupported},
		{s3mem.Misreads, s3.ErrPrecondition, s3.ErrPrecondition},
	} {
		b := s3mem.New("b")
		b.Quirks = s3mem.Quirks{s3.PutIfNoneMatch: c.quirk}
		for _, want := range []error{c.holds, c.fails} {
			if _, err := b.Put(t.Context(), "k", body("x"), s3.Attributes{}, s3.Condition{IfNoneMatch: true}); !errors.Is(err, want) {
				t.Errorf("%v: %v, want %v", c.quirk, err, want)
			}
			if _, err := b.Put(t.Context(), "k", body("x"), s3.Attributes{}, s3.Condition{}); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := b.Put(t.Context(), "k", body("x"), s3.Attributes{}, s3.Condition{IfMatch: "other"}); !errors.Is(err, s3.ErrPrecondition) {
			t.Errorf("%v reaches another condition: %v", c.quirk, err)
		}
	}
}

type slowReader struct{ started, release chan struct{} }

func (r slowReader) ReadAt(p []byte, _ int64) (int, error) {
	close(r.started)
	<-r.release
	return len(p), nil
}

func TestEmptyPrefixes(t *testing.T) {
	b := s3mem.New("b")
	b.EmptyPrefixes = true
	for _, key := range []s3.Key{"d/x/f", "d/y/f", "d/z"} {
		if _, err := b.Put(t.Context(), key, body("x"), s3.Attributes{}, s3.Condition{}); err != nil {
			t.Fatal(err)
		}
		if key != "d/y/f" {
			if err := b.Delete(t.Context(), key); err != nil {
				t.Fatal(err)
			}
		}
	}
	page, err := b.List(t.Context(), s3.ListInput{Prefix: "d/", Delimiter: "/"})
	if err != nil || len(page.Objects) > 0 || !slices.Equal(page.Prefixes, []s3.Key{"d/x/", "d/y/"}) {
		t.Errorf("%+v, %v", page, err)
	}
	page, err = b.List(t.Context(), s3.ListInput{Prefix: "d/"})
	if err != nil || len(page.Objects) != 1 {
		t.Errorf("%+v, %v", page, err)
	}
}

func TestBodyIsReadOutsideTheLock(t *testing.T) {
	b := s3mem.New("b")
	r := slowReader{make(chan struct{}), make(chan struct{})}
	done := make(chan error)
	go func() {
		_, err := b.Put(context.Background(), "slow", s3.Body{R: r, Size: 1}, s3.Attributes{}, s3.Condition{})
		done <- err
	}()
	<-r.started
	if _, err := b.Head(t.Context(), "slow"); !errors.Is(err, s3.ErrNotExist) {
		t.Fatal(err)
	}
	close(r.release)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

func TestOpenGetKeepsItsObject(t *testing.T) {
	b := s3mem.New("b")
	put := func(s string) {
		t.Helper()
		if _, err := b.Put(t.Context(), "k", body(s), s3.Attributes{}, s3.Condition{}); err != nil {
			t.Fatal(err)
		}
	}
	put("old")
	rc, _, err := b.Get(t.Context(), "k", nil, "")
	if err != nil {
		t.Fatal(err)
	}
	put("new")
	got, err := io.ReadAll(rc)
	if err != nil || string(got) != "old" {
		t.Fatalf("%q, %v", got, err)
	}
}
