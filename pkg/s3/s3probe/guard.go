package s3probe

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/csi-s3/csi-s3/pkg/s3"
)

// Guard is a bucket whose every condition counts, whatever the server makes of it. One that the server is known to honour
// goes with the request. Before any other the object is looked at: when the condition does not hold, the request is not
// sent and the error is s3.ErrPrecondition. What others write between the look and the request is overwritten, unless the
// server knows the condition after all: it is sent as long as nobody knows that it does not.
//
// Its zero value but for Bucket knows nothing of the server. All other requests pass unchanged.
type Guard struct {
	s3.Bucket

	mu      sync.Mutex
	answers Answers // guarded by mu
}

var _ s3.Bucket = (*Guard)(nil)

// NewGuard returns b with conditions that count.
func NewGuard(b s3.Bucket) *Guard { return &Guard{Bucket: b} }

// Know takes over what was found out of the server.
func (g *Guard) Know(a Answers) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.answers = a.clone()
}

// Answers is what is known of the server: by Know, and by requests that it refused since.
func (g *Guard) Answers() Answers {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.answers.clone()
}

func (g *Guard) answer(f s3.Feature) Answer {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.answers[f]
}

// refused notes that the server does not take a condition.
func (g *Guard) refused(f s3.Feature) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.answers == nil {
		g.answers = Answers{}
	}
	g.answers[f] = Refused
}

// compare looks at the object: nil means that the condition holds now.
func (g *Guard) compare(ctx context.Context, key s3.Key, cond s3.Condition) error {
	info, err := g.Head(ctx, key)
	switch {
	case errors.Is(err, s3.ErrNotExist):
		if cond.IfMatch != "" {
			return fmt.Errorf("s3probe: compare %s/%q, ETag %s: %w", g.Name(), string(key), cond.IfMatch, errAbsent)
		}
		return nil
	case err != nil:
		return err
	case cond.IfNoneMatch:
		return g.broken(key, "an object of ETag %s where none was expected", info.ETag)
	case info.ETag != cond.IfMatch:
		return g.broken(key, "an object of ETag %s where %s was expected", info.ETag, cond.IfMatch)
	}
	return nil
}

// errAbsent: there is no object where one was to be matched.
var errAbsent = fmt.Errorf("no object: %w", s3.ErrPrecondition)

func (g *Guard) broken(key s3.Key, format string, tags ...any) error {
	return fmt.Errorf("s3probe: compare %s/%q: %s: %w", g.Name(), string(key), fmt.Sprintf(format, tags...), s3.ErrPrecondition)
}

// guarded sends a request under a condition on key, of which absent and match are the features.
func guarded[T any](ctx context.Context, g *Guard, key s3.Key, cond s3.Condition, absent, match s3.Feature, request func(s3.Condition) (T, error)) (T, error) {
	f := match
	switch {
	case cond.IfNoneMatch:
		f = absent
	case cond.IfMatch == "":
		return request(s3.Condition{})
	}
	known := g.answer(f)
	if known != Honoured && !cond.Compared {
		if err := g.compare(ctx, key, cond); err != nil {
			var none T
			return none, err
		}
	}
	if known == Ignored || known == Refused {
		return request(s3.Condition{})
	}
	v, err := request(cond)
	// Some servers call a header that they do not know invalid.
	if !errors.Is(err, s3.ErrNotSupported) && !(known == Unknown && errors.Is(err, s3.ErrInvalid)) {
		return v, err
	}
	if known == Honoured {
		if cerr := g.compare(ctx, key, cond); cerr != nil {
			return v, cerr
		}
	}
	v, again := request(s3.Condition{})
	if again != nil {
		return v, fmt.Errorf("%w (and with its condition: %v)", again, err) //nolint:errorlint // the second error decides
	}
	g.refused(f)
	return v, nil
}

// Put implements s3.Bucket.
func (g *Guard) Put(ctx context.Context, key s3.Key, body s3.Body, attr s3.Attributes, cond s3.Condition) (s3.Info, error) {
	return guarded(ctx, g, key, cond, s3.PutIfNoneMatch, s3.PutIfMatch, func(c s3.Condition) (s3.Info, error) {
		return g.Bucket.Put(ctx, key, body, attr, c)
	})
}

// CompleteUpload implements s3.Bucket.
func (g *Guard) CompleteUpload(ctx context.Context, key s3.Key, id s3.UploadID, parts []s3.Part, cond s3.Condition) (s3.Info, error) {
	return guarded(ctx, g, key, cond, s3.CompleteIfNoneMatch, s3.CompleteIfMatch, func(c s3.Condition) (s3.Info, error) {
		return g.Bucket.CompleteUpload(ctx, key, id, parts, c)
	})
}

// Copy implements s3.Bucket. A copy onto itself is guarded by its source.
func (g *Guard) Copy(ctx context.Context, src s3.Key, srcMatch s3.ETag, dst s3.Key, attr *s3.Attributes, cond s3.Condition) (s3.Info, error) {
	if src == dst && srcMatch != "" && cond.IfMatch == srcMatch {
		cond = s3.Condition{}
	}
	return guarded(ctx, g, dst, cond, s3.CopyIfNoneMatch, s3.CopyIfMatch, func(c s3.Condition) (s3.Info, error) {
		return sourced(ctx, g, src, srcMatch, s3.CopySourceIfMatch, func(match s3.ETag) (s3.Info, error) {
			return g.Bucket.Copy(ctx, src, match, dst, attr, c)
		})
	})
}

// CopyPart implements s3.Bucket. Where the server does not compare, the source is looked at once more after the copy, which
// nobody sees before the upload is completed.
func (g *Guard) CopyPart(ctx context.Context, key s3.Key, id s3.UploadID, n int, src s3.Key, srcMatch s3.ETag, r s3.Range) (s3.Part, error) {
	p, err := sourced(ctx, g, src, srcMatch, s3.CopyPartIfMatch, func(match s3.ETag) (s3.Part, error) {
		return g.Bucket.CopyPart(ctx, key, id, n, src, match, r)
	})
	if err == nil && srcMatch != "" && g.answer(s3.CopyPartIfMatch) != Honoured {
		err = g.compare(ctx, src, s3.Condition{IfMatch: srcMatch})
	}
	return p, err
}

// sourced sends a copy whose source must have the ETag match. A source that is gone is s3.ErrNotExist.
func sourced[T any](ctx context.Context, g *Guard, src s3.Key, match s3.ETag, f s3.Feature, request func(match s3.ETag) (T, error)) (T, error) {
	v, err := guarded(ctx, g, src, s3.Condition{IfMatch: match}, "", f, func(c s3.Condition) (T, error) { return request(c.IfMatch) })
	if errors.Is(err, errAbsent) {
		err = fmt.Errorf("s3probe: copy %s/%q: %w", g.Name(), string(src), s3.ErrNotExist)
	}
	return v, err
}

// DeleteIf implements s3.Bucket.
func (g *Guard) DeleteIf(ctx context.Context, key s3.Key, match s3.ETag) error {
	_, err := guarded(ctx, g, key, s3.Condition{IfMatch: match}, "", s3.DeleteIfMatch, func(c s3.Condition) (struct{}, error) {
		if c.IfMatch == "" {
			return struct{}{}, g.Delete(ctx, key)
		}
		return struct{}{}, g.Bucket.DeleteIf(ctx, key, match)
	})
	if errors.Is(err, errAbsent) {
		return nil
	}
	return err
}
