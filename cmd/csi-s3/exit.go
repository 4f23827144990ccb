package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/csi-s3/csi-s3/pkg/s3"
)

// Exit codes, for scripts and service managers.
const (
	exitOK          = 0
	exitFailure     = 1 // anything that is not named below
	exitUsage       = 2 // the command line is wrong
	exitRefused     = 3 // bucket, credentials or option are wrong: the same call will fail again
	exitUnavailable = 4 // the endpoint does not answer as it should: the same call may work later
	exitDirty       = 5 // stopped while data is not yet in the bucket; the cache keeps it
)

// exitError gives an error its exit code.
type exitError struct {
	code int
	err  error
}

func (e *exitError) Error() string { return e.err.Error() }
func (e *exitError) Unwrap() error { return e.err }

func usageError(format string, args ...any) error {
	return &exitError{exitUsage, fmt.Errorf(format, args...)}
}

// exitCode is what main exits with for the error of run.
func exitCode(err error) int {
	var e *exitError
	switch {
	case err == nil:
		return exitOK
	case errors.As(err, &e):
		return e.code
	case errors.Is(err, s3.ErrUnavailable), errors.Is(err, context.DeadlineExceeded):
		return exitUnavailable
	}
	return exitFailure
}
