package volmeta

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/csi-s3/csi-s3/pkg/s3"
)

// LeaseState is what the holder of a lease has that the bucket does not.
type LeaseState string

// States.
const (
	LeaseClean    LeaseState = "clean"    // nothing, when the record was written
	LeaseDirty    LeaseState = "dirty"    // changes that only its cache has
	LeaseReleased LeaseState = "released" // nothing, and it will not write under this epoch any more
)

// Lease says who may write to a volume.
type Lease struct {
	Version    int        `json:"version"`
	Epoch      uint64     `json:"epoch"`            // from 1, one more each time that it is acquired
	Holder     string     `json:"holder,omitempty"` // node; empty when a person broke the lease
	Cache      string     `json:"cache,omitempty"`  // names the holder's cache directory; empty as Holder
	Serial     uint64     `json:"serial"`           // of this write of the record, within the epoch
	State      LeaseState `json:"state"`
	DirtyBytes int64      `json:"dirtyBytes,omitempty"`
	TTLSeconds int        `json:"ttlSeconds"` // a record that did not change for so long says that its holder sends nothing any more
	Renewed    time.Time  `json:"renewed"`    // by the holder's clock: for people
}

// maxTTL is the longest that a lease may ask others to wait, in seconds.
const maxTTL = 3600

// LeaseKey is the key of the lease of the volume below prefix, which is empty or ends with a slash.
func LeaseKey(prefix s3.Key) s3.Key { return prefix + Dir + "lease" }

// TTL is TTLSeconds.
func (l Lease) TTL() time.Duration { return time.Duration(l.TTLSeconds) * time.Second }

// Same says that both are one and the same write of the record.
func (l Lease) Same(other Lease) bool {
	return l.Cache == other.Cache && l.Epoch == other.Epoch && l.Serial == other.Serial
}

// Encode returns l as it is stored, with the version of this package.
func (l Lease) Encode() ([]byte, error) {
	l.Version = Version
	l.Renewed = l.Renewed.UTC().Truncate(time.Second)
	if err := l.check(); err != nil {
		return nil, err
	}
	return json.Marshal(l)
}

// DecodeLease reads what Encode wrote. Anything else is ErrFormat.
func DecodeLease(data []byte) (Lease, error) {
	var l Lease
	if err := decode(data, &l); err != nil {
		return Lease{}, err
	}
	if err := l.check(); err != nil {
		return Lease{}, err
	}
	return l, nil
}

func (l Lease) check() error {
	switch {
	case l.Version != Version:
		return fmt.Errorf("%w: version %d, this program knows %d", ErrFormat, l.Version, Version)
	case l.Epoch == 0:
		return fmt.Errorf("%w: epoch is 0", ErrFormat)
	case (l.Cache == "") != (l.Holder == ""):
		return fmt.Errorf("%w: of holder and cache one is empty", ErrFormat)
	case l.State != LeaseClean && l.State != LeaseDirty && l.State != LeaseReleased:
		return fmt.Errorf("%w: state is %q", ErrFormat, l.State)
	case l.DirtyBytes < 0:
		return fmt.Errorf("%w: negative dirtyBytes", ErrFormat)
	case l.TTLSeconds < 1 || l.TTLSeconds > maxTTL:
		return fmt.Errorf("%w: ttlSeconds is %d", ErrFormat, l.TTLSeconds)
	}
	return nil
}

// ReadLease returns the lease of the volume below prefix, and its ETag for WriteLease. s3.ErrNotExist means that there
// is none, ErrFormat that it is not ours to understand.
func ReadLease(ctx context.Context, b s3.Bucket, prefix s3.Key) (Lease, s3.ETag, error) {
	return read(ctx, b, LeaseKey(prefix), DecodeLease)
}

// WriteLease stores the lease in place of the one that was read or written with tag, or where there is none when tag is
// empty. It returns the new record's ETag. s3.ErrPrecondition or s3.ErrNotExist: it has changed since, or an earlier
// attempt of the same call was applied; s3.ErrUnavailable: it may have been applied. Lease.Same of what is read back
// decides. b is an s3probe.Guard, or a bucket of a server whose conditions count: on others the record is compared before it
// is replaced, and who writes in between is overwritten and learns of it when it next reads.
func WriteLease(ctx context.Context, b s3.Bucket, prefix s3.Key, l Lease, tag s3.ETag) (s3.ETag, error) {
	data, err := l.Encode()
	if err != nil {
		return "", err
	}
	return store(ctx, b, LeaseKey(prefix), data, s3.Condition{IfMatch: tag, IfNoneMatch: tag == ""})
}

// BreakLease takes the lease that was read with tag from its holder, and gives up what only that has. The holder stops when
// it next looks, at the latest after the lease's TTL, and nobody else may have the lease before that. now is for people.
// Errors are those of WriteLease; an answer that was lost is settled.
func BreakLease(ctx context.Context, b s3.Bucket, prefix s3.Key, l Lease, tag s3.ETag, now time.Time) error {
	next := Lease{Epoch: l.Epoch + 1, Serial: 1, State: LeaseClean, TTLSeconds: l.TTLSeconds, Renewed: now}
	_, err := WriteLease(ctx, b, prefix, next, tag)
	if err == nil {
		return nil
	}
	is, _, rerr := ReadLease(ctx, b, prefix)
	if rerr == nil && is.Same(next) {
		return nil
	}
	return err
}
