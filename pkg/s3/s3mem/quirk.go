package s3mem

import "github.com/csi-s3/csi-s3/pkg/s3"

// Quirk is what a server does with a condition.
type Quirk int

const (
	Honours  Quirk = iota
	Ignores        // as if the condition were not there: nobody notices
	Refuses        // s3.ErrNotSupported, whether it holds or not
	Misreads       // s3.ErrPrecondition, whether it holds or not
)

// Quirks are by condition.
type Quirks map[s3.Feature]Quirk

// NoCopyConditions is a server as MinIO, VersityGW and Ceph before 20, which ignore conditions on the destination of a
// copy.
func NoCopyConditions() Quirks {
	return Quirks{s3.CopyIfNoneMatch: Ignores, s3.CopyIfMatch: Ignores}
}

// quirk says what becomes of a request under a condition that holds or not.
func (b *Bucket) quirk(op string, f s3.Feature, key s3.Key, holds bool) error {
	switch q := b.Quirks[f]; {
	case q == Refuses:
		return b.failf(op, key, s3.ErrNotSupported, "%s", f)
	case q == Misreads || q == Honours && !holds:
		return b.failf(op, key, s3.ErrPrecondition, "%s", f)
	}
	return nil
}
