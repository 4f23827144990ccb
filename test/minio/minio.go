package minio

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"
)

const (
	module  = "github.com/minio/minio"
	version = "v0.0.0-20260212201848-7aac2a2c5b7c"

	startTimeout = 30 * time.Second
	stopTimeout  = 10 * time.Second
	buildTimeout = 20 * time.Minute
)

// ErrNoBinary means that there is no MinIO here and that it could not be built.
var ErrNoBinary = errors.New("no MinIO binary")

// Server is a running server with its root account.
type Server struct {
	Endpoint  string
	AccessKey string
	SecretKey string

	cmd  *exec.Cmd
	out  *bytes.Buffer
	done chan struct{} // closed when the process is gone
}

// Start launches a server for the length of t, with its data in a directory of t. Without a binary it fails t when
// CI=true, else skips it.
func Start(t testing.TB) Server {
	t.Helper()
	s, err := Launch(t.Context(), t.TempDir())
	if errors.Is(err, ErrNoBinary) && os.Getenv("CI") != "true" {
		t.Skipf("MinIO is not here and could not be built (set CSI_S3_MINIO to its binary): %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Stop(); err != nil {
			t.Error(err)
		}
	})
	return *s
}

// Launch starts a server with its data in dir and returns when it is healthy. ctx bounds only that. The caller stops
// it.
func Launch(ctx context.Context, dir string) (*Server, error) {
	binary, err := find(ctx)
	if err != nil {
		return nil, err
	}
	// Between this and the server's own listen another process may take the port: try again then.
	for attempt := 0; ; attempt++ {
		s, err := launch(ctx, binary, dir)
		if err == nil || attempt == 2 || ctx.Err() != nil {
			return s, err
		}
	}
}

func launch(ctx context.Context, binary, dir string) (*Server, error) {
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	addr := l.Addr().String()
	if err := l.Close(); err != nil {
		return nil, err
	}
	s := &Server{
		Endpoint: "http://" + addr, AccessKey: "csis3test", SecretKey: "csis3test-secret",
		out: new(bytes.Buffer), done: make(chan struct{}),
	}
	// The server outlives the call that starts it.
	s.cmd = exec.CommandContext(context.WithoutCancel(ctx), binary, "server", "--quiet", "--address", addr, filepath.Join(dir, "data"))
	s.cmd.Env = append(os.Environ(), "MINIO_ROOT_USER="+s.AccessKey, "MINIO_ROOT_PASSWORD="+s.SecretKey,
		"MINIO_BROWSER=off", "MINIO_UPDATE=off", "HOME="+dir)
	s.cmd.Stdout, s.cmd.Stderr = s.out, s.out
	// The server must not survive a test that is killed.
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	started := make(chan error)
	go func() { // ends with the process, which Stop waits for
		// The death signal comes when the thread ends that started the process.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		defer close(s.done)
		err := s.cmd.Start()
		started <- err
		if err == nil {
			_ = s.cmd.Wait() // how it ended is in its output
		}
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("start %s: %w", binary, err)
	}
	if err := s.healthy(ctx); err != nil {
		return nil, errors.Join(err, s.Stop())
	}
	return s, nil
}

// healthy waits until the server answers requests: that it lives, it says before.
func (s *Server) healthy(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.Endpoint+"/", nil)
		if err != nil {
			return err
		}
		if resp, err := http.DefaultClient.Do(req); err == nil {
			_ = resp.Body.Close() // only the status is wanted
			if resp.StatusCode == http.StatusForbidden {
				return nil
			}
		}
		select {
		case <-s.done:
			return fmt.Errorf("MinIO ended while starting: %s", s.out)
		case <-ctx.Done():
			return fmt.Errorf("MinIO is not healthy: %w", ctx.Err())
		case <-tick.C:
		}
	}
}

// Stop ends the server and returns when it is gone.
func (s *Server) Stop() error {
	if err := s.cmd.Process.Signal(syscall.SIGTERM); errors.Is(err, os.ErrProcessDone) {
		<-s.done
		return nil
	}
	select {
	case <-s.done:
		return nil
	case <-time.After(stopTimeout):
	}
	err := s.cmd.Process.Kill()
	<-s.done
	return err
}

// Signal sends sig to the server, as SIGSTOP and SIGCONT for an outage.
func (s *Server) Signal(sig syscall.Signal) error { return s.cmd.Process.Signal(sig) }

// find returns the path of the binary, building it the first time.
func find(ctx context.Context) (string, error) {
	if path := os.Getenv("CSI_S3_MINIO"); path != "" {
		return path, nil
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("%w: %w", ErrNoBinary, err)
	}
	dir := filepath.Join(cache, "csi-s3", "bin")
	final := filepath.Join(dir, "minio-"+strings.TrimPrefix(version, "v0.0.0-"))
	if _, err := os.Stat(final); err == nil {
		return final, nil
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", fmt.Errorf("%w: %w", ErrNoBinary, err)
	}
	// One build at a time: suites run as processes beside each other.
	lock, err := os.OpenFile(filepath.Join(dir, "minio.lock"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return "", fmt.Errorf("%w: %w", ErrNoBinary, err)
	}
	defer lock.Close() //nolint:errcheck // it was only locked
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		return "", fmt.Errorf("%w: lock %s: %w", ErrNoBinary, lock.Name(), err)
	}
	if _, err := os.Stat(final); err == nil {
		return final, nil
	}
	return final, build(ctx, dir, final)
}

func build(ctx context.Context, dir, final string) error {
	ctx, cancel := context.WithTimeout(ctx, buildTimeout)
	defer cancel()
	tmp, err := os.MkdirTemp(dir, "build-")
	if err != nil {
		return fmt.Errorf("%w: %w", ErrNoBinary, err)
	}
	defer os.RemoveAll(tmp) //nolint:errcheck // what is left is a build in the directory of builds
	cmd := exec.CommandContext(ctx, "go", "install", "-ldflags=-s -w", module+"@"+version)
	cmd.Dir = tmp
	cmd.Env = append(os.Environ(), "GOBIN="+tmp, "CGO_ENABLED=0", "GOWORK=off", "GOFLAGS=")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%w: go install %s@%s: %w: %s", ErrNoBinary, module, version, err, lastLine(out))
	}
	if err := os.Rename(filepath.Join(tmp, "minio"), final); err != nil {
		return fmt.Errorf("%w: %w", ErrNoBinary, err)
	}
	return nil
}

func lastLine(out []byte) []byte {
	lines := bytes.Split(bytes.TrimSpace(out), []byte("\n"))
	return lines[len(lines)-1]
}
