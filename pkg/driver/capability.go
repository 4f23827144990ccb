package driver

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"

	"github.com/container-storage-interface/spec/lib/go/csi"

	"github.com/csi-s3/csi-s3/pkg/config"
)

// volumeID reads the volume ID of a request; the error has its code.
func volumeID(r interface{ GetVolumeId() string }) (config.VolumeID, error) {
	if r.GetVolumeId() == "" {
		return config.VolumeID{}, missing("volume_id")
	}
	id, err := config.ParseVolumeID(r.GetVolumeId())
	if err != nil {
		return config.VolumeID{}, invalid("volume_id", err)
	}
	return id, nil
}

// mountOptions is how a volume with these attributes is mounted for a capability: geesefs's flags first, then the
// mount flags of the PV, then what the access mode, the capacity and the pod's group decide.
func mountOptions(c *csi.VolumeCapability, a config.Attributes) (config.Mount, error) {
	if c.GetBlock() != nil {
		return config.Mount{}, errors.New("a block device was asked for: a bucket has files only, use volumeMode Filesystem")
	}
	m := c.GetMount()
	if m == nil {
		return config.Mount{}, errors.New("access_type is missing")
	}
	// The file system is what the driver says it is. Some classes name one out of habit.
	access, err := accessOption(c.GetAccessMode().GetMode())
	if err != nil {
		return config.Mount{}, err
	}
	options := slices.Concat(a.Geesefs.Options, m.GetMountFlags(), []string{"access=" + access, "allow_other"})
	if a.Capacity > 0 {
		options = append(options, "size="+strconv.FormatInt(a.Capacity, 10))
	}
	if a.Provisioned && access == "rwo" {
		options = append(options, "exclusive")
	}
	group := m.GetVolumeMountGroup()
	if group != "" {
		options = append(options, "gid="+group)
	}
	parsed, err := config.ParseMount(options)
	if err != nil {
		return config.Mount{}, err
	}
	if group != "" {
		// The pod's group may work with what has no attributes of its own, and what is made there is the group's.
		parsed.Group = parsed.Gid
		parsed.FileMode |= 0o060
		parsed.DirMode |= os.ModeSetgid | 0o070
	}
	return parsed, nil
}

// accessOption is the option for a CSI access mode.
func accessOption(mode csi.VolumeCapability_AccessMode_Mode) (string, error) {
	switch mode {
	case csi.VolumeCapability_AccessMode_SINGLE_NODE_WRITER,
		csi.VolumeCapability_AccessMode_SINGLE_NODE_SINGLE_WRITER,
		csi.VolumeCapability_AccessMode_SINGLE_NODE_MULTI_WRITER:
		return "rwo", nil
	case csi.VolumeCapability_AccessMode_SINGLE_NODE_READER_ONLY,
		csi.VolumeCapability_AccessMode_MULTI_NODE_READER_ONLY:
		return "rox", nil
	case csi.VolumeCapability_AccessMode_MULTI_NODE_SINGLE_WRITER,
		csi.VolumeCapability_AccessMode_MULTI_NODE_MULTI_WRITER:
		return "rwx", nil
	}
	return "", fmt.Errorf("access_mode %s is not supported", mode)
}
