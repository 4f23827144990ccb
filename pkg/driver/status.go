package driver

import (
	"context"
	"errors"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/csi-s3/csi-s3/pkg/provision"
	"github.com/csi-s3/csi-s3/pkg/volume"
)

// failed is err with its gRPC code. The order is part of it: an error may wrap several sentinels, and the first that
// it has decides. What is not known is Internal.
func failed(err error) error {
	for _, c := range []struct {
		is   error
		code codes.Code
	}{
		{provision.ErrSecret, codes.FailedPrecondition},
		{provision.ErrInvalid, codes.InvalidArgument},
		{provision.ErrNotFound, codes.NotFound},
		{provision.ErrExists, codes.AlreadyExists},
		{provision.ErrNotOwned, codes.FailedPrecondition},
		{provision.ErrBusy, codes.Aborted},
		{provision.ErrDenied, codes.PermissionDenied},
		{provision.ErrFull, codes.ResourceExhausted},
		{provision.ErrUnavailable, codes.Unavailable},

		{volume.ErrPath, codes.InvalidArgument},
		{volume.ErrSecret, codes.FailedPrecondition},
		{volume.ErrNotFound, codes.NotFound},
		{volume.ErrDenied, codes.PermissionDenied},
		{volume.ErrNotStaged, codes.FailedPrecondition},
		{volume.ErrDiffers, codes.AlreadyExists},
		{volume.ErrForeign, codes.FailedPrecondition},
		{volume.ErrInUse, codes.FailedPrecondition},
		{volume.ErrHeld, codes.FailedPrecondition},
		{volume.ErrGivenUp, codes.FailedPrecondition},
		{volume.ErrLeased, codes.Unavailable},
		{volume.ErrUnavailable, codes.Unavailable},

		{context.DeadlineExceeded, codes.DeadlineExceeded},
		{context.Canceled, codes.Canceled},
		{volume.ErrUndrained, codes.Unavailable},
	} {
		if errors.Is(err, c.is) {
			return status.Error(c.code, err.Error())
		}
	}
	return status.Error(codes.Internal, err.Error())
}

func missing(field string) error {
	return status.Errorf(codes.InvalidArgument, "%s is missing", field)
}

func invalid(field string, err error) error {
	return status.Errorf(codes.InvalidArgument, "%s: %v", field, err)
}

// badSecret is the error about the secret of a call. A call without one is wrong itself. One that has the wrong keys is
// right as soon as somebody mended the Secret, and csi-provisioner waits long before it repeats a call that it was told
// to be invalid.
func badSecret(r interface{ GetSecrets() map[string]string }, err error) error {
	if len(r.GetSecrets()) == 0 {
		return invalid("secrets", err)
	}
	return status.Errorf(codes.FailedPrecondition, "secrets: %v", err)
}
