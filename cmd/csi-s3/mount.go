package main

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/csi-s3/csi-s3/pkg/config"
	"github.com/csi-s3/csi-s3/pkg/s3"
	"github.com/csi-s3/csi-s3/pkg/s3/s3sdk"
	"github.com/csi-s3/csi-s3/pkg/volume"
)

// mountFlags are the flags of mount.
type mountFlags struct {
	endpoint, region, cacheDir, caBundle string
	insecure, virtualHost                bool
	options                              []string
	memory                               memoryFlag
}

func (p *process) mountCommand() *cobra.Command {
	f := mountFlags{memory: defaultMemory}
	var options strings.Builder
	for _, o := range config.MountOptions() {
		fmt.Fprintf(&options, "  %-28s %s (default: %s)\n", o, o.Help, o.Default)
	}
	c := &cobra.Command{
		Use:   "mount [flags] s3://BUCKET[/PREFIX] DIR",
		Short: "mount a bucket, or a prefix of one, on a directory",
		Long: `Mount shows the objects below s3://BUCKET/PREFIX as the files of DIR, an existing directory, and serves them in the
foreground until it is told to stop. It prints one line when DIR is ready.

Credentials come from AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN, or from the profile AWS_PROFILE
(else "default") of ~/.aws/credentials and ~/.aws/config; region, endpoint and CA come from there too where no flag
says otherwise. There is no metadata service behind it.

What was written is in the bucket soon after close. SIGTERM or Ctrl-C uploads all that is left, unmounts and exits 0;
a second one does not wait for the upload: the cache directory keeps the rest, and the next mount of the same bucket
with the same --cache-dir continues. So does a mount after a crash.

Options of -o:
` + strings.TrimSuffix(options.String(), "\n"),
		Example: `  csi-s3 mount --endpoint http://127.0.0.1:9000 s3://data /mnt/data
  csi-s3 mount -o ro,uid=1000 s3://models/llama /mnt/models`,
		Args: exactly("s3://BUCKET[/PREFIX]", "DIR"),
		RunE: func(c *cobra.Command, args []string) error { return p.mount(c.Context(), f, args[0], args[1]) },
	}
	f.server(c)
	fl := c.Flags()
	fl.StringVar(&f.cacheDir, "cache-dir", "", "directory of the caches, one below it for each bucket and prefix (default: /var/cache/csi-s3, for others than root csi-s3 in the user's cache directory)")
	fl.StringSliceVarP(&f.options, "option", "o", nil, "mount options OPT,OPT=VALUE,...; an unknown one is refused")
	fl.Var(&f.memory, "memory", memoryUsage)
	return c
}

// server adds the flags that say where the bucket is.
func (f *mountFlags) server(c *cobra.Command) {
	fl := c.Flags()
	fl.StringVar(&f.endpoint, "endpoint", "", "URL of the S3 server (default: AWS_ENDPOINT_URL_S3, AWS_ENDPOINT_URL, the profile, else AWS itself)")
	fl.StringVar(&f.region, "region", "", "region to sign for (default: AWS_REGION, the profile, else us-east-1)")
	fl.StringVar(&f.caBundle, "ca-bundle", "", "file with PEM certificates that the server's certificate may be signed by")
	fl.BoolVar(&f.insecure, "insecure", false, "do not verify the server's certificate")
	fl.BoolVar(&f.virtualHost, "virtual-host", false, "address the bucket as BUCKET.HOST instead of HOST/BUCKET")
}

func (p *process) mount(ctx context.Context, f mountFlags, source, dir string) error {
	at, err := parsePlace(source)
	if err != nil {
		return err
	}
	opts, err := config.ParseMount(f.options)
	if err != nil {
		return usageError("%w", err)
	}
	if dir, err = mountPoint(dir); err != nil {
		return err
	}
	b, done, err := p.connect(ctx, f, &at)
	if err != nil {
		return err
	}
	defer done()
	cacheDir, err := p.cacheDir(f.cacheDir, at)
	if err != nil {
		return err
	}
	f.memory.apply()

	v, err := volume.Mount(ctx, volume.Spec{
		ID:       at.volumeID(),
		Bucket:   b,
		Server:   at.endpoint,
		Prefix:   at.prefix,
		Dir:      dir,
		CacheDir: cacheDir,
		Options:  opts,
		Log:      p.logger(false),

		LeaseWait: leaseWait,
	})
	switch {
	case errors.Is(err, volume.ErrHeld), errors.Is(err, volume.ErrGivenUp):
		return &exitError{exitRefused, fmt.Errorf("mount %s on %s: %w", at, dir, err)}
	case errors.Is(err, volume.ErrLeased):
		return &exitError{exitUnavailable, fmt.Errorf("mount %s on %s: %w", at, dir, err)}
	case err != nil:
		return fmt.Errorf("mount %s on %s: %w", at, dir, err)
	}
	fmt.Fprintf(p.stdout, "%s of %s is mounted on %s, cache in %s\n", at, at.endpoint, dir, cacheDir)
	return p.serve(ctx, v, dir)
}

// leaseWait is long enough for the clean lease of a node that is gone to lapse. Nobody repeats this command by himself.
const leaseWait = 90 * time.Second

// connect opens the bucket, looks whether it answers, and notes its endpoint in at. The caller calls done.
func (p *process) connect(ctx context.Context, f mountFlags, at *place) (b s3.Bucket, done func(), err error) {
	conf, err := p.clientConfig(f)
	if err != nil {
		return nil, nil, err
	}
	client, err := s3sdk.New(conf)
	if err != nil {
		return nil, nil, &exitError{exitRefused, err}
	}
	at.endpoint = conf.Endpoint
	b = client.Bucket(at.bucket)
	if err := p.checkBucket(ctx, b, *at); err != nil {
		client.Close()
		return nil, nil, err
	}
	return b, client.Close, nil
}

// serve waits for a signal or for somebody else's unmount, then drains and closes.
func (p *process) serve(ctx context.Context, v *volume.Volume, dir string) error {
	select {
	case <-p.signals:
	case <-ctx.Done():
	case <-v.Done():
	}
	drain, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	closed := make(chan struct{})
	defer close(closed)
	// Ends when serve returns.
	go func() {
		select {
		case <-p.signals:
			cancel()
		case <-closed:
		}
	}()
	if left := v.Status().Dirty; left > 0 {
		fmt.Fprintf(p.stderr, "csi-s3: %s: %s are not in the bucket yet, uploading; a second signal leaves them in the cache\n", dir, config.FormatSize(left))
	}
	if err := v.Close(drain, true); err != nil {
		if drain.Err() != nil {
			return &exitError{exitDirty, fmt.Errorf("stopped before everything was in the bucket: %w; the cache keeps the rest, mount again with the same --cache-dir to go on", err)}
		}
		return fmt.Errorf("unmount %s: %w", dir, err)
	}
	return nil
}

// place is what a mount shows.
type place struct {
	bucket   string
	prefix   s3.Key
	endpoint string
}

func (p place) String() string { return "s3://" + p.bucket + "/" + string(p.prefix) }

// volumeID is BUCKET or BUCKET/PREFIX, as CSI volumes are named.
func (p place) volumeID() string {
	return strings.TrimSuffix(p.bucket+"/"+string(p.prefix), "/")
}

// parsePlace is parseSource of a place whose endpoint is not known yet.
func parsePlace(source string) (place, error) {
	bucket, prefix, err := parseSource(source)
	return place{bucket: bucket, prefix: prefix}, err
}

// parseSource splits s3://BUCKET[/PREFIX]. The prefix comes back with exactly one slash at its end, or empty.
func parseSource(source string) (bucket string, prefix s3.Key, err error) {
	rest, ok := strings.CutPrefix(source, "s3://")
	if !ok {
		return "", "", usageError("%q is not of the form s3://BUCKET or s3://BUCKET/PREFIX", source)
	}
	bucket, dir, _ := strings.Cut(rest, "/")
	if bucket == "" || strings.ContainsAny(bucket, "?#@: \\") {
		return "", "", usageError("%q names no bucket; the form is s3://BUCKET or s3://BUCKET/PREFIX", source)
	}
	dir = strings.TrimSuffix(dir, "/")
	if dir == "" {
		return bucket, "", nil
	}
	for part := range strings.SplitSeq(dir, "/") {
		if part == "" || part == "." || part == ".." || strings.ContainsRune(part, 0) {
			return "", "", usageError("%q: a prefix has no empty component and none named . or ..", source)
		}
	}
	return bucket, s3.Key(dir + "/"), nil
}

// mountPoint returns dir as an absolute path without symbolic links. It refuses a mount that is there already: a
// second one would hide it, and stat of a dead one would hang or fail in words that help nobody.
func mountPoint(dir string) (string, error) {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return "", err
	}
	mounts, err := readMounts()
	if err != nil {
		return "", err
	}
	for _, m := range mounts {
		if m.dir == abs {
			return "", &exitError{exitRefused, fmt.Errorf("%s is a csi-s3 mount already; 'umount %s' first", abs, abs)}
		}
	}
	if abs, err = filepath.EvalSymlinks(abs); err != nil {
		return "", &exitError{exitRefused, fmt.Errorf("mount point: %w; make the directory first", err)}
	}
	st, err := os.Stat(abs)
	if err != nil {
		return "", &exitError{exitRefused, fmt.Errorf("mount point: %w", err)}
	}
	if !st.IsDir() {
		return "", &exitError{exitRefused, fmt.Errorf("mount point %s is not a directory", abs)}
	}
	return abs, nil
}

// clientConfig joins flags and AWS settings; a flag wins.
func (p *process) clientConfig(f mountFlags) (s3sdk.Config, error) {
	aws, err := loadAWS(p.getenv)
	if err != nil {
		return s3sdk.Config{}, &exitError{exitRefused, err}
	}
	conf := s3sdk.Config{
		Region:      cmp.Or(f.region, aws.region, "us-east-1"),
		VirtualHost: f.virtualHost,
		Insecure:    f.insecure,
		Credentials: s3sdk.Credentials{
			AccessKeyID:     s3sdk.Secret(aws.accessKeyID),
			SecretAccessKey: s3sdk.Secret(aws.secretAccessKey),
			SessionToken:    s3sdk.Secret(aws.sessionToken),
		},
	}
	conf.Endpoint = cmp.Or(f.endpoint, aws.endpoint, "https://s3."+conf.Region+".amazonaws.com")
	if file := cmp.Or(f.caBundle, aws.caBundle); file != "" {
		if conf.CABundle, err = os.ReadFile(file); err != nil {
			return s3sdk.Config{}, &exitError{exitRefused, fmt.Errorf("CA bundle: %w", err)}
		}
	}
	return conf, nil
}

// checkBucket asks for one key below the prefix: the least that a mount needs, and allowed to keys that see only
// their prefix. A mount that could never work is refused here, in one line, instead of failing file by file.
func (p *process) checkBucket(ctx context.Context, b s3.Bucket, at place) error {
	ctx, cancel := context.WithTimeout(ctx, p.startCheck)
	defer cancel()
	_, err := b.List(ctx, s3.ListInput{Prefix: at.prefix, MaxKeys: 1})
	switch {
	case err == nil:
		return nil
	case errors.Is(err, s3.ErrNoBucket), errors.Is(err, s3.ErrNotExist):
		return &exitError{exitRefused, fmt.Errorf("%s has no bucket %q: create it, or check the name and --endpoint (%w)", at.endpoint, at.bucket, err)}
	case errors.Is(err, s3.ErrAuth):
		return &exitError{exitRefused, fmt.Errorf("%s refuses these credentials for bucket %q: check the access key, its secret, and that it may list %s (%w)", at.endpoint, at.bucket, at, err)}
	case errors.Is(err, s3.ErrUnavailable):
		return &exitError{exitUnavailable, fmt.Errorf("%s does not answer: check --endpoint and that the server runs (%w)", at.endpoint, err)}
	}
	return &exitError{exitRefused, fmt.Errorf("%s does not answer like the S3 server of %s: check --endpoint, --region and the name of the bucket (%w)", at.endpoint, at, err)}
}

// cacheDir is the directory of this place below the directory of all caches. Its name is a hash, since neither
// bucket nor prefix need be fit for a path.
func (p *process) cacheDir(base string, at place) (string, error) {
	switch {
	case base != "":
	case os.Geteuid() == 0:
		base = "/var/cache/csi-s3"
	default:
		user, err := os.UserCacheDir()
		if err != nil {
			return "", usageError("no directory for the cache: %w; name one with --cache-dir", err)
		}
		base = filepath.Join(user, "csi-s3")
	}
	sum := sha256.Sum256([]byte(at.endpoint + "\x00" + at.bucket + "\x00" + string(at.prefix)))
	return filepath.Abs(filepath.Join(base, "mounts", hex.EncodeToString(sum[:12])))
}

const (
	defaultMemory = memoryFlag(256 << 20)
	memoryUsage   = "memory budget of the process, such as 256Mi or 1Gi"
)

// memoryFlag is a size in bytes.
type memoryFlag int64

func (m *memoryFlag) String() string { return config.FormatSize(int64(*m)) }
func (m *memoryFlag) Type() string   { return "SIZE" }

func (m *memoryFlag) Set(s string) error {
	n, err := config.ParseSize(s)
	if err != nil {
		return err
	}
	if n < 64<<20 {
		return errors.New("less than 64Mi is not enough to serve a mount")
	}
	*m = memoryFlag(n)
	return nil
}

// apply makes the garbage collector work for the budget. An eighth is left for what the collector does not see:
// stacks of threads and the kernel's request slots.
func (m *memoryFlag) apply() { debug.SetMemoryLimit(int64(*m) / 8 * 7) }
