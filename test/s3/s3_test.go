package s3_test

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/csi-s3/csi-s3/pkg/s3"
	"github.com/csi-s3/csi-s3/pkg/s3/s3probe"
	"github.com/csi-s3/csi-s3/pkg/s3/s3sdk"
	"github.com/csi-s3/csi-s3/pkg/s3/s3test"
	"github.com/csi-s3/csi-s3/test/minio"
	"github.com/csi-s3/csi-s3/test/s3/versity"
)

func TestVersityGW(t *testing.T) {
	s, err := versity.Start(t.Context(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Stop(); err != nil {
			t.Error(err)
		}
	})
	c := client(t, s3sdk.Config{Endpoint: s.Endpoint, Credentials: s3sdk.Credentials{AccessKeyID: s3sdk.Secret(s.AccessKey), SecretAccessKey: s3sdk.Secret(s.SecretKey)}})
	// It looks up the ETag of a path before it opens the file.
	s3test.Run(t, guarded(opener(c)), s3test.Options{NoOddComponents: true, NoControl: true, NoOverlap: true, NoMarkerBody: true, RacyTags: true})
}

func TestMinIO(t *testing.T) {
	s := minio.Start(t)
	c := client(t, s3sdk.Config{Endpoint: s.Endpoint, Credentials: s3sdk.Credentials{AccessKeyID: s3sdk.Secret(s.AccessKey), SecretAccessKey: s3sdk.Secret(s.SecretKey)}})
	s3test.Run(t, guarded(opener(c)), s3test.Options{NoOddComponents: true, NoOverlap: true})
}

func client(t *testing.T, cfg s3sdk.Config) *s3sdk.Client {
	t.Helper()
	c, err := s3sdk.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// guarded makes conditions count that the server ignores.
func guarded(open func(*testing.T) s3.Bucket) func(*testing.T) s3.Bucket {
	return func(t *testing.T) s3.Bucket { return s3probe.NewGuard(open(t)) }
}

// opener returns fresh buckets and removes them with all that is in them.
func opener(c *s3sdk.Client) func(t *testing.T) s3.Bucket {
	var n atomic.Int32
	return func(t *testing.T) s3.Bucket {
		t.Helper()
		b := c.Bucket(fmt.Sprintf("conformance-%d", n.Add(1)))
		if err := b.CreateBucket(t.Context()); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
			defer cancel()
			for {
				page, err := b.List(ctx, s3.ListInput{})
				if err != nil || len(page.Objects) == 0 {
					break
				}
				var keys []s3.Key
				for _, o := range page.Objects {
					keys = append(keys, o.Key)
				}
				if _, err := b.DeleteMany(ctx, keys); err != nil {
					t.Log(err)
					break
				}
			}
		})
		return b
	}
}
