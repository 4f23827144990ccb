package s3mem_test

import (
	"errors"
	"testing"

	"github.com/csi-s3/csi-s3/pkg/s3"
	"github.com/csi-s3/csi-s3/pkg/s3/s3mem"
)

func TestServer(t *testing.T) {
	s := s3mem.NewServer()
	defer s.Close()
	if err := s.Bucket("a").HeadBucket(t.Context()); !errors.Is(err, s3.ErrNoBucket) {
		t.Fatal(err)
	}
	if err := s.Bucket("a").CreateBucket(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := s.Bucket("a").HeadBucket(t.Context()); err != nil || s.Bucket("a").Name() != "a" || s.Bucket("a") != s.Bucket("a") {
		t.Fatal(err)
	}
	if err := s.Bucket("b").HeadBucket(t.Context()); !errors.Is(err, s3.ErrNoBucket) {
		t.Fatal("buckets are one:", err)
	}
}
