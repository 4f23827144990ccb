package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/csi-s3/csi-s3/pkg/config"
	"github.com/csi-s3/csi-s3/pkg/fuse"
)

func (p *process) flushCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "flush DIR",
		Short: "wait until everything below a mounted directory is in the bucket",
		Long: `Flush returns when all that was written below DIR before the call is in the bucket. DIR is any directory of a mount,
also of a pod's. While S3 does not answer it waits; Ctrl-C ends the waiting and nothing else.`,
		Example: "  csi-s3 flush /mnt/data",
		Args:    exactly("DIR"),
		RunE:    func(c *cobra.Command, args []string) error { return p.flush(c.Context(), args[0]) },
	}
}

func (p *process) flush(ctx context.Context, dir string) error {
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
	var bar progress
	if p.terminal() {
		bar.out = p.stderr
	}
	err := fuse.Flush(ctx, dir, bar.show)
	bar.clear()
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return &exitError{exitDirty, fmt.Errorf("interrupted: not everything below %s is in the bucket yet; it goes on by itself", dir)}
	case errors.Is(err, unix.ENOTTY), errors.Is(err, unix.ENOTDIR):
		return &exitError{exitRefused, fmt.Errorf("%s is not a directory of a csi-s3 mount; 'csi-s3 status' lists them", dir)}
	case errors.Is(err, os.ErrNotExist):
		return &exitError{exitRefused, fmt.Errorf("%s does not exist", dir)}
	}
	return fmt.Errorf("flush %s: %w", dir, err)
}

// terminal says whether a person watches standard error.
func (p *process) terminal() bool {
	f, ok := p.stderr.(*os.File)
	if !ok {
		return false
	}
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}

// progress draws a bar of what is left of the most that it ever heard of. The zero value draws nothing.
type progress struct {
	out  io.Writer
	most int64
}

const barWidth = 30

func (b *progress) show(left int64) {
	if b.out == nil {
		return
	}
	b.most = max(b.most, left)
	done := barWidth
	if b.most > 0 {
		done = int(barWidth * (b.most - left) / b.most)
	}
	fmt.Fprintf(b.out, "\r\x1b[K[%s%s] %s left", strings.Repeat("#", done), strings.Repeat(".", barWidth-done), config.FormatSize(left))
}

func (b *progress) clear() {
	if b.out != nil && b.most > 0 {
		fmt.Fprint(b.out, "\r\x1b[K")
	}
}
