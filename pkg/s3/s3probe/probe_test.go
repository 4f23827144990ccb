package s3probe_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/csi-s3/csi-s3/pkg/s3"
	"github.com/csi-s3/csi-s3/pkg/s3/s3fault"
	"github.com/csi-s3/csi-s3/pkg/s3/s3mem"
	"github.com/csi-s3/csi-s3/pkg/s3/s3probe"
)

const dir = "volume/.csi-s3/probe/"

// mostRequests is what Probe promises.
const mostRequests = 48

// counted is a server that counts the requests which change or read it.
func counted(mem *s3mem.Bucket) (*s3fault.Bucket, *atomic.Int32) {
	var n atomic.Int32
	b := s3fault.New(mem)
	b.Fault = func(s3fault.Op) s3fault.Action {
		n.Add(1)
		return s3fault.Action{}
	}
	return b, &n
}

func clean(t *testing.T, mem *s3mem.Bucket) {
	t.Helper()
	page, err := mem.List(t.Context(), s3.ListInput{})
	uploads, _, uerr := mem.ListUploads(t.Context(), "")
	if err != nil || uerr != nil || len(page.Objects) > 0 || len(uploads) > 0 {
		t.Errorf("left: %v, %v, %v, %v", page.Objects, uploads, err, uerr)
	}
}

// conditions are the features that a quirk may spoil.
func conditions() []s3.Feature { return s3probe.Features()[:9] }

// TestProbeOfAnExactServer finds everything, in few requests, and leaves nothing.
func TestProbeOfAnExactServer(t *testing.T) {
	mem := s3mem.New("bucket")
	b, n := counted(mem)
	got, err := s3probe.Probe(t.Context(), b, dir)
	if err != nil || !maps.Equal(got, s3probe.All(s3probe.Honoured)) {
		t.Errorf("%v, %v", got, err)
	}
	clean(t, mem)
	t.Logf("%d requests", n.Load())
	if n.Load() > mostRequests {
		t.Errorf("%d requests", n.Load())
	}
}

// TestProbeFindsEachQuirk, alone and all together: a condition that is ignored, refused or misread is not honoured, and
// nothing else is blamed for it.
func TestProbeFindsEachQuirk(t *testing.T) {
	for quirk, answer := range map[s3mem.Quirk]s3probe.Answer{
		s3mem.Ignores: s3probe.Ignored, s3mem.Refuses: s3probe.Refused, s3mem.Misreads: s3probe.Refused,
	} {
		sets := []s3mem.Quirks{{}}
		for _, f := range conditions() {
			sets = append(sets, s3mem.Quirks{f: quirk})
			sets[0][f] = quirk
		}
		for _, quirks := range sets {
			mem := s3mem.New("bucket")
			mem.Quirks = quirks
			b, n := counted(mem)
			got, err := s3probe.Probe(t.Context(), b, dir)
			if err != nil {
				t.Fatalf("%v: %v", quirks, err)
			}
			for _, f := range s3probe.Features() {
				want := s3probe.Honoured
				if quirks[f] != s3mem.Honours {
					want = answer
				}
				// What cannot copy at all cannot be asked about the destination.
				if unasked := quirks[s3.CopySourceIfMatch] != s3mem.Honours && quirk != s3mem.Ignores && (f == s3.CopyIfMatch || f == s3.CopyIfNoneMatch); got[f] != want && !unasked {
					t.Errorf("%v: %q is %q, want %q", quirks, f, got[f], want)
				}
			}
			clean(t, mem)
			if n.Load() > mostRequests {
				t.Errorf("%v: %d requests", quirks, n.Load())
			}
		}
	}
}

// TestProbeChecksums: a server that does not tell the checksum of an object.
func TestProbeChecksums(t *testing.T) {
	for _, f := range []s3.Feature{s3.StoredChecksum, s3.MultipartChecksum} {
		mem := s3mem.New("bucket")
		mem.Quirks = s3mem.Quirks{f: s3mem.Ignores}
		got, err := s3probe.Probe(t.Context(), mem, dir)
		want := s3probe.All(s3probe.Honoured)
		want[f] = s3probe.Ignored
		if err != nil || !maps.Equal(got, want) {
			t.Errorf("%v, %v", got, err)
		}
	}
}

// TestProbeOfAServerThatFails: no failure of any request makes a feature absent, or present that is not; and what is known
// in spite of it is right.
func TestProbeOfAServerThatFails(t *testing.T) {
	for _, quirk := range []s3mem.Quirk{s3mem.Honours, s3mem.Ignores} {
		want := s3probe.All(s3probe.Honoured)
		mem := s3mem.New("bucket")
		mem.Quirks = s3mem.Quirks{}
		if quirk == s3mem.Ignores {
			for _, f := range conditions() {
				mem.Quirks[f], want[f] = quirk, s3probe.Ignored
			}
		}
		for _, cause := range []error{s3.ErrUnavailable, s3.ErrAuth, s3.ErrFull, errors.New("strange")} {
			for nth := int32(1); ; nth++ {
				for _, action := range []s3fault.Action{s3fault.FailBefore(cause), s3fault.FailAfter(cause)} {
					for _, forever := range []bool{false, true} {
						b, n := counted(mem)
						b.Fault = func(s3fault.Op) s3fault.Action {
							if i := n.Add(1); i == nth || forever && i > nth {
								return action
							}
							return s3fault.Action{}
						}
						got, err := s3probe.Probe(t.Context(), b, dir)
						if n.Load() < nth {
							if err != nil || !maps.Equal(got, want) {
								t.Fatalf("%v, %v", got, err)
							}
							goto next
						}
						if err == nil {
							t.Fatalf("%v at request %d: no error", cause, nth)
						}
						for f, a := range got {
							if a != want[f] {
								t.Errorf("%v at request %d, forever %v: %q is %q", cause, nth, forever, f, a)
							}
						}
						if n.Load() > mostRequests {
							t.Errorf("%d requests", n.Load())
						}
					}
				}
			}
		next:
		}
	}
}

// TestProbeIsBrokenOff: it ends with its context, and a later one removes what it left.
func TestProbeIsBrokenOff(t *testing.T) {
	mem := s3mem.New("bucket")
	ctx, cancel := context.WithCancel(t.Context())
	b, n := counted(mem)
	b.Fault = func(op s3fault.Op) s3fault.Action {
		if n.Add(1) == 10 {
			cancel()
		}
		if op.Name == "DeleteMany" || op.Name == "AbortUpload" {
			return s3fault.FailBefore(nil)
		}
		return s3fault.Action{}
	}
	if _, err := s3probe.Probe(ctx, b, dir); err == nil {
		t.Fatal("no error")
	}
	page, err := mem.List(t.Context(), s3.ListInput{})
	uploads, _, uerr := mem.ListUploads(t.Context(), "")
	if err != nil || uerr != nil || len(page.Objects) == 0 || len(uploads) == 0 {
		t.Fatalf("%v, %v, %v, %v: the test needs some litter", page, uploads, err, uerr)
	}
	for _, o := range page.Objects {
		if !strings.HasPrefix(string(o.Key), dir) {
			t.Errorf("%q was written", o.Key)
		}
	}
	if _, err := s3probe.Probe(t.Context(), mem, dir); err != nil {
		t.Fatal(err)
	}
	if page, err = mem.List(t.Context(), s3.ListInput{}); err != nil || len(page.Objects) == 0 {
		t.Fatalf("%v, %v: another probe's objects may be in use", page, err)
	}
	mem.Now = later
	if _, err := s3probe.Probe(t.Context(), mem, dir); err != nil {
		t.Fatal(err)
	}
	clean(t, mem)
}

// TestProbeNeverTouchesOthers: every key that it sends is below its own directory.
func TestProbeNeverTouchesOthers(t *testing.T) {
	mem := s3mem.New("bucket")
	b := s3fault.New(mem)
	b.Fault = func(op s3fault.Op) s3fault.Action {
		if !strings.HasPrefix(string(op.Key), dir) {
			t.Errorf("%s of %q", op.Name, op.Key)
		}
		return s3fault.Action{}
	}
	if _, err := s3probe.Probe(t.Context(), b, dir); err != nil {
		t.Fatal(err)
	}
	if n := fmt.Sprint(b.Count("List")); n != "1" {
		t.Errorf("%s listings", n)
	}
}
