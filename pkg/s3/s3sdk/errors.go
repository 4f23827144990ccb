package s3sdk

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"

	"github.com/aws/smithy-go"

	"github.com/csi-s3/csi-s3/pkg/s3"
)

// Error is what every method of a Bucket returns. It wraps one sentinel of package s3 (none when the answer is
// unknown) and, where there is one, the context's, the transport's or the body reader's error.
type Error struct {
	Op        string
	Bucket    string
	Key       s3.Key // empty for a call on the bucket
	Status    int    // HTTP status, 0 when there was no answer
	Code      string // the S3 error code, if the answer had one
	RequestID string
	Detail    string // what this package found wrong

	kind    error
	cause   error
	secrets Credentials
	after   string // Retry-After
	refused bool   // certainly not applied
}

func (e *Error) Error() string {
	var s strings.Builder
	fmt.Fprintf(&s, "s3: %s %s", e.Op, e.Bucket)
	if e.Key != "" {
		fmt.Fprintf(&s, "/%q", string(e.Key))
	}
	s.WriteString(":")
	if e.Status != 0 {
		fmt.Fprintf(&s, " HTTP %d", e.Status)
	}
	if e.Code != "" {
		s.WriteString(" " + e.Code)
	}
	if e.RequestID != "" {
		s.WriteString(" (request " + e.RequestID + ")")
	}
	for _, part := range []string{e.Detail, text(e.cause), text(e.kind)} {
		if part == "" {
			continue
		}
		if !strings.HasSuffix(s.String(), ":") {
			s.WriteString(":")
		}
		s.WriteString(" " + part)
	}
	// A server may put into its request ID, or into a malformed answer that the transport quotes, what it was sent.
	out := s.String()
	for _, secret := range []Secret{e.secrets.SecretAccessKey, e.secrets.SessionToken, e.secrets.AccessKeyID} {
		if secret != "" {
			out = strings.ReplaceAll(out, string(secret), redacted)
		}
	}
	return out
}

func text(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// Unwrap returns the sentinel and the cause.
func (e *Error) Unwrap() []error {
	var errs []error
	if e.kind != nil {
		errs = append(errs, e.kind)
	}
	if e.cause != nil {
		errs = append(errs, e.cause)
	}
	return errs
}

// fail returns an error of a check of ours.
func (b *bucket) fail(op string, key s3.Key, kind error, format string, args ...any) *Error {
	return &Error{Op: op, Bucket: b.name, Key: key, Detail: fmt.Sprintf(format, args...), kind: kind, secrets: b.cfg.Credentials}
}

// failure makes of what the SDK returned and what was seen on the wire one error.
func (b *bucket) failure(ctx context.Context, op string, key s3.Key, x *exchange, err error) *Error {
	var own *Error
	if errors.As(err, &own) {
		return own
	}
	e := &Error{Op: op, Bucket: b.name, Key: key, Status: x.status, Code: x.code, RequestID: x.requestID, after: x.after, secrets: b.cfg.Credentials}
	switch {
	case x.status >= 300:
		e.kind = kindOf(x.status, x.code)
		if e.kind == s3.ErrUnavailable && x.status == http.StatusNotFound {
			e.Detail = "404 without an S3 error code is not from an S3 server"
		}
	case ctx.Err() != nil:
		e.kind, e.cause, e.refused = s3.ErrUnavailable, ctx.Err(), !x.sent
	case !x.sent:
		// The SDK refused the input; its text names fields, not contents.
		e.kind, e.Detail, e.refused = s3.ErrInvalid, err.Error(), true
	case x.status == 0:
		e.kind, e.cause, e.refused = s3.ErrUnavailable, x.err, notDialled(x.err)
	default:
		// A success that is none: an <Error> in the body, or an answer that breaks off.
		e.kind, e.Detail = s3.ErrUnavailable, "incomplete answer"
		var api smithy.APIError
		if errors.As(err, &api) {
			e.Code, e.Detail = token(api.ErrorCode()), "error in the body of a success"
			e.kind = kindOf(http.StatusInternalServerError, e.Code)
		}
	}
	return e
}

func notDialled(err error) bool {
	var op *net.OpError
	return errors.As(err, &op) && op.Op == "dial"
}

// kindOf translates an answer into a sentinel: by code where S3 has one, else by status. It returns nil for an answer
// that it does not know.
func kindOf(status int, code string) error {
	switch code {
	case "NoSuchKey", "NoSuchVersion":
		return s3.ErrNotExist
	case "NoSuchBucket":
		return s3.ErrNoBucket
	case "NoSuchUpload":
		return s3.ErrNoUpload
	case "BucketAlreadyExists", "BucketAlreadyOwnedByYou":
		return s3.ErrBucketExists
	case "BucketNotEmpty":
		return s3.ErrBucketNotEmpty
	case "PreconditionFailed", "ConditionalRequestConflict":
		return s3.ErrPrecondition
	case "InvalidRange":
		return s3.ErrRange
	case "QuotaExceeded", "XMinioAdminBucketQuotaExceeded", "XMinioStorageFull", "StorageFull", "InsufficientStorage":
		return s3.ErrFull
	case "AccessDenied", "SignatureDoesNotMatch", "InvalidAccessKeyId", "ExpiredToken", "InvalidToken", "InvalidTokenId",
		"TokenRefreshRequired", "AuthorizationHeaderMalformed", "AllAccessDisabled", "AccountProblem":
		return s3.ErrAuth
	case "NotImplemented", "MethodNotAllowed":
		return s3.ErrNotSupported
	case "BadDigest", "XAmzContentSHA256Mismatch", "XAmzContentChecksumMismatch":
		return s3.ErrCorrupt
	case "RequestTimeout", "SlowDown", "SlowDownRead", "SlowDownWrite", "InternalError", "ServiceUnavailable",
		"OperationAborted", "IncompleteBody", "RequestTimeTooSkewed", "TooManyRequests", "ServerBusy":
		return s3.ErrUnavailable
	}
	switch status {
	case http.StatusNotModified:
		return s3.ErrNotModified
	case http.StatusUnauthorized, http.StatusForbidden:
		return s3.ErrAuth
	case http.StatusPreconditionFailed:
		return s3.ErrPrecondition
	case http.StatusRequestedRangeNotSatisfiable:
		return s3.ErrRange
	case http.StatusInsufficientStorage:
		return s3.ErrFull
	case http.StatusMethodNotAllowed, http.StatusNotImplemented:
		return s3.ErrNotSupported
	case http.StatusNotFound, http.StatusRequestTimeout, http.StatusTooManyRequests, http.StatusFound, http.StatusTemporaryRedirect:
		// 404 without a code that says what is absent is a load balancer's: it says nothing about the key.
		return s3.ErrUnavailable
	case http.StatusBadRequest, http.StatusConflict, http.StatusLengthRequired, http.StatusRequestEntityTooLarge,
		http.StatusRequestURITooLong, http.StatusRequestHeaderFieldsTooLarge,
		http.StatusMovedPermanently, http.StatusPermanentRedirect:
		return s3.ErrInvalid
	}
	if status >= 500 {
		return s3.ErrUnavailable
	}
	return nil
}
