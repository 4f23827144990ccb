package driver

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"

	"github.com/csi-s3/csi-s3/pkg/config"
	"github.com/csi-s3/csi-s3/pkg/metrics"
	"github.com/csi-s3/csi-s3/pkg/provision"
	"github.com/csi-s3/csi-s3/pkg/volume"
)

// Volumes is what the node's service needs of a volume.Set, where its promises stand.
type Volumes interface {
	Stage(ctx context.Context, r volume.StageRequest) error
	Unstage(ctx context.Context, id config.VolumeID, dir string) error
	Publish(ctx context.Context, r volume.PublishRequest) error
	Unpublish(ctx context.Context, id config.VolumeID, target string) error
	Stats(id config.VolumeID, path string) (volume.Stats, error)
}

// Options of a Driver.
type Options struct {
	Name    string // that PVs carry
	Version string
	NodeID  string // required with Volumes

	Provisioner *provision.Provisioner // nil: no controller service
	Volumes     Volumes                // nil: no node service

	Metrics *metrics.Metrics // nil for none
	Log     *slog.Logger     // nil for none
}

// Driver is the services of one process.
type Driver struct {
	csi.UnimplementedIdentityServer
	csi.UnimplementedControllerServer
	csi.UnimplementedNodeServer

	opt      Options
	inFlight inFlight
}

// New returns a Driver. It does nothing yet.
func New(opt Options) *Driver {
	if opt.Log == nil {
		opt.Log = slog.New(slog.DiscardHandler)
	}
	return &Driver{opt: opt}
}

// stopTime is how long calls under way have to end once Serve is told to stop.
const stopTime = 10 * time.Second

// Serve answers calls on the unix socket until ctx ends; then it takes no more calls, gives those under way some time,
// cancels the rest and returns nil. A socket that a dead process left at path is replaced; anything else there is an
// error.
func (d *Driver) Serve(ctx context.Context, path string) error {
	l, err := listen(ctx, path)
	if err != nil {
		return err
	}
	srv := grpc.NewServer(grpc.ChainUnaryInterceptor(d.observe, d.inTime, d.recoverPanic))
	csi.RegisterIdentityServer(srv, d)
	if d.opt.Provisioner != nil {
		csi.RegisterControllerServer(srv, d)
	}
	if d.opt.Volumes != nil {
		csi.RegisterNodeServer(srv, d)
	}
	stopped := make(chan struct{})
	// Ends when ctx does, or with the cancel of stop below when the server fails.
	stop := context.AfterFunc(ctx, func() {
		defer close(stopped)
		hard := time.AfterFunc(stopTime, srv.Stop)
		defer hard.Stop()
		srv.GracefulStop()
	})
	d.opt.Log.Info("serving", "socket", path, "driver", d.opt.Name, "version", d.opt.Version, "node", d.opt.NodeID)
	err = srv.Serve(l)
	if stop() {
		srv.Stop()
		return fmt.Errorf("serve %s: %w", path, err)
	}
	<-stopped
	return nil
}

func listen(ctx context.Context, path string) (net.Listener, error) {
	st, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return nil, fmt.Errorf("socket: %w", err)
	case st.Mode().Type() != fs.ModeSocket:
		return nil, fmt.Errorf("socket: %s exists and is no socket", path)
	default:
		if err := os.Remove(path); err != nil {
			return nil, fmt.Errorf("socket: %w", err)
		}
	}
	l, err := new(net.ListenConfig).Listen(ctx, "unix", path)
	if err != nil {
		return nil, fmt.Errorf("socket: %w", err)
	}
	return l, nil
}
