package conformance_test

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/csi-s3/csi-s3/test/minio"
)

// newKubelet returns one whose volume is not made yet.
func newKubelet(t *testing.T, p *process, s map[string]string) *kubelet {
	t.Helper()
	conn := p.connect(t)
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	t.Cleanup(cancel)
	k := &kubelet{
		ctx: ctx, controller: csi.NewControllerClient(conn), node: csi.NewNodeClient(conn), secrets: s,
		capability: &csi.VolumeCapability{
			AccessMode: &csi.VolumeCapability_AccessMode{Mode: csi.VolumeCapability_AccessMode_SINGLE_NODE_MULTI_WRITER},
			AccessType: &csi.VolumeCapability_Mount{Mount: &csi.VolumeCapability_MountVolume{}},
		},
		staging: filepath.Join(p.dir, "globalmount"), target: filepath.Join(p.dir, "pod"),
	}
	if err := os.Mkdir(k.staging, 0o750); err != nil {
		t.Fatal(err)
	}
	return k
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// What a user gets wrong has a code of its own and comes back soon.
func TestWrongAccess(t *testing.T) {
	if !ownMounts(t) {
		return
	}
	server := minio.Start(t)
	p := newProcess(t)
	k := newKubelet(t, p, secrets(server))
	check(t, k.create("pvc-access", nil))
	refused := func(want codes.Code, change func(map[string]string)) {
		t.Helper()
		good := k.secrets
		k.secrets = secrets(server)
		change(k.secrets)
		start := time.Now()
		for name, call := range map[string]func() error{
			"create": func() error { r := *k; return r.create("pvc-other", nil) },
			"stage":  k.stage, "delete": k.delete, "publish": func() error { return k.publish(false) },
		} {
			if err := call(); status.Code(err) != want {
				t.Errorf("%s: %v, want %v", name, err, want)
			}
		}
		if took := time.Since(start); took > time.Minute {
			t.Errorf("%v took %s", want, took)
		}
		k.secrets = good
	}
	refused(codes.PermissionDenied, func(s map[string]string) { s["secretAccessKey"] = "wrong" })
	refused(codes.PermissionDenied, func(s map[string]string) { s["accessKeyID"] = "nobody" })
	refused(codes.Unavailable, func(s map[string]string) { s["endpoint"] = "http://127.0.0.1:1" })

	// A server that takes connections and says nothing: the answer comes before the caller's patience ends, and says
	// which server it is.
	silent, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	check(t, err)
	defer silent.Close()
	deaf := *k
	deaf.secrets = secrets(server)
	deaf.secrets["endpoint"] = "http://" + silent.Addr().String()
	var cancel context.CancelFunc
	deaf.ctx, cancel = context.WithTimeout(k.ctx, 10*time.Second)
	defer cancel()
	if err := deaf.create("pvc-deaf", nil); status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), silent.Addr().String()) {
		t.Errorf("create on a silent server: %v", err)
	}

	none := *k
	none.volume = &csi.Volume{VolumeId: "no-such-bucket"}
	if err := none.stage(); status.Code(err) != codes.NotFound {
		t.Errorf("a bucket that does not exist: %v", err)
	}
	check(t, k.delete())
	if mounts := p.mounts(t); len(mounts) > 0 {
		t.Errorf("mounted: %q", mounts)
	}
}

// The process is told to stop while a pod uses the volume: it uploads, and the next process shows the volume again
// with the next publish.
func TestStopWhilePublished(t *testing.T) {
	if !ownMounts(t) {
		return
	}
	server := minio.Start(t)
	p := newProcess(t)
	k := newKubelet(t, p, secrets(server))
	check(t, k.create("pvc-stop", nil))
	check(t, k.stage())
	check(t, k.publish(false))
	check(t, os.WriteFile(filepath.Join(k.target, "f"), []byte("x"), 0o644))
	check(t, p.stop(syscall.SIGTERM))
	p.start(t)
	check(t, k.publish(false))
	if got, err := os.ReadFile(filepath.Join(k.target, "f")); err != nil || string(got) != "x" {
		t.Errorf("%q, %v", got, err)
	}
	check(t, p.stop(syscall.SIGTERM))
	p.start(t)
	// All was drained, so nothing is left to wait for.
	check(t, k.unpublish())
	check(t, k.unstage())
	check(t, k.delete())
}

// The mount is taken away behind the driver's back, in each way that an operator has.
func TestMountTakenAway(t *testing.T) {
	if !ownMounts(t) {
		return
	}
	server := minio.Start(t)
	p := newProcess(t)
	k := newKubelet(t, p, secrets(server))
	check(t, k.create("pvc-taken", nil))
	check(t, k.stage())
	for name, take := range map[string]func() error{
		"unmounted": func() error { return syscall.Unmount(k.staging, syscall.MNT_DETACH) },
		"aborted":   func() error { return abort(k.staging) },
	} {
		t.Run(name, func(t *testing.T) {
			check(t, k.publish(false))
			check(t, os.WriteFile(filepath.Join(k.target, name), []byte("x"), 0o644))
			// The target too, or the mount would live on there.
			if name == "unmounted" {
				check(t, syscall.Unmount(k.target, syscall.MNT_DETACH))
			}
			check(t, take())
			for wait := time.Now(); ; time.Sleep(10 * time.Millisecond) {
				h, err := k.node.NodeGetVolumeHealth(k.ctx, &csi.NodeGetVolumeHealthRequest{VolumeId: k.volume.GetVolumeId()})
				check(t, err)
				if len(h.GetVolumeHealth().GetHealthStatuses()) > 0 {
					break
				}
				if time.Since(wait) > 10*time.Second {
					t.Fatal("a lost mount is healthy")
				}
			}
			check(t, k.publish(false))
			if got, err := os.ReadFile(filepath.Join(k.target, name)); err != nil || string(got) != "x" {
				t.Errorf("%q, %v", got, err)
			}
			check(t, k.unpublish())
			// And again, with nothing between it and the unstage.
			check(t, take())
			check(t, k.unstage())
			check(t, k.stage())
		})
	}
	check(t, k.unstage())
	check(t, k.delete())
}

// abort ends the FUSE connection of the mount at dir, as echo 1 > /sys/fs/fuse/connections/N/abort does.
func abort(dir string) error {
	info, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	minor := ""
	for line := range strings.Lines(string(info)) {
		if f := strings.Fields(line); f[4] == dir {
			_, minor, _ = strings.Cut(f[2], ":")
		}
	}
	if _, err := strconv.Atoi(minor); err != nil {
		return err
	}
	control, err := os.MkdirTemp("", "fusectl")
	if err != nil {
		return err
	}
	defer os.Remove(control)
	if err := syscall.Mount("fusectl", control, "fusectl", 0, ""); err != nil {
		return err
	}
	defer syscall.Unmount(control, 0)
	return os.WriteFile(filepath.Join(control, minor, "abort"), []byte("1"), 0)
}

// While the server is away an unstage says in its time what is left, as often as it is asked, and the data gets there
// once the server is back.
func TestUnstageWhileDown(t *testing.T) {
	if !ownMounts(t) {
		return
	}
	server := minio.Start(t)
	p := newProcess(t)
	k := newKubelet(t, p, secrets(server))
	check(t, k.create("pvc-down", nil))
	check(t, k.stage())
	check(t, k.publish(false))
	f, err := os.Create(filepath.Join(k.target, "f"))
	check(t, err)
	check(t, server.Signal(syscall.SIGSTOP))
	resume := func() { check(t, server.Signal(syscall.SIGCONT)) }
	defer resume()
	_, err = f.Write(make([]byte, 1<<20))
	check(t, err)
	check(t, f.Close())
	check(t, k.unpublish())
	for range 2 {
		r := *k
		ctx, cancel := context.WithTimeout(k.ctx, 4*time.Second)
		r.ctx = ctx
		err := r.unstage()
		if ctx.Err() != nil {
			t.Error("the answer came after the deadline")
		}
		cancel()
		if status.Code(err) != codes.DeadlineExceeded || !strings.Contains(err.Error(), "1048576") && !strings.Contains(err.Error(), "1Mi") {
			t.Errorf("what is left is not said: %v", err)
		}
	}
	resume()
	check(t, k.unstage())
	check(t, k.stage())
	check(t, k.publish(true))
	if st, err := os.Stat(filepath.Join(k.target, "f")); err != nil || st.Size() != 1<<20 {
		t.Errorf("%v, %v", st, err)
	}
	check(t, k.unpublish())
	check(t, k.unstage())
	check(t, k.delete())
}
