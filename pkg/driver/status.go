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
		{provision.ErrInvalid, codes.InvalidArgument},
		{provision.ErrNotFound, codes.NotFound},
		{provision.ErrExists, codes.AlreadyExists},
		{provision.ErrNotOwned, codes.FailedPrecondition},
		{provision.ErrBusy, codes.Aborted},
		{provision.ErrDenied, codes.PermissionDenied},
		{provision.ErrFull, codes.ResourceExhausted},
		{provision.ErrUnavailable, codes.Unavailable},

		{volume.ErrPath, codes.InvalidArgument},
		{volume.ErrSecret, codes.InvalidArgument},
		{volume.ErrNotFound, codes.NotFound},
		{volume.ErrDenied, codes.PermissionDenied},
		{volume.ErrNotStaged, codes.FailedPrecondition},
		{volume.ErrDiffers, codes.AlreadyExists},
		{volume.ErrForeign, codes.FailedPrecondition},
		{volume.ErrInUse, codes.FailedPrecondition},
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
