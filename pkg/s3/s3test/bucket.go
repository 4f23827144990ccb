package s3test

import "github.com/csi-s3/csi-s3/pkg/s3"

func bucket(s *suite) {
	if s.Bucket.Name() == "" {
		s.Error("no name")
	}
	s.ok(s.HeadBucket(s.ctx))
	s.is(s.CreateBucket(s.ctx), s3.ErrBucketExists)
	s.put("k", "x")
	s.is(s.DeleteBucket(s.ctx), s3.ErrBucketNotEmpty)
	s.holds("k", "x")
	s.ok(s.Delete(s.ctx, "k"))
	s.ok(s.DeleteBucket(s.ctx))
	s.is(s.HeadBucket(s.ctx), s3.ErrNoBucket)
	s.ok(s.DeleteBucket(s.ctx))
	s.ok(s.CreateBucket(s.ctx))
	s.ok(s.HeadBucket(s.ctx))
	s.lists(s3.ListInput{})
}

// noBucket: an absent bucket is never taken for an absent key.
func noBucket(s *suite) {
	s.put("k", "x")
	s.gone("absent")
	s.ok(s.Delete(s.ctx, "k"))
	s.ok(s.DeleteBucket(s.ctx))
	_, err := s.Head(s.ctx, "k")
	s.is(err, s3.ErrNoBucket)
	_, _, err = s.Get(s.ctx, "k", nil, "")
	s.is(err, s3.ErrNoBucket)
	_, err = s.Put(s.ctx, "k", bodyOf([]byte("x")), s3.Attributes{}, s3.Condition{})
	s.is(err, s3.ErrNoBucket)
	_, err = s.Put(s.ctx, "k", bodyOf([]byte("x")), s3.Attributes{}, s3.Condition{IfMatch: tagOf(nil)})
	s.is(err, s3.ErrNoBucket)
	_, err = s.Copy(s.ctx, "k", "", "l", nil, s3.Condition{})
	s.is(err, s3.ErrNoBucket)
	s.is(s.Delete(s.ctx, "k"), s3.ErrNoBucket)
	_, err = s.DeleteMany(s.ctx, []s3.Key{"k"})
	s.is(err, s3.ErrNoBucket)
	_, err = s.List(s.ctx, s3.ListInput{})
	s.is(err, s3.ErrNoBucket)
	_, _, err = s.ListUploads(s.ctx, "")
	s.is(err, s3.ErrNoBucket)
	_, _, err = s.ListVersions(s.ctx, "", "")
	s.is(err, s3.ErrNoBucket)
	_, err = s.CreateUpload(s.ctx, "k", s3.Attributes{})
	s.is(err, s3.ErrNoBucket)
}
