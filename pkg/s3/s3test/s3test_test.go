package s3test_test

import (
	"testing"

	"github.com/csi-s3/csi-s3/pkg/s3"
	"github.com/csi-s3/csi-s3/pkg/s3/s3fault"
	"github.com/csi-s3/csi-s3/pkg/s3/s3mem"
	"github.com/csi-s3/csi-s3/pkg/s3/s3test"
)

func TestMemory(t *testing.T) {
	s3test.Run(t, func(*testing.T) s3.Bucket { return s3mem.New("bucket") }, s3test.Options{})
}

func TestFaultless(t *testing.T) {
	s3test.Run(t, func(*testing.T) s3.Bucket { return s3fault.New(s3mem.New("bucket")) }, s3test.Options{})
}
