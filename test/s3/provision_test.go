package s3_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	sdk "github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"

	"github.com/csi-s3/csi-s3/pkg/config"
	"github.com/csi-s3/csi-s3/pkg/provision"
	"github.com/csi-s3/csi-s3/pkg/s3"
	"github.com/csi-s3/csi-s3/test/minio"
	"github.com/csi-s3/csi-s3/test/s3/versity"
)

func TestProvisionOnVersityGW(t *testing.T) {
	s, err := versity.Start(t.Context(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Stop(); err != nil {
			t.Error(err)
		}
	})
	lifeOfVolumes(t, secretOf(s.Endpoint, s.AccessKey, s.SecretKey))
}

func TestProvisionOnMinIO(t *testing.T) {
	s := minio.Start(t)
	secret := secretOf(s.Endpoint, s.AccessKey, s.SecretKey)
	lifeOfVolumes(t, secret)
	deleteVersioned(t, secret)
}

func secretOf(endpoint, access, secret string) config.Secret {
	return config.Secret{Endpoint: endpoint, AccessKeyID: config.Hidden(access), SecretAccessKey: config.Hidden(secret)}
}

func request(t *testing.T, secret config.Secret, name string, parameters map[string]string) provision.Request {
	t.Helper()
	p, err := config.ParseParameters(parameters)
	if err != nil {
		t.Fatal(err)
	}
	return provision.Request{Name: name, Parameters: p, Secret: secret, Required: 1 << 30}
}

func bucketOf(t *testing.T, secret config.Secret, name string) s3.Bucket {
	t.Helper()
	server, err := provision.SDK(nil)(secret)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(server.Close)
	return server.Bucket(name)
}

func fill(t *testing.T, b s3.Bucket, keys ...string) {
	t.Helper()
	for _, key := range keys {
		if _, err := b.Put(t.Context(), s3.Key(key), s3.Body{R: strings.NewReader("x"), Size: 1}, s3.Attributes{}, s3.Condition{}); err != nil {
			t.Fatal(err)
		}
	}
}

// lifeOfVolumes makes and deletes a volume that is a bucket, and one of two that are prefixes.
func lifeOfVolumes(t *testing.T, secret config.Secret) {
	const own = "pvc-0b7e3c8e-5b0d-4b8e-9f4e-2f8f0c1d2e3f"
	ctx, p := t.Context(), provision.New(provision.SDK(nil), provision.Options{Driver: "csi-s3.dev"})
	shared := map[string]string{"bucket": "shared"}
	for _, r := range []provision.Request{request(t, secret, own, nil), request(t, secret, "pvc-1", shared), request(t, secret, "pvc-10", shared)} {
		v, err := p.Create(ctx, r)
		if err != nil {
			t.Fatal(err)
		}
		if again, err := p.Create(ctx, r); err != nil || again.ID != v.ID {
			t.Fatalf("again: %v, %v", again.ID, err)
		}
		r.Required *= 2
		if _, err := p.Create(ctx, r); !errors.Is(err, provision.ErrExists) {
			t.Fatalf("of another size: %v", err)
		}
		if n, err := p.Expand(ctx, v.ID, secret, 2<<30, 0); err != nil || n != 2<<30 {
			t.Fatal(n, err)
		}
		if found, err := p.Exists(ctx, v.ID, secret); err != nil || found.Capacity != 2<<30 {
			t.Fatalf("%+v, %v", found, err)
		}
		b := bucketOf(t, secret, v.ID.Bucket)
		var keys []string
		for i := range 1100 {
			keys = append(keys, fmt.Sprintf("%sd%d/f &%d", v.ID.Prefix, i%7, i))
		}
		fill(t, b, keys...)
		if _, err := b.CreateUpload(ctx, s3.Key(v.ID.Prefix+"upload"), s3.Attributes{}); err != nil {
			t.Fatal(err)
		}
	}
	bucket := bucketOf(t, secret, "shared")
	fill(t, bucket, "pvc-1-other", "z")
	for _, id := range []config.VolumeID{{Bucket: own}, {Bucket: "shared", Prefix: "pvc-1/"}} {
		for range 2 {
			if err := p.Delete(ctx, id, secret); err != nil {
				t.Fatal(err)
			}
			if _, err := p.Exists(ctx, id, secret); !errors.Is(err, provision.ErrNotFound) {
				t.Fatalf("%v is there: %v", id, err)
			}
		}
	}
	if err := bucketOf(t, secret, own).HeadBucket(ctx); !errors.Is(err, s3.ErrNoBucket) {
		t.Error(err)
	}
	left := 0
	for in := (s3.ListInput{}); ; {
		page, err := bucket.List(ctx, in)
		if err != nil {
			t.Fatal(err)
		}
		left += len(page.Objects)
		for _, o := range page.Objects {
			if strings.HasPrefix(string(o.Key), "pvc-1/") && string(o.Key) != "pvc-1/" {
				t.Errorf("left %q", o.Key)
			}
		}
		if in.Token = page.Token; in.Token == "" {
			break
		}
	}
	// 1,100 files, a record and the two of others.
	if left != 1103 {
		t.Errorf("%d objects are left", left)
	}
	if open, _, err := bucket.ListUploads(ctx, "pvc-1/"); err != nil || len(open) > 0 {
		t.Error(open, err)
	}
	if err := p.Delete(ctx, config.VolumeID{Bucket: "shared"}, secret); !errors.Is(err, provision.ErrNotOwned) {
		t.Errorf("the shared bucket: %v", err)
	}
}

// deleteVersioned deletes a volume from a bucket that keeps every version, whose markers would otherwise stay.
func deleteVersioned(t *testing.T, secret config.Secret) {
	const name = "pvc-11111111-5b0d-4b8e-9f4e-2f8f0c1d2e3f"
	ctx, p := t.Context(), provision.New(provision.SDK(nil), provision.Options{Driver: "csi-s3.dev"})
	v, err := p.Create(ctx, request(t, secret, name, nil))
	if err != nil {
		t.Fatal(err)
	}
	b := bucketOf(t, secret, name)
	fill(t, b, "before")
	api := sdk.New(sdk.Options{
		Region: "us-east-1", BaseEndpoint: aws.String(secret.Endpoint), UsePathStyle: true,
		Credentials: credentials.NewStaticCredentialsProvider(string(secret.AccessKeyID), string(secret.SecretAccessKey), ""),
	})
	if _, err := api.PutBucketVersioning(ctx, &sdk.PutBucketVersioningInput{
		Bucket: aws.String(name), VersioningConfiguration: &types.VersioningConfiguration{Status: types.BucketVersioningStatusEnabled},
	}); err != nil {
		t.Fatal(err)
	}
	fill(t, b, "before", "a", "a", "gone")
	if err := b.Delete(ctx, "gone"); err != nil {
		t.Fatal(err)
	}
	if versions, _, err := b.ListVersions(ctx, "", ""); err != nil || len(versions) != 7 {
		t.Fatalf("%v, %v", versions, err)
	}
	if err := p.Delete(ctx, v.ID, secret); err != nil {
		t.Fatal(err)
	}
	if err := b.HeadBucket(ctx); !errors.Is(err, s3.ErrNoBucket) {
		t.Error(err)
	}
}
