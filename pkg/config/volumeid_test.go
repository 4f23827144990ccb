package config_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/csi-s3/csi-s3/pkg/config"
)

func TestParseVolumeID(t *testing.T) {
	for id, want := range map[string]config.VolumeID{
		"bucket":                  {Bucket: "bucket"},
		"bucket/":                 {Bucket: "bucket"},
		"bucket/a":                {Bucket: "bucket", Prefix: "a/"},
		"bucket/a/":               {Bucket: "bucket", Prefix: "a/"},
		"bucket/a/b c/ü":          {Bucket: "bucket", Prefix: "a/b c/ü/"},
		"Old_Bucket.1/x":          {Bucket: "Old_Bucket.1", Prefix: "x/"},
		"b.u/..a/.b/...":          {Bucket: "b.u", Prefix: "..a/.b/.../"},
		"bucket/.csi-s3x":         {Bucket: "bucket", Prefix: ".csi-s3x/"},
		strings.Repeat("b", 63):   {Bucket: strings.Repeat("b", 63)},
		"pvc-0000/manual prefix$": {Bucket: "pvc-0000", Prefix: "manual prefix$/"},
	} {
		got, err := config.ParseVolumeID(id)
		if err != nil || got != want {
			t.Errorf("%q: %+v, %v", id, got, err)
		}
		if s := got.String(); s != strings.TrimSuffix(id, "/") {
			t.Errorf("%q prints as %q", id, s)
		}
	}
}

func TestParseVolumeIDRefuses(t *testing.T) {
	for _, id := range []string{
		"", "/", "//", "/a", "ab", "a b", "bucket//a", "bucket/a//b", "bucket/a//", "bucket//", "bucket/.", "bucket/..", "bucket/../other", "bucket/a/../b",
		"bucket/./a", "..", "../x", "-bucket", ".bucket", "_bucket", "bu..cket", "bucket:a", "büchse", "bucket?x", "bucket\x00", "bucket/a\x00b",
		"bucket/a\nb", "bucket/a\u0085", "bucket/\xff", "bucket/.csi-s3", "bucket/a/.csi-s3/b", "bucket/" + strings.Repeat("x", 513), strings.Repeat("b", 256),
	} {
		got, err := config.ParseVolumeID(id)
		if !errors.Is(err, config.ErrVolumeID) || got != (config.VolumeID{}) {
			t.Errorf("%q: %+v, %v", id, got, err)
		}
	}
}

func FuzzParseVolumeID(f *testing.F) {
	for _, id := range []string{"bucket", "bucket/a/b", "bucket/a/", "bucket//a", "bucket/../x", "b/\x00", "Bucket_1/é"} {
		f.Add(id)
	}
	f.Fuzz(func(t *testing.T, id string) {
		v, err := config.ParseVolumeID(id)
		if err != nil {
			if !errors.Is(err, config.ErrVolumeID) {
				t.Fatal(err)
			}
			return
		}
		again, err := config.ParseVolumeID(v.String())
		if err != nil || again != v {
			t.Fatalf("%q is %+v, which parses as %+v, %v", id, v, again, err)
		}
		if strings.TrimSuffix(id, "/") != v.String() {
			t.Fatalf("%q became %q", id, v)
		}
		if v.Prefix != "" && (!strings.HasSuffix(v.Prefix, "/") || strings.HasPrefix(v.Prefix, "/")) {
			t.Fatalf("prefix %q", v.Prefix)
		}
		for _, bad := range []string{"//", "/../", "/./", "\x00", "/.csi-s3/"} {
			if strings.Contains("/"+v.Prefix, bad) {
				t.Fatalf("prefix %q holds %q", v.Prefix, bad)
			}
		}
	})
}
