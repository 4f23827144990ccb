package provision

import (
	"context"
	"errors"
	"fmt"
	"regexp"

	"github.com/csi-s3/csi-s3/pkg/config"
	"github.com/csi-s3/csi-s3/pkg/s3"
	"github.com/csi-s3/csi-s3/pkg/volmeta"
)

// Request asks for a volume.
type Request struct {
	Name       string // the name of CreateVolume: equal names are the same volume
	Parameters config.Parameters
	Secret     config.Secret // the flags among the parameters may change its region and its like
	// Required and Limit are the least and the most capacity in bytes, 0 for any. The volume gets the least, or the
	// most where there is no least, or no limit.
	Required, Limit int64
}

// attempts bounds how often Create starts over because another controller was faster.
const attempts = 3

// Create makes the volume, or finds it made by an earlier equal call. On return the record is in the bucket.
//
// ErrInvalid: the request's parameters or name. ErrSecret: its secret. ErrExists: the volume has another capacity or policy, belongs
// to another name, or there are objects in its place that csi-s3 did not put there. ErrBusy: it is being deleted, or
// other controllers keep changing it.
func (p *Provisioner) Create(ctx context.Context, r Request) (Volume, error) {
	id, err := r.Parameters.VolumeID(r.Name)
	if err != nil {
		return Volume{}, fmt.Errorf("volume %q: %w: %w", r.Name, ErrInvalid, err)
	}
	if r.Required < 0 || r.Limit < 0 || r.Limit > 0 && r.Required > r.Limit {
		return Volume{}, p.fail(id, fmt.Errorf("%w: capacity of at least %d and at most %d bytes", ErrInvalid, r.Required, r.Limit))
	}
	flags, err := config.ParseGeesefs(r.Parameters.Options)
	if err != nil {
		return Volume{}, p.fail(id, fmt.Errorf("%w: %w", ErrInvalid, err))
	}
	b, release, err := p.open(ctx, id, flags.Apply(r.Secret))
	if err != nil {
		return Volume{}, err
	}
	defer release()
	var capacity int64
	for range attempts {
		capacity, err = p.create(ctx, b, id, r)
		if !errors.Is(err, s3.ErrPrecondition) {
			break
		}
	}
	if errors.Is(err, s3.ErrNoBucket) {
		err = fmt.Errorf("%w: its bucket was removed meanwhile: %w", ErrBusy, err)
	}
	if err != nil {
		return Volume{}, p.fail(id, err)
	}
	return Volume{ID: id, Capacity: capacity, Attributes: r.Parameters.Attributes(capacity)}, nil
}

// create returns the capacity of the volume. s3.ErrPrecondition says that the record changed under it.
func (p *Provisioner) create(ctx context.Context, b s3.Bucket, id config.VolumeID, r Request) (int64, error) {
	prefix := s3.Key(id.Prefix)
	record, tag, err := volmeta.Read(ctx, b, prefix)
	switch {
	case err == nil:
		return p.fits(ctx, b, id, r, record, tag)
	case errors.Is(err, volmeta.ErrFormat):
		return 0, fmt.Errorf("%w: %w", ErrExists, err)
	case errors.Is(err, s3.ErrNoBucket), errors.Is(err, s3.ErrNotExist):
	default:
		return 0, err
	}
	made := false
	if errors.Is(err, s3.ErrNoBucket) {
		if err = b.CreateBucket(ctx); err != nil && !errors.Is(err, s3.ErrBucketExists) {
			return 0, err
		}
		made = err == nil
	}
	if !made {
		if err := p.vacant(ctx, b, id); err != nil {
			return 0, err
		}
	}
	// A bucket of such a name was made for the volume, by a call that ended before it wrote the record.
	made = id.Prefix == "" && (made || provisioned.MatchString(id.Bucket))
	record = p.record(id, r)
	record.MadeBucket = made
	if err := volmeta.Create(ctx, b, prefix, record); err != nil {
		return 0, err
	}
	p.opt.Log.Info("volume created", "volume", id.String(), "madeBucket", made)
	return record.Capacity, nil
}

// provisioned matches the names of buckets that only provisioners give: those of csi-provisioner, and bucketName's.
var provisioned = regexp.MustCompile(`^(pvc-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}|csi-s3-[0-9a-f]{40})$`)

func (p *Provisioner) record(id config.VolumeID, r Request) volmeta.Volume {
	v := volmeta.Volume{
		ID: id.String(), Name: r.Name, Driver: p.opt.Driver, Cluster: p.opt.Cluster, Created: p.opt.Now(),
		Capacity: r.Required, OnDelete: r.Parameters.OnDelete,
	}
	if v.Capacity == 0 {
		v.Capacity = r.Limit
	}
	if r.Parameters.PVCName != "" {
		v.Claim = &volmeta.Claim{Namespace: r.Parameters.PVCNamespace, Name: r.Parameters.PVCName}
	}
	return v
}

// fits answers a request for a volume that has a record.
func (p *Provisioner) fits(ctx context.Context, b s3.Bucket, id config.VolumeID, r Request, record volmeta.Volume, tag s3.ETag) (int64, error) {
	if err := p.owns(id, record); err != nil {
		return 0, fmt.Errorf("%w: %w", ErrExists, err)
	}
	switch record.State {
	case volmeta.Deleting:
		return 0, fmt.Errorf("%w: it is being deleted, which must end first", ErrBusy)
	case volmeta.Released:
		fresh := p.record(id, r)
		fresh.MadeBucket = record.MadeBucket
		fresh.Created = record.Created
		if err := volmeta.Replace(ctx, b, s3.Key(id.Prefix), fresh, tag); err != nil {
			return 0, err
		}
		p.opt.Log.Info("volume taken over with its objects", "volume", id.String(), "of", record.Name)
		return fresh.Capacity, nil
	}
	want := r.Parameters.OnDelete
	switch {
	case record.Name != r.Name:
		return 0, fmt.Errorf("%w: it is the volume of %q: delete that first, or let the prefix hold ${pv.name}", ErrExists, record.Name)
	case record.Capacity > 0 && record.Capacity < r.Required, r.Limit > 0 && (record.Capacity == 0 || record.Capacity > r.Limit):
		return 0, fmt.Errorf("%w: it has %s, wanted are at least %s and at most %s", ErrExists, size(record.Capacity), config.FormatSize(r.Required), size(r.Limit))
	case record.OnDelete != want:
		return 0, fmt.Errorf("%w: its onDelete is %q, wanted is %q", ErrExists, record.OnDelete, want)
	}
	return record.Capacity, nil
}

// vacant returns ErrExists unless nothing is in the place of the volume, and no other volume is around it.
func (p *Provisioner) vacant(ctx context.Context, b s3.Bucket, id config.VolumeID) error {
	prefix := s3.Key(id.Prefix)
	// One entry may be the marker of the directory itself, as other drivers make it.
	page, err := b.List(ctx, s3.ListInput{Prefix: prefix, MaxKeys: 2})
	if err != nil {
		return err
	}
	for _, o := range page.Objects {
		if o.Key == volmeta.Key(prefix) {
			return s3.ErrPrecondition // another controller was faster
		}
		if o.Key != prefix || o.Size > 0 {
			return fmt.Errorf("%w: there are objects that csi-s3 did not put there, such as %q; to use them make a PV by hand, with volumeHandle %q", ErrExists, string(o.Key), id)
		}
	}
	for i, c := range id.Prefix {
		if c != '/' || i == len(id.Prefix)-1 {
			continue
		}
		if err := p.outside(ctx, b, prefix[:i+1]); err != nil {
			return err
		}
	}
	if id.Prefix != "" {
		return p.outside(ctx, b, "")
	}
	return nil
}

// outside returns ErrExists when the keys below prefix are a volume: it would show the new one, and take it with it
// when it is deleted.
func (p *Provisioner) outside(ctx context.Context, b s3.Bucket, prefix s3.Key) error {
	_, err := b.Head(ctx, volmeta.Key(prefix))
	switch {
	case err == nil:
		return fmt.Errorf("%w: it would be within the volume %q", ErrExists, config.VolumeID{Bucket: b.Name(), Prefix: string(prefix)})
	case errors.Is(err, s3.ErrNotExist), errors.Is(err, s3.ErrAuth):
		// Credentials that are confined to their prefix cannot look, and need not: a volume around theirs is made with
		// wider ones.
		return nil
	}
	return err
}
