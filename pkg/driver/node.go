package driver

import (
	"cmp"
	"context"
	"errors"
	"fmt"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/csi-s3/csi-s3/pkg/config"
	"github.com/csi-s3/csi-s3/pkg/volume"
)

// NodeStageVolume mounts the volume on the node.
func (d *Driver) NodeStageVolume(ctx context.Context, r *csi.NodeStageVolumeRequest) (*csi.NodeStageVolumeResponse, error) {
	request, err := stageRequest(r)
	if err != nil {
		return nil, err
	}
	secret, err := d.secret(r, request.ID)
	if err != nil {
		return nil, badSecret(r, err)
	}
	request.Secret = secret
	done, err := d.inFlight.enter("volume", request.ID.String())
	if err != nil {
		return nil, err
	}
	defer done()
	if err := d.opt.Volumes.Stage(ctx, request); err != nil {
		return nil, failed(err)
	}
	return &csi.NodeStageVolumeResponse{}, nil
}

// NodeUnstageVolume drains the volume and unmounts it.
func (d *Driver) NodeUnstageVolume(ctx context.Context, r *csi.NodeUnstageVolumeRequest) (*csi.NodeUnstageVolumeResponse, error) {
	id, err := volumeID(r)
	if err != nil {
		return nil, err
	}
	if r.GetStagingTargetPath() == "" {
		return nil, missing("staging_target_path")
	}
	done, err := d.inFlight.enter("volume", id.String())
	if err != nil {
		return nil, err
	}
	defer done()
	if err := d.opt.Volumes.Unstage(ctx, id, r.GetStagingTargetPath()); err != nil {
		return nil, failed(err)
	}
	return &csi.NodeUnstageVolumeResponse{}, nil
}

// NodePublishVolume shows the staged volume to a pod. The kubelet repeats it every minute or so, with the secret of the
// day: that it does not work must not take a working mount from the pod.
func (d *Driver) NodePublishVolume(ctx context.Context, r *csi.NodePublishVolumeRequest) (*csi.NodePublishVolumeResponse, error) {
	if r.GetTargetPath() == "" {
		return nil, missing("target_path")
	}
	stage, err := stageRequest(r)
	if err != nil {
		return nil, err
	}
	var secretErr error
	if len(r.GetSecrets()) > 0 {
		if stage.Secret, secretErr = d.secret(r, stage.ID); secretErr != nil {
			d.opt.Log.Error("the publish secret is not usable", "volume", stage.ID.String(), "err", secretErr)
		}
	}
	done, err := d.inFlight.enter("target", r.GetTargetPath())
	if err != nil {
		return nil, err
	}
	defer done()
	err = d.opt.Volumes.Publish(ctx, volume.PublishRequest{
		StageRequest: stage,
		Target:       r.GetTargetPath(),
		ReadOnly:     r.GetReadonly(),
		Pod:          pod(r.GetVolumeContext()),
		SecretErr:    secretErr,
		Single:       r.GetVolumeCapability().GetAccessMode().GetMode() == csi.VolumeCapability_AccessMode_SINGLE_NODE_SINGLE_WRITER,
	})
	if errors.Is(err, volume.ErrNotStaged) && secretErr != nil {
		return nil, badSecret(r, secretErr)
	}
	if err != nil {
		return nil, failed(err)
	}
	return &csi.NodePublishVolumeResponse{}, nil
}

// pod is the pod of a publish, as the kubelet names it (podInfoOnMount of the CSIDriver).
func pod(context map[string]string) volume.Pod {
	const prefix = "csi.storage.k8s.io/pod."
	return volume.Pod{Namespace: context[prefix+"namespace"], Name: context[prefix+"name"], UID: context[prefix+"uid"]}
}

// NodeUnpublishVolume takes the volume from a pod.
func (d *Driver) NodeUnpublishVolume(ctx context.Context, r *csi.NodeUnpublishVolumeRequest) (*csi.NodeUnpublishVolumeResponse, error) {
	id, err := volumeID(r)
	if err != nil {
		return nil, err
	}
	if r.GetTargetPath() == "" {
		return nil, missing("target_path")
	}
	done, err := d.inFlight.enter("target", r.GetTargetPath())
	if err != nil {
		return nil, err
	}
	defer done()
	if err := d.opt.Volumes.Unpublish(ctx, id, r.GetTargetPath()); err != nil {
		return nil, failed(err)
	}
	return &csi.NodeUnpublishVolumeResponse{}, nil
}

// unlimited is the room that a volume without a limit reports, in bytes: none would look like a full one.
const unlimited = 1 << 50

// NodeGetVolumeStats says how full the volume is, from its own count.
func (d *Driver) NodeGetVolumeStats(_ context.Context, r *csi.NodeGetVolumeStatsRequest) (*csi.NodeGetVolumeStatsResponse, error) {
	id, err := volumeID(r)
	if err != nil {
		return nil, err
	}
	if r.GetVolumePath() == "" {
		return nil, missing("volume_path")
	}
	st, err := d.stats(id, r.GetVolumePath())
	if err != nil {
		return nil, err
	}
	if st.Free < 0 {
		st.Free = unlimited
	}
	return &csi.NodeGetVolumeStatsResponse{
		Usage: []*csi.VolumeUsage{
			{Unit: csi.VolumeUsage_BYTES, Used: st.Used, Available: st.Free, Total: st.Used + st.Free},
			{Unit: csi.VolumeUsage_INODES, Used: int64(st.Inodes)},
		},
	}, nil
}

// NodeGetVolumeHealth says what is wrong with the volume on this node.
func (d *Driver) NodeGetVolumeHealth(_ context.Context, r *csi.NodeGetVolumeHealthRequest) (*csi.NodeGetVolumeHealthResponse, error) {
	id, err := volumeID(r)
	if err != nil {
		return nil, err
	}
	st, err := d.stats(id, cmp.Or(r.GetVolumePublishPath(), r.GetStagingTargetPath()))
	if err != nil {
		return nil, err
	}
	health := &csi.VolumeHealth{VolumeId: r.GetVolumeId()}
	for _, h := range []*csi.VolumeHealth_VolumeHealthEntry{
		{Status: csi.VolumeHealthErrorType_INACCESSIBLE, Reason: "MountLost", Message: st.Lost},
		{Status: csi.VolumeHealthErrorType_DEGRADED, Reason: "LastError", Message: st.Trouble},
	} {
		if h.Message != "" {
			health.HealthStatuses = append(health.HealthStatuses, h)
		}
	}
	return &csi.NodeGetVolumeHealthResponse{VolumeHealth: health}, nil
}

// stats asks for a volume at a path. What is not there is NotFound: the caller only looks.
func (d *Driver) stats(id config.VolumeID, path string) (volume.Stats, error) {
	st, err := d.opt.Volumes.Stats(id, path)
	if errors.Is(err, volume.ErrNotStaged) || errors.Is(err, volume.ErrPath) {
		return volume.Stats{}, status.Error(codes.NotFound, err.Error())
	}
	if err != nil {
		return volume.Stats{}, failed(err)
	}
	return st, nil
}

// NodeGetInfo says which node this is.
func (d *Driver) NodeGetInfo(context.Context, *csi.NodeGetInfoRequest) (*csi.NodeGetInfoResponse, error) {
	return &csi.NodeGetInfoResponse{NodeId: d.opt.NodeID}, nil
}

// NodeGetCapabilities names the calls that are answered.
func (d *Driver) NodeGetCapabilities(context.Context, *csi.NodeGetCapabilitiesRequest) (*csi.NodeGetCapabilitiesResponse, error) {
	r := &csi.NodeGetCapabilitiesResponse{}
	for _, c := range []csi.NodeServiceCapability_RPC_Type{
		csi.NodeServiceCapability_RPC_STAGE_UNSTAGE_VOLUME,
		csi.NodeServiceCapability_RPC_GET_VOLUME_STATS,
		csi.NodeServiceCapability_RPC_GET_VOLUME_HEALTH,
		csi.NodeServiceCapability_RPC_SINGLE_NODE_MULTI_WRITER,
		csi.NodeServiceCapability_RPC_VOLUME_MOUNT_GROUP,
	} {
		r.Capabilities = append(r.Capabilities, &csi.NodeServiceCapability{Type: &csi.NodeServiceCapability_Rpc{
			Rpc: &csi.NodeServiceCapability_RPC{Type: c},
		}})
	}
	return r, nil
}

// stageRequest is the part that stage and publish have in common; the secret is left out.
func stageRequest(r interface {
	GetVolumeId() string
	GetStagingTargetPath() string
	GetVolumeCapability() *csi.VolumeCapability
	GetVolumeContext() map[string]string
}) (volume.StageRequest, error) {
	id, err := volumeID(r)
	if err != nil {
		return volume.StageRequest{}, err
	}
	if r.GetStagingTargetPath() == "" {
		return volume.StageRequest{}, missing("staging_target_path")
	}
	if r.GetVolumeCapability() == nil {
		return volume.StageRequest{}, missing("volume_capability")
	}
	attributes, err := config.ParseAttributes(r.GetVolumeContext())
	if err != nil {
		return volume.StageRequest{}, invalid("volume_context", err)
	}
	options, err := mountOptions(r.GetVolumeCapability(), attributes)
	if err != nil {
		return volume.StageRequest{}, invalid("volume_capability", err)
	}
	return volume.StageRequest{ID: id, Dir: r.GetStagingTargetPath(), Options: options}, nil
}

// secret is the secret of the call with what the volume's attributes change about it. What they hold and means nothing
// is worth a line once it is used.
func (d *Driver) secret(r interface {
	GetSecrets() map[string]string
	GetVolumeContext() map[string]string
}, id config.VolumeID) (config.Secret, error) {
	secret, err := config.ParseSecret(r.GetSecrets())
	if err != nil {
		return config.Secret{}, err
	}
	attributes, err := config.ParseAttributes(r.GetVolumeContext())
	if err != nil {
		return config.Secret{}, fmt.Errorf("volume_context: %w", err)
	}
	if len(attributes.Ignored) > 0 || len(attributes.Geesefs.Ignored) > 0 {
		d.opt.Log.Debug("settings of the volume without meaning here", "volume", id.String(), "attributes", attributes.Ignored, "flags", attributes.Geesefs.Ignored)
	}
	return attributes.Geesefs.Apply(secret), nil
}
