package chaos_test

import (
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/csi-s3/csi-s3/pkg/fuse"
	"github.com/csi-s3/csi-s3/pkg/s3"
	"github.com/csi-s3/csi-s3/pkg/s3/s3sdk"
	"github.com/csi-s3/csi-s3/pkg/volume"
	"github.com/csi-s3/csi-s3/test/minio"
	"github.com/csi-s3/csi-s3/test/mountns"
)

const (
	startWait = 30 * time.Second
	stopWait  = 2 * time.Minute
	flushWait = 2 * time.Minute
)

// mounted is a bucket that csi-s3 mount shows as a directory.
type mounted struct {
	t        *testing.T
	server   minio.Server
	client   *s3sdk.Client // speaks to the server itself
	binary   string
	endpoint string // what the process is told: the server's, or that of something before it
	bucket   string
	dir      string // the mount point
	cache    string
	options  string
	cmd      *exec.Cmd
	log      *buffer
}

// newMounted starts MinIO, builds csi-s3 and makes a bucket. Nothing is mounted yet: the caller may set endpoint and
// cache before start. When the test ends the mount must end in order.
func newMounted(t *testing.T, options string) *mounted {
	t.Helper()
	server := minio.Start(t)
	base := t.TempDir()
	m := &mounted{
		t: t, server: server, endpoint: server.Endpoint, binary: buildDriver(t), bucket: "chaos", options: options,
		dir: filepath.Join(base, "below", "mnt"), cache: filepath.Join(base, "cache"), log: &buffer{},
	}
	var err error
	m.client, err = s3sdk.New(s3sdk.Config{Endpoint: server.Endpoint, Credentials: s3sdk.Credentials{
		AccessKeyID: s3sdk.Secret(server.AccessKey), SecretAccessKey: s3sdk.Secret(server.SecretKey),
	}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(m.client.Close)
	if err := m.objects().CreateBucket(t.Context()); err != nil {
		t.Fatal(err)
	}
	// What is written while there is no mount must fail.
	below := filepath.Dir(m.dir)
	if err := os.Mkdir(below, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount("below", below, "tmpfs", 0, "size=1m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(below, 0); err != nil {
			t.Error(err)
		}
	})
	if err := os.Mkdir(m.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount("below", below, "tmpfs", syscall.MS_REMOUNT|syscall.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if m.cmd != nil {
			m.stop()
		}
		if t.Failed() {
			t.Logf("log of the mount:\n%s", m.log)
		}
	})
	return m
}

// objects is the bucket as the server has it, with nothing in between.
func (m *mounted) objects() s3.Bucket { return m.client.Bucket(m.bucket) }

// spawn starts the process and does not wait for its mount.
func (m *mounted) spawn() {
	m.t.Helper()
	args := []string{"mount", "--cache-dir=" + m.cache}
	if m.options != "" {
		args = append(args, "-o", m.options)
	}
	m.cmd = exec.Command(m.binary, append(args, "s3://"+m.bucket, m.dir)...)
	m.cmd.Env = append(os.Environ(), "AWS_ACCESS_KEY_ID="+m.server.AccessKey, "AWS_SECRET_ACCESS_KEY="+m.server.SecretKey,
		"AWS_ENDPOINT_URL="+m.endpoint)
	m.cmd.Stdout, m.cmd.Stderr = m.log, m.log
	m.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := m.cmd.Start(); err != nil {
		m.t.Fatal(err)
	}
}

// start starts the process and returns, when its mount answers, how long that took.
func (m *mounted) start() time.Duration {
	m.t.Helper()
	begin := time.Now()
	m.spawn()
	for {
		if mountns.Type(m.t, m.dir) != "" {
			if _, err := os.ReadDir(m.dir); err == nil {
				return time.Since(begin)
			}
		}
		if time.Since(begin) > startWait {
			m.t.Fatalf("no mount:\n%s", m.log)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// stop ends the mount as a user would, which uploads everything.
func (m *mounted) stop() {
	m.t.Helper()
	if err := m.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		m.t.Error(err)
	}
	late := time.AfterFunc(stopWait, func() { _ = m.cmd.Process.Kill() })
	defer late.Stop()
	if err := m.cmd.Wait(); err != nil {
		m.t.Errorf("csi-s3 mount ended: %v", err)
	}
	m.cmd = nil
	if fs := mountns.Type(m.t, m.dir); fs != "" {
		m.t.Errorf("a mount of type %s is left", fs)
		m.detach()
	}
}

// signal is kill(2). A process that has ended is no error.
func (m *mounted) signal(sig syscall.Signal) { _ = m.cmd.Process.Signal(sig) }

// reap waits for the end of a process that was killed. The dead mount stays.
func (m *mounted) reap() {
	m.t.Helper()
	_ = m.cmd.Wait() // it was killed
	m.cmd = nil
}

// detach takes a dead mount away, if there is one.
func (m *mounted) detach() {
	m.t.Helper()
	if mountns.Type(m.t, m.dir) == "" {
		return
	}
	if err := syscall.Unmount(m.dir, syscall.MNT_DETACH); err != nil {
		m.t.Fatal(err)
	}
}

// flush is csi-s3 flush.
func (m *mounted) flush() {
	m.t.Helper()
	ctx, cancel := context.WithTimeout(m.t.Context(), flushWait)
	defer cancel()
	if err := fuse.Flush(ctx, m.dir, nil); err != nil {
		m.t.Fatalf("%v, %+v", err, m.status())
	}
}

// status is what the mount says of itself; nothing when it does not answer.
func (m *mounted) status() (s volume.Status) {
	text, err := fuse.Status(m.dir)
	if err != nil || json.Unmarshal(text, &s) != nil {
		return volume.Status{}
	}
	return s
}
