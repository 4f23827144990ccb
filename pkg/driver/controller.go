package driver

import (
	"context"
	"errors"

	"github.com/container-storage-interface/spec/lib/go/csi"

	"github.com/csi-s3/csi-s3/pkg/config"
	"github.com/csi-s3/csi-s3/pkg/provision"
)

// CreateVolume makes a bucket, or a prefix of one, for a claim.
func (d *Driver) CreateVolume(ctx context.Context, r *csi.CreateVolumeRequest) (*csi.CreateVolumeResponse, error) {
	switch {
	case r.GetName() == "":
		return nil, missing("name")
	case len(r.GetVolumeCapabilities()) == 0:
		return nil, missing("volume_capabilities")
	case r.GetVolumeContentSource() != nil:
		return nil, invalid("volume_content_source", errors.New("volumes cannot be made from snapshots or other volumes"))
	case len(r.GetMutableParameters()) > 0:
		return nil, invalid("mutable_parameters", errors.New("there are none"))
	}
	// An option that no node would take is refused while somebody still looks at the claim.
	for _, c := range r.GetVolumeCapabilities() {
		if _, err := mountOptions(c, config.Attributes{}); err != nil {
			return nil, invalid("volume_capabilities", err)
		}
	}
	parameters, err := config.ParseParameters(r.GetParameters())
	if err != nil {
		return nil, invalid("parameters", err)
	}
	secret, err := config.ParseSecret(r.GetSecrets())
	if err != nil {
		return nil, badSecret(r, err)
	}
	done, err := d.inFlight.enter("create", r.GetName())
	if err != nil {
		return nil, err
	}
	defer done()
	v, err := d.opt.Provisioner.Create(ctx, provision.Request{
		Name: r.GetName(), Parameters: parameters, Secret: secret,
		Required: r.GetCapacityRange().GetRequiredBytes(), Limit: r.GetCapacityRange().GetLimitBytes(),
	})
	if err != nil {
		return nil, failed(err)
	}
	return &csi.CreateVolumeResponse{Volume: &csi.Volume{
		VolumeId: v.ID.String(), CapacityBytes: v.Capacity, VolumeContext: v.Attributes,
	}}, nil
}

// DeleteVolume removes what CreateVolume made.
func (d *Driver) DeleteVolume(ctx context.Context, r *csi.DeleteVolumeRequest) (*csi.DeleteVolumeResponse, error) {
	id, err := volumeID(r)
	if err != nil {
		return nil, err
	}
	secret, err := config.ParseSecret(r.GetSecrets())
	if err != nil {
		return nil, badSecret(r, err)
	}
	done, err := d.inFlight.enter("volume", id.String())
	if err != nil {
		return nil, err
	}
	defer done()
	if err := d.opt.Provisioner.Delete(ctx, id, secret); err != nil {
		return nil, failed(err)
	}
	return &csi.DeleteVolumeResponse{}, nil
}

// ValidateVolumeCapabilities confirms what the driver can do with a volume that exists.
func (d *Driver) ValidateVolumeCapabilities(ctx context.Context, r *csi.ValidateVolumeCapabilitiesRequest) (*csi.ValidateVolumeCapabilitiesResponse, error) {
	id, err := volumeID(r)
	if err != nil {
		return nil, err
	}
	if len(r.GetVolumeCapabilities()) == 0 {
		return nil, missing("volume_capabilities")
	}
	secret, err := config.ParseSecret(r.GetSecrets())
	if err != nil {
		return nil, badSecret(r, err)
	}
	if _, err := d.opt.Provisioner.Exists(ctx, id, secret); err != nil {
		return nil, failed(err)
	}
	attributes, err := config.ParseAttributes(r.GetVolumeContext())
	if err != nil {
		return &csi.ValidateVolumeCapabilitiesResponse{Message: err.Error()}, nil //nolint:nilerr // the answer is that it cannot be
	}
	for _, c := range r.GetVolumeCapabilities() {
		if _, err := mountOptions(c, attributes); err != nil {
			return &csi.ValidateVolumeCapabilitiesResponse{Message: err.Error()}, nil //nolint:nilerr // the answer is that it cannot be
		}
	}
	return &csi.ValidateVolumeCapabilitiesResponse{Confirmed: &csi.ValidateVolumeCapabilitiesResponse_Confirmed{
		VolumeContext: r.GetVolumeContext(), VolumeCapabilities: r.GetVolumeCapabilities(), Parameters: r.GetParameters(),
	}}, nil
}

// ControllerGetCapabilities names the calls that are answered.
func (d *Driver) ControllerGetCapabilities(context.Context, *csi.ControllerGetCapabilitiesRequest) (*csi.ControllerGetCapabilitiesResponse, error) {
	r := &csi.ControllerGetCapabilitiesResponse{}
	for _, c := range []csi.ControllerServiceCapability_RPC_Type{
		csi.ControllerServiceCapability_RPC_CREATE_DELETE_VOLUME,
		csi.ControllerServiceCapability_RPC_SINGLE_NODE_MULTI_WRITER,
	} {
		r.Capabilities = append(r.Capabilities, &csi.ControllerServiceCapability{Type: &csi.ControllerServiceCapability_Rpc{
			Rpc: &csi.ControllerServiceCapability_RPC{Type: c},
		}})
	}
	return r, nil
}
