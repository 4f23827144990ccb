package conformance_test

import (
	"bytes"
	"context"
	"io"
	"os"
	"path/filepath"
	"syscall"
	"testing"

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
	k := newKubelet(t, p, secrets(server))
	k.capability.GetMount().MountFlags = []string{"dir-mode=0777"}
	ctx := k.ctx
	check(t, k.create("pvc-life", map[string]string{"bucket": "tenant"}))
	check(t, k.stage())
	check(t, k.publish(false))

	content := bytes.Repeat([]byte("0123456789abcdef"), 1<<16) // 1 MiB
	check(t, os.MkdirAll(filepath.Join(k.target, "a", "b"), 0o755))
	check(t, os.WriteFile(filepath.Join(k.target, "a", "b", "file"), content, 0o644))
	stats, err := k.node.NodeGetVolumeStats(ctx, &csi.NodeGetVolumeStatsRequest{VolumeId: k.volume.GetVolumeId(), VolumePath: k.target})
	check(t, err)
	if u := stats.GetUsage()[0]; u.GetUsed() < int64(len(content)) || u.GetTotal() != 64<<20 {
		t.Errorf("usage: %v", u)
	}
	if err := k.unstage(); status.Code(err) != codes.FailedPrecondition {
		t.Errorf("unstage while published: %v", err)
	}
	check(t, k.unpublish())
	check(t, k.unstage())

	// What was written is one plain object, as soon as the unstage has answered.
	client, err := s3sdk.New(s3sdk.Config{Endpoint: server.Endpoint, Credentials: s3sdk.Credentials{
		AccessKeyID: s3sdk.Secret(server.AccessKey), SecretAccessKey: s3sdk.Secret(server.SecretKey),
	}})
	check(t, err)
	defer client.Close()
	object := func(key s3.Key) []byte {
		t.Helper()
		body, _, err := client.Bucket("tenant").Get(ctx, key, nil, "")
		check(t, err)
		defer body.Close()
		got, err := io.ReadAll(body)
		check(t, err)
		return got
	}
	if !bytes.Equal(object("pvc-life/a/b/file"), content) {
		t.Error("the object differs from the file")
	}

	// Read-only, from a staging that another process of the driver made.
	check(t, p.stop(syscall.SIGTERM))
	p.start(t)
	check(t, k.stage())
	check(t, k.publish(true))
	got, err := os.ReadFile(filepath.Join(k.target, "a", "b", "file"))
	if err != nil || !bytes.Equal(got, content) {
		t.Errorf("read back: %d bytes, %v", len(got), err)
	}
	if err := os.WriteFile(filepath.Join(k.target, "x"), nil, 0o644); err == nil {
		t.Error("a read-only target takes a file")
	}
	check(t, k.unpublish())

	// A crash with data that no upload has seen: the next publish brings the mount and the data back.
	check(t, k.publish(false))
	check(t, os.WriteFile(filepath.Join(k.target, "late"), []byte("late"), 0o644))
	if err := p.stop(syscall.SIGKILL); err == nil {
		t.Error("killed, and exited well")
	}
	p.start(t)
	if err := k.unstage(); err == nil {
		t.Error("an unstage succeeded though data may be left")
	}
	check(t, k.publish(false))
	if got, err := os.ReadFile(filepath.Join(k.target, "late")); err != nil || string(got) != "late" {
		t.Errorf("after the crash: %q, %v", got, err)
	}
	check(t, k.unpublish())
	check(t, k.unstage())
	if got := object("pvc-life/late"); string(got) != "late" {
		t.Errorf("object after the crash: %q", got)
	}
	check(t, k.delete())
	check(t, k.delete())
	if page, err := client.Bucket("tenant").List(ctx, s3.ListInput{}); err != nil || len(page.Objects) > 0 {
		t.Errorf("left in the bucket: %v, %v", page.Objects, err)
	}
}
