package driver_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

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

const (
	rwo  = csi.VolumeCapability_AccessMode_SINGLE_NODE_MULTI_WRITER
	rwop = csi.VolumeCapability_AccessMode_SINGLE_NODE_SINGLE_WRITER
	rwx  = csi.VolumeCapability_AccessMode_MULTI_NODE_MULTI_WRITER
	rox  = csi.VolumeCapability_AccessMode_MULTI_NODE_READER_ONLY
)

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
		{volume.ErrUndrained, codes.Unavailable},
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
