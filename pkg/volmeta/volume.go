package volmeta

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/csi-s3/csi-s3/pkg/s3"
)

// Dir is where the driver's own objects of a volume are, below its prefix.
const Dir s3.Key = ".csi-s3/"

// Version is the format of a record that this package writes.
const Version = 1

// maxRecord is more bytes than any record has.
const maxRecord = 64 << 10

// ErrFormat: an object is in a record's place, but it is no record that this program understands. It is not absent.
var ErrFormat = errors.New("record of the volume is not understood")

// State is how far the life of a volume has gone.
type State string

const (
	Live     State = ""         // in use, or may be
	Deleting State = "deleting" // objects are being removed: it must not be used any more
	Released State = "released" // deleted, and its objects kept: the next volume of this ID takes them over
)

// Volume is the ownership record of a volume.
type Volume struct {
	Version    int       `json:"version"`
	ID         string    `json:"volume"`            // volume ID
	Name       string    `json:"name"`              // the name that CreateVolume gave
	Driver     string    `json:"driver"`            // name of the driver that made it
	Cluster    string    `json:"cluster,omitempty"` // of the cluster it was made in
	Created    time.Time `json:"created"`
	Capacity   int64     `json:"capacity,omitempty"` // bytes, 0 is unlimited
	MadeBucket bool      `json:"madeBucket,omitempty"`
	OnDelete   string    `json:"onDelete,omitempty"` // delete or retain
	State      State     `json:"state,omitempty"`
	Claim      *Claim    `json:"claim,omitempty"`
}

// Claim is the PVC that a volume was made for.
type Claim struct {
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
}

// Key is the key of the record of the volume below prefix, which is empty or ends with a slash.
func Key(prefix s3.Key) s3.Key { return prefix + Dir + "volume.json" }

// Encode returns v as it is stored, with the version of this package.
func (v Volume) Encode() ([]byte, error) {
	v.Version = Version
	v.Created = v.Created.UTC().Truncate(time.Second)
	if err := v.check(); err != nil {
		return nil, err
	}
	return json.Marshal(v)
}

// Decode reads what Encode wrote. Anything else is ErrFormat.
func Decode(data []byte) (Volume, error) {
	var v Volume
	if err := decode(data, &v); err != nil {
		return Volume{}, err
	}
	if err := v.check(); err != nil {
		return Volume{}, err
	}
	return v, nil
}

// decode reads exactly one JSON object with no field that is unknown.
func decode(data []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return fmt.Errorf("%w: %w", ErrFormat, err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return fmt.Errorf("%w: more follows the record", ErrFormat)
	}
	return nil
}

func (v Volume) check() error {
	switch {
	case v.Version != Version:
		return fmt.Errorf("%w: version %d, this program knows %d", ErrFormat, v.Version, Version)
	case v.ID == "" || v.Name == "" || v.Driver == "":
		return fmt.Errorf("%w: volume, name or driver is empty", ErrFormat)
	case v.Capacity < 0:
		return fmt.Errorf("%w: negative capacity", ErrFormat)
	case v.OnDelete != "" && v.OnDelete != "delete" && v.OnDelete != "retain":
		return fmt.Errorf("%w: onDelete is %q", ErrFormat, v.OnDelete)
	case v.State != Live && v.State != Deleting && v.State != Released:
		return fmt.Errorf("%w: state is %q", ErrFormat, v.State)
	}
	return nil
}

// Read returns the record of the volume below prefix, and its ETag for Replace. s3.ErrNotExist means that there is
// none, s3.ErrNoBucket that there is no bucket, ErrFormat that it is not ours to understand.
func Read(ctx context.Context, b s3.Bucket, prefix s3.Key) (Volume, s3.ETag, error) {
	return read(ctx, b, Key(prefix), Decode)
}

// read fetches a record and decodes it. A body that does not arrive as it was sent is asked for again.
func read[T any](ctx context.Context, b s3.Bucket, key s3.Key, decode func([]byte) (T, error)) (T, s3.ETag, error) {
	var none T
	data, tag, err := get(ctx, b, key)
	for again := 1; again < readAttempts && (errors.Is(err, s3.ErrCorrupt) || errors.Is(err, errBody)) && ctx.Err() == nil; again++ {
		data, tag, err = get(ctx, b, key)
	}
	if err != nil {
		return none, "", err
	}
	if len(data) > maxRecord {
		return none, "", fmt.Errorf("%s/%q: %w: it is larger than any record", b.Name(), string(key), ErrFormat)
	}
	v, err := decode(data)
	if err != nil {
		return none, "", fmt.Errorf("%s/%q: %w", b.Name(), string(key), err)
	}
	return v, tag, nil
}

// readAttempts is how often a record is asked for whose body does not arrive as it was sent.
const readAttempts = 5

// errBody: an answer began well, and its body did not arrive.
var errBody = errors.New("the body did not arrive")

func get(ctx context.Context, b s3.Bucket, key s3.Key) ([]byte, s3.ETag, error) {
	body, info, err := b.Get(ctx, key, nil, "")
	if err != nil {
		return nil, "", err
	}
	data, err := io.ReadAll(io.LimitReader(body, maxRecord+1))
	if cerr := body.Close(); err == nil && len(data) <= maxRecord {
		err = cerr
	}
	if err != nil {
		return nil, "", fmt.Errorf("%w: %w", errBody, err)
	}
	return data, info.ETag, nil
}

// Create stores the record of a volume that has none; s3.ErrPrecondition says that it has one, which may be the one of
// an earlier try of the same call. b is as for WriteLease.
func Create(ctx context.Context, b s3.Bucket, prefix s3.Key, v Volume) error {
	return put(ctx, b, prefix, v, s3.Condition{IfNoneMatch: true})
}

// Replace stores the record in place of the one that Read returned with tag; s3.ErrPrecondition says that it has
// changed since. b is as for WriteLease.
func Replace(ctx context.Context, b s3.Bucket, prefix s3.Key, v Volume, tag s3.ETag) error {
	return put(ctx, b, prefix, v, s3.Condition{IfMatch: tag})
}

func put(ctx context.Context, b s3.Bucket, prefix s3.Key, v Volume, cond s3.Condition) error {
	data, err := v.Encode()
	if err != nil {
		return err
	}
	_, err = store(ctx, b, Key(prefix), data, cond)
	return err
}

func store(ctx context.Context, b s3.Bucket, key s3.Key, data []byte, cond s3.Condition) (s3.ETag, error) {
	body := s3.Body{R: bytes.NewReader(data), Size: int64(len(data))}
	info, err := b.Put(ctx, key, body, s3.Attributes{ContentType: "application/json"}, cond)
	return info.ETag, err
}
