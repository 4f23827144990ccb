package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/spf13/cobra"
)

// version is set by the linker.
var version = "unknown"

func main() {
	// Two places: the first signal asks to drain, the second not to wait for it.
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT)
	p := &process{stdout: os.Stdout, stderr: os.Stderr, getenv: os.Getenv, signals: signals, startCheck: 10 * time.Second}
	err := p.run(context.Background(), os.Args[1:])
	if err != nil {
		fmt.Fprintln(os.Stderr, "csi-s3:", err)
	}
	os.Exit(exitCode(err))
}

// process is what a command has of its surroundings.
type process struct {
	stdout, stderr io.Writer
	getenv         func(string) string
	signals        <-chan os.Signal // SIGTERM and SIGINT, capacity at least 2
	startCheck     time.Duration    // bounds the question to the endpoint that precedes a mount

	logLevel slog.LevelVar
}

// run executes one command line. It prints nothing about the error that it returns.
func (p *process) run(ctx context.Context, args []string) error {
	root := &cobra.Command{
		Use:   "csi-s3",
		Short: "S3 buckets as POSIX directories, for pods and for people",
		Long: `csi-s3 mounts S3 buckets as directories in which every file is one plain object.

  csi-s3 mount s3://BUCKET/PREFIX DIR   mounts one directory, without Kubernetes
  csi-s3 driver                         serves the Container Storage Interface

Writes go to a crash-safe cache on the local disk first and from there to the bucket. 'csi-s3 flush' waits until the
bucket has them, 'csi-s3 status' shows what is under way, 'csi-s3 lease' which node may write to a volume, 'csi-s3
recover' saves what a cache holds when its bucket is gone for good.

Exit codes: 0 done, 1 failed, 2 wrong command line, 3 bucket, credentials or option refused, 4 endpoint does not
answer (may work later), 5 stopped while data is not yet in the bucket (the cache keeps it).`,
		SilenceErrors: true, // main prints the error, once
		SilenceUsage:  true, // a failure is one line, not a page
		Version:       version,
	}
	root.SetArgs(args)
	root.SetOut(p.stdout)
	root.SetErr(p.stderr)
	root.SetVersionTemplate("csi-s3 {{.Version}}\n")
	root.CompletionOptions.HiddenDefaultCmd = true
	root.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		return usageError("%w; see '%s --help'", err, c.CommandPath())
	})
	root.PersistentFlags().Var(&levelFlag{&p.logLevel}, "log-level", "what is logged to standard error: debug, info, warn or error")
	root.AddCommand(p.driverCommand(), p.mountCommand(), p.flushCommand(), p.statusCommand(), p.probeCommand(), p.leaseCommand(), p.recoverCommand(), p.versionCommand())
	// An unknown command is a usage error too; cobra has no hook for it but this one.
	root.RunE = func(c *cobra.Command, args []string) error {
		if len(args) > 0 {
			return usageError("unknown command %q; see 'csi-s3 --help'", args[0])
		}
		return c.Help()
	}
	root.Args = cobra.ArbitraryArgs
	return root.ExecuteContext(ctx)
}

// exactly is cobra.ExactArgs with an error that says what is missing.
func exactly(names ...string) cobra.PositionalArgs {
	return func(c *cobra.Command, args []string) error {
		switch {
		case len(args) < len(names):
			return usageError("%s is missing; usage: %s", names[len(args)], c.UseLine())
		case len(args) > len(names):
			return usageError("%q is one argument too many; usage: %s", args[len(names)], c.UseLine())
		}
		return nil
	}
}

// logger writes to standard error: text for a person, JSON for a cluster's log collector.
func (p *process) logger(json bool) *slog.Logger {
	opts := &slog.HandlerOptions{Level: &p.logLevel}
	if json {
		return slog.New(slog.NewJSONHandler(p.stderr, opts))
	}
	return slog.New(slog.NewTextHandler(p.stderr, opts))
}

// levelFlag is a slog level as a flag.
type levelFlag struct{ v *slog.LevelVar }

func (f *levelFlag) String() string {
	if f.v == nil {
		return ""
	}
	return f.v.Level().String()
}
func (f *levelFlag) Set(s string) error { return f.v.UnmarshalText([]byte(s)) }
func (f *levelFlag) Type() string       { return "LEVEL" }

func (p *process) versionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "print the version",
		Args:  exactly(),
		RunE: func(*cobra.Command, []string) error {
			_, err := fmt.Fprintln(p.stdout, "csi-s3", version)
			return err
		},
	}
}
