package s3fault

import (
	"time"

	"github.com/csi-s3/csi-s3/pkg/s3"
)

// Op is one call of a method of s3.Bucket.
type Op struct {
	Name string // the method's name, such as "Put"
	Key  s3.Key // its key: the destination of a copy, a listing's prefix, the first of many keys; empty for bucket calls
	N    int    // which call of that name it is, from 1
}

type kind int

const (
	none kind = iota
	failBefore
	failAfter
	shortBody
	corruptBody
	delay
)

// Action is what happens to an operation. The zero value lets it through.
type Action struct {
	kind kind
	err  error
	n    int64
	wait time.Duration
}

// FailBefore returns err without applying the operation. A nil err is ErrUnavailable.
func FailBefore(err error) Action { return Action{kind: failBefore, err: orUnavailable(err)} }

// FailAfter applies the operation and then returns err whatever came of it. A nil err is ErrUnavailable.
func FailAfter(err error) Action { return Action{kind: failAfter, err: orUnavailable(err)} }

// ShortBody breaks a transfer off after n bytes: the body of a Get fails there with ErrUnavailable; a Put or
// UploadPart fails with ErrUnavailable and is not applied, because the length did not fit.
func ShortBody(n int64) Action { return Action{kind: shortBody, n: n, err: s3.ErrUnavailable} }

// CorruptBody flips a bit on the wire: the body of a Get yields one wrong byte and fails with ErrCorrupt in place of
// its last bytes, as a checksum would find it; a Put or UploadPart fails with ErrCorrupt and is not applied.
func CorruptBody() Action { return Action{kind: corruptBody, err: s3.ErrCorrupt} }

// Delay waits d before the operation. When the context ends first, the operation is not applied and the error is
// ErrUnavailable with the context's.
func Delay(d time.Duration) Action { return Action{kind: delay, wait: d} }

// Error200 is an answer of status 200 with an error in its body, as servers give to copies and completions that fail
// late: ErrUnavailable, and nothing was applied.
func Error200() Action { return FailBefore(s3.ErrUnavailable) }

func orUnavailable(err error) error {
	if err == nil {
		return s3.ErrUnavailable
	}
	return err
}
