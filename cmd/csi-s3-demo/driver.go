package main

import (
	"context"
	"errors"
	"log/slog"

	"github.com/csi-s3/csi-s3/pkg/config"
	"github.com/csi-s3/csi-s3/pkg/driver"
	"github.com/csi-s3/csi-s3/pkg/provision"
	"github.com/csi-s3/csi-s3/pkg/s3/s3sdk"
	"github.com/csi-s3/csi-s3/pkg/volume"
)

// startDriver runs the whole driver, controller and node, in this process. stop ends it and unmounts what it served.
func startDriver(ctx context.Context, socket, cacheDir string) (stop func(context.Context) error, err error) {
	log := slog.New(slog.DiscardHandler) // an error comes back from the call that met it
	name := config.DefaultProcess().DriverName
	volumes := &volume.Set{CacheDir: cacheDir, Log: log}
	d := driver.New(driver.Options{
		Name: name, Version: "demo", NodeID: "demo",
		Provisioner: provision.New(provision.SDK(new(s3sdk.Transports)), provision.Options{Driver: name, Log: log}),
		Volumes:     volumes,
		Log:         log,
	})
	// Not the demo's own context: the clean-up still calls the driver after Ctrl-C.
	serving, cancel := context.WithCancel(context.WithoutCancel(ctx))
	served := make(chan error, 1)
	// Ends with stop.
	go func() { served <- d.Serve(serving, socket) }()
	return func(ctx context.Context) error {
		cancel()
		return errors.Join(<-served, volumes.Close(ctx))
	}, nil
}
