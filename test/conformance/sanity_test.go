package conformance_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	"github.com/kubernetes-csi/csi-test/v5/pkg/sanity"

	"github.com/csi-s3/csi-s3/pkg/s3"
	"github.com/csi-s3/csi-s3/pkg/s3/s3sdk"
	"github.com/csi-s3/csi-s3/test/minio"
)

// TestSanity is csi-sanity with a bucket for each volume.
func TestSanity(t *testing.T) {
	if ownMounts(t) {
		runSanity(t, nil)
	}
}

// TestSanityShared is csi-sanity with all volumes in one bucket.
func TestSanityShared(t *testing.T) {
	if ownMounts(t) {
		runSanity(t, map[string]string{"bucket": "shared"})
	}
}

func runSanity(t *testing.T, parameters map[string]string) {
	server := minio.Start(t)
	p := newProcess(t)
	p.connect(t)
	all := map[string]map[string]string{}
	for _, call := range []string{
		"CreateVolumeSecret", "DeleteVolumeSecret", "ControllerValidateVolumeCapabilitiesSecret", "NodeStageVolumeSecret",
		"NodePublishVolumeSecret", "ControllerExpandVolumeSecret",
	} {
		all[call] = secrets(server)
	}
	file := filepath.Join(p.dir, "secrets.yaml")
	// JSON is YAML.
	content, err := json.Marshal(all)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, content, 0o600); err != nil {
		t.Fatal(err)
	}
	c := sanity.NewTestConfig()
	c.Address = "unix:" + p.socket
	c.TargetPath = filepath.Join(p.dir, "mount")
	c.StagingPath = filepath.Join(p.dir, "staging")
	c.SecretsFile = file
	c.TestVolumeParameters = parameters
	c.TestVolumeSize = 1 << 30
	sanity.Test(t, c)

	for _, m := range p.mounts(t) {
		t.Errorf("still mounted: %s", m)
	}
	client, err := s3sdk.New(s3sdk.Config{Endpoint: server.Endpoint, Credentials: s3sdk.Credentials{
		AccessKeyID: s3sdk.Secret(server.AccessKey), SecretAccessKey: s3sdk.Secret(server.SecretKey),
	}})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	if bucket := parameters["bucket"]; bucket != "" {
		page, err := client.Bucket(bucket).List(t.Context(), s3.ListInput{})
		if err != nil || len(page.Objects) > 0 {
			t.Errorf("left in the bucket: %v, %v", page.Objects, err)
		}
	}
}
