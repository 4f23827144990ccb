package versity

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/versity/versitygw/backend/meta"
	"github.com/versity/versitygw/backend/posix"
	"github.com/versity/versitygw/embedgw"
)

const (
	startTimeout = 10 * time.Second
	stopTimeout  = 10 * time.Second
	healthPath   = "/health"
)

// Server is a running server with its root account.
type Server struct {
	Endpoint  string
	AccessKey string
	SecretKey string

	be     *posix.Posix
	cancel context.CancelFunc
	ended  chan error
}

// Start serves dir on a free loopback port and returns when it answers. ctx bounds only the start. It needs a file
// system with user extended attributes, else it keeps its metadata in files beside the data. It changes the working
// directory of the process to the data: the server works with relative paths. The caller stops it.
func Start(ctx context.Context, dir string) (*Server, error) {
	data := filepath.Join(dir, "data")
	if err := os.MkdirAll(data, 0o755); err != nil {
		return nil, err
	}
	var store meta.MetadataStorer = meta.XattrMeta{}
	// The zero threshold, unlike the server's own default, refuses every copy.
	opts := posix.PosixOpts{CopyObjectThreshold: 5 << 30}
	if err := (meta.XattrMeta{}).Test(data); err != nil {
		opts.SideCarDir = filepath.Join(dir, "meta")
		if err := os.MkdirAll(opts.SideCarDir, 0o755); err != nil {
			return nil, err
		}
		if store, err = meta.NewSideCar(opts.SideCarDir); err != nil {
			return nil, err
		}
	}
	be, err := posix.New(data, store, opts)
	if err != nil {
		return nil, fmt.Errorf("versitygw: %w", err)
	}
	addr, err := freeAddr(ctx)
	if err != nil {
		return nil, err
	}
	run, cancel := context.WithCancel(context.WithoutCancel(ctx))
	s := &Server{
		Endpoint: "http://" + addr, AccessKey: "csis3demo", SecretKey: "csis3demo-secret",
		be: be, cancel: cancel, ended: make(chan error, 1),
	}
	go func() { // ends by cancel; Stop waits for it
		s.ended <- embedgw.RunVersityGW(run, be, &embedgw.Config{
			RootUserAccess: s.AccessKey, RootUserSecret: s.SecretKey, Ports: []string{addr},
			MaxConnections: 4096, MaxRequests: 4096, MultipartMaxParts: 10_000,
			Quiet: true, KeepAlive: true, HealthPath: healthPath,
		})
	}()
	if err := s.healthy(ctx); err != nil {
		return nil, errors.Join(err, s.Stop())
	}
	return s, nil
}

// freeAddr returns a loopback address that nobody listens on. Another process may take it before the server does:
// then the start fails.
func freeAddr(ctx context.Context) (string, error) {
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	return l.Addr().String(), l.Close()
}

func (s *Server) healthy(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.Endpoint+healthPath, nil)
		if err != nil {
			return err
		}
		if resp, err := http.DefaultClient.Do(req); err == nil {
			_ = resp.Body.Close() // only the status is wanted
			if resp.StatusCode == http.StatusOK {
				return nil
			}
		}
		select {
		case err := <-s.ended:
			s.ended <- err
			return fmt.Errorf("versitygw ended while starting: %w", err)
		case <-ctx.Done():
			return fmt.Errorf("versitygw does not answer: %w", ctx.Err())
		case <-tick.C:
		}
	}
}

// Stop ends the server and returns when it is gone.
func (s *Server) Stop() error {
	s.cancel()
	select {
	case err := <-s.ended:
		s.be.Shutdown()
		if errors.Is(err, context.Canceled) {
			return nil
		}
		return err
	case <-time.After(stopTimeout):
		return errors.New("versitygw does not stop")
	}
}
