package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"golang.org/x/term"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	interactive := term.IsTerminal(int(os.Stdin.Fd())) && term.IsTerminal(int(os.Stdout.Fd()))
	if err := run(ctx, os.Stdout, interactive); err != nil {
		fmt.Fprintln(os.Stderr, "csi-s3-demo:", err)
		os.Exit(1)
	}
}

// run shows everything and cleans up, also after an error or when ctx ends. Ctrl-C while it waits is success.
func run(ctx context.Context, out io.Writer, interactive bool) (err error) {
	if os.Geteuid() != 0 {
		return errors.New("mounting needs root: run it with sudo")
	}
	if _, err := os.Stat("/dev/fuse"); err != nil {
		return fmt.Errorf("mounting needs FUSE: %w; 'modprobe fuse' loads it", err)
	}
	dir, err := os.MkdirTemp("", "csi-s3-demo-")
	if err != nil {
		return err
	}
	d := &demo{out: out, dir: dir}
	defer func() { err = errors.Join(err, d.cleanUp(context.WithoutCancel(ctx))) }()
	if err := d.show(ctx); err != nil {
		return err
	}
	if interactive {
		fmt.Fprintf(out, "\nThe volume is mounted. In another terminal:\n  cd %s\n%s\nCtrl-C ends it and removes everything. ", d.target(), d.hint)
		<-ctx.Done()
		fmt.Fprintln(out)
	}
	return nil
}
