package volume

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/csi-s3/csi-s3/pkg/config"
	"github.com/csi-s3/csi-s3/pkg/s3"
	"github.com/csi-s3/csi-s3/pkg/s3/s3sdk"
)

// connect opens the bucket as the secret says.
func (s *Set) connect(bucket string, secret config.Secret) (*current, error) {
	open := s.Connect
	if open == nil {
		open = s.client
	}
	b, done, err := open(bucket, secret)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrSecret, err)
	}
	return &current{name: bucket, bucket: b, done: done}, nil
}

// client makes the real client. Each secret has its own, since the signer of a client keeps what it derived from its
// keys; the connections are shared.
func (s *Set) client(bucket string, secret config.Secret) (s3.Bucket, func(), error) {
	c, err := s3sdk.New(s3sdk.Config{
		Endpoint:    secret.Endpoint,
		Region:      secret.Region,
		VirtualHost: secret.VirtualHost,
		CABundle:    []byte(secret.CABundle),
		Insecure:    secret.Insecure,
		Credentials: s3sdk.Credentials{
			AccessKeyID:     s3sdk.Secret(secret.AccessKeyID),
			SecretAccessKey: s3sdk.Secret(secret.SecretAccessKey),
			SessionToken:    s3sdk.Secret(secret.SessionToken),
		},
		Transports: &s.transports,
	})
	if err != nil {
		return nil, nil, err
	}
	return c.Bucket(bucket), c.Close, nil
}

// check asks for one key below the prefix: the least that a mount needs, and allowed to keys that see only their
// prefix. A mount that could never work is refused here, instead of failing file by file.
func (s *Set) check(ctx context.Context, b s3.Bucket, prefix s3.Key) error {
	patience := s.Patience
	if patience == 0 {
		patience = time.Minute
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	if _, err := b.List(ctx, s3.ListInput{Prefix: prefix, MaxKeys: 1}); err != nil {
		return fmt.Errorf("bucket %s cannot be listed: %w", b.Name(), classify(err))
	}
	return nil
}

// classify adds the sentinel of this package to an error of the bucket.
func classify(err error) error {
	for _, c := range []struct{ is, sentinel error }{
		{s3.ErrNoBucket, ErrNotFound},
		{s3.ErrAuth, ErrDenied},
		{s3.ErrUnavailable, ErrUnavailable},
	} {
		if errors.Is(err, c.is) {
			return fmt.Errorf("%w: %w", c.sentinel, err)
		}
	}
	return err
}

// renew takes a new secret into use. One that does not work is not an error of the call: the mount goes on with what
// it has, and the next republish brings the next secret. The caller holds the volume's lock.
func (s *Set) renew(ctx context.Context, v *staged, secret config.Secret) {
	if secret == v.request.Secret {
		return
	}
	log := s.Log.With("volume", v.request.ID.String())
	if secret.Endpoint != v.request.Secret.Endpoint {
		log.Error("the secret names another endpoint: the mount stays with the old one until the volume is staged anew", "endpoint", secret.Endpoint)
		s.tell(v.request.ID, ReasonSecret, fmt.Sprintf("the secret names another endpoint, %s: the mount stays with the old one until no pod of the node uses the volume", secret.Endpoint))
		return
	}
	fresh, err := s.connect(v.request.ID.Bucket, secret)
	if err == nil {
		err = s.check(ctx, fresh, s3.Key(v.request.ID.Prefix))
		if err != nil {
			fresh.close()
		}
	}
	if err != nil {
		log.Error("the new secret does not work: the mount stays with the old one", "err", err)
		if !errors.Is(err, ErrUnavailable) {
			s.tell(v.request.ID, ReasonSecret, fmt.Sprintf("the new secret does not work, the mount goes on with the old one: %v", err))
		}
		return
	}
	v.bucket.replace(fresh)
	v.request.Secret = secret
	log.Info("credentials replaced")
}

// current is a bucket whose client can be exchanged while it is in use. Requests under way end with the client that
// they began with.
type current struct {
	name string

	mu     sync.RWMutex
	bucket s3.Bucket // guarded by mu
	done   func()    // guarded by mu
}

var _ s3.Bucket = (*current)(nil)

func (c *current) now() s3.Bucket {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return c.bucket
}

func (c *current) replace(with *current) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.done()
	c.bucket, c.done = with.bucket, with.done
}

func (c *current) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.done()
}

// The methods are those of s3.Bucket.

func (c *current) Name() string { return c.name }

func (c *current) Head(ctx context.Context, key s3.Key) (s3.Info, error) {
	return c.now().Head(ctx, key)
}

func (c *current) Get(ctx context.Context, key s3.Key, r *s3.Range, ifMatch s3.ETag) (io.ReadCloser, s3.Info, error) {
	return c.now().Get(ctx, key, r, ifMatch)
}

func (c *current) Put(ctx context.Context, key s3.Key, body s3.Body, attr s3.Attributes, cond s3.Condition) (s3.Info, error) {
	return c.now().Put(ctx, key, body, attr, cond)
}

func (c *current) Copy(ctx context.Context, src s3.Key, srcMatch s3.ETag, dst s3.Key, attr *s3.Attributes, cond s3.Condition) (s3.Info, error) {
	return c.now().Copy(ctx, src, srcMatch, dst, attr, cond)
}

func (c *current) Delete(ctx context.Context, key s3.Key) error { return c.now().Delete(ctx, key) }

func (c *current) DeleteIf(ctx context.Context, key s3.Key, match s3.ETag) error {
	return c.now().DeleteIf(ctx, key, match)
}

func (c *current) DeleteMany(ctx context.Context, keys []s3.Key) (map[s3.Key]error, error) {
	return c.now().DeleteMany(ctx, keys)
}

func (c *current) List(ctx context.Context, in s3.ListInput) (s3.Page, error) {
	return c.now().List(ctx, in)
}

func (c *current) CreateUpload(ctx context.Context, key s3.Key, attr s3.Attributes) (s3.UploadID, error) {
	return c.now().CreateUpload(ctx, key, attr)
}

func (c *current) UploadPart(ctx context.Context, key s3.Key, id s3.UploadID, n int, body s3.Body) (s3.Part, error) {
	return c.now().UploadPart(ctx, key, id, n, body)
}

func (c *current) CopyPart(ctx context.Context, key s3.Key, id s3.UploadID, n int, src s3.Key, srcMatch s3.ETag, r s3.Range) (s3.Part, error) {
	return c.now().CopyPart(ctx, key, id, n, src, srcMatch, r)
}

func (c *current) ListParts(ctx context.Context, key s3.Key, id s3.UploadID) ([]s3.Part, error) {
	return c.now().ListParts(ctx, key, id)
}

func (c *current) CompleteUpload(ctx context.Context, key s3.Key, id s3.UploadID, parts []s3.Part, cond s3.Condition) (s3.Info, error) {
	return c.now().CompleteUpload(ctx, key, id, parts, cond)
}

func (c *current) AbortUpload(ctx context.Context, key s3.Key, id s3.UploadID) error {
	return c.now().AbortUpload(ctx, key, id)
}

func (c *current) ListUploads(ctx context.Context, prefix s3.Key) ([]s3.Upload, time.Time, error) {
	return c.now().ListUploads(ctx, prefix)
}

func (c *current) CreateBucket(ctx context.Context) error { return c.now().CreateBucket(ctx) }
func (c *current) HeadBucket(ctx context.Context) error   { return c.now().HeadBucket(ctx) }
func (c *current) DeleteBucket(ctx context.Context) error { return c.now().DeleteBucket(ctx) }

func (c *current) ListVersions(ctx context.Context, prefix s3.Key, token string) ([]s3.Version, string, error) {
	return c.now().ListVersions(ctx, prefix, token)
}

func (c *current) DeleteVersions(ctx context.Context, versions []s3.Version) (map[s3.Version]error, error) {
	return c.now().DeleteVersions(ctx, versions)
}
