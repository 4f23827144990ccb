package s3_test

import (
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	sdk "github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"

	"github.com/csi-s3/csi-s3/pkg/s3"
	"github.com/csi-s3/csi-s3/pkg/s3/s3sdk"
	"github.com/csi-s3/csi-s3/test/minio"
)

// TestVersionsOfAVersionedBucket: what was written before versioning was on has no ID, and goes away like the rest.
func TestVersionsOfAVersionedBucket(t *testing.T) {
	s := minio.Start(t)
	b := client(t, s3sdk.Config{Endpoint: s.Endpoint, Credentials: s3sdk.Credentials{AccessKeyID: s3sdk.Secret(s.AccessKey), SecretAccessKey: s3sdk.Secret(s.SecretKey)}}).Bucket("versioned")
	if err := b.CreateBucket(t.Context()); err != nil {
		t.Fatal(err)
	}
	put := func(key s3.Key) {
		t.Helper()
		if _, err := b.Put(t.Context(), key, s3.Body{R: strings.NewReader("x"), Size: 1}, s3.Attributes{}, s3.Condition{}); err != nil {
			t.Fatal(err)
		}
	}
	put("p/old only")
	put("p/both + é")
	put("other")
	api := sdk.New(sdk.Options{
		BaseEndpoint: &s.Endpoint, UsePathStyle: true, Region: "us-east-1",
		Credentials: credentials.NewStaticCredentialsProvider(s.AccessKey, s.SecretKey, ""),
	})
	if _, err := api.PutBucketVersioning(t.Context(), &sdk.PutBucketVersioningInput{
		Bucket: aws.String("versioned"), VersioningConfiguration: &types.VersioningConfiguration{Status: types.BucketVersioningStatusEnabled},
	}); err != nil {
		t.Fatal(err)
	}
	put("p/both + é")
	put("p/new")
	for _, key := range []s3.Key{"p/new", "p/old only"} {
		if err := b.Delete(t.Context(), key); err != nil {
			t.Fatal(err)
		}
	}
	versions, next, err := b.ListVersions(t.Context(), "p/", "")
	if err != nil || next != "" {
		t.Fatal(next, err)
	}
	// old only: itself and a marker; both: two; new: itself and a marker.
	unnamed := 0
	for _, v := range versions {
		if v.VersionID == "" {
			unnamed++
		}
	}
	if len(versions) != 6 || unnamed != 2 {
		t.Fatalf("%d without ID of %q", unnamed, versions)
	}
	failed, err := b.DeleteVersions(t.Context(), versions)
	if err != nil || len(failed) > 0 {
		t.Fatal(failed, err)
	}
	left, _, err := b.ListVersions(t.Context(), "", "")
	if err != nil || len(left) != 1 || left[0].Key != "other" {
		t.Fatalf("left: %q, %v", left, err)
	}
}
