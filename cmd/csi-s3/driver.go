package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/spf13/cobra"

	"github.com/csi-s3/csi-s3/pkg/config"
	"github.com/csi-s3/csi-s3/pkg/driver"
	"github.com/csi-s3/csi-s3/pkg/kube"
	"github.com/csi-s3/csi-s3/pkg/metrics"
	"github.com/csi-s3/csi-s3/pkg/provision"
	"github.com/csi-s3/csi-s3/pkg/s3/s3sdk"
	"github.com/csi-s3/csi-s3/pkg/volume"
)

func (p *process) driverCommand() *cobra.Command {
	conf := config.DefaultProcess()
	c := &cobra.Command{
		Use:   "driver [flags]",
		Short: "serve the Container Storage Interface",
		Long: `Driver serves the Container Storage Interface on a unix socket, for the kubelet and the sidecars of Kubernetes. The
chart starts it: once as the controller, which makes and deletes volumes, and on every node, where it mounts them.

SIGTERM uploads what the node's volumes still hold, unmounts and exits 0; a second one does not wait for the upload:
the cache directory keeps the rest, and the volumes go on with it when they are mounted again.`,
		Args: exactly(),
		RunE: func(c *cobra.Command, _ []string) error {
			if err := conf.Validate(); err != nil {
				return usageError("%w", err)
			}
			return p.driver(c.Context(), conf)
		},
	}
	for _, f := range config.ProcessFlags() {
		help := f.Help
		if f.Default != "" {
			help += " (default " + f.Default + ")"
		}
		c.Flags().Var(&processFlag{flag: f, conf: &conf}, f.Name, help)
	}
	return c
}

// processFlag is one flag of config.ProcessFlags.
type processFlag struct {
	flag  config.ProcessFlag
	conf  *config.Process
	given string
}

func (f *processFlag) String() string { return f.given }
func (f *processFlag) Type() string   { return f.flag.Form }
func (f *processFlag) Set(v string) error {
	f.given = v
	return f.flag.Set(f.conf, v)
}

// drainTime is how long the volumes of a node may upload after SIGTERM. The chart gives the process 120 s.
const drainTime = 100 * time.Second

func (p *process) driver(ctx context.Context, conf config.Process) error {
	log := p.logger(true)
	m := metrics.New(version)
	memory := memoryFlag(conf.Memory)
	memory.apply()

	opt := driver.Options{Name: conf.DriverName, Version: version, NodeID: conf.NodeID, Metrics: m, Log: log}
	if conf.Controller() {
		opt.Provisioner = provision.New(provision.SDK(new(s3sdk.Transports)), provision.Options{Driver: conf.DriverName, Cluster: conf.ClusterID, Log: log})
	}
	var volumes *volume.Set
	deliver := func(context.Context) {}
	if conf.Node() {
		volumes = &volume.Set{CacheDir: conf.CacheDir, Node: conf.NodeID, Log: log, Metrics: m}
		m.Endpoints(volumes.Endpoints)
		cluster, err := kube.InCluster(conf.DriverName)
		switch {
		case err == nil:
			volumes.Secret = cluster.Secret
			events := cluster.Events(conf.NodeID, log)
			volumes.Incident = func(i volume.Incident) { events.Record(occurrence(i)) }
			deliver = events.Run
		case !errors.Is(err, kube.ErrNotInCluster):
			return err
		default:
			log.Info("without a service account: what a crash leaves is uploaded when its volume is mounted again")
		}
		opt.Volumes = volumes
		if err := volumes.DetachDead(ctx); err != nil {
			// The volumes whose mounts they are will say so again; the others can be served.
			log.Error("dead mounts remain", "err", err)
		}
	}

	serving, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	// Ends when serve returns.
	go func() {
		select {
		case s := <-p.signals:
			log.Info("stopping", "signal", s.String())
			stop(nil)
		case <-serving.Done():
		}
	}()
	if conf.MetricsAddr != "" {
		// Ends with serving. Without metrics the mounts go on, but nobody would see what becomes of them.
		go func() {
			if err := m.Serve(serving, conf.MetricsAddr); err != nil {
				stop(err)
			}
		}()
	}
	if volumes != nil {
		// Both end with serving.
		go deliver(serving)
		go sweep(serving, volumes, log)
	}
	err := driver.New(opt).Serve(serving, conf.Endpoint)
	if cause := context.Cause(serving); err == nil && !errors.Is(cause, context.Canceled) {
		err = cause
	}
	stop(nil)
	if volumes != nil {
		err = errors.Join(err, p.closeVolumes(ctx, volumes))
	}
	return err
}

// occurrence is an incident as the cluster hears of it.
func occurrence(i volume.Incident) kube.Occurrence {
	pods := make([]kube.Pod, len(i.Pods))
	for n, p := range i.Pods {
		pods[n] = kube.Pod(p)
	}
	return kube.Occurrence{Volume: i.Volume, Reason: string(i.Reason), Message: i.Message, Pods: pods}
}

// cacheAge is how long a volume's cache waits for the volume to come back to the node.
const cacheAge = 24 * time.Hour

// sweep frees the disk of what volumes left there that are used elsewhere now.
func sweep(ctx context.Context, volumes *volume.Set, log *slog.Logger) {
	tick := time.NewTicker(time.Hour)
	defer tick.Stop()
	for {
		if err := volumes.Sweep(cacheAge); err != nil {
			log.Error("old caches remain", "err", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// closeVolumes drains and unmounts until there is no more time, or a second signal comes.
func (p *process) closeVolumes(ctx context.Context, volumes *volume.Set) error {
	drain, cancel := context.WithTimeout(context.WithoutCancel(ctx), drainTime)
	defer cancel()
	closed := make(chan struct{})
	defer close(closed)
	// Ends when closeVolumes returns.
	go func() {
		select {
		case <-p.signals:
			cancel()
		case <-closed:
		}
	}()
	err := volumes.Close(drain)
	if err != nil && drain.Err() != nil {
		return &exitError{exitDirty, fmt.Errorf("stopped before everything was in the bucket: %w; the cache keeps the rest", err)}
	}
	return err
}
