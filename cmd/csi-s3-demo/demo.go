package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// settled bounds how long the demo waits for a change to reach the bucket.
const settled = 60 * time.Second

// fileSize is the size of the demo's file in bytes: more than one part of a multipart upload.
const fileSize = 20 << 20

// demo is one run. Its fields are set as far as show came.
type demo struct {
	out io.Writer
	dir string // of everything: the server's data, the cache, staging and target

	hint string    // how to look at the bucket; set by the end of show
	undo []undoing // in the order of doing
}

// undoing is one thing to take back.
type undoing struct {
	what string
	do   func(context.Context) error
}

func (d *demo) target() string  { return filepath.Join(d.dir, "pod", "data") }
func (d *demo) staging() string { return filepath.Join(d.dir, "staging") }

func (d *demo) later(what string, do func(context.Context) error) {
	d.undo = append(d.undo, undoing{what, do})
}

// step does one thing and prints one line about it; do returns what was found.
func (d *demo) step(what string, do func() (found string, err error)) error {
	begin := time.Now()
	found, err := do()
	if err != nil {
		fmt.Fprintf(d.out, "✗ %s\n", what)
		return fmt.Errorf("%s: %w", what, err)
	}
	if found != "" {
		found = ": " + found
	}
	fmt.Fprintf(d.out, "✓ %s%s (%v)\n", what, found, time.Since(begin).Round(time.Millisecond))
	return nil
}

// show runs the steps.
func (d *demo) show(ctx context.Context) error {
	var (
		objects *objects
		kubelet *kubelet
		sum     string
	)
	original := filepath.Join(d.dir, "original") // what the mounted file must equal
	steps := []struct {
		what string
		do   func() (string, error)
	}{
		{"S3 server", func() (string, error) {
			srv, err := startServer(ctx, filepath.Join(d.dir, "server"))
			if err != nil {
				return "", err
			}
			d.later("stop the S3 server", func(context.Context) error { return srv.Stop() })
			objects = newObjects(srv)
			return "VersityGW on " + srv.Endpoint, nil
		}},
		{"CSI driver", func() (string, error) {
			socket := filepath.Join(d.dir, "csi.sock")
			stop, err := startDriver(ctx, socket, filepath.Join(d.dir, "cache"))
			if err != nil {
				return "", err
			}
			d.later("stop the driver", stop)
			kubelet, err = connect(socket, objects.secret())
			if err != nil {
				return "", err
			}
			d.later("close the connection to the driver", func(context.Context) error { return kubelet.close() })
			return kubelet.about(ctx)
		}},
		{"CreateVolume", func() (string, error) {
			if err := kubelet.create(ctx); err != nil {
				return "", err
			}
			objects.bucket = kubelet.volume.GetVolumeId()
			d.later("delete the volume", kubelet.delete)
			return "bucket " + objects.bucket, nil
		}},
		{"NodeStageVolume", func() (string, error) {
			d.later("unstage the volume", func(ctx context.Context) error { return kubelet.unstage(ctx, d.staging()) })
			return "", kubelet.stage(ctx, d.staging())
		}},
		{"NodePublishVolume", func() (string, error) {
			d.later("unpublish the volume", func(ctx context.Context) error { return kubelet.unpublish(ctx, d.target()) })
			if err := kubelet.publish(ctx, d.staging(), d.target()); err != nil {
				return "", err
			}
			return d.child(ctx, `findmnt -no FSTYPE,TARGET "$1" 2>/dev/null || awk -v t="$1" '$2 == t {print $3, $2}' /proc/mounts`, d.target())
		}},
		{"write photos/cat.raw through the mount", func() (string, error) {
			var err error
			sum, err = d.child(ctx, `head -c "$3" /dev/urandom > "$2" && mkdir "$1/photos" && cp "$2" "$1/photos/cat.raw" && sha256sum < "$1/photos/cat.raw" | cut -c1-64`,
				d.target(), original, fmt.Sprint(fileSize))
			return fmt.Sprintf("%d MiB, sha256 %.16s", fileSize>>20, sum), err
		}},
		{"the bucket lists the object", func() (string, error) {
			return eventually(ctx, func() (string, error) {
				keys, err := objects.list(ctx)
				if err != nil {
					return "", err
				}
				for _, k := range keys {
					if strings.HasPrefix(k, "photos/cat.raw ") {
						return k, nil
					}
				}
				return "", fmt.Errorf("the bucket holds %v", keys)
			})
		}},
		{"a plain S3 client reads the same bytes", func() (string, error) {
			return eventually(ctx, func() (string, error) { return objects.hasSum(ctx, "photos/cat.raw", sum) })
		}},
		{"change 4 KiB in the middle of the file", func() (string, error) {
			changed, err := d.child(ctx, `for f in "$1/photos/cat.raw" "$2"; do printf '%4096s' meow | dd of="$f" bs=4096 seek=1000 conv=notrunc status=none || exit 1; done; sha256sum < "$1/photos/cat.raw" | cut -c1-64`,
				d.target(), original)
			if err != nil {
				return "", err
			}
			want, err := sumOf(original)
			if err != nil {
				return "", err
			}
			if changed != want {
				return "", fmt.Errorf("the mounted file has sha256 %s, want %s", changed, want)
			}
			sum = changed
			return eventually(ctx, func() (string, error) { return objects.hasSum(ctx, "photos/cat.raw", sum) })
		}},
		{"rename the file", func() (string, error) {
			if _, err := d.child(ctx, `mv "$1/photos/cat.raw" "$1/photos/felix.raw"`, d.target()); err != nil {
				return "", err
			}
			return eventually(ctx, func() (string, error) {
				if err := objects.absent(ctx, "photos/cat.raw"); err != nil {
					return "", err
				}
				return objects.hasSum(ctx, "photos/felix.raw", sum)
			})
		}},
		{"delete the file", func() (string, error) {
			if _, err := d.child(ctx, `rm "$1/photos/felix.raw"`, d.target()); err != nil {
				return "", err
			}
			return eventually(ctx, func() (string, error) {
				return "the object is gone", objects.absent(ctx, "photos/felix.raw")
			})
		}},
	}
	ctx, cancel := context.WithTimeout(ctx, 2*settled) // no step may hang
	defer cancel()
	for _, s := range steps {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := d.step(s.what, s.do); err != nil {
			return err
		}
	}
	d.hint = objects.hint()
	return nil
}

// cleanUp takes everything back, last thing first, and goes on after an error.
func (d *demo) cleanUp(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 2*settled)
	defer cancel()
	var errs []error
	for i := len(d.undo) - 1; i >= 0; i-- {
		u := d.undo[i]
		if err := u.do(ctx); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", u.what, err))
		}
	}
	// Of mounts that could not be taken down in an orderly way, since a shell still stands in them.
	for _, path := range []string{d.target(), d.staging()} {
		for unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW) == nil {
			errs = append(errs, fmt.Errorf("%s was in use and is detached", path))
		}
	}
	if err := os.RemoveAll(d.dir); err != nil {
		errs = append(errs, err)
	}
	if len(errs) == 0 {
		fmt.Fprintln(d.out, "✓ volume deleted, nothing left behind")
	}
	return errors.Join(errs...)
}

// child runs a shell script with the arguments as $1 and following, and returns the last line of its output.
func (d *demo) child(ctx context.Context, script string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, "sh", append([]string{"-c", script, "sh"}, args...)...)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	cmd.WaitDelay = 5 * time.Second
	stdout, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("%w: %s", err, strings.TrimSpace(stderr.String()))
	}
	lines := strings.Split(strings.TrimSpace(string(stdout)), "\n")
	return strings.Join(strings.Fields(lines[len(lines)-1]), " "), nil
}

// eventually repeats check until it succeeds, or returns its last error after settled.
func eventually(ctx context.Context, check func() (string, error)) (string, error) {
	deadline := time.Now().Add(settled)
	for {
		found, err := check()
		if err == nil || time.Now().After(deadline) {
			return found, err
		}
		select {
		case <-ctx.Done():
			return "", ctx.Err()
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func sumOf(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close() //nolint:errcheck // it was only read
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}
