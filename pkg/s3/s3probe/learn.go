package s3probe

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"time"

	"github.com/csi-s3/csi-s3/pkg/s3"
)

const (
	// maxAge is how long the result of a probe is believed.
	maxAge = 24 * time.Hour
	// Pauses after a probe that left something unknown grow from the first to the last of these.
	minPause = time.Minute
	maxPause = time.Hour
)

// Learn keeps what the Guard knows up to date until ctx ends: by the record below dir, the driver's own directory of a volume,
// or by a probe when there is none or it is too old. Requests that are sent meanwhile do not wait for it. server is
// the URL of the endpoint. b is the bucket without a Guard, and with all else that is between a mount and its server.
func (g *Guard) Learn(ctx context.Context, b s3.Bucket, dir s3.Key, server string, log *slog.Logger) {
	pause := minPause
	for ctx.Err() == nil {
		wait, err := g.learn(ctx, b, dir, server, log)
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			log.Info("not all is known of what the server supports: what is not is compared before each change", "bucket", g.Name(), "err", err)
			wait = pause
			pause = min(2*pause, maxPause)
		default:
			pause = minPause
		}
		timer := time.NewTimer(wait + rand.N(wait/8+1))
		select {
		case <-timer.C:
		case <-ctx.Done():
		}
		timer.Stop()
	}
}

// learn finds out once, and returns for how long that holds.
func (g *Guard) learn(ctx context.Context, b s3.Bucket, dir s3.Key, server string, log *slog.Logger) (time.Duration, error) {
	r, err := load(ctx, b, dir, server)
	switch {
	case err == nil:
		if age := time.Since(r.Made); age >= 0 && age < maxAge {
			g.Know(r.Answers)
			return maxAge - age, nil
		}
	case errors.Is(err, s3.ErrNotExist), errors.Is(err, errRecord):
	default:
		return 0, err // a server that does not answer now is not asked more
	}
	r, err = Ask(ctx, b, dir, server)
	g.Know(r.Answers.merge(g.Answers()))
	log.Info("the server was asked what it supports", "bucket", g.Name(), "lacks", r.Answers.lacking())
	return maxAge, err
}
