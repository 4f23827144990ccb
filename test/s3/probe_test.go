package s3_test

import (
	"maps"
	"testing"

	"github.com/csi-s3/csi-s3/pkg/s3"
	"github.com/csi-s3/csi-s3/pkg/s3/s3probe"
	"github.com/csi-s3/csi-s3/pkg/s3/s3sdk"
	"github.com/csi-s3/csi-s3/test/minio"
	"github.com/csi-s3/csi-s3/test/s3/versity"
)

// TestProbeMinIO and TestProbeVersityGW hold the table of what these servers support: a line that changes is a change of the
// server, or a probe that is wrong.
func TestProbeMinIO(t *testing.T) {
	s := minio.Start(t)
	probed(t, s3sdk.Config{Endpoint: s.Endpoint, Credentials: s3sdk.Credentials{AccessKeyID: s3sdk.Secret(s.AccessKey), SecretAccessKey: s3sdk.Secret(s.SecretKey)}}, s3probe.Answers{
		s3.CopyIfNoneMatch: s3probe.Ignored, s3.CopyIfMatch: s3probe.Ignored, s3.DeleteIfMatch: s3probe.Ignored,
		s3.MultipartChecksum: s3probe.Ignored,
	})
}

func TestProbeVersityGW(t *testing.T) {
	s, err := versity.Start(t.Context(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Stop(); err != nil {
			t.Error(err)
		}
	})
	probed(t, s3sdk.Config{Endpoint: s.Endpoint, Credentials: s3sdk.Credentials{AccessKeyID: s3sdk.Secret(s.AccessKey), SecretAccessKey: s3sdk.Secret(s.SecretKey)}}, s3probe.Answers{
		s3.CopyIfNoneMatch: s3probe.Ignored, s3.CopyIfMatch: s3probe.Ignored, s3.EncodedKeys: s3probe.Ignored,
	})
}

// probed probes a server that supports all but what is named.
func probed(t *testing.T, conf s3sdk.Config, but s3probe.Answers) {
	t.Helper()
	b := opener(client(t, conf))(t)
	want := s3probe.All(s3probe.Honoured)
	maps.Copy(want, but)
	got, err := s3probe.Probe(t.Context(), b, ".csi-s3/probe/")
	if err != nil {
		t.Error(err)
	}
	for _, f := range s3probe.Features() {
		t.Logf("%-28s %s", f, got[f])
		if got[f] != want[f] {
			t.Errorf("%q is %q, want %q", f, got[f], want[f])
		}
	}
	page, err := b.List(t.Context(), s3.ListInput{})
	if err != nil || len(page.Objects) > 0 {
		t.Errorf("left: %v, %v", page.Objects, err)
	}
	uploads, _, err := b.ListUploads(t.Context(), "")
	if err != nil || len(uploads) > 0 {
		t.Errorf("left open: %v, %v", uploads, err)
	}
}
