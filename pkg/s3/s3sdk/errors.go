package s3sdk

import (
	"context"
	"crypto/tls"
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
	return s.String()
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
	return &Error{Op: op, Bucket: b.name, Key: key, Detail: b.redact(fmt.Sprintf(format, args...)), kind: kind}
}

// clean returns err if its text is free of what a server sent, else a part of its text that is: the transport quotes
// what it could not parse, and some servers send back what they were sent.
func (b *bucket) clean(err error) error {
	if err == nil {
		return nil
	}
	text := err.Error()
	var network net.Error
	var certificate *tls.CertificateVerificationError
	if !errors.As(err, &network) && !errors.As(err, &certificate) {
		text, _, _ = strings.Cut(text, `"`)
	}
	if text = b.redact(text); text != err.Error() {
		return errors.New(text)
	}
	return err
}

// redactor returns a function that replaces every credential in a text. It holds them where no formatting verb looks.
func redactor(c Credentials) func(string) string {
	var pairs []string
	for _, secret := range []Secret{c.SecretAccessKey, c.SessionToken, c.AccessKeyID} {
		if secret != "" {
			pairs = append(pairs, string(secret), redacted)
		}
	}
	return strings.NewReplacer(pairs...).Replace
}

// failure makes of what the SDK returned and what was seen on the wire one error.
func (b *bucket) failure(ctx context.Context, op string, key s3.Key, x *exchange, err error) *Error {
	var own *Error
	if errors.As(err, &own) {
		return own
	}
	e := &Error{Op: op, Bucket: b.name, Key: key, Status: x.status, Code: b.redact(x.code), RequestID: b.redact(x.requestID), after: x.after}
	switch {
	case x.status >= 300:
		e.kind = kindOf(x.status, x.code)
		if errors.Is(e.kind, s3.ErrUnavailable) && x.status == http.StatusNotFound {
			e.Detail = "404 without an S3 error code is not from an S3 server"
		}
	case ctx.Err() != nil:
		e.kind, e.cause, e.refused = s3.ErrUnavailable, ctx.Err(), !x.sent
		if errors.Is(e.cause, context.DeadlineExceeded) {
			e.Detail = "no answer from " + b.cfg.Endpoint
		}
	case !x.sent:
		// The SDK refused the input; its text names fields, not contents.
		e.kind, e.Detail, e.refused = s3.ErrInvalid, b.redact(err.Error()), true
	case x.status == 0:
		e.kind, e.cause, e.refused = s3.ErrUnavailable, b.clean(x.err), notDialled(x.err)
	default:
		// A success that is none: an <Error> in the body, or an answer that breaks off.
		e.kind, e.Detail = s3.ErrUnavailable, "incomplete answer"
		var api smithy.APIError
		if errors.As(err, &api) {
			e.Code, e.Detail = b.redact(token(api.ErrorCode())), "error in the body of a success"
			e.kind = kindOf(http.StatusInternalServerError, api.ErrorCode())
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
	case "SignatureDoesNotMatch", "InvalidAccessKeyId", "ExpiredToken", "InvalidToken", "InvalidTokenId", "TokenRefreshRequired":
		return s3.ErrKeys
	case "AccessDenied", "AuthorizationHeaderMalformed", "AllAccessDisabled", "AccountProblem":
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
