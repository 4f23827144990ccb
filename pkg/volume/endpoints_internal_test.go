package volume

import (
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/csi-s3/csi-s3/pkg/config"
	"github.com/csi-s3/csi-s3/pkg/metrics"
	"github.com/csi-s3/csi-s3/pkg/s3"
)

// The volumes of one endpoint share its limits, whatever their secrets, and a scrape sees each field in its place.
func TestEndpoints(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet {
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		w.Header().Set("Etag", `"tag"`)
		w.Header().Set("X-Amz-Checksum-Crc32c", "AAAAAA==")
		w.Header().Set("Content-Length", "1")
		_, _ = w.Write([]byte("x")) // a client that gave up is no matter
	}))
	defer server.Close()
	s := new(Set)
	for _, key := range []string{"one", "two"} {
		b, done, err := s.client("bucket", config.Secret{Endpoint: server.URL, AccessKeyID: config.Hidden(key), SecretAccessKey: "secret"})
		if err != nil {
			t.Fatal(err)
		}
		defer done()
		rc, _, err := b.Get(t.Context(), "k", nil, "")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := rc.Read(make([]byte, 1)); err == nil {
			t.Error("the checksum is wrong, and nobody said so")
		}
		_ = rc.Close()
		if _, err := b.Copy(t.Context(), "k", "", "l", nil, s3.Condition{}); err == nil {
			t.Error("a copy succeeded")
		}
	}
	all := s.Endpoints()
	if len(all) != 1 {
		t.Fatalf("%+v", all)
	}
	e := all[0]
	if e.URL != server.URL || e.Corrupt != 2 || e.Compared != 0 || e.Hedged != 0 {
		t.Errorf("%+v", e)
	}
	if e.Reads != (metrics.Load{Limit: 32}) || e.Lookups != e.Reads || e.Writes.Limit >= 32 || e.Writes.Throttled < 2 {
		t.Errorf("%+v", e)
	}
}
