package driver_test

import (
	"context"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"

	"github.com/csi-s3/csi-s3/pkg/config"
	"github.com/csi-s3/csi-s3/pkg/volume"
)

func TestStageRequests(t *testing.T) {
	r := start(t, nil)
	base := config.DefaultMount()
	base.AllowOther, base.Size = true, 1<<30
	for name, c := range map[string]struct {
		capability *csi.VolumeCapability
		context    map[string]string
		want       func(*config.Mount)
	}{
		"rwo":  {mounted(rwo), nil, func(*config.Mount) {}},
		"rwop": {mounted(rwop), nil, func(*config.Mount) {}},
		"old":  {mounted(csi.VolumeCapability_AccessMode_SINGLE_NODE_WRITER), nil, func(*config.Mount) {}},
		"rwx":  {mounted(rwx), nil, func(m *config.Mount) { m.Access, m.Fsync = "rwx", "bucket" }},
		"rox":  {mounted(rox), nil, func(m *config.Mount) { m.Access, m.ReadOnly = "rox", true }},
		"flags win over geesefs, the access mode over flags": {mounted(rwo, "uid=2", "access=rwx"), map[string]string{"options": "--uid 1 --dir-mode 0777"},
			func(m *config.Mount) { m.Uid, m.DirMode = 2, 0o777 }},
		"provisioned is exclusive": {mounted(rwo), map[string]string{"csi-s3.dev/provisioned": "true"}, func(m *config.Mount) { m.Exclusive = true }},
		"but not shared":           {mounted(rwx), map[string]string{"csi-s3.dev/provisioned": "true"}, func(m *config.Mount) { m.Access, m.Fsync = "rwx", "bucket" }},
		"group": {&csi.VolumeCapability{
			AccessMode: &csi.VolumeCapability_AccessMode{Mode: rwo},
			AccessType: &csi.VolumeCapability_Mount{Mount: &csi.VolumeCapability_MountVolume{VolumeMountGroup: "2000"}},
		}, nil, func(m *config.Mount) { m.Gid, m.Group, m.FileMode, m.DirMode = 2000, 2000, 0o664, 0o775|os.ModeSetgid }},
	} {
		t.Run(name, func(t *testing.T) {
			s, p := stage(), publish()
			s.VolumeCapability, p.VolumeCapability = c.capability, c.capability
			for k, v := range c.context {
				s.VolumeContext[k], p.VolumeContext[k] = v, v
			}
			if _, err := r.node.NodeStageVolume(t.Context(), s); err != nil {
				t.Fatal(err)
			}
			want := base
			c.want(&want)
			got := last[volume.StageRequest](t, r.volumes)
			if got.Options != want {
				t.Errorf("options %+v\nwant    %+v", got.Options, want)
			}
			if got.ID != (config.VolumeID{Bucket: "bucket", Prefix: "a/"}) || got.Dir != "/staging" || got.Secret.AccessKeyID != "the-access-key" {
				t.Errorf("%+v", got)
			}
			p.Readonly = true
			if _, err := r.node.NodePublishVolume(t.Context(), p); err != nil {
				t.Fatal(err)
			}
			published := last[volume.PublishRequest](t, r.volumes)
			if published.StageRequest != got || published.Target != "/target" || !published.ReadOnly || published.Single != (name == "rwop") {
				t.Errorf("%+v", published)
			}
		})
	}
}

// A republish with a secret that cannot be used must not take the mount from the pod.
func TestPublishBadSecret(t *testing.T) {
	r := start(t, nil)
	p := publish()
	delete(p.Secrets, "accessKeyID")
	if _, err := r.node.NodePublishVolume(t.Context(), p); err != nil {
		t.Error(err)
	}
	if got := last[volume.PublishRequest](t, r.volumes); got.Secret != (config.Secret{}) {
		t.Errorf("%+v", got.Secret)
	}
	if !strings.Contains(r.log.String(), "accessKeyID is missing") {
		t.Error("nobody is told")
	}
	r.volumes.err = volume.ErrNotStaged
	_, err := r.node.NodePublishVolume(t.Context(), p)
	wantCode(t, err, codes.FailedPrecondition, "accessKeyID")
	_, err = r.node.NodePublishVolume(t.Context(), publish())
	wantCode(t, err, codes.FailedPrecondition)
}

func TestNodeErrors(t *testing.T) {
	r := start(t, nil)
	for _, c := range []struct {
		err  error
		want codes.Code
	}{
		{volume.ErrPath, codes.InvalidArgument},
		{volume.ErrSecret, codes.FailedPrecondition},
		{volume.ErrNotFound, codes.NotFound},
		{volume.ErrDenied, codes.PermissionDenied},
		{volume.ErrUnavailable, codes.Unavailable},
		{fmt.Errorf("%w: %w", volume.ErrUnavailable, context.DeadlineExceeded), codes.Unavailable},
		{volume.ErrDiffers, codes.AlreadyExists},
		{fmt.Errorf("%w: %w", volume.ErrNotStaged, volume.ErrDiffers), codes.FailedPrecondition},
		{volume.ErrForeign, codes.FailedPrecondition},
		{volume.ErrInUse, codes.FailedPrecondition},
		{volume.ErrHeld, codes.FailedPrecondition},
		{volume.ErrGivenUp, codes.FailedPrecondition},
		{volume.ErrLeased, codes.Unavailable},
		{volume.ErrUndrained, codes.Unavailable},
		{fmt.Errorf("%w: %w", volume.ErrUndrained, volume.ErrHeld), codes.FailedPrecondition},
		{fmt.Errorf("%w: %w", volume.ErrUndrained, context.DeadlineExceeded), codes.DeadlineExceeded},
		{fmt.Errorf("%w: %w", volume.ErrUndrained, volume.ErrDenied), codes.PermissionDenied},
		{context.Canceled, codes.Canceled},
		{os.ErrPermission, codes.Internal},
	} {
		r.volumes.err = fmt.Errorf("volume x: %w", c.err)
		_, err := r.node.NodeStageVolume(t.Context(), stage())
		wantCode(t, err, c.want, "volume x")
		_, err = r.node.NodePublishVolume(t.Context(), publish())
		wantCode(t, err, c.want)
		_, err = r.node.NodeUnstageVolume(t.Context(), &csi.NodeUnstageVolumeRequest{VolumeId: "bucket", StagingTargetPath: "/s"})
		wantCode(t, err, c.want)
		_, err = r.node.NodeUnpublishVolume(t.Context(), &csi.NodeUnpublishVolumeRequest{VolumeId: "bucket", TargetPath: "/t"})
		wantCode(t, err, c.want)
	}
	_, err := r.node.NodeUnpublishVolume(t.Context(), &csi.NodeUnpublishVolumeRequest{VolumeId: "bucket", TargetPath: "/panic"})
	wantCode(t, err, codes.Internal)
	if !strings.Contains(r.log.String(), "a fault") {
		t.Error("a panic left no trace")
	}
}

func TestVolumeStats(t *testing.T) {
	r := start(t, nil)
	ask := &csi.NodeGetVolumeStatsRequest{VolumeId: "bucket", VolumePath: "/target"}
	r.volumes.stats = volume.Stats{Used: 10, Free: 20, Inodes: 3}
	got, err := r.node.NodeGetVolumeStats(t.Context(), ask)
	if err != nil || len(got.GetUsage()) != 2 {
		t.Fatalf("%v, %v", got, err)
	}
	if u := got.GetUsage()[0]; u.GetUnit() != csi.VolumeUsage_BYTES || u.GetUsed() != 10 || u.GetAvailable() != 20 || u.GetTotal() != 30 {
		t.Errorf("%v", u)
	}
	if u := got.GetUsage()[1]; u.GetUnit() != csi.VolumeUsage_INODES || u.GetUsed() != 3 {
		t.Errorf("%v", u)
	}
	r.volumes.stats.Free = -1
	got, err = r.node.NodeGetVolumeStats(t.Context(), ask)
	if err != nil || got.GetUsage()[0].GetAvailable() < 1<<40 {
		t.Errorf("no limit: %v, %v", got, err)
	}
	health := &csi.NodeGetVolumeHealthRequest{VolumeId: "bucket", StagingTargetPath: "/staging"}
	if h, err := r.node.NodeGetVolumeHealth(t.Context(), health); err != nil || len(h.GetVolumeHealth().GetHealthStatuses()) != 0 {
		t.Errorf("%v, %v", h, err)
	}
	r.volumes.stats.Lost, r.volumes.stats.Trouble = "gone", "slow"
	h, err := r.node.NodeGetVolumeHealth(t.Context(), health)
	if err != nil || len(h.GetVolumeHealth().GetHealthStatuses()) != 2 {
		t.Fatalf("%v, %v", h, err)
	}
	if s := h.GetVolumeHealth().GetHealthStatuses(); s[0].GetStatus() != csi.VolumeHealthErrorType_INACCESSIBLE || s[0].GetMessage() != "gone" || s[1].GetStatus() != csi.VolumeHealthErrorType_DEGRADED {
		t.Errorf("%v", s)
	}
	for _, missing := range []error{volume.ErrNotStaged, volume.ErrPath} {
		r.volumes.err = missing
		_, err = r.node.NodeGetVolumeStats(t.Context(), ask)
		wantCode(t, err, codes.NotFound)
	}
}
