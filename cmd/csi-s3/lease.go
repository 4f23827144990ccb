package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/csi-s3/csi-s3/pkg/config"
	"github.com/csi-s3/csi-s3/pkg/s3"
	"github.com/csi-s3/csi-s3/pkg/s3/s3probe"
	"github.com/csi-s3/csi-s3/pkg/volmeta"
)

func (p *process) leaseCommand() *cobra.Command {
	var f mountFlags
	var breakIt bool
	c := &cobra.Command{
		Use:   "lease [flags] s3://BUCKET[/PREFIX] [--break]",
		Short: "show which node may write to a volume, or take that from it",
		Long: `Lease shows which node may write to a volume that one node writes to, and what that node has that is not in the bucket.

A node that went away while it had such changes keeps the volume: it uploads them when it comes back, and no other node
mounts the volume before. --break is for a node that does not come back, or not soon: it GIVES UP FOR GOOD what only that
node has. Another node can mount the volume a minute later. Should the first one come back, it refuses the volume until
'csi-s3 recover' has saved what is in its cache.

Endpoint and credentials are found as by 'csi-s3 mount'.`,
		Example: `  csi-s3 lease s3://data
  csi-s3 lease --endpoint http://127.0.0.1:9000 s3://shared/pvc-1 --break`,
		Args: exactly("s3://BUCKET[/PREFIX]"),
		RunE: func(c *cobra.Command, args []string) error { return p.lease(c.Context(), f, args[0], breakIt) },
	}
	f.server(c)
	c.Flags().BoolVar(&breakIt, "break", false, "give up what the holder has not uploaded, and take the volume from it")
	return c
}

func (p *process) lease(ctx context.Context, f mountFlags, source string, breakIt bool) error {
	at, err := parsePlace(source)
	if err != nil {
		return err
	}
	server, done, err := p.connect(ctx, f, &at)
	if err != nil {
		return err
	}
	defer done()
	b := s3probe.NewGuard(server)
	ctx, cancel := context.WithTimeout(ctx, p.startCheck)
	defer cancel()
	l, tag, err := volmeta.ReadLease(ctx, b, at.prefix)
	switch {
	case errors.Is(err, s3.ErrNotExist):
		fmt.Fprintf(p.stdout, "%s has no lease: no node has mounted it for writing as its only one\n", at)
		return nil
	case errors.Is(err, volmeta.ErrFormat):
		return &exitError{exitRefused, err}
	case err != nil:
		return fmt.Errorf("read the lease of %s: %w", at, err)
	}
	fmt.Fprintf(p.stdout, "%s, lease epoch %d: %s\n", at, l.Epoch, describe(l))
	if !breakIt || l.State == volmeta.LeaseReleased || l.Holder == "" {
		return nil
	}
	switch err := volmeta.BreakLease(ctx, b, at.prefix, l, tag, time.Now()); {
	case errors.Is(err, s3.ErrPrecondition):
		return fmt.Errorf("the lease of %s changed just now, nothing was done: node %s is alive; stop its mount first (%w)", at, l.Holder, err)
	case err != nil:
		return fmt.Errorf("break the lease of %s: %w", at, err)
	}
	if l.State == volmeta.LeaseDirty {
		fmt.Fprintf(p.stdout, "GIVEN UP: what node %s has and the bucket does not, %s as of %s (epoch %d, cache %s)\n",
			l.Holder, config.FormatSize(l.DirtyBytes), l.Renewed.Format(time.RFC3339), l.Epoch, l.Cache)
	}
	fmt.Fprintf(p.stdout, "the lease is broken (epoch %d): node %s uploads nothing more, and another one can mount the volume in %v\n", l.Epoch+1, l.Holder, l.TTL())
	return nil
}

// describe says what a lease means.
func describe(l volmeta.Lease) string {
	since := "since " + l.Renewed.Format(time.RFC3339)
	switch {
	case l.Holder == "":
		return "broken " + since + ", held by nobody"
	case l.State == volmeta.LeaseReleased:
		return "given back by node " + l.Holder + " " + strings.Replace(since, "since", "at", 1)
	case l.State == volmeta.LeaseDirty && l.DirtyBytes == 0: // names, or bytes that were written since
		return fmt.Sprintf("held by node %s, with changes that are not in the bucket, as of %s", l.Holder, l.Renewed.Format(time.RFC3339))
	case l.State == volmeta.LeaseDirty:
		return fmt.Sprintf("held by node %s, %s of which are not in the bucket, as of %s", l.Holder, config.FormatSize(l.DirtyBytes), l.Renewed.Format(time.RFC3339))
	}
	return fmt.Sprintf("held by node %s, all of it is in the bucket %s", l.Holder, since)
}
