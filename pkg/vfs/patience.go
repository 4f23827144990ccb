package vfs

import (
	"context"
	"errors"
	"math/rand/v2"
	"time"

	"github.com/csi-s3/csi-s3/pkg/s3"
)

// How long to wait before a question is asked again, at first and at most.
const (
	firstWait = 100 * time.Millisecond
	maxWait   = 5 * time.Second
)

// patient asks a bucket that does not answer again and again, until the caller's context ends or limit (0: none) is
// over. A server that restarts is no reason for a program to see an error, and keys that are replaced are none.
type patient struct {
	bucket s3.Bucket
	limit  time.Duration
}

func (p patient) head(ctx context.Context, key s3.Key) (info s3.Info, err error) {
	err = p.ask(ctx, func(ctx context.Context) (err error) {
		info, err = p.bucket.Head(ctx, key)
		return err
	})
	info.Key = key
	return info, err
}

func (p patient) list(ctx context.Context, in s3.ListInput) (page s3.Page, err error) {
	err = p.ask(ctx, func(ctx context.Context) (err error) {
		page, err = p.bucket.List(ctx, in)
		return err
	})
	return page, err
}

func (p patient) ask(ctx context.Context, question func(context.Context) error) error {
	if p.limit > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, p.limit)
		defer cancel()
	}
	for wait := firstWait; ; wait = min(2*wait, maxWait) {
		err := question(ctx)
		if !errors.Is(err, s3.ErrUnavailable) && !errors.Is(err, s3.ErrKeys) || ctx.Err() != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(rand.N(wait) + wait/2):
		}
	}
}
