package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

// kubelet calls the driver as csi-provisioner and kubelet do.
type kubelet struct {
	conn       *grpc.ClientConn
	identity   csi.IdentityClient
	controller csi.ControllerClient
	node       csi.NodeClient
	secret     map[string]string
	volume     *csi.Volume // set by create
}

func connect(socket string, secret map[string]string) (*kubelet, error) {
	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, err
	}
	return &kubelet{
		conn:       conn,
		identity:   csi.NewIdentityClient(conn),
		controller: csi.NewControllerClient(conn),
		node:       csi.NewNodeClient(conn),
		secret:     secret,
	}, nil
}

func (k *kubelet) close() error { return k.conn.Close() }

func (k *kubelet) about(ctx context.Context) (string, error) {
	info, err := k.identity.GetPluginInfo(ctx, &csi.GetPluginInfoRequest{}, grpc.WaitForReady(true))
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("%s on %s", info.GetName(), k.conn.Target()), nil
}

// capability is what a PVC with accessModes [ReadWriteOnce] asks for.
func capability() *csi.VolumeCapability {
	return &csi.VolumeCapability{
		AccessMode: &csi.VolumeCapability_AccessMode{Mode: csi.VolumeCapability_AccessMode_SINGLE_NODE_WRITER},
		AccessType: &csi.VolumeCapability_Mount{Mount: &csi.VolumeCapability_MountVolume{}},
	}
}

func (k *kubelet) create(ctx context.Context) error {
	resp, err := k.controller.CreateVolume(ctx, &csi.CreateVolumeRequest{
		Name:               "pvc-demo",
		CapacityRange:      &csi.CapacityRange{RequiredBytes: 1 << 30},
		VolumeCapabilities: []*csi.VolumeCapability{capability()},
		Secrets:            k.secret,
	})
	k.volume = resp.GetVolume()
	return err
}

func (k *kubelet) delete(ctx context.Context) error {
	_, err := k.controller.DeleteVolume(ctx, &csi.DeleteVolumeRequest{VolumeId: k.volume.GetVolumeId(), Secrets: k.secret})
	return err
}

func (k *kubelet) stage(ctx context.Context, staging string) error {
	if err := os.Mkdir(staging, 0o750); err != nil {
		return err
	}
	_, err := k.node.NodeStageVolume(ctx, &csi.NodeStageVolumeRequest{
		VolumeId:          k.volume.GetVolumeId(),
		StagingTargetPath: staging,
		VolumeCapability:  capability(),
		VolumeContext:     k.volume.GetVolumeContext(),
		Secrets:           k.secret,
	})
	return err
}

// publish makes only the parent of target: the rest is the driver's.
func (k *kubelet) publish(ctx context.Context, staging, target string) error {
	if err := os.Mkdir(filepath.Dir(target), 0o750); err != nil {
		return err
	}
	_, err := k.node.NodePublishVolume(ctx, &csi.NodePublishVolumeRequest{
		VolumeId:          k.volume.GetVolumeId(),
		StagingTargetPath: staging,
		TargetPath:        target,
		VolumeCapability:  capability(),
		VolumeContext:     k.volume.GetVolumeContext(),
		Secrets:           k.secret,
	})
	return err
}

func (k *kubelet) unpublish(ctx context.Context, target string) error {
	_, err := k.node.NodeUnpublishVolume(ctx, &csi.NodeUnpublishVolumeRequest{VolumeId: k.volume.GetVolumeId(), TargetPath: target})
	return err
}

func (k *kubelet) unstage(ctx context.Context, staging string) error {
	_, err := k.node.NodeUnstageVolume(ctx, &csi.NodeUnstageVolumeRequest{VolumeId: k.volume.GetVolumeId(), StagingTargetPath: staging})
	return err
}
