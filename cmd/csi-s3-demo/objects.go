package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"path/filepath"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"

	"github.com/csi-s3/csi-s3/test/s3/versity"
)

// startServer runs the S3 server in this process, with its data in dir.
func startServer(ctx context.Context, dir string) (*versity.Server, error) {
	return versity.Start(ctx, filepath.Clean(dir))
}

// objects looks into the bucket with a plain S3 client that knows nothing of csi-s3.
type objects struct {
	server *versity.Server
	client *s3.Client
	bucket string
}

func newObjects(srv *versity.Server) *objects {
	return &objects{server: srv, client: s3.New(s3.Options{
		BaseEndpoint: aws.String(srv.Endpoint),
		Region:       "us-east-1",
		UsePathStyle: true,
		Credentials: aws.CredentialsProviderFunc(func(context.Context) (aws.Credentials, error) {
			return aws.Credentials{AccessKeyID: srv.AccessKey, SecretAccessKey: srv.SecretKey}, nil
		}),
	})}
}

// secret is what the chart's Secret would hold.
func (o *objects) secret() map[string]string {
	return map[string]string{
		"endpoint":        o.server.Endpoint,
		"accessKeyID":     o.server.AccessKey,
		"secretAccessKey": o.server.SecretKey,
	}
}

// hint is the command line that looks at the bucket.
func (o *objects) hint() string {
	return fmt.Sprintf("  AWS_ACCESS_KEY_ID=%s AWS_SECRET_ACCESS_KEY=%s aws --endpoint-url %s s3 ls --recursive s3://%s",
		o.server.AccessKey, o.server.SecretKey, o.server.Endpoint, o.bucket)
}

// list returns "KEY (SIZE bytes)" of all objects.
func (o *objects) list(ctx context.Context) ([]string, error) {
	out, err := o.client.ListObjectsV2(ctx, &s3.ListObjectsV2Input{Bucket: &o.bucket})
	if err != nil {
		return nil, err
	}
	var keys []string
	for _, c := range out.Contents {
		keys = append(keys, fmt.Sprintf("%s (%d bytes)", aws.ToString(c.Key), aws.ToInt64(c.Size)))
	}
	return keys, nil
}

// hasSum is an error unless the object's content has this SHA-256.
func (o *objects) hasSum(ctx context.Context, key, sum string) (string, error) {
	out, err := o.client.GetObject(ctx, &s3.GetObjectInput{Bucket: &o.bucket, Key: &key})
	if err != nil {
		return "", err
	}
	defer out.Body.Close() //nolint:errcheck // it was only read
	h := sha256.New()
	if _, err := io.Copy(h, out.Body); err != nil {
		return "", err
	}
	if got := hex.EncodeToString(h.Sum(nil)); got != sum {
		return "", fmt.Errorf("object %s has sha256 %s, want %s", key, got, sum)
	}
	return fmt.Sprintf("%s, sha256 %.16s", key, sum), nil
}

// absent is an error while the object exists.
func (o *objects) absent(ctx context.Context, key string) error {
	_, err := o.client.HeadObject(ctx, &s3.HeadObjectInput{Bucket: &o.bucket, Key: &key})
	var gone *types.NotFound
	switch {
	case errors.As(err, &gone):
		return nil
	case err != nil:
		return err
	}
	return fmt.Errorf("object %s is still there", key)
}
