package volmeta_test

import (
	"errors"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/csi-s3/csi-s3/pkg/s3"
	"github.com/csi-s3/csi-s3/pkg/s3/s3fault"
	"github.com/csi-s3/csi-s3/pkg/s3/s3mem"
	"github.com/csi-s3/csi-s3/pkg/s3/s3probe"
	"github.com/csi-s3/csi-s3/pkg/volmeta"
)

func lease() volmeta.Lease {
	return volmeta.Lease{
		Version: volmeta.Version, Epoch: 7, Holder: "node-1", Cache: "abc", Serial: 3, State: volmeta.LeaseDirty, DirtyBytes: 4096, TTLSeconds: 60,
		Renewed: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC),
	}
}

// The format, byte for byte: nodes of different versions read each other's.
const goldenLease = `{"version":1,"epoch":7,"holder":"node-1","cache":"abc","serial":3,"state":"dirty","dirtyBytes":4096,"ttlSeconds":60,` +
	`"renewed":"2026-01-02T03:04:05Z"}`

func TestLeaseFormat(t *testing.T) {
	data, err := lease().Encode()
	if err != nil || string(data) != goldenLease {
		t.Fatalf("%s, %v", data, err)
	}
	got, err := volmeta.DecodeLease([]byte(goldenLease))
	if err != nil || !reflect.DeepEqual(got, lease()) || got.TTL() != time.Minute {
		t.Fatalf("%+v, %v", got, err)
	}
	if k := volmeta.LeaseKey("a/b/"); k != "a/b/.csi-s3/lease" {
		t.Fatal(k)
	}
	for what, change := range map[string][2]string{
		"another version":  {`"version":1`, `"version":2`},
		"an unknown field": {`"version":1`, `"version":1,"future":true`},
		"no epoch":         {`"epoch":7`, `"epoch":0`},
		"no holder":        {`"node-1"`, `""`},
		"no cache":         {`"abc"`, `""`},
		"a bad state":      {`"dirty"`, `"perhaps"`},
		"negative bytes":   {`4096`, `-1`},
		"no TTL":           {`"ttlSeconds":60`, `"ttlSeconds":0`},
		"a TTL of a day":   {`"ttlSeconds":60`, `"ttlSeconds":86400`},
		"a torn end":       {`"}`, `"`},
	} {
		text := strings.Replace(goldenLease, change[0], change[1], 1)
		if l, err := volmeta.DecodeLease([]byte(text)); text == goldenLease || !errors.Is(err, volmeta.ErrFormat) {
			t.Errorf("%s: %+v, %v", what, l, err)
		}
	}
}

// Of two writers that read the same record one learns of the other, whether the server has conditions or not.
func TestLeaseIsComparedBeforeItIsReplaced(t *testing.T) {
	for name, quirk := range map[string]s3mem.Quirk{"honoured": s3mem.Honours, "ignored": s3mem.Ignores, "refused": s3mem.Refuses} {
		t.Run(name, func(t *testing.T) {
			ctx, mem := t.Context(), s3mem.New("bucket")
			mem.Quirks = s3mem.Quirks{s3.PutIfMatch: quirk, s3.PutIfNoneMatch: quirk}
			b := s3probe.NewGuard(mem)
			if _, _, err := volmeta.ReadLease(ctx, b, "p/"); !errors.Is(err, s3.ErrNotExist) {
				t.Fatal(err)
			}
			first, err := volmeta.WriteLease(ctx, b, "p/", lease(), "")
			if err != nil {
				t.Fatal(err)
			}
			got, tag, err := volmeta.ReadLease(ctx, b, "p/")
			if err != nil || tag != first || !got.Same(lease()) {
				t.Fatalf("%+v, %q, %q, %v", got, tag, first, err)
			}
			other := lease()
			other.Serial++
			if _, err := volmeta.WriteLease(ctx, b, "p/", other, ""); !errors.Is(err, s3.ErrPrecondition) {
				t.Errorf("a second record: %v", err)
			}
			if _, err := volmeta.WriteLease(ctx, b, "p/", other, tag+"x"); !errors.Is(err, s3.ErrPrecondition) {
				t.Errorf("replaced what it had not read: %v", err)
			}
			if _, err := volmeta.WriteLease(ctx, b, "other/", other, tag); !errors.Is(err, s3.ErrPrecondition) {
				t.Errorf("replaced what is not there: %v", err)
			}
			if got, _, err := volmeta.ReadLease(ctx, b, "p/"); err != nil || !got.Same(lease()) {
				t.Errorf("%+v, %v", got, err)
			}
			if _, err := volmeta.WriteLease(ctx, b, "p/", other, tag); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// A broken lease is nobody's, of the next epoch, and to be waited for; the holder's next write of it fails.
func TestBreakLease(t *testing.T) {
	for name, fault := range map[string]s3fault.Action{"answered": {}, "answer lost": s3fault.FailAfter(nil)} {
		t.Run(name, func(t *testing.T) {
			ctx, b := t.Context(), s3fault.New(s3mem.New("bucket"))
			tag, err := volmeta.WriteLease(ctx, b, "p/", lease(), "")
			if err != nil {
				t.Fatal(err)
			}
			b.Fault = func(op s3fault.Op) s3fault.Action {
				if op.Name == "Put" {
					return fault
				}
				return s3fault.Action{}
			}
			if err := volmeta.BreakLease(ctx, b, "p/", lease(), tag, time.Time{}); err != nil {
				t.Fatal(err)
			}
			b.Fault = nil
			got, _, err := volmeta.ReadLease(ctx, b, "p/")
			if err != nil || got.Epoch != 8 || got.Cache != "" || got.State != volmeta.LeaseClean || got.TTL() != time.Minute {
				t.Errorf("%+v, %v", got, err)
			}
			if _, err := volmeta.WriteLease(ctx, b, "p/", lease(), tag); !errors.Is(err, s3.ErrPrecondition) {
				t.Errorf("the holder goes on: %v", err)
			}
			if err := volmeta.BreakLease(ctx, b, "p/", lease(), tag, time.Time{}); err != nil {
				t.Errorf("a repeated call: %v", err)
			}
			other := lease()
			other.Epoch = 3
			if err := volmeta.BreakLease(ctx, b, "p/", other, tag, time.Time{}); !errors.Is(err, s3.ErrPrecondition) {
				t.Errorf("broke what it had not read: %v", err)
			}
		})
	}
}

func FuzzDecodeLease(f *testing.F) {
	f.Add([]byte(goldenLease))
	f.Fuzz(func(t *testing.T, data []byte) {
		l, err := volmeta.DecodeLease(data)
		if err != nil {
			if !errors.Is(err, volmeta.ErrFormat) {
				t.Fatal(err)
			}
			return
		}
		text, err := l.Encode()
		if err != nil {
			return // a year that JSON cannot hold
		}
		if again, err := volmeta.DecodeLease(text); err != nil || !again.Same(l) || again.State != l.State {
			t.Fatalf("%s is %+v, then %+v, %v", data, l, again, err)
		}
	})
}

func TestRecordIsAskedForAgain(t *testing.T) {
	for name, fault := range map[string]s3fault.Action{"corrupt": s3fault.CorruptBody(), "short": s3fault.ShortBody(3)} {
		t.Run(name, func(t *testing.T) {
			b := s3fault.New(s3mem.New("bucket"))
			want := lease()
			if _, err := volmeta.WriteLease(t.Context(), b, "", want, ""); err != nil {
				t.Fatal(err)
			}
			bad, asked := 4, 0
			b.Fault = func(op s3fault.Op) s3fault.Action {
				if op.Name != "Get" {
					return s3fault.Action{}
				}
				if asked++; asked > bad {
					return s3fault.Action{}
				}
				return fault
			}
			l, _, err := volmeta.ReadLease(t.Context(), b, "")
			if err != nil || l.Epoch != want.Epoch || asked != 5 {
				t.Errorf("read after %d requests: %+v, %v", asked, l, err)
			}
			bad, asked = 100, 0
			if _, _, err = volmeta.ReadLease(t.Context(), b, ""); err == nil || asked != 5 {
				t.Errorf("read after %d requests: %v", asked, err)
			}
		})
	}
}
