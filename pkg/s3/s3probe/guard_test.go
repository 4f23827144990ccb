package s3probe_test

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/csi-s3/csi-s3/pkg/s3"
	"github.com/csi-s3/csi-s3/pkg/s3/s3fault"
	"github.com/csi-s3/csi-s3/pkg/s3/s3mem"
	"github.com/csi-s3/csi-s3/pkg/s3/s3probe"
	"github.com/csi-s3/csi-s3/pkg/s3/s3test"
)

func all(q s3mem.Quirk) s3mem.Quirks {
	quirks := s3mem.Quirks{}
	for _, f := range s3probe.Features() {
		quirks[f] = q
	}
	return quirks
}

// TestGuardIsABucket: whatever the server does with conditions and whatever is known of it, a Guard does all that the seam
// promises, but for two who write at the very same time.
func TestGuardIsABucket(t *testing.T) {
	for name, c := range map[string]struct {
		quirk s3mem.Quirk
		known s3probe.Answers
		racy  bool
	}{
		"honoured, known":               {s3mem.Honours, s3probe.All(s3probe.Honoured), false},
		"honoured, unknown":             {s3mem.Honours, nil, false},
		"ignored, known":                {s3mem.Ignores, s3probe.All(s3probe.Ignored), true},
		"ignored, unknown":              {s3mem.Ignores, nil, true},
		"refused, known":                {s3mem.Refuses, s3probe.All(s3probe.Refused), true},
		"refused, unknown":              {s3mem.Refuses, nil, true},
		"refused, unlike a probe found": {s3mem.Refuses, s3probe.All(s3probe.Honoured), true},
		"misread, known":                {s3mem.Misreads, s3probe.All(s3probe.Refused), true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s3test.Run(t, func(*testing.T) s3.Bucket {
				b := s3mem.New("bucket")
				b.Quirks = all(c.quirk)
				g := s3probe.NewGuard(b)
				g.Know(c.known)
				return g
			}, s3test.Options{RacyConditions: c.racy})
		})
	}
}

func body(s string) s3.Body { return s3.Body{R: strings.NewReader(s), Size: int64(len(s))} }

func put(t *testing.T, b s3.Bucket, key s3.Key, s string, cond s3.Condition) s3.ETag {
	t.Helper()
	info, err := b.Put(t.Context(), key, body(s), s3.Attributes{}, cond)
	if err != nil {
		t.Fatal(err)
	}
	return info.ETag
}

// TestGuardLooksOnlyWhereItMust counts the requests of one guarded PUT.
func TestGuardLooksOnlyWhereItMust(t *testing.T) {
	for _, c := range []struct {
		name        string
		quirk       s3mem.Quirk
		known       s3probe.Answer
		compared    bool
		heads, puts int
		then        int // PUTs of the next one
	}{
		{"known to honour", s3mem.Honours, s3probe.Honoured, false, 0, 1, 1},
		{"unknown", s3mem.Honours, s3probe.Unknown, false, 1, 1, 1},
		{"unknown, compared by the caller", s3mem.Honours, s3probe.Unknown, true, 0, 1, 1},
		{"known to ignore", s3mem.Ignores, s3probe.Ignored, false, 1, 1, 1},
		{"refuses", s3mem.Refuses, s3probe.Unknown, false, 1, 2, 1},
		{"known to refuse", s3mem.Refuses, s3probe.Refused, false, 1, 1, 1},
		{"refuses what it honoured before", s3mem.Refuses, s3probe.Honoured, false, 1, 2, 1},
	} {
		mem := s3mem.New("bucket")
		mem.Quirks = all(c.quirk)
		faults := s3fault.New(mem)
		g := s3probe.NewGuard(faults)
		g.Know(s3probe.All(c.known))
		tag := put(t, g, "k", "one", s3.Condition{IfNoneMatch: true, Compared: c.compared})
		if h, p := faults.Count("Head"), faults.Count("Put"); h != c.heads || p != c.puts {
			t.Errorf("%s: %d HEADs and %d PUTs, want %d and %d", c.name, h, p, c.heads, c.puts)
		}
		put(t, mem, "other", "one", s3.Condition{})
		tag2 := put(t, g, "k2", "two", s3.Condition{IfNoneMatch: true})
		if p := faults.Count("Put") - c.puts; p != c.then {
			t.Errorf("%s: %d PUTs the second time, want %d", c.name, p, c.then)
		}
		if tag == tag2 {
			t.Error("same ETags")
		}
	}
}

// TestGuardNeverTakesUnknownForAbsent: a HEAD that fails is no licence to write.
func TestGuardNeverTakesUnknownForAbsent(t *testing.T) {
	for _, cause := range []error{s3.ErrUnavailable, s3.ErrAuth, s3.ErrNoBucket, errors.New("strange")} {
		mem := s3mem.New("bucket")
		tag := put(t, mem, "k", "theirs", s3.Condition{})
		faults := s3fault.New(mem)
		faults.Fault = func(op s3fault.Op) s3fault.Action {
			if op.Name == "Head" {
				return s3fault.FailBefore(cause)
			}
			return s3fault.Action{}
		}
		g := s3probe.NewGuard(faults)
		g.Know(s3probe.All(s3probe.Ignored))
		_, err := g.Put(t.Context(), "k", body("ours"), s3.Attributes{}, s3.Condition{IfMatch: tag})
		_, cerr := g.Copy(t.Context(), "k", tag, "l", nil, s3.Condition{})
		for _, err := range []error{err, cerr, g.DeleteIf(t.Context(), "k", tag)} {
			if !errors.Is(err, cause) {
				t.Errorf("%v, want %v", err, cause)
			}
		}
		if n := faults.Count("Put") + faults.Count("Copy") + faults.Count("Delete"); n > 0 {
			t.Errorf("%v: %d mutations were sent", cause, n)
		}
	}
}

// clumsy is a server that replaces the source during a copy of a part and ignores the condition on it.
type clumsy struct {
	*s3mem.Bucket
	t *testing.T
}

func (c clumsy) CopyPart(ctx context.Context, key s3.Key, id s3.UploadID, n int, src s3.Key, match s3.ETag, r s3.Range) (s3.Part, error) {
	put(c.t, c.Bucket, src, "theirs, and as long", s3.Condition{})
	return c.Bucket.CopyPart(ctx, key, id, n, src, match, r)
}

func TestGuardFindsASourceReplacedMeanwhile(t *testing.T) {
	mem := s3mem.New("bucket")
	mem.Quirks = s3mem.Quirks{s3.CopyPartIfMatch: s3mem.Ignores}
	tag := put(t, mem, "src", "ours", s3.Condition{})
	g := s3probe.NewGuard(clumsy{mem, t})
	id, err := g.CreateUpload(t.Context(), "dst", s3.Attributes{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := g.CopyPart(t.Context(), "dst", id, 1, "src", tag, s3.Range{End: 4}); !errors.Is(err, s3.ErrPrecondition) {
		t.Error(err)
	}
}
