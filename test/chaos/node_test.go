package chaos_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/csi-s3/csi-s3/pkg/fuse"
	"github.com/csi-s3/csi-s3/pkg/s3"
	"github.com/csi-s3/csi-s3/pkg/s3/s3sdk"
	"github.com/csi-s3/csi-s3/test/minio"
)

// node is the driver of a node, with a client as kubelet and provisioner are.
type node struct {
	t          *testing.T
	dir        string
	controller csi.ControllerClient
	node       csi.NodeClient
	server     minio.Server
}

// newNode starts a driver with its cache in a directory. It must end by itself when the test does.
func newNode(t *testing.T, server minio.Server, cache string) *node {
	t.Helper()
	dir, err := os.MkdirTemp("", "csi") // a socket's path must be short
	if err != nil {
		t.Fatal(err)
	}
	log := &buffer{}
	binary, socket := buildDriver(t), "unix://"+filepath.Join(dir, "csi.sock")
	c := exec.Command(binary, "driver", "--mode=all", "--node-id=node-1", "--endpoint="+socket, "--cache-dir="+filepath.Join(cache, "csi-s3"))
	c.Stdout, c.Stderr = log, log
	c.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = c.Process.Signal(syscall.SIGTERM) // if it has ended, Wait tells how
		late := time.AfterFunc(stopWait, func() { _ = c.Process.Kill() })
		defer late.Stop()
		if err := c.Wait(); err != nil {
			t.Errorf("the driver ended: %v", err)
		}
		if t.Failed() {
			t.Logf("log of the driver:\n%s", log)
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	conn, err := grpc.NewClient(socket, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithDefaultCallOptions(grpc.WaitForReady(true)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return &node{t: t, dir: dir, controller: csi.NewControllerClient(conn), node: csi.NewNodeClient(conn), server: server}
}

// claim is a volume that a pod of the node uses, at an endpoint.
type claim struct {
	*node
	secrets         map[string]string
	capability      *csi.VolumeCapability
	volume          *csi.Volume
	staging, target string
}

// claim makes a volume.
func (n *node) claim(name, endpoint string) *claim {
	n.t.Helper()
	c := &claim{
		node:    n,
		secrets: map[string]string{"endpoint": endpoint, "accessKeyID": n.server.AccessKey, "secretAccessKey": n.server.SecretKey},
		capability: &csi.VolumeCapability{
			AccessMode: &csi.VolumeCapability_AccessMode{Mode: csi.VolumeCapability_AccessMode_SINGLE_NODE_MULTI_WRITER},
			AccessType: &csi.VolumeCapability_Mount{Mount: &csi.VolumeCapability_MountVolume{}},
		},
		staging: filepath.Join(n.dir, name, "globalmount"), target: filepath.Join(n.dir, name, "pod"),
	}
	if err := os.MkdirAll(c.staging, 0o750); err != nil {
		n.t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(n.t.Context(), time.Minute)
	defer cancel()
	r, err := n.controller.CreateVolume(ctx, &csi.CreateVolumeRequest{
		Name: name, Secrets: c.secrets, VolumeCapabilities: []*csi.VolumeCapability{c.capability},
		CapacityRange: &csi.CapacityRange{RequiredBytes: 1 << 30},
	})
	if err != nil {
		n.t.Fatal(err)
	}
	c.volume = r.GetVolume()
	return c
}

// use mounts the volume for a pod; it goes when the test ends.
func (c *claim) use() {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.t.Context(), time.Minute)
	defer cancel()
	if _, err := c.node.node.NodeStageVolume(ctx, &csi.NodeStageVolumeRequest{
		VolumeId: c.volume.GetVolumeId(), VolumeContext: c.volume.GetVolumeContext(), StagingTargetPath: c.staging,
		VolumeCapability: c.capability, Secrets: c.secrets,
	}); err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), stopWait)
		defer cancel()
		if _, err := c.node.node.NodeUnstageVolume(ctx, &csi.NodeUnstageVolumeRequest{VolumeId: c.volume.GetVolumeId(), StagingTargetPath: c.staging}); err != nil {
			c.t.Error(err)
		}
	})
	if _, err := c.node.node.NodePublishVolume(ctx, &csi.NodePublishVolumeRequest{
		VolumeId: c.volume.GetVolumeId(), VolumeContext: c.volume.GetVolumeContext(), StagingTargetPath: c.staging,
		TargetPath: c.target, VolumeCapability: c.capability, Secrets: c.secrets,
	}); err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), stopWait)
		defer cancel()
		if _, err := c.node.node.NodeUnpublishVolume(ctx, &csi.NodeUnpublishVolumeRequest{VolumeId: c.volume.GetVolumeId(), TargetPath: c.target}); err != nil {
			c.t.Error(err)
		}
	})
}

const (
	nodeCache = 192 << 20
	coldFiles = 300
	coldSize  = 64 << 10
)

// fill puts objects of others into the volume's bucket, each in a directory of its own, past the driver.
func (c *claim) fill(client *s3sdk.Client) (paths []string) {
	c.t.Helper()
	bucket := client.Bucket(c.volume.GetVolumeId())
	for i := range coldFiles {
		b := book{key: s3.Key(fmt.Sprintf("d%d/f", i)), size: coldSize, gen: uint64(i + 1)}
		if _, err := bucket.Put(c.t.Context(), b.key, s3.Body{R: b, Size: b.size}, s3.Attributes{}, s3.Condition{}); err != nil {
			c.t.Fatal(err)
		}
		paths = append(paths, filepath.Join(c.target, string(b.key)))
	}
	return paths
}

// TestNetworkNode: two volumes of one driver, the server of one of them is dead, and then slow. Many programs wait for it,
// others have filled the node's cache and wait for room, and nobody who uses the other volume notices: not at a stat, not of
// what must be asked of its bucket, and not of a write.
func TestNetworkNode(t *testing.T) {
	if !ownMounts(t) {
		return
	}
	nothingLeft(t)
	spell := 5 * time.Second
	if soak() {
		spell = time.Minute
	}
	wire := newWire(t)
	defer wire.clear() // the driver ends in order also when the test failed
	server := minio.Start(t)
	wire.lead(t, server.Endpoint, seedFrom(t))
	client, err := s3sdk.New(s3sdk.Config{Endpoint: server.Endpoint, Credentials: s3sdk.Credentials{
		AccessKeyID: s3sdk.Secret(server.AccessKey), SecretAccessKey: s3sdk.Secret(server.SecretKey),
	}})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	n := newNode(t, server, smallDisk(t, nodeCache))
	sick, well := n.claim("sick", wire.url), n.claim("well", server.Endpoint)
	waited, cold := sick.fill(client), well.fill(client)
	sick.use()
	well.use()
	if _, err := os.ReadFile(cold[0]); err != nil {
		t.Fatal(err)
	}

	// More wait than there are slots for requests, connections or threads that could be spared.
	const waiting = 150
	x := &stream{dir: sick.target, sums: map[string][sha256.Size]byte{}}
	done := make(chan error, 1)
	// Ends when all is written; waited for below.
	go func() { done <- x.run(4, nodeCache/2) }()
	for x.written.Load() < nodeCache/20 {
		time.Sleep(time.Millisecond)
	}
	wire.fail(silent, "")
	x.stalled(t)
	var programs sync.WaitGroup
	var served atomic.Int32
	for i := range waiting {
		// Ends when the server is back.
		programs.Go(func() {
			got, err := os.ReadFile(waited[i])
			want := make([]byte, coldSize)
			part{gen: uint64(i + 1)}.fill(want, 0)
			if err != nil || !bytes.Equal(got, want) {
				t.Errorf("%s, which had to wait: %d bytes, %v", waited[i], len(got), err)
			}
			served.Add(1)
		})
	}
	for end := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
		if counts, _ := wire.tally(); counts[silent] > 0 {
			break
		}
		if time.Now().After(end) {
			t.Fatal("nobody asks the dead server")
		}
	}
	known, unknown := cold[:1], cold[1:]
	half := len(unknown) / 2
	well.undisturbed("beside a dead server", known, unknown[:half], spell)
	if k := served.Load(); k != 0 {
		t.Errorf("%d programs were served by a dead server", k)
	}
	wire.set(weather{latency: 500 * time.Millisecond, bandwidth: 256 << 10})
	wire.clear()
	well.undisturbed("beside a slow server", known, unknown[half:], spell)
	wire.set(weather{})
	programs.Wait()
	if err := <-done; err != nil {
		t.Errorf("a writer that had to wait: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), flushWait)
	defer cancel()
	if err := fuse.Flush(ctx, sick.target, nil); err != nil {
		t.Error(err)
	}
	x.verify(t, client.Bucket(sick.volume.GetVolumeId()))
	wire.report(t, silent, delayed, limited)
}

// undisturbed uses a volume for a while, and fails when that is slow.
func (c *claim) undisturbed(when string, known, unknown []string, spell time.Duration) {
	c.t.Helper()
	end := stats(c.t, when, known)
	stop := make(chan struct{})
	var asked, wrote latencies
	var errAsked, errWrote error
	var group sync.WaitGroup
	// Both end with stop, or when all is asked.
	group.Go(func() {
		asked, errAsked = measure(stop, func(n int) error {
			if n >= len(unknown) {
				<-stop
				return nil
			}
			_, err := os.Stat(unknown[n])
			return err
		})
	})
	group.Go(func() {
		wrote, errWrote = measure(stop, func(n int) error {
			return os.WriteFile(filepath.Join(c.target, "written"), []byte(fmt.Sprint(when, n)), 0o644)
		})
	})
	time.Sleep(spell)
	close(stop)
	group.Wait()
	end()
	if len(asked) > len(unknown) {
		asked = asked[:len(unknown)] // the last one only waited for the end
	}
	c.t.Logf("stat of what the bucket must be asked, %s: %v", when, asked)
	c.t.Logf("writes, %s: %v", when, wrote)
	if errAsked != nil || errWrote != nil || len(asked) < 20 || len(wrote) < 20 {
		c.t.Errorf("%s: %d names, %v; %d writes, %v", when, len(asked), errAsked, len(wrote), errWrote)
	}
	// These need the server, and share it and the machine with others.
	if p := asked.at(99); p > 4*statLimit {
		c.t.Errorf("stat of what the bucket must be asked, %s: the 99th percentile is %v", when, p)
	}
	if p := wrote.at(99); p > 4*statLimit {
		c.t.Errorf("writes, %s: the 99th percentile is %v", when, p)
	}
}
