package driver_test

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"

	"github.com/csi-s3/csi-s3/pkg/driver"
	"github.com/csi-s3/csi-s3/pkg/s3"
)

const (
	rwo  = csi.VolumeCapability_AccessMode_SINGLE_NODE_MULTI_WRITER
	rwop = csi.VolumeCapability_AccessMode_SINGLE_NODE_SINGLE_WRITER
	rwx  = csi.VolumeCapability_AccessMode_MULTI_NODE_MULTI_WRITER
	rox  = csi.VolumeCapability_AccessMode_MULTI_NODE_READER_ONLY
)

func TestIdentity(t *testing.T) {
	r := start(t, nil)
	info, err := r.identity.GetPluginInfo(t.Context(), &csi.GetPluginInfoRequest{})
	if err != nil || info.GetName() != "csi-s3.dev" || info.GetVendorVersion() != "v0" {
		t.Errorf("%v, %v", info, err)
	}
	probe, err := r.identity.Probe(t.Context(), &csi.ProbeRequest{})
	if err != nil || !probe.GetReady().GetValue() {
		t.Errorf("%v, %v", probe, err)
	}
	caps, err := r.identity.GetPluginCapabilities(t.Context(), &csi.GetPluginCapabilitiesRequest{})
	if err != nil || len(caps.GetCapabilities()) != 1 {
		t.Errorf("%v, %v", caps, err)
	}
	node, err := r.node.NodeGetInfo(t.Context(), &csi.NodeGetInfoRequest{})
	if err != nil || node.GetNodeId() != "node-1" {
		t.Errorf("%v, %v", node, err)
	}
}

// Each mode serves what it says and nothing else.
func TestModes(t *testing.T) {
	onlyNode := start(t, func(o *driver.Options) { o.Provisioner = nil })
	_, err := onlyNode.controller.CreateVolume(t.Context(), create())
	wantCode(t, err, codes.Unimplemented)
	if _, err = onlyNode.node.NodeStageVolume(t.Context(), stage()); err != nil {
		t.Error(err)
	}
	caps, err := onlyNode.identity.GetPluginCapabilities(t.Context(), &csi.GetPluginCapabilitiesRequest{})
	if err != nil || len(caps.GetCapabilities()) != 0 {
		t.Errorf("%v, %v", caps, err)
	}
	onlyController := start(t, func(o *driver.Options) { o.Volumes = nil })
	_, err = onlyController.node.NodeStageVolume(t.Context(), stage())
	wantCode(t, err, codes.Unimplemented)
	if _, err = onlyController.controller.CreateVolume(t.Context(), create()); err != nil {
		t.Error(err)
	}
}

func TestCreateDelete(t *testing.T) {
	r := start(t, nil)
	var first *csi.Volume
	for range 2 {
		got, err := r.controller.CreateVolume(t.Context(), create())
		if err != nil {
			t.Fatal(err)
		}
		if first == nil {
			first = got.GetVolume()
		}
		if v := got.GetVolume(); v.GetVolumeId() != "pvc-1" || v.GetCapacityBytes() != 1<<30 || v.GetVolumeContext()["capacity"] != "1073741824" || v.String() != first.String() {
			t.Errorf("%v", v)
		}
	}
	for _, secret := range secrets() {
		if strings.Contains(first.String(), secret) {
			t.Errorf("the volume context holds a secret: %v", first)
		}
	}
	validate := &csi.ValidateVolumeCapabilitiesRequest{VolumeId: "pvc-1", Secrets: secrets(), VolumeCapabilities: []*csi.VolumeCapability{mounted(rwo), mounted(rwx)}}
	if got, err := r.controller.ValidateVolumeCapabilities(t.Context(), validate); err != nil || len(got.GetConfirmed().GetVolumeCapabilities()) != 2 {
		t.Errorf("%v, %v", got, err)
	}
	validate.VolumeCapabilities = append(validate.VolumeCapabilities, block())
	if got, err := r.controller.ValidateVolumeCapabilities(t.Context(), validate); err != nil || got.GetConfirmed() != nil || got.GetMessage() == "" {
		t.Errorf("block: %v, %v", got, err)
	}
	larger := create()
	larger.CapacityRange.RequiredBytes *= 2
	_, err := r.controller.CreateVolume(t.Context(), larger)
	wantCode(t, err, codes.AlreadyExists)
	for range 2 {
		if _, err := r.controller.DeleteVolume(t.Context(), &csi.DeleteVolumeRequest{VolumeId: "pvc-1", Secrets: secrets()}); err != nil {
			t.Error(err)
		}
	}
	validate.VolumeId = "pvc-9"
	_, err = r.controller.ValidateVolumeCapabilities(t.Context(), validate)
	wantCode(t, err, codes.NotFound, "pvc-9")

	for fault, want := range map[error]codes.Code{
		s3.ErrAuth: codes.PermissionDenied, s3.ErrUnavailable: codes.Unavailable, s3.ErrFull: codes.ResourceExhausted, errors.New("?"): codes.Internal,
	} {
		r.server.fault = fault
		_, err := r.controller.CreateVolume(t.Context(), create())
		wantCode(t, err, want)
		_, err = r.controller.DeleteVolume(t.Context(), &csi.DeleteVolumeRequest{VolumeId: "pvc-1", Secrets: secrets()})
		wantCode(t, err, want)
	}
}

// Every request with a missing or malformed field is InvalidArgument and names the field; nothing is done. What is wrong in
// a Secret may be mended at any moment, which is FailedPrecondition.
func TestBadRequests(t *testing.T) {
	r := start(t, nil)
	ctx := t.Context()
	check := func(field string, err error) {
		t.Helper()
		wantCode(t, err, codes.InvalidArgument, field)
	}
	ids := map[string]string{"": "missing", "ab": "bucket", "bucket/../b": "prefix", "bucket//": "prefix", "bucket/.csi-s3/x": "prefix", "b\x00cket": "bucket"}
	badSecrets := map[string]map[string]string{
		"URL of the S3 server": nil,
		"endpoint":             {"accessKeyID": "the-access-key", "secretAccessKey": "the-secret-key"}, "accessKeyID": {"endpoint": "https://h", "secretAccessKey": "the-secret-key"},
		"secretAccessKey": {"endpoint": "https://h", "accessKeyID": "the-access-key"},
		"insecure":        {"endpoint": "https://h", "accessKeyID": "the-access-key", "secretAccessKey": "the-secret-key", "insecure": "perhaps"},
	}
	badCapabilities := map[string]*csi.VolumeCapability{
		"block": block(), "access_type": {AccessMode: &csi.VolumeCapability_AccessMode{Mode: rwo}}, "access_mode": mounted(csi.VolumeCapability_AccessMode_UNKNOWN),
		"nonsense": mounted(rwo, "nonsense"), "uid": mounted(rwo, "uid=x"),
		"gid": {AccessMode: &csi.VolumeCapability_AccessMode{Mode: rwo}, AccessType: &csi.VolumeCapability_Mount{Mount: &csi.VolumeCapability_MountVolume{VolumeMountGroup: "wheel"}}},
	}

	for field, change := range map[string]func(*csi.CreateVolumeRequest){
		"name":                func(q *csi.CreateVolumeRequest) { q.Name = "" },
		"volume_capabilities": func(q *csi.CreateVolumeRequest) { q.VolumeCapabilities = nil },
		"nosuch":              func(q *csi.CreateVolumeRequest) { q.Parameters = map[string]string{"nosuch": "x"} },
		"s3fs":                func(q *csi.CreateVolumeRequest) { q.Parameters = map[string]string{"mounter": "s3fs"} },
		"--shared-config": func(q *csi.CreateVolumeRequest) {
			q.Parameters = map[string]string{"options": "--shared-config /etc/x"}
		},
		"volume_content_source": func(q *csi.CreateVolumeRequest) { q.VolumeContentSource = &csi.VolumeContentSource{} },
		"mutable_parameters":    func(q *csi.CreateVolumeRequest) { q.MutableParameters = map[string]string{"a": "b"} },
		"capacity":              func(q *csi.CreateVolumeRequest) { q.CapacityRange.LimitBytes = 1 },
	} {
		q := create()
		change(q)
		_, err := r.controller.CreateVolume(ctx, q)
		check(field, err)
	}
	for field, s := range badSecrets {
		q := create()
		q.Secrets = s
		code := codes.FailedPrecondition // it is right as soon as the Secret is mended
		if len(s) == 0 {
			code = codes.InvalidArgument
		}
		_, err := r.controller.CreateVolume(ctx, q)
		wantCode(t, err, code, "secrets", field)
		_, err = r.controller.DeleteVolume(ctx, &csi.DeleteVolumeRequest{VolumeId: "bucket", Secrets: s})
		wantCode(t, err, code, "secrets", field)
		_, err = r.controller.ValidateVolumeCapabilities(ctx, &csi.ValidateVolumeCapabilitiesRequest{VolumeId: "bucket", Secrets: s, VolumeCapabilities: q.VolumeCapabilities})
		wantCode(t, err, code, "secrets", field)
		n := stage()
		n.Secrets = s
		_, err = r.node.NodeStageVolume(ctx, n)
		wantCode(t, err, code, "secrets", field)
	}
	_, err := r.controller.ValidateVolumeCapabilities(ctx, &csi.ValidateVolumeCapabilitiesRequest{VolumeId: "bucket", Secrets: secrets()})
	check("volume_capabilities", err)

	for id, word := range ids {
		_, err := r.controller.DeleteVolume(ctx, &csi.DeleteVolumeRequest{VolumeId: id, Secrets: secrets()})
		check("volume_id", err)
		wantCode(t, err, codes.InvalidArgument, word)
		s := stage()
		s.VolumeId = id
		_, err = r.node.NodeStageVolume(ctx, s)
		check("volume_id", err)
		_, err = r.node.NodeUnstageVolume(ctx, &csi.NodeUnstageVolumeRequest{VolumeId: id, StagingTargetPath: "/staging"})
		check("volume_id", err)
		p := publish()
		p.VolumeId = id
		_, err = r.node.NodePublishVolume(ctx, p)
		check("volume_id", err)
		_, err = r.node.NodeUnpublishVolume(ctx, &csi.NodeUnpublishVolumeRequest{VolumeId: id, TargetPath: "/target"})
		check("volume_id", err)
		_, err = r.node.NodeGetVolumeStats(ctx, &csi.NodeGetVolumeStatsRequest{VolumeId: id, VolumePath: "/target"})
		check("volume_id", err)
		_, err = r.node.NodeGetVolumeHealth(ctx, &csi.NodeGetVolumeHealthRequest{VolumeId: id, VolumePublishPath: "/target"})
		check("volume_id", err)
	}
	for word, c := range badCapabilities {
		q := create()
		q.VolumeCapabilities = []*csi.VolumeCapability{mounted(rwo), c}
		_, err := r.controller.CreateVolume(ctx, q)
		check(word, err)
		s := stage()
		s.VolumeCapability = c
		_, err = r.node.NodeStageVolume(ctx, s)
		check(word, err)
		p := publish()
		p.VolumeCapability = c
		_, err = r.node.NodePublishVolume(ctx, p)
		check(word, err)
	}
	for field, change := range map[string]func(*csi.NodePublishVolumeRequest){
		"target_path":         func(q *csi.NodePublishVolumeRequest) { q.TargetPath = "" },
		"staging_target_path": func(q *csi.NodePublishVolumeRequest) { q.StagingTargetPath = "" },
		"volume_capability":   func(q *csi.NodePublishVolumeRequest) { q.VolumeCapability = nil },
		"volume_context":      func(q *csi.NodePublishVolumeRequest) { q.VolumeContext["capacity"] = "much" },
		"mounter":             func(q *csi.NodePublishVolumeRequest) { q.VolumeContext["mounter"] = "rclone" },
	} {
		p := publish()
		change(p)
		_, err := r.node.NodePublishVolume(ctx, p)
		check(field, err)
		if field == "target_path" {
			continue
		}
		s := stage()
		s.StagingTargetPath, s.VolumeCapability, s.VolumeContext = p.StagingTargetPath, p.VolumeCapability, p.VolumeContext
		_, err = r.node.NodeStageVolume(ctx, s)
		check(field, err)
	}
	_, err = r.node.NodeUnstageVolume(ctx, &csi.NodeUnstageVolumeRequest{VolumeId: "bucket"})
	check("staging_target_path", err)
	_, err = r.node.NodeUnpublishVolume(ctx, &csi.NodeUnpublishVolumeRequest{VolumeId: "bucket"})
	check("target_path", err)
	_, err = r.node.NodeGetVolumeStats(ctx, &csi.NodeGetVolumeStatsRequest{VolumeId: "bucket"})
	check("volume_path", err)

	if len(r.volumes.calls) > 0 || slices.ContainsFunc(keys(r.server.buckets), func(name string) bool { return name == "pvc-1" && r.server.buckets[name].HeadBucket(ctx) == nil }) {
		t.Errorf("a bad request had an effect: %v", r.volumes.calls)
	}
}

func keys(m map[string]s3.Bucket) []string {
	out := make([]string, 0, len(m))
	for k := range m {
		out = append(out, k)
	}
	return out
}
