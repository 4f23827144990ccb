package s3sdk

import (
	"context"
	"fmt"
	"net/http"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	sdk "github.com/aws/aws-sdk-go-v2/service/s3"

	"github.com/csi-s3/csi-s3/pkg/s3"
)

// Client speaks to one server with one set of credentials. It is safe for concurrent use. Credentials do not change:
// when they do, make a new Client.
type Client struct {
	api     *sdk.Client
	cfg     Config // without the credentials
	pool    *pool
	redact  func(string) string
	release func()
	// declare: uploads are created with the algorithm of their parts' checksums. Amazon S3 refuses a part's checksum
	// without it; MinIO with it refuses UploadPartCopy.
	declare bool
	plain   bool      // without TLS
	buffers sync.Pool // *[]byte of crcBuffer bytes
}

// New returns a client for c, or the error of c.Validate. It does not touch the network.
func New(c Config) (*Client, error) {
	if err := c.Validate(); err != nil {
		return nil, fmt.Errorf("s3sdk: %w", err)
	}
	if c.Region == "" {
		c.Region = defaultRegion
	}
	if c.Attempts == 0 {
		c.Attempts = defaultAttempts
	}
	transports := c.Transports
	if transports == nil {
		transports = new(Transports)
	}
	p, release := transports.open(c)
	creds := aws.Credentials{
		AccessKeyID:     string(c.Credentials.AccessKeyID),
		SecretAccessKey: string(c.Credentials.SecretAccessKey),
		SessionToken:    string(c.Credentials.SessionToken),
		Source:          "csi-s3",
	}
	api := sdk.New(sdk.Options{
		AppID:        "csi-s3",
		Region:       c.Region,
		BaseEndpoint: aws.String(c.Endpoint),
		UsePathStyle: !c.VirtualHost,
		Credentials:  aws.CredentialsProviderFunc(func(context.Context) (aws.Credentials, error) { return creds, nil }),
		HTTPClient:   sender{p},
		HTTPSignerV4: v4.NewSigner(func(o *v4.SignerOptions) { o.DisableURIPathEscaping = true }),

		RequestChecksumCalculation:                aws.RequestChecksumCalculationWhenRequired,
		ResponseChecksumValidation:                aws.ResponseChecksumValidationWhenRequired,
		DisableLogOutputChecksumValidationSkipped: true,
		ContinueHeaderThresholdBytes:              -1,
		DisableS3ExpressSessionAuth:               aws.Bool(true),
		DisableMultiRegionAccessPoints:            true,

		Retryer: aws.NopRetryer{},
	})
	redact := redactor(c.Credentials)
	c.Credentials = Credentials{}
	return &Client{api: api, cfg: c, pool: p, redact: redact, release: release, declare: c.amazon(), plain: c.plain(), buffers: sync.Pool{New: func() any {
		buf := make([]byte, crcBuffer)
		return &buf
	}}}, nil
}

// Close drops idle connections once no other client shares them. Requests under way are not disturbed.
func (c *Client) Close() { c.release() }

// Bucket returns the bucket of that name. It does not touch the network.
func (c *Client) Bucket(name string) s3.Bucket {
	return &bucket{Client: c, name: name, brakes: map[string]*brake{}}
}

type bucket struct {
	*Client
	name string

	mu   sync.Mutex
	seen time.Time // guarded by mu: when an answer last proved that the bucket exists
	// guarded by mu: by operation, since what is denied to one may be allowed to another
	brakes map[string]*brake
}

var _ s3.Bucket = (*bucket)(nil)

// Name is the bucket's name.
func (b *bucket) Name() string { return b.name }

func (b *bucket) brake(op string) *brake {
	b.mu.Lock()
	defer b.mu.Unlock()
	k := b.brakes[op]
	if k == nil {
		k = new(brake)
		b.brakes[op] = k
	}
	return k
}

// presence is how long an answer that proved the bucket's existence lets a HEAD's 404 mean an absent key.
const presence = 5 * time.Second

func (b *bucket) exists(yes bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.seen = time.Time{}
	if yes {
		b.seen = time.Now()
	}
}

func (b *bucket) seenLately() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return time.Since(b.seen) < presence
}

// sender hands the SDK's requests to a transport. It does without http.Client: no redirects, no cookies.
type sender struct{ *pool }

// Do sends one request and records its answer in the exchange of its context.
func (s sender) Do(r *http.Request) (*http.Response, error) {
	x := exchangeOf(r.Context())
	t := s.short
	if x.long {
		t = s.long
	}
	x.sent = true
	resp, err := t.RoundTrip(r)
	if err != nil {
		x.err = err
		return nil, err
	}
	x.record(resp)
	return resp, nil
}
