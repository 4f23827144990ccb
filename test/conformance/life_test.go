package conformance_test

import (
	"bytes"
	"context"
	"io"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/csi-s3/csi-s3/pkg/s3"
	"github.com/csi-s3/csi-s3/pkg/s3/s3sdk"
	"github.com/csi-s3/csi-s3/test/minio"
)

// kubelet does what kubelet and provisioner do with one volume.
type kubelet struct {
	ctx        context.Context
	controller csi.ControllerClient
	node       csi.NodeClient
	secrets    map[string]string
	capability *csi.VolumeCapability

	volume          *csi.Volume
	staging, target string
}

func (k *kubelet) create(name string, parameters map[string]string) error {
	r, err := k.controller.CreateVolume(k.ctx, &csi.CreateVolumeRequest{
		Name: name, Parameters: parameters, Secrets: k.secrets, VolumeCapabilities: []*csi.VolumeCapability{k.capability},
		CapacityRange: &csi.CapacityRange{RequiredBytes: 64 << 20},
	})
	k.volume = r.GetVolume()
	return err
}

func (k *kubelet) stage() error {
	_, err := k.node.NodeStageVolume(k.ctx, &csi.NodeStageVolumeRequest{
		VolumeId: k.volume.GetVolumeId(), VolumeContext: k.volume.GetVolumeContext(), StagingTargetPath: k.staging,
		VolumeCapability: k.capability, Secrets: k.secrets,
	})
	return err
}

func (k *kubelet) publish(readOnly bool) error {
	_, err := k.node.NodePublishVolume(k.ctx, &csi.NodePublishVolumeRequest{
		VolumeId: k.volume.GetVolumeId(), VolumeContext: k.volume.GetVolumeContext(), StagingTargetPath: k.staging,
		TargetPath: k.target, VolumeCapability: k.capability, Secrets: k.secrets, Readonly: readOnly,
	})
	return err
}

func (k *kubelet) unpublish() error {
	_, err := k.node.NodeUnpublishVolume(k.ctx, &csi.NodeUnpublishVolumeRequest{VolumeId: k.volume.GetVolumeId(), TargetPath: k.target})
	return err
}

func (k *kubelet) unstage() error {
	_, err := k.node.NodeUnstageVolume(k.ctx, &csi.NodeUnstageVolumeRequest{VolumeId: k.volume.GetVolumeId(), StagingTargetPath: k.staging})
	return err
}

func (k *kubelet) delete() error {
	_, err := k.controller.DeleteVolume(k.ctx, &csi.DeleteVolumeRequest{VolumeId: k.volume.GetVolumeId(), Secrets: k.secrets})
	return err
}

// TestVolumeLife takes one volume through what happens to it in a cluster, a crash of the driver in between.
func TestVolumeLife(t *testing.T) {
	if !ownMounts(t) {
		return
	}
	server := minio.Start(t)
	p := newProcess(t)
	conn := p.connect(t)
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	k := &kubelet{
		ctx: ctx, controller: csi.NewControllerClient(conn), node: csi.NewNodeClient(conn), secrets: secrets(server),
		capability: &csi.VolumeCapability{
			AccessMode: &csi.VolumeCapability_AccessMode{Mode: csi.VolumeCapability_AccessMode_SINGLE_NODE_MULTI_WRITER},
			AccessType: &csi.VolumeCapability_Mount{Mount: &csi.VolumeCapability_MountVolume{MountFlags: []string{"dir-mode=0777"}}},
		},
		staging: filepath.Join(p.dir, "globalmount"), target: filepath.Join(p.dir, "pod"),
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(os.Mkdir(k.staging, 0o750))
	must(k.create("pvc-life", map[string]string{"bucket": "tenant"}))
	must(k.stage())
	must(k.publish(false))

	content := bytes.Repeat([]byte("0123456789abcdef"), 1<<16) // 1 MiB
	must(os.MkdirAll(filepath.Join(k.target, "a", "b"), 0o755))
	must(os.WriteFile(filepath.Join(k.target, "a", "b", "file"), content, 0o644))
	stats, err := k.node.NodeGetVolumeStats(ctx, &csi.NodeGetVolumeStatsRequest{VolumeId: k.volume.GetVolumeId(), VolumePath: k.target})
	must(err)
	if u := stats.GetUsage()[0]; u.GetUsed() < int64(len(content)) || u.GetTotal() != 64<<20 {
		t.Errorf("usage: %v", u)
	}
	if err := k.unstage(); status.Code(err) != codes.FailedPrecondition {
		t.Errorf("unstage while published: %v", err)
	}
	must(k.unpublish())
	must(k.unstage())

	// What was written is one plain object, as soon as the unstage has answered.
	client, err := s3sdk.New(s3sdk.Config{Endpoint: server.Endpoint, Credentials: s3sdk.Credentials{
		AccessKeyID: s3sdk.Secret(server.AccessKey), SecretAccessKey: s3sdk.Secret(server.SecretKey),
	}})
	must(err)
	defer client.Close()
	object := func(key s3.Key) []byte {
		t.Helper()
		body, _, err := client.Bucket("tenant").Get(ctx, key, nil, "")
		must(err)
		defer body.Close()
		got, err := io.ReadAll(body)
		must(err)
		return got
	}
	if !bytes.Equal(object("pvc-life/a/b/file"), content) {
		t.Error("the object differs from the file")
	}

	// Read-only, from a staging that another process of the driver made.
	must(p.stop(syscall.SIGTERM))
	p.start(t)
	must(k.stage())
	must(k.publish(true))
	got, err := os.ReadFile(filepath.Join(k.target, "a", "b", "file"))
	if err != nil || !bytes.Equal(got, content) {
		t.Errorf("read back: %d bytes, %v", len(got), err)
	}
	if err := os.WriteFile(filepath.Join(k.target, "x"), nil, 0o644); err == nil {
		t.Error("a read-only target takes a file")
	}
	must(k.unpublish())

	// A crash with data that no upload has seen: the next publish brings the mount and the data back.
	must(k.publish(false))
	must(os.WriteFile(filepath.Join(k.target, "late"), []byte("late"), 0o644))
	if err := p.stop(syscall.SIGKILL); err == nil {
		t.Error("killed, and exited well")
	}
	p.start(t)
	if err := k.unstage(); err == nil {
		t.Error("an unstage succeeded though data may be left")
	}
	must(k.publish(false))
	if got, err := os.ReadFile(filepath.Join(k.target, "late")); err != nil || string(got) != "late" {
		t.Errorf("after the crash: %q, %v", got, err)
	}
	must(k.unpublish())
	must(k.unstage())
	if got := object("pvc-life/late"); string(got) != "late" {
		t.Errorf("object after the crash: %q", got)
	}
	must(k.delete())
	must(k.delete())
	if page, err := client.Bucket("tenant").List(ctx, s3.ListInput{}); err != nil || len(page.Objects) > 0 {
		t.Errorf("left in the bucket: %v, %v", page.Objects, err)
	}
}
