package conformance_test

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
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/csi-s3/csi-s3/pkg/s3"
	"github.com/csi-s3/csi-s3/pkg/s3/s3sdk"
	"github.com/csi-s3/csi-s3/test/minio"
	"github.com/csi-s3/csi-s3/test/mountns"
)

// soak says that the long figures are wanted, not the short ones of every change.
func soak() bool { return os.Getenv("CSI_S3_SOAK") != "" }

// scale is short in every run and long in a soak.
func scale(short, long int) int {
	if soak() {
		return long
	}
	return short
}

// mounted is a bucket that csi-s3 mount shows as a directory.
type mounted struct {
	t       *testing.T
	server  minio.Server
	client  *s3sdk.Client
	binary  string
	bucket  string
	dir     string // the mount point
	cache   string
	options string
	cmd     *exec.Cmd
	log     *buffer
}

// newMounted starts MinIO, builds csi-s3 and mounts a new bucket. When the test ends the mount must end in order. What
// before does is done before the first mount.
func newMounted(t *testing.T, options string, before ...func(*mounted)) *mounted {
	t.Helper()
	server := minio.Start(t)
	m := &mounted{t: t, server: server, bucket: "conformance", options: options, log: &buffer{}}
	base := t.TempDir()
	m.binary, m.dir, m.cache = filepath.Join(base, "csi-s3"), filepath.Join(base, "mnt"), filepath.Join(base, "cache")
	build := exec.CommandContext(t.Context(), "go", "build", "-o", m.binary, "./cmd/csi-s3")
	build.Dir = filepath.Join("..", "..")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	var err error
	m.client, err = s3sdk.New(s3sdk.Config{Endpoint: server.Endpoint, Credentials: s3sdk.Credentials{
		AccessKeyID: s3sdk.Secret(server.AccessKey), SecretAccessKey: s3sdk.Secret(server.SecretKey),
	}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(m.client.Close)
	if err := m.client.Bucket(m.bucket).CreateBucket(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(m.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, do := range before {
		do(m)
	}
	m.start()
	t.Cleanup(func() {
		m.stop()
		if t.Failed() {
			t.Logf("log of the mount:\n%s", m.log)
		}
	})
	return m
}

// environment is what a child that talks to the server needs.
func (m *mounted) environment() []string {
	return append(os.Environ(), "AWS_ACCESS_KEY_ID="+m.server.AccessKey, "AWS_SECRET_ACCESS_KEY="+m.server.SecretKey,
		"AWS_ENDPOINT_URL="+m.server.Endpoint)
}

func (m *mounted) start() {
	m.t.Helper()
	args := []string{"mount", "--cache-dir=" + m.cache}
	if m.options != "" {
		args = append(args, "-o", m.options)
	}
	m.cmd = exec.Command(m.binary, append(args, "s3://"+m.bucket, m.dir)...)
	m.cmd.Env = m.environment()
	m.cmd.Stdout, m.cmd.Stderr = m.log, m.log
	m.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := m.cmd.Start(); err != nil {
		m.t.Fatal(err)
	}
	deadline := time.Now().Add(30 * time.Second)
	for mountns.Type(m.t, m.dir) == "" {
		if time.Now().After(deadline) {
			m.t.Fatalf("no mount:\n%s", m.log)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// stop ends the mount as a user would, which uploads everything.
func (m *mounted) stop() {
	m.t.Helper()
	if m.cmd == nil {
		return
	}
	if err := m.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		m.t.Error(err)
	}
	late := time.AfterFunc(5*time.Minute, func() { _ = m.cmd.Process.Kill() })
	defer late.Stop()
	if err := m.cmd.Wait(); err != nil {
		m.t.Errorf("csi-s3 mount ended: %v", err)
	}
	m.cmd = nil
	if fs := mountns.Type(m.t, m.dir); fs != "" {
		m.t.Errorf("a mount of type %s is left", fs)
	}
}

// kill is kill -9. The dead mount stays.
func (m *mounted) kill() {
	m.t.Helper()
	if err := m.cmd.Process.Kill(); err != nil {
		m.t.Fatal(err)
	}
	_ = m.cmd.Wait() // it was killed
	m.cmd = nil
}

// detach takes a dead mount away.
func (m *mounted) detach() {
	m.t.Helper()
	if err := syscall.Unmount(m.dir, syscall.MNT_DETACH); err != nil {
		m.t.Fatal(err)
	}
}

// restart unmounts and mounts again, with an empty cache if wipe is set.
func (m *mounted) restart(wipe bool) {
	m.t.Helper()
	m.stop()
	if wipe {
		if err := os.RemoveAll(m.cache); err != nil {
			m.t.Fatal(err)
		}
	}
	m.start()
}

// flush is csi-s3 flush.
func (m *mounted) flush() {
	m.t.Helper()
	m.run(m.binary, "flush", m.dir)
}

// run runs a command and returns its output; it must succeed.
func (m *mounted) run(name string, args ...string) string {
	m.t.Helper()
	ctx, cancel := context.WithTimeout(m.t.Context(), 10*time.Minute)
	defer cancel()
	c := exec.CommandContext(ctx, name, args...)
	c.Env = append(m.environment(), "LC_ALL=C")
	out, err := c.CombinedOutput()
	if err != nil {
		if len(out) > 4000 {
			out = out[:4000]
		}
		m.t.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
	return string(out)
}

// put stores an object as another client does.
func (m *mounted) put(key, body string) error {
	_, err := m.client.Bucket(m.bucket).Put(m.t.Context(), s3.Key(key), s3.Body{R: strings.NewReader(body), Size: int64(len(body))}, s3.Attributes{}, s3.Condition{})
	return err
}

// objects lists the keys below a prefix with their ETags, those of the driver's own objects too.
func (m *mounted) objects(prefix string) map[s3.Key]s3.Info {
	m.t.Helper()
	found := map[s3.Key]s3.Info{}
	in := s3.ListInput{Prefix: s3.Key(prefix)}
	for {
		page, err := m.client.Bucket(m.bucket).List(m.t.Context(), in)
		if err != nil {
			m.t.Fatal(err)
		}
		for _, o := range page.Objects {
			found[o.Key] = o
		}
		if in.Token = page.Token; in.Token == "" {
			return found
		}
	}
}

// sumObject is the SHA-256 of an object, in hexadecimal digits.
func (m *mounted) sumObject(key s3.Key) string {
	m.t.Helper()
	body, _, err := m.client.Bucket(m.bucket).Get(m.t.Context(), key, nil, "")
	if err != nil {
		m.t.Fatalf("%s: %v", key, err)
	}
	h := sha256.New()
	_, err = io.Copy(h, body)
	if err = errors.Join(err, body.Close()); err != nil {
		m.t.Fatalf("%s: %v", key, err)
	}
	return hex.EncodeToString(h.Sum(nil))
}

// watchMemory begins to look at the process's memory. What it returns ends that and tells the most that was seen, in
// bytes.
func (m *mounted) watchMemory() (peak func() int64) {
	var most int64
	end, ended := make(chan struct{}), make(chan struct{})
	go func() { // ends with peak, which waits for it
		defer close(ended)
		for {
			most = max(most, m.memory())
			select {
			case <-end:
				return
			case <-time.After(50 * time.Millisecond):
			}
		}
	}()
	return func() int64 {
		close(end)
		<-ended
		return most
	}
}

// memory is the process's anonymous and shared memory in bytes.
func (m *mounted) memory() (total int64) {
	m.t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", m.cmd.Process.Pid))
	if err != nil {
		m.t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		f := strings.Fields(line)
		if f[0] == "RssAnon:" || f[0] == "RssShmem:" {
			kb, err := strconv.ParseInt(f[1], 10, 64)
			if err != nil {
				m.t.Fatal(err)
			}
			total += kb << 10
		}
	}
	return total
}
