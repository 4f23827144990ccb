package provision

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/csi-s3/csi-s3/pkg/config"
	"github.com/csi-s3/csi-s3/pkg/s3"
	"github.com/csi-s3/csi-s3/pkg/s3/s3probe"
	"github.com/csi-s3/csi-s3/pkg/s3/s3sdk"
	"github.com/csi-s3/csi-s3/pkg/volmeta"
)

// Sentinels. An error that wraps none of them is unknown.
var (
	// ErrInvalid: the request can never work: a parameter, a name that the server refuses.
	ErrInvalid = errors.New("invalid request")
	// ErrSecret: a secret that no client can be made of.
	ErrSecret = errors.New("secret is not usable")
	// ErrNotFound: there is no such volume.
	ErrNotFound = errors.New("no such volume")
	// ErrExists: something of that ID exists that the request does not fit: another size, another volume, objects
	// of others.
	ErrExists = errors.New("exists already and does not fit")
	// ErrNotOwned: no record says that csi-s3 of this cluster made the volume, so nothing of it is deleted.
	ErrNotOwned = errors.New("not made by this driver")
	// ErrBusy: another call is at work on the volume, or it is in use. Retrying is right.
	ErrBusy = errors.New("volume is busy")
	// ErrDenied: the server refuses the credentials, or they may not do this.
	ErrDenied = errors.New("access denied")
	// ErrFull: the server has no room for another volume.
	ErrFull = errors.New("storage is full")
	// ErrUnavailable: the server does not answer, or the context ended (then it wraps its error too). Retrying is
	// right.
	ErrUnavailable = errors.New("server unavailable")
)

// Server is an S3 server, reached with one set of credentials.
type Server interface {
	// Bucket returns the bucket of that name, whether it exists or not, without touching the network.
	Bucket(name string) s3.Bucket
	// Close releases what the Server holds.
	Close()
}

// Connect returns the server that a secret names, without touching the network. The caller closes it.
type Connect func(config.Secret) (Server, error)

// SDK connects to real servers. Connections are shared through transports, which may be nil.
func SDK(transports *s3sdk.Transports) Connect {
	return func(s config.Secret) (Server, error) {
		return s3sdk.New(s3sdk.Config{
			Endpoint: s.Endpoint, Region: s.Region, VirtualHost: s.VirtualHost, Insecure: s.Insecure,
			CABundle: []byte(s.CABundle),
			Credentials: s3sdk.Credentials{
				AccessKeyID:     s3sdk.Secret(s.AccessKeyID),
				SecretAccessKey: s3sdk.Secret(s.SecretAccessKey),
				SessionToken:    s3sdk.Secret(s.SessionToken),
			},
			Transports: transports,
		})
	}
}

// Options of a Provisioner. Driver is required.
type Options struct {
	Driver  string           // name that goes into the records
	Cluster string           // goes into the records; a record of another cluster is not ours. Empty: not checked
	Now     func() time.Time // nil means time.Now
	Log     *slog.Logger     // nil means none
}

// Provisioner creates and deletes volumes. It is safe for concurrent use.
type Provisioner struct {
	connect Connect
	opt     Options

	mu   sync.Mutex
	busy map[config.VolumeID]chan struct{} // guarded by mu: closed when the call that holds the volume is over
}

// New returns a Provisioner that reaches servers through connect.
func New(connect Connect, opt Options) *Provisioner {
	if opt.Now == nil {
		opt.Now = time.Now
	}
	if opt.Log == nil {
		opt.Log = slog.New(slog.DiscardHandler)
	}
	return &Provisioner{connect: connect, opt: opt, busy: map[config.VolumeID]chan struct{}{}}
}

// Volume is what is known of a volume.
type Volume struct {
	ID       config.VolumeID
	Capacity int64 // bytes; 0 is unlimited
	// Attributes is the volume context, for config.ParseAttributes on the node.
	Attributes map[string]string
}

// Exists returns the volume of that ID. A volume without a record, as a static one is, exists when its bucket does,
// with no capacity. ErrNotFound when there is no such bucket, when a prefix has neither record nor objects, or when
// the volume is being deleted.
func (p *Provisioner) Exists(ctx context.Context, id config.VolumeID, secret config.Secret) (Volume, error) {
	b, release, err := p.open(ctx, id, secret)
	if err != nil {
		return Volume{}, err
	}
	defer release()
	record, _, err := volmeta.Read(ctx, b, s3.Key(id.Prefix))
	switch {
	case err == nil && record.State != volmeta.Live:
		return Volume{}, p.fail(id, fmt.Errorf("%w: it was deleted", ErrNotFound))
	case err == nil:
		return Volume{ID: id, Capacity: record.Capacity}, nil
	case errors.Is(err, volmeta.ErrFormat):
		return Volume{ID: id}, nil
	case !errors.Is(err, s3.ErrNotExist):
		return Volume{}, p.fail(id, err)
	}
	if id.Prefix == "" {
		if err := b.HeadBucket(ctx); err != nil {
			return Volume{}, p.fail(id, err)
		}
		return Volume{ID: id}, nil
	}
	page, err := b.List(ctx, s3.ListInput{Prefix: s3.Key(id.Prefix), MaxKeys: 1})
	if err != nil {
		return Volume{}, p.fail(id, err)
	}
	if len(page.Objects) == 0 {
		return Volume{}, p.fail(id, fmt.Errorf("%w: nothing is below the prefix", ErrNotFound))
	}
	return Volume{ID: id}, nil
}

// Expand raises the capacity of a volume in its record to required, in bytes, and returns what it is now: never less
// than before. limit is the most that is wanted, 0 for any; a volume that is larger is ErrExists. A volume without
// record gets none: its capacity is what the PV says.
func (p *Provisioner) Expand(ctx context.Context, id config.VolumeID, secret config.Secret, required, limit int64) (int64, error) {
	if required < 0 || limit < 0 || limit > 0 && required > limit {
		return 0, p.fail(id, fmt.Errorf("%w: capacity of at least %d and at most %d bytes", ErrInvalid, required, limit))
	}
	b, release, err := p.open(ctx, id, secret)
	if err != nil {
		return 0, err
	}
	defer release()
	record, tag, err := volmeta.Read(ctx, b, s3.Key(id.Prefix))
	if errors.Is(err, s3.ErrNotExist) {
		if err := b.HeadBucket(ctx); err != nil {
			return 0, p.fail(id, err)
		}
		return required, nil
	}
	if err == nil && record.State != volmeta.Live {
		err = fmt.Errorf("%w: it was deleted", ErrNotFound)
	}
	if err == nil {
		err = p.owns(id, record)
	}
	if err != nil {
		return 0, p.fail(id, err)
	}
	unlimited := record.Capacity == 0
	if limit > 0 && (unlimited || record.Capacity > limit) {
		return 0, p.fail(id, fmt.Errorf("%w: it has %s, more than the %s wanted", ErrExists, size(record.Capacity), size(limit)))
	}
	if unlimited || record.Capacity >= required {
		return record.Capacity, nil
	}
	record.Capacity = required
	if err := volmeta.Replace(ctx, b, s3.Key(id.Prefix), record, tag); err != nil {
		return 0, p.fail(id, err)
	}
	return required, nil
}

func size(n int64) string {
	if n == 0 {
		return "no limit"
	}
	return config.FormatSize(n)
}

// open reaches the bucket of a volume, whose conditions count whatever the server makes of them, and holds the volume until
// release.
func (p *Provisioner) open(ctx context.Context, id config.VolumeID, secret config.Secret) (b s3.Bucket, release func(), err error) {
	// A prefix without its slash would be one of other volumes too, as pvc-1 is of pvc-10.
	if id.Bucket == "" || id.Prefix != "" && !strings.HasSuffix(id.Prefix, "/") || strings.HasPrefix(id.Prefix, "/") {
		return nil, nil, fmt.Errorf("volume %q: %w: not a volume ID", id, ErrInvalid)
	}
	server, err := p.connect(secret)
	if err != nil {
		return nil, nil, fmt.Errorf("volume %q: %w: %w", id, ErrSecret, err)
	}
	unlock, err := p.lock(ctx, id)
	if err != nil {
		server.Close()
		return nil, nil, p.fail(id, err)
	}
	return s3probe.NewGuard(server.Bucket(id.Bucket)), func() {
		unlock()
		server.Close()
	}, nil
}

// lock waits until no other call is at work on the volume.
func (p *Provisioner) lock(ctx context.Context, id config.VolumeID) (unlock func(), err error) {
	for {
		p.mu.Lock()
		other := p.busy[id]
		if other == nil {
			done := make(chan struct{})
			p.busy[id] = done
			p.mu.Unlock()
			return func() {
				p.mu.Lock()
				delete(p.busy, id)
				p.mu.Unlock()
				close(done)
			}, nil
		}
		p.mu.Unlock()
		select {
		case <-other:
		case <-ctx.Done():
			return nil, fmt.Errorf("%w: another call is at work on it: %w", ErrBusy, ctx.Err())
		}
	}
}

// owns returns ErrNotOwned unless the record says that the keys below id are a volume of this driver and cluster.
func (p *Provisioner) owns(id config.VolumeID, record volmeta.Volume) error {
	switch {
	case record.ID != id.String():
		return fmt.Errorf("%w: its record is of volume %q", ErrNotOwned, record.ID)
	case record.Cluster != "" && p.opt.Cluster != "" && record.Cluster != p.opt.Cluster:
		return fmt.Errorf("%w: its record is of cluster %q, this is %q", ErrNotOwned, record.Cluster, p.opt.Cluster)
	}
	return nil
}

// fail wraps err with the volume ID and the sentinel that belongs to it.
func (p *Provisioner) fail(id config.VolumeID, err error) error {
	for _, known := range []error{ErrInvalid, ErrSecret, ErrNotFound, ErrExists, ErrNotOwned, ErrBusy, ErrDenied, ErrFull, ErrUnavailable} {
		if errors.Is(err, known) {
			return fmt.Errorf("volume %q: %w", id, err)
		}
	}
	for _, c := range []struct{ is, sentinel error }{
		{s3.ErrAuth, ErrDenied},
		{s3.ErrFull, ErrFull},
		{s3.ErrNoBucket, ErrNotFound},
		{s3.ErrPrecondition, ErrBusy},   // the record changed between reading and writing it
		{s3.ErrBucketNotEmpty, ErrBusy}, // it was empty when we looked
		{volmeta.ErrFormat, ErrNotOwned},
		{s3.ErrUnavailable, ErrUnavailable},
		{s3.ErrCorrupt, ErrUnavailable},
		{s3.ErrInvalid, ErrInvalid},
	} {
		if errors.Is(err, c.is) {
			return fmt.Errorf("volume %q: %w: %w", id, c.sentinel, err)
		}
	}
	return fmt.Errorf("volume %q: %w", id, err)
}
