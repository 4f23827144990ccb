package conformance_test

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/csi-s3/csi-s3/test/minio"
	"github.com/csi-s3/csi-s3/test/mountns"
)

// ownMounts is mountns.Own for a test that mounts by FUSE.
func ownMounts(t *testing.T) bool {
	t.Helper()
	return mountns.Own(t, time.Duration(scale(10, 60))*time.Minute, "/dev/fuse")
}

// process is a csi-s3 driver with its directories.
type process struct {
	binary, dir, socket string
	node                string

	cmd *exec.Cmd
	log *buffer
}

type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// newProcess builds the driver and starts it. When the test ends it must stop by itself and leave no mount.
func newProcess(t *testing.T) *process { return newProcessOn(t, "node-1") }

// newProcessOn is newProcess for a node of that name. All that two nodes do not share, two processes do not share either.
func newProcessOn(t *testing.T, node string) *process {
	t.Helper()
	dir, err := os.MkdirTemp("", "csi") // a socket's path must be short
	if err != nil {
		t.Fatal(err)
	}
	if dir, err = filepath.EvalSymlinks(dir); err != nil {
		t.Fatal(err)
	}
	p := &process{binary: filepath.Join(dir, "csi-s3"), dir: dir, socket: filepath.Join(dir, "csi.sock"), node: node, log: &buffer{}}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("log of the driver:\n%s", p.log)
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	build := exec.CommandContext(t.Context(), "go", "build", "-o", p.binary, "./cmd/csi-s3")
	build.Dir = filepath.Join("..", "..")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	p.start(t)
	t.Cleanup(func() {
		if err := p.stop(syscall.SIGTERM); err != nil {
			t.Errorf("the driver did not stop as it should: %v", err)
		}
		for _, m := range p.mounts(t) {
			t.Errorf("left behind: %s", m)
			_ = syscall.Unmount(m, syscall.MNT_DETACH) // so that the directory can be removed
		}
		for _, secret := range []string{"csis3test-secret"} {
			if strings.Contains(p.log.String(), secret) {
				t.Error("a credential is in the log")
			}
		}
	})
	return p
}

func (p *process) start(t *testing.T) {
	t.Helper()
	p.cmd = exec.Command(p.binary, "driver", "--mode=all", "--node-id="+p.node, "--endpoint=unix://"+p.socket, "--cache-dir="+filepath.Join(p.dir, "cache"), "--log-level=debug")
	p.cmd.Stdout, p.cmd.Stderr = p.log, p.log
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
}

func (p *process) stop(sig syscall.Signal) error {
	if err := p.cmd.Process.Signal(sig); err != nil {
		return err
	}
	late := time.AfterFunc(time.Minute, func() { _ = p.cmd.Process.Kill() })
	defer late.Stop()
	return p.cmd.Wait()
}

// mounts lists what is mounted below the test's directory.
func (p *process) mounts(t *testing.T) []string {
	t.Helper()
	info, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	for line := range strings.Lines(string(info)) {
		if f := strings.Fields(line); strings.HasPrefix(f[4], p.dir) {
			found = append(found, f[4])
		}
	}
	return found
}

// connect returns a connection that is good for any number of lives of the process.
func (p *process) connect(t *testing.T) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient("unix://"+p.socket, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.WaitForReady(true)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if _, err := csi.NewIdentityClient(conn).Probe(ctx, &csi.ProbeRequest{}); err != nil {
		t.Fatalf("the driver does not answer: %v\n%s", err, p.log)
	}
	return conn
}

func secrets(s minio.Server) map[string]string {
	return map[string]string{"endpoint": s.Endpoint, "accessKeyID": s.AccessKey, "secretAccessKey": s.SecretKey}
}
