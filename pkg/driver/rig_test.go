package driver_test

import (
	"bytes"
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/csi-s3/csi-s3/pkg/config"
	"github.com/csi-s3/csi-s3/pkg/driver"
	"github.com/csi-s3/csi-s3/pkg/metrics"
	"github.com/csi-s3/csi-s3/pkg/provision"
	"github.com/csi-s3/csi-s3/pkg/s3"
	"github.com/csi-s3/csi-s3/pkg/s3/s3fault"
	"github.com/csi-s3/csi-s3/pkg/s3/s3mem"
	"github.com/csi-s3/csi-s3/pkg/volume"
)

// volumes records what the driver asks for and answers as it is told.
type volumes struct {
	mu    sync.Mutex
	calls []any
	err   error
	stats volume.Stats
	hold  chan struct{} // calls wait for it to be closed, if set
	slow  bool          // stages wait for their context's end
}

func (v *volumes) answer(call any) error {
	v.mu.Lock()
	v.calls = append(v.calls, call)
	hold, err := v.hold, v.err
	v.mu.Unlock()
	if hold != nil {
		<-hold
	}
	return err
}

func (v *volumes) Stage(ctx context.Context, r volume.StageRequest) error {
	if v.slow {
		<-ctx.Done()
	}
	return v.answer(r)
}

func (v *volumes) Publish(_ context.Context, r volume.PublishRequest) error { return v.answer(r) }

func (v *volumes) Unstage(_ context.Context, id config.VolumeID, dir string) error {
	return v.answer([2]string{id.String(), dir})
}

func (v *volumes) Unpublish(_ context.Context, id config.VolumeID, target string) error {
	if target == "/panic" {
		panic("a fault")
	}
	return v.answer([2]string{id.String(), target})
}

func (v *volumes) Stats(id config.VolumeID, path string) (volume.Stats, error) {
	return v.stats, v.answer([2]string{id.String(), path})
}

// last returns the last call as a T.
func last[T any](t *testing.T, v *volumes) T {
	t.Helper()
	v.mu.Lock()
	defer v.mu.Unlock()
	if len(v.calls) == 0 {
		t.Fatal("the volumes were not asked")
	}
	call, ok := v.calls[len(v.calls)-1].(T)
	if !ok {
		t.Fatalf("the volumes were asked for %+v", v.calls[len(v.calls)-1])
	}
	return call
}

// server is an S3 server in memory.
type server struct {
	mu      sync.Mutex
	buckets map[string]s3.Bucket
	fault   error // of every call
}

func (s *server) Bucket(name string) s3.Bucket {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.buckets[name] == nil {
		b := s3mem.New(name)
		if err := b.DeleteBucket(context.Background()); err != nil {
			panic(err)
		}
		s.buckets[name] = b
	}
	if s.fault == nil {
		return s.buckets[name]
	}
	b, fault := s3fault.New(s.buckets[name]), s.fault
	b.Fault = func(s3fault.Op) s3fault.Action { return s3fault.FailBefore(fault) }
	return b
}

func (s *server) Close() {}

// rig is a driver that serves, and its clients.
type rig struct {
	volumes *volumes
	server  *server
	log     *lockedBuffer

	identity   csi.IdentityClient
	controller csi.ControllerClient
	node       csi.NodeClient
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func start(t *testing.T, change func(*driver.Options)) *rig {
	t.Helper()
	r := &rig{volumes: &volumes{}, server: &server{buckets: map[string]s3.Bucket{}}, log: &lockedBuffer{}}
	log := slog.New(slog.NewTextHandler(r.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	opt := driver.Options{
		Name: "csi-s3.dev", Version: "v0", NodeID: "node-1", Log: log, Volumes: r.volumes, Metrics: metrics.New("v0"),
		Provisioner: provision.New(func(config.Secret) (provision.Server, error) { return r.server, nil }, provision.Options{Driver: "csi-s3.dev"}),
	}
	if change != nil {
		change(&opt)
	}
	dir, err := os.MkdirTemp("", "csi") // a socket's path must be short
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	socket := filepath.Join(dir, "csi.sock")
	served := make(chan error)
	go func() { served <- driver.New(opt).Serve(ctx, socket) }() // ends in Cleanup
	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithDefaultCallOptions(grpc.WaitForReady(true)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		conn.Close()
		cancel()
		if err := <-served; err != nil {
			t.Errorf("serve: %v", err)
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
		if strings.Contains(r.log.String(), "the-secret-key") || strings.Contains(r.log.String(), "the-access-key") {
			t.Errorf("a credential is in the log:\n%s", r.log)
		}
	})
	r.identity, r.controller, r.node = csi.NewIdentityClient(conn), csi.NewControllerClient(conn), csi.NewNodeClient(conn)
	return r
}

func secrets() map[string]string {
	return map[string]string{"endpoint": "https://s3.example", "accessKeyID": "the-access-key", "secretAccessKey": "the-secret-key"}
}

func mounted(mode csi.VolumeCapability_AccessMode_Mode, flags ...string) *csi.VolumeCapability {
	return &csi.VolumeCapability{
		AccessMode: &csi.VolumeCapability_AccessMode{Mode: mode},
		AccessType: &csi.VolumeCapability_Mount{Mount: &csi.VolumeCapability_MountVolume{MountFlags: flags}},
	}
}

func block() *csi.VolumeCapability {
	return &csi.VolumeCapability{
		AccessMode: &csi.VolumeCapability_AccessMode{Mode: rwo},
		AccessType: &csi.VolumeCapability_Block{Block: &csi.VolumeCapability_BlockVolume{}},
	}
}

func create() *csi.CreateVolumeRequest {
	return &csi.CreateVolumeRequest{
		Name: "pvc-1", Secrets: secrets(), VolumeCapabilities: []*csi.VolumeCapability{mounted(rwo)},
		CapacityRange: &csi.CapacityRange{RequiredBytes: 1 << 30},
	}
}

func stage() *csi.NodeStageVolumeRequest {
	return &csi.NodeStageVolumeRequest{
		VolumeId: "bucket/a", StagingTargetPath: "/staging", VolumeCapability: mounted(rwo), Secrets: secrets(),
		VolumeContext: map[string]string{"capacity": "1073741824"},
	}
}

func publish() *csi.NodePublishVolumeRequest {
	return &csi.NodePublishVolumeRequest{
		VolumeId: "bucket/a", StagingTargetPath: "/staging", TargetPath: "/target", VolumeCapability: mounted(rwo), Secrets: secrets(),
		VolumeContext: map[string]string{"capacity": "1073741824", "csi.storage.k8s.io/pod.name": "pod"},
	}
}

func wantCode(t *testing.T, err error, want codes.Code, words ...string) {
	t.Helper()
	if status.Code(err) != want {
		t.Errorf("%v, want %v", err, want)
	}
	for _, w := range words {
		if err != nil && !strings.Contains(err.Error(), w) {
			t.Errorf("%q does not say %q", err, w)
		}
	}
}
