package driver_test

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/csi-s3/csi-s3/pkg/driver"
	"github.com/csi-s3/csi-s3/pkg/volume"
)

// A second call for what a first is at work on is Aborted at once; others go on.
func TestInFlight(t *testing.T) {
	r := start(t, nil)
	hold := make(chan struct{})
	r.volumes.hold = hold
	first := make(chan error, 2)
	// Both end when hold is closed.
	go func() { _, err := r.node.NodeStageVolume(t.Context(), stage()); first <- err }()
	go func() { _, err := r.node.NodePublishVolume(t.Context(), publish()); first <- err }()
	for {
		r.volumes.mu.Lock()
		busy := len(r.volumes.calls) == 2
		if busy {
			r.volumes.hold = nil
		}
		r.volumes.mu.Unlock()
		if busy {
			break
		}
		time.Sleep(time.Millisecond)
	}
	_, err := r.node.NodeStageVolume(t.Context(), stage())
	wantCode(t, err, codes.Aborted, "bucket/a")
	_, err = r.node.NodeUnstageVolume(t.Context(), &csi.NodeUnstageVolumeRequest{VolumeId: "bucket/a", StagingTargetPath: "/staging"})
	wantCode(t, err, codes.Aborted)
	_, err = r.node.NodeUnpublishVolume(t.Context(), &csi.NodeUnpublishVolumeRequest{VolumeId: "bucket/a", TargetPath: "/target"})
	wantCode(t, err, codes.Aborted, "/target")
	other, elsewhere := stage(), publish()
	other.VolumeId, elsewhere.TargetPath = "bucket/b", "/other"
	if _, err := r.node.NodeStageVolume(t.Context(), other); err != nil {
		t.Error(err)
	}
	if _, err := r.node.NodePublishVolume(t.Context(), elsewhere); err != nil {
		t.Error(err)
	}
	close(hold)
	for range 2 {
		if err := <-first; err != nil {
			t.Error(err)
		}
	}
	if _, err := r.node.NodeStageVolume(t.Context(), stage()); err != nil {
		t.Errorf("afterwards: %v", err)
	}
}

func TestServeSocket(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "f")
	if err := os.WriteFile(file, []byte("kept"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := driver.New(driver.Options{}).Serve(t.Context(), file); err == nil {
		t.Error("a file was taken for a socket")
	}
	if got, err := os.ReadFile(file); err != nil || string(got) != "kept" {
		t.Errorf("%q, %v", got, err)
	}
	// What a dead process left behind is replaced.
	socket := filepath.Join(dir, "s")
	for range 2 {
		ctx, cancel := context.WithCancel(t.Context())
		served := make(chan error)
		go func() { served <- driver.New(driver.Options{Name: "x"}).Serve(ctx, socket) }() // ends with cancel
		conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			t.Fatal(err)
		}
		info, err := csi.NewIdentityClient(conn).GetPluginInfo(t.Context(), &csi.GetPluginInfoRequest{}, grpc.WaitForReady(true))
		if err != nil || info.GetName() != "x" {
			t.Errorf("%v, %v", info, err)
		}
		conn.Close()
		cancel()
		if err := <-served; err != nil {
			t.Error(err)
		}
		leaveSocket(t, socket)
	}
}

// leaveSocket leaves the file of a socket on which nobody listens.
func leaveSocket(t *testing.T, path string) {
	t.Helper()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
}

// A call that takes all the time that its caller has still says what it waits for.
func TestAnswerInTime(t *testing.T) {
	r := start(t, nil)
	r.volumes.slow, r.volumes.err = true, fmt.Errorf("the server is away: %w", volume.ErrUnavailable)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	_, err := r.node.NodeStageVolume(ctx, stage())
	wantCode(t, err, codes.Unavailable, "the server is away")
}
