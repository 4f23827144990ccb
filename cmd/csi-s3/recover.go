package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/csi-s3/csi-s3/pkg/config"
	"github.com/csi-s3/csi-s3/pkg/disk"
	"github.com/csi-s3/csi-s3/pkg/volume"
)

// recoverFlags are the flags of recover.
type recoverFlags struct {
	list        bool
	to, discard string
}

func (p *process) recoverCommand() *cobra.Command {
	var f recoverFlags
	c := &cobra.Command{
		Use:   "recover CACHE-DIRECTORY {--list | --to DIR [--discard VOLUME-ID]}",
		Short: "save what a cache holds when its bucket is gone for good",
		Long: `Recover is for a bucket that will not come back: what was written and never reached it is still in the cache on this
machine's disk. As long as the bucket may come back, do not use it: the next mount uploads everything by itself.

CACHE-DIRECTORY is the cache of one volume, as 'csi-s3 mount' prints it, or a directory of caches: the driver's
--cache-dir (its volumes are found below it) or that of 'csi-s3 mount'. A cache that a process uses is refused: stop
the mount, or the node plugin of this node, first.

--list shows the volumes found, and of a single one what it would save. --to DIR saves it: files and symbolic links
under their names in DIR/files, files that had no name any more in DIR/unnamed, and what a loss of power left of files
that were never synced in DIR/quarantined. Bytes that only the bucket had become holes; DIR/recover-report.json lists
them, and all else that the bucket does not show as the mount did. DIR must be empty. Neither changes the cache.

--discard VOLUME-ID gives the cache up after all of it was saved: the volume can be unstaged then, and a new mount of it
starts with an empty cache. The volume ID must be the one that --list shows.`,
		Example: `  csi-s3 recover /var/cache/csi-s3 --list
  csi-s3 recover /var/cache/csi-s3/volumes/HASH/HASH --to /root/saved
  csi-s3 recover /var/cache/csi-s3/volumes/HASH/HASH --to /root/saved-2 --discard bucket/prefix`,
		Args: exactly("CACHE-DIRECTORY"),
		RunE: func(c *cobra.Command, args []string) error {
			if f.list == (f.to != "") {
				return usageError("give either --list or --to DIR; see 'csi-s3 recover --help'")
			}
			if f.discard != "" && f.list {
				return usageError("--discard needs --to DIR: what is given up is saved before")
			}
			return p.recover(c.Context(), f, args[0])
		},
	}
	c.Flags().BoolVar(&f.list, "list", false, "show what would be saved, and change nothing")
	c.Flags().StringVar(&f.to, "to", "", "directory to save to; made, or empty")
	c.Flags().StringVar(&f.discard, "discard", "", "give the cache of this volume up once all of it is saved")
	return c
}

func (p *process) recover(ctx context.Context, f recoverFlags, dir string) error {
	caches, err := volume.FindCaches(dir)
	if err != nil {
		return &exitError{exitRefused, err}
	}
	if len(caches) > 1 {
		if f.list {
			return p.listCaches(caches)
		}
		return &exitError{exitRefused, fmt.Errorf("%s holds the caches of %d volumes: name one of them, 'csi-s3 recover %s --list' shows which is whose", dir, len(caches), dir)}
	}
	r, err := volume.OpenRemains(caches[0], p.logger(false))
	if errors.Is(err, disk.ErrLocked) {
		return &exitError{exitRefused, fmt.Errorf("a process uses the cache in %s: stop the mount, or the node plugin of this node, first (%w)", caches[0], err)}
	}
	if err != nil {
		return &exitError{exitRefused, err}
	}
	err = p.recoverOne(ctx, f, r)
	return errors.Join(err, r.Close())
}

func (p *process) recoverOne(ctx context.Context, f recoverFlags, r *volume.Remains) error {
	if f.discard != "" && f.discard != r.Volume {
		return &exitError{exitRefused, fmt.Errorf("the cache in %s is of volume %q, not of %q: nothing was done", r.Dir, r.Volume, f.discard)}
	}
	fmt.Fprintf(p.stdout, "volume %s, cache in %s: %d to save, %s\n", r.Volume, r.Dir, r.Saveable(), config.FormatSize(r.Bytes()))
	if f.list {
		return p.listRemnants(r.Remnants)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	// Ends with cancel.
	go func() {
		select {
		case <-p.signals:
			cancel()
		case <-ctx.Done():
		}
	}()
	report, err := r.Save(ctx, f.to, func(x volume.Remnant) {
		note := ""
		switch {
		case x.Error != "":
			note = ": NOT SAVED AS A WHOLE: " + x.Error
		case len(x.Missing) > 0:
			note = fmt.Sprintf(": %s were only in the bucket and are holes now", config.FormatSize(missing(x)))
		}
		fmt.Fprintf(p.stdout, "%s (%s, %s)%s\n", x.SavedAs, x.State, config.FormatSize(x.Local), note)
	})
	switch {
	case errors.Is(err, context.Canceled):
		return fmt.Errorf("interrupted: %s is not whole, and the cache is as it was", f.to)
	case errors.Is(err, volume.ErrTarget):
		return &exitError{exitRefused, err}
	case err != nil:
		return err
	}
	fmt.Fprintf(p.stdout, "saved %d, %s, to %s; see recover-report.json there\n", report.Files, config.FormatSize(report.Bytes), f.to)
	if n := len(r.Remnants) - r.Saveable(); n > 0 {
		fmt.Fprintf(p.stderr, "csi-s3: %d changes of names or attributes have no bytes here: they are in the report only\n", n)
	}
	if report.Partial > 0 {
		fmt.Fprintf(p.stderr, "csi-s3: of %d files only the bucket had some bytes: they are holes in what was saved, and in the report\n", report.Partial)
	}
	if !report.Complete {
		return fmt.Errorf("%d of %d could not be saved as a whole; the cache is kept, the report says what is missing", report.Failed, report.Files+report.Failed)
	}
	if f.discard == "" {
		return nil
	}
	dir := r.Dir
	if err := r.Discard(f.discard, report); err != nil {
		return err
	}
	fmt.Fprintf(p.stderr, "csi-s3: the cache %s is given up: no mount uploads it any more. It is in %s now and can be removed\n", dir, r.Dir)
	return nil
}

func missing(x volume.Remnant) int64 {
	var n int64
	for _, m := range x.Missing {
		n += m.Length
	}
	return n
}

// listCaches prints a line for each of several caches.
func (p *process) listCaches(caches []string) error {
	w := tabwriter.NewWriter(p.stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "VOLUME\tTO SAVE\tBYTES\tUNDRAINED\tCACHE")
	var failed []string
	for _, dir := range caches {
		r, err := volume.OpenRemains(dir, p.logger(false))
		switch {
		case errors.Is(err, disk.ErrLocked):
			fmt.Fprintf(w, "in use\t-\t-\t-\t%s\n", dir)
			continue
		case err != nil:
			failed = append(failed, err.Error())
			fmt.Fprintf(w, "cannot be read\t-\t-\t-\t%s\n", dir)
			continue
		}
		fmt.Fprintf(w, "%s\t%d\t%s\t%t\t%s\n", r.Volume, r.Saveable(), config.FormatSize(r.Bytes()), r.Undrained, dir)
		if err := r.Close(); err != nil {
			return errors.Join(err, w.Flush())
		}
	}
	if err := w.Flush(); err != nil {
		return err
	}
	if len(failed) > 0 {
		return errors.New(strings.Join(failed, "; "))
	}
	return nil
}

// listRemnants prints a line for each file.
func (p *process) listRemnants(remnants []volume.Remnant) error {
	w := tabwriter.NewWriter(p.stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "STATE\tKIND\tSIZE\tHERE\tONLY IN THE BUCKET\tNAME")
	for _, x := range remnants {
		name := fmt.Sprintf("%q", x.Name)
		if x.Name == "" {
			name = "-"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", x.State, x.Kind, config.FormatSize(x.Size), config.FormatSize(x.Local), config.FormatSize(missing(x)), name)
	}
	return w.Flush()
}
