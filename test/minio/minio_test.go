package minio_test

import (
	"net/http"
	"testing"

	"github.com/csi-s3/csi-s3/test/minio"
)

func TestStart(t *testing.T) {
	var s minio.Server
	t.Run("run", func(t *testing.T) {
		s = minio.Start(t)
		resp, err := http.Get(s.Endpoint + "/")
		if err != nil {
			t.Fatal(err)
		}
		if err := resp.Body.Close(); err != nil || resp.StatusCode != http.StatusForbidden {
			t.Fatal(resp.Status, err)
		}
	})
	if s.Endpoint == "" {
		t.SkipNow() // as the run above said
	}
	if resp, err := http.Get(s.Endpoint + "/"); err == nil {
		t.Fatal("still answers after the test:", resp.Status, resp.Body.Close())
	}
}
