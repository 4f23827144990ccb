package driver

import (
	"context"
	"log/slog"
	"path"
	"runtime/debug"
	"time"

	"github.com/kubernetes-csi/csi-lib-utils/protosanitizer"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// observe logs and counts every call. The request itself is logged for debugging only, without its secrets.
func (d *Driver) observe(ctx context.Context, request any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
	start := time.Now()
	response, err := next(ctx, request)
	took := time.Since(start)
	code := status.Code(err)
	d.opt.Metrics.RPC(info.FullMethod, code.String(), took)

	args := []any{"method", path.Base(info.FullMethod), "code", code.String(), "duration", took.String()}
	if r, ok := request.(interface{ GetVolumeId() string }); ok {
		args = append(args, "volume", r.GetVolumeId())
	} else if r, ok := request.(interface{ GetName() string }); ok {
		args = append(args, "name", r.GetName())
	}
	level := slog.LevelInfo
	switch {
	case err != nil:
		level = slog.LevelError
		args = append(args, "err", status.Convert(err).Message())
	case quiet(info.FullMethod):
		level = slog.LevelDebug
	}
	if d.opt.Log.Enabled(ctx, slog.LevelDebug) {
		args = append(args, "request", protosanitizer.StripSecrets(request).String())
	}
	d.opt.Log.Log(ctx, level, "csi call", args...)
	return response, err
}

// quiet reports whether a call comes again and again and changes nothing.
func quiet(method string) bool {
	switch path.Base(method) {
	case "NodeStageVolume", "NodeUnstageVolume", "NodeUnpublishVolume", "CreateVolume", "DeleteVolume":
		return false
	}
	return true
}

// answerReserve is what a call leaves of its caller's time, at most.
const answerReserve = 2 * time.Second

// inTime ends a call before its caller stops to wait for it: gRPC would answer the caller that a deadline is exceeded,
// and what a person reads in the event would not be what is wrong.
func (d *Driver) inTime(ctx context.Context, request any, _ *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
	if end, ok := ctx.Deadline(); ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithDeadline(ctx, end.Add(-min(answerReserve, time.Until(end)/10)))
		defer cancel()
	}
	return next(ctx, request)
}

// recoverPanic turns a panic into Internal: one bad call must not take the mounts of all others away.
func (d *Driver) recoverPanic(ctx context.Context, request any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (response any, err error) {
	defer func() {
		if p := recover(); p != nil {
			d.opt.Log.ErrorContext(ctx, "panic", "method", path.Base(info.FullMethod), "panic", p, "stack", string(debug.Stack()))
			response, err = nil, status.Errorf(codes.Internal, "%s failed by a fault of the driver; see its log", path.Base(info.FullMethod))
		}
	}()
	return next(ctx, request)
}
