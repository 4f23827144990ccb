package volmeta_test

import (
	"bytes"
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

func record() volmeta.Volume {
	return volmeta.Volume{
		Version: volmeta.Version, ID: "shared/pvc-1", Name: "pvc-1", Driver: "csi-s3.dev", Cluster: "c", Created: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC),
		Capacity: 1 << 30, MadeBucket: true, OnDelete: "retain", State: volmeta.Released, Claim: &volmeta.Claim{Namespace: "n", Name: "p"},
	}
}

// The format, byte for byte: volumes outlive the program that wrote their record.
const golden = `{"version":1,"volume":"shared/pvc-1","name":"pvc-1","driver":"csi-s3.dev","cluster":"c","created":"2026-01-02T03:04:05Z",` +
	`"capacity":1073741824,"madeBucket":true,"onDelete":"retain","state":"released","claim":{"namespace":"n","name":"p"}}`

func TestFormat(t *testing.T) {
	data, err := record().Encode()
	if err != nil || string(data) != golden {
		t.Fatalf("%s, %v", data, err)
	}
	got, err := volmeta.Decode([]byte(golden))
	if err != nil || !reflect.DeepEqual(got, record()) {
		t.Fatalf("%+v, %v", got, err)
	}
	if _, err := volmeta.Decode([]byte(`{"version":1,"volume":"b","name":"b","driver":"d","created":"2026-01-02T03:04:05Z"}`)); err != nil {
		t.Fatal(err)
	}
	if k := volmeta.Key("a/b/"); k != "a/b/.csi-s3/volume.json" {
		t.Fatal(k)
	}
}

func TestDecodeRefuses(t *testing.T) {
	for what, change := range map[string][2]string{
		"another version":  {`"version":1`, `"version":2`},
		"no version":       {`"version":1,`, ``},
		"an unknown field": {`"version":1`, `"version":1,"future":true`},
		"no volume":        {`"shared/pvc-1"`, `""`},
		"no name":          {`"name":"pvc-1"`, `"name":""`},
		"no driver":        {`"driver":"csi-s3.dev",`, ``},
		"a bad capacity":   {`1073741824`, `-1`},
		"a bad onDelete":   {`"retain"`, `"perhaps"`},
		"a bad state":      {`"released"`, `"gone"`},
		"a bad time":       {`2026-01-02T03:04:05Z`, `yesterday`},
		"a torn end":       {`"}}`, `"}`},
		"more":             {`"}}`, `"}} {}`},
	} {
		text := strings.Replace(golden, change[0], change[1], 1)
		if v, err := volmeta.Decode([]byte(text)); text == golden || !errors.Is(err, volmeta.ErrFormat) {
			t.Errorf("%s: %+v, %v", what, v, err)
		}
	}
	for _, text := range []string{"", "null", "[]", "{}", "volume", "\x00"} {
		if _, err := volmeta.Decode([]byte(text)); !errors.Is(err, volmeta.ErrFormat) {
			t.Errorf("%q: %v", text, err)
		}
	}
	if _, err := (volmeta.Volume{ID: "x"}).Encode(); !errors.Is(err, volmeta.ErrFormat) {
		t.Error(err)
	}
}

// Of two writers one learns of the other, whatever the server makes of conditions.
func TestReadCreateReplace(t *testing.T) {
	for name, quirk := range map[string]s3mem.Quirk{"honoured": s3mem.Honours, "ignored": s3mem.Ignores, "refused": s3mem.Refuses} {
		t.Run(name, func(t *testing.T) {
			ctx, mem := t.Context(), s3mem.New("shared")
			mem.Quirks = s3mem.Quirks{s3.PutIfMatch: quirk, s3.PutIfNoneMatch: quirk}
			b := s3probe.NewGuard(mem)
			if _, _, err := volmeta.Read(ctx, b, "p/"); !errors.Is(err, s3.ErrNotExist) {
				t.Fatal(err)
			}
			if err := volmeta.Create(ctx, b, "p/", record()); err != nil {
				t.Fatal(err)
			}
			if err := volmeta.Create(ctx, b, "p/", record()); !errors.Is(err, s3.ErrPrecondition) {
				t.Fatal("a second record:", err)
			}
			got, tag, err := volmeta.Read(ctx, b, "p/")
			if err != nil || !reflect.DeepEqual(got, record()) {
				t.Fatalf("%+v, %v", got, err)
			}
			got.Capacity++
			if err := volmeta.Replace(ctx, b, "p/", got, tag); err != nil {
				t.Fatal(err)
			}
			if err := volmeta.Replace(ctx, b, "p/", record(), tag); !errors.Is(err, s3.ErrPrecondition) {
				t.Fatal("replaced what it had not read:", err)
			}
			if again, _, err := volmeta.Read(ctx, b, "p/"); err != nil || !reflect.DeepEqual(again, got) {
				t.Fatalf("%+v, %v", again, err)
			}
			// Neighbours have records of their own.
			if _, _, err := volmeta.Read(ctx, b, ""); !errors.Is(err, s3.ErrNotExist) {
				t.Fatal(err)
			}
		})
	}
}

// What is not a record is not an absent one, and neither is an answer that does not arrive.
func TestReadIsNeverAbsentByMistake(t *testing.T) {
	ctx, mem := t.Context(), s3mem.New("shared")
	if err := volmeta.Create(ctx, mem, "", record()); err != nil {
		t.Fatal(err)
	}
	for _, action := range []s3fault.Action{
		s3fault.FailBefore(nil), s3fault.FailAfter(nil), s3fault.ShortBody(0), s3fault.ShortBody(20), s3fault.CorruptBody(), s3fault.FailBefore(s3.ErrAuth),
	} {
		b := s3fault.New(mem)
		b.Fault = func(s3fault.Op) s3fault.Action { return action }
		if _, _, err := volmeta.Read(ctx, b, ""); err == nil || errors.Is(err, s3.ErrNotExist) || errors.Is(err, volmeta.ErrFormat) {
			t.Errorf("%+v: %v", action, err)
		}
	}
	for _, content := range []string{"", "{}", strings.Repeat("x", 1<<20), golden[:len(golden)/2]} {
		if _, err := mem.Put(ctx, volmeta.Key(""), s3.Body{R: bytes.NewReader([]byte(content)), Size: int64(len(content))}, s3.Attributes{}, s3.Condition{}); err != nil {
			t.Fatal(err)
		}
		if _, _, err := volmeta.Read(ctx, mem, ""); !errors.Is(err, volmeta.ErrFormat) {
			t.Errorf("%.20q: %v", content, err)
		}
	}
	if err := mem.Delete(ctx, volmeta.Key("")); err != nil {
		t.Fatal(err)
	}
	if err := mem.DeleteBucket(ctx); err != nil {
		t.Fatal(err)
	}
	if _, _, err := volmeta.Read(ctx, mem, ""); !errors.Is(err, s3.ErrNoBucket) {
		t.Error(err)
	}
}

func FuzzDecode(f *testing.F) {
	f.Add([]byte(golden))
	f.Add([]byte(`{"version":1,"volume":"b","name":"b","driver":"d"}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		v, err := volmeta.Decode(data)
		if err != nil {
			if !errors.Is(err, volmeta.ErrFormat) {
				t.Fatal(err)
			}
			return
		}
		text, err := v.Encode()
		if err != nil {
			return // a year that JSON cannot hold
		}
		again, err := volmeta.Decode(text)
		if err != nil || again.ID != v.ID || again.Name != v.Name || again.State != v.State || again.Capacity != v.Capacity || again.MadeBucket != v.MadeBucket {
			t.Fatalf("%s is %+v, then %+v, %v", data, v, again, err)
		}
	})
}
