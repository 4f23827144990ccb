package s3probe

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

// version is the format of a record that this package writes; what was asked changes with it.
const version = 1

// maxRecord is more bytes than any record has.
const maxRecord = 16 << 10

// errRecord: the record is not one that this package can use.
var errRecord = errors.New("record of a probe is not understood")

// Record is the result of a probe as it is kept with a volume.
type Record struct {
	Version int       `json:"version"`
	Server  string    `json:"server"` // URL of the endpoint: a volume may have been brought elsewhere with its records
	Bucket  string    `json:"bucket"`
	Made    time.Time `json:"made"`
	Answers Answers   `json:"answers"`
}

// recordKey is where the record of a volume is, scratchDir where a probe of it writes. dir is the driver's own directory.
func recordKey(dir s3.Key) s3.Key  { return dir + "probe.json" }
func scratchDir(dir s3.Key) s3.Key { return dir + "probe/" }

// load reads the record below dir. What it says is not checked any further than to be of this server.
func load(ctx context.Context, b s3.Bucket, dir s3.Key, server string) (Record, error) {
	var r Record
	body, _, err := b.Get(ctx, recordKey(dir), nil, "")
	if err != nil {
		return r, err
	}
	data, err := io.ReadAll(io.LimitReader(body, maxRecord))
	if err = errors.Join(err, body.Close()); err != nil {
		return r, err
	}
	if err := json.Unmarshal(data, &r); err != nil {
		return Record{}, fmt.Errorf("%w: %w", errRecord, err)
	}
	if r.Version != version || r.Server != server || r.Bucket != b.Name() {
		return Record{}, fmt.Errorf("%w: version %d of another server or bucket", errRecord, r.Version)
	}
	for f, a := range r.Answers {
		if a != Honoured && a != Ignored && a != Refused {
			return Record{}, fmt.Errorf("%w: %q is %q", errRecord, f, a)
		}
	}
	return r, nil
}

// save stores the record. Of two that are stored at once either may stay.
func (r Record) save(ctx context.Context, b s3.Bucket, dir s3.Key) error {
	data, err := json.Marshal(r)
	if err != nil {
		return err
	}
	body := s3.Body{R: bytes.NewReader(data), Size: int64(len(data))}
	_, err = b.Put(ctx, recordKey(dir), body, s3.Attributes{ContentType: "application/json"}, s3.Condition{})
	return err
}

// Ask probes a server and keeps the result below dir, the driver's own directory of a volume. server is the URL of its
// endpoint. The error says why something is unknown: then the record is returned, and not kept.
func Ask(ctx context.Context, b s3.Bucket, dir s3.Key, server string) (Record, error) {
	answers, err := Probe(ctx, b, scratchDir(dir))
	r := Record{Version: version, Server: server, Bucket: b.Name(), Made: time.Now().UTC().Truncate(time.Second), Answers: answers}
	if err == nil {
		err = r.save(ctx, b, dir)
	}
	return r, err
}
