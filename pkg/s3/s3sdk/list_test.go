package s3sdk_test

import (
	"errors"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/csi-s3/csi-s3/pkg/s3"
)

func TestListedKeysAreDecodedOnlyWhenEncoded(t *testing.T) {
	for _, c := range []struct {
		echo string
		want []s3.Key
	}{
		{"<EncodingType>url</EncodingType>", []s3.Key{"a b/c\x01", "100%", "p+q r"}},
		{"", []s3.Key{"a+b%2Fc%01", "100%25", "p%2Bq%20r"}},
	} {
		s := serve(t, func(w http.ResponseWriter, _ request, _ int) {
			xml(w, "<ListBucketResult><Name>bkt</Name>"+c.echo+"<Contents><Key>a+b%2Fc%01</Key></Contents><Contents><Key>100%25</Key></Contents>"+
				"<CommonPrefixes><Prefix>p%2Bq%20r</Prefix></CommonPrefixes></ListBucketResult>")
		})
		page, err := open(t, config(s.URL)).List(t.Context(), s3.ListInput{Prefix: "x y", Delimiter: "/", StartAfter: "s", MaxKeys: 7})
		if err != nil {
			t.Fatal(err)
		}
		got := append([]s3.Key{page.Objects[0].Key, page.Objects[1].Key}, page.Prefixes...)
		if !slices.Equal(got, c.want) {
			t.Errorf("%q: %q, want %q", c.echo, got, c.want)
		}
		q := s.seen()[0].URL.Query()
		for k, v := range map[string]string{"encoding-type": "url", "prefix": "x y", "delimiter": "/", "start-after": "s", "max-keys": "7"} {
			if q.Get(k) != v {
				t.Errorf("%s is %q, want %q", k, q.Get(k), v)
			}
		}
	}
}

func TestListingsThatCannotBeWholeFail(t *testing.T) {
	for name, doc := range map[string]string{
		"undecodable key":    "<ListBucketResult><Name>bkt</Name><EncodingType>url</EncodingType><Contents><Key>100%</Key></Contents></ListBucketResult>",
		"no token":           "<ListBucketResult><Name>bkt</Name><IsTruncated>true</IsTruncated><Contents><Key>a</Key></Contents></ListBucketResult>",
		"control byte":       "<ListBucketResult><Name>bkt</Name><Contents><Key>a\x01b</Key></Contents></ListBucketResult>",
		"breaks off":         "<ListBucketResult><Name>bkt</Name><Contents><Key>a</Key></Contents>",
		"empty":              "",
		"page":               "<html>welcome</html>",
		"not a listing":      "{}",
		"an error, with 200": "<Error><Code>SlowDown</Code></Error>",
	} {
		s := serve(t, func(w http.ResponseWriter, _ request, _ int) { xml(w, doc) })
		cfg := config(s.URL)
		cfg.Attempts = 1
		page, err := open(t, cfg).List(t.Context(), s3.ListInput{})
		if !errors.Is(err, s3.ErrUnavailable) || len(page.Objects) > 0 {
			t.Errorf("%s: %+v, %v", name, page, err)
		}
	}
}

func TestDeleteManyTellsWhatIsLeft(t *testing.T) {
	s := serve(t, func(w http.ResponseWriter, r request, _ int) {
		if r.Method == http.MethodDelete {
			if strings.Contains(r.RequestURI, "denied") {
				fault(w, 403, "AccessDenied")
				return
			}
			w.WriteHeader(204)
			return
		}
		xml(w, `<DeleteResult><Deleted><Key>gone</Key></Deleted><Error><Key>locked</Key><Code>AccessDenied</Code></Error>`+
			`<Error><Key>absent</Key><Code>NoSuchKey</Code></Error><Error><Key>busy</Key><Code>SlowDown</Code></Error></DeleteResult>`)
	})
	failed, err := open(t, config(s.URL)).DeleteMany(t.Context(), []s3.Key{"gone", "locked", "absent", "busy", "forgotten", "c\x01d", "denied\x02"})
	if err != nil {
		t.Fatal(err)
	}
	want := map[s3.Key]error{"locked": s3.ErrAuth, "busy": s3.ErrUnavailable, "forgotten": s3.ErrUnavailable, "denied\x02": s3.ErrAuth}
	if len(failed) != len(want) {
		t.Errorf("failed: %v", failed)
	}
	for key, sentinel := range want {
		if !errors.Is(failed[key], sentinel) {
			t.Errorf("%q: %v, want %v", key, failed[key], sentinel)
		}
	}
	var single []string
	for _, r := range s.seen() {
		if r.Method == http.MethodDelete {
			single = append(single, r.URL.Path)
		} else if strings.Contains(string(r.body), "\x01") || strings.Contains(string(r.body), "\uFFFD") {
			t.Errorf("a key that XML cannot hold went into it: %q", r.body)
		}
	}
	if !slices.Equal(single, []string{"/bkt/c\x01d", "/bkt/denied\x02"}) {
		t.Errorf("removed one by one: %q", single)
	}
}

func TestListVersionsWithoutVersions(t *testing.T) {
	s := serve(t, func(w http.ResponseWriter, r request, _ int) {
		q := r.URL.Query()
		switch {
		case q.Has("versions"):
			fault(w, 501, "NotImplemented")
		case q.Get("continuation-token") == "":
			xml(w, "<ListBucketResult><Name>bkt</Name><IsTruncated>true</IsTruncated><NextContinuationToken>t&amp;1</NextContinuationToken><Contents><Key>a</Key></Contents></ListBucketResult>")
		case q.Get("continuation-token") == "t&1":
			xml(w, "<ListBucketResult><Name>bkt</Name><Contents><Key>b</Key></Contents></ListBucketResult>")
		}
	})
	b := open(t, config(s.URL))
	var all []s3.Version
	token := ""
	for {
		versions, next, err := b.ListVersions(t.Context(), "", token)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, versions...)
		if token = next; token == "" {
			break
		}
	}
	if !slices.Equal(all, []s3.Version{{Key: "a"}, {Key: "b"}}) {
		t.Errorf("%+v", all)
	}
}

func TestListVersionsPages(t *testing.T) {
	s := serve(t, func(w http.ResponseWriter, r request, _ int) {
		q := r.URL.Query()
		if q.Get("key-marker") == "" {
			xml(w, "<ListVersionsResult><Name>bkt</Name><EncodingType>url</EncodingType><IsTruncated>true</IsTruncated><NextKeyMarker>a+%26b</NextKeyMarker><NextVersionIdMarker>v1</NextVersionIdMarker>"+
				"<Version><Key>a+%26b</Key><VersionId>v1</VersionId></Version></ListVersionsResult>")
			return
		}
		if q.Get("key-marker") != "a &b" || q.Get("version-id-marker") != "v1" {
			t.Errorf("markers: %q", r.URL.RawQuery)
		}
		xml(w, "<ListVersionsResult><Name>bkt</Name><DeleteMarker><Key>a &amp;b</Key><VersionId>v0</VersionId></DeleteMarker><Version><Key>c</Key><VersionId>null</VersionId></Version></ListVersionsResult>")
	})
	b := open(t, config(s.URL))
	first, token, err := b.ListVersions(t.Context(), "", "")
	if err != nil {
		t.Fatal(err)
	}
	rest, next, err := b.ListVersions(t.Context(), "", token)
	if err != nil || next != "" {
		t.Fatal(next, err)
	}
	want := []s3.Version{{Key: "a &b", VersionID: "v1"}, {Key: "c"}, {Key: "a &b", VersionID: "v0"}}
	if got := append(first, rest...); !slices.Equal(got, want) {
		t.Errorf("%+v, want %+v", got, want)
	}
}
