package conformance_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/csi-s3/csi-s3/test/minio"
)

// leaseTTL is for how long a lease of a node that does nothing keeps others away; see SEMANTICS.md.
const leaseTTL = time.Minute

// pair is one volume of one writer, and two nodes.
type pair struct {
	t      *testing.T
	server minio.Server
	meter  meter // before the first node
	p      [2]*process
	k      [2]*kubelet
}

func newPair(t *testing.T) *pair {
	x := &pair{t: t, server: minio.Start(t)}
	behind := &mounted{t: t, server: x.server}
	x.meter.metered(behind)
	for i, s := range []minio.Server{behind.server, x.server} {
		x.p[i] = newProcessOn(t, []string{"node-1", "node-2"}[i])
		k := newKubelet(t, x.p[i], secrets(s))
		var cancel context.CancelFunc
		k.ctx, cancel = context.WithTimeout(t.Context(), 9*time.Minute)
		t.Cleanup(cancel)
		k.capability.GetMount().MountFlags = []string{"settle=1h"} // what is written stays here until it is asked for
		x.k[i] = k
	}
	check(t, x.k[0].create("pvc-pair", nil))
	x.k[1].volume = x.k[0].volume
	return x
}

// use mounts the volume on a node for a pod.
func (x *pair) use(i int) {
	x.t.Helper()
	check(x.t, x.k[i].stage())
	check(x.t, x.k[i].publish(false))
}

func (x *pair) leave(i int) {
	x.t.Helper()
	check(x.t, x.k[i].unpublish())
	check(x.t, x.k[i].unstage())
}

// csi runs the command line on a node.
func (x *pair) csi(i int, args ...string) (string, error) {
	c := exec.CommandContext(x.k[i].ctx, x.p[i].binary, args...)
	c.Env = append(os.Environ(), "AWS_ACCESS_KEY_ID="+x.server.AccessKey, "AWS_SECRET_ACCESS_KEY="+x.server.SecretKey, "AWS_ENDPOINT_URL="+x.server.Endpoint)
	out, err := c.CombinedOutput()
	return string(out), err
}

func (x *pair) volume() string { return "s3://" + x.k[0].volume.GetVolumeId() }

// dirty writes a file on a node, and waits until the lease says how much is not in the bucket.
func (x *pair) dirty(i int, name, content string) {
	x.t.Helper()
	check(x.t, os.WriteFile(filepath.Join(x.k[i].target, name), []byte(content), 0o644))
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(100 * time.Millisecond) {
		out, err := x.csi(1, "lease", x.volume())
		check(x.t, err)
		if strings.Contains(out, fmt.Sprintf("held by node %s, %d bytes of which are not in the bucket", x.p[i].node, len(content))) {
			return
		}
		if time.Now().After(end) {
			x.t.Fatalf("the lease does not say that node %d is dirty: %s", i+1, out)
		}
	}
}

// refused stages on a node, which must be refused with all that a person needs.
func (x *pair) refused(i int, say ...string) {
	x.t.Helper()
	err := x.k[i].stage()
	if status.Code(err) != codes.FailedPrecondition {
		x.t.Fatalf("stage on node %d: %v", i+1, err)
	}
	for _, s := range say {
		if !strings.Contains(err.Error(), s) {
			x.t.Errorf("the refusal does not say %q: %v", s, err)
		}
	}
}

// inherited stages on a node again and again, as a kubelet does, until that succeeds. It returns how long that took.
func (x *pair) inherited(i int) time.Duration {
	x.t.Helper()
	begun := time.Now()
	for {
		before := time.Now()
		err := x.k[i].stage()
		if took := time.Since(before); took > 30*time.Second {
			x.t.Errorf("a stage took %v", took)
		}
		if err == nil {
			return time.Since(begun)
		}
		if status.Code(err) != codes.Unavailable || time.Since(begun) > 3*leaseTTL {
			x.t.Fatalf("stage on node %d after %v: %v", i+1, time.Since(begun), err)
		}
		time.Sleep(time.Second)
	}
}

func (x *pair) killed(i int) {
	x.t.Helper()
	check(x.t, x.p[i].cmd.Process.Kill())
	_ = x.p[i].cmd.Wait() // it was killed
}

// mutations are the requests of the first node that change the bucket, those for the volume's own records left out.
func (x *pair) mutations() int {
	return x.meter.count("PUT", "PUT-PART", "COPY", "COPY-PART", "DELETE", "DELETE-MANY", "POST-UPLOAD", "DELETE-UPLOAD")
}

// TestSecondNode: of two nodes one writes to a volume.
func TestSecondNode(t *testing.T) {
	if !ownMounts(t) {
		return
	}
	for name, tale := range map[string]func(*pair){"unsaved": (*pair).unsaved, "dead": (*pair).dead, "stopped": (*pair).stopped} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			runtime.LockOSThread() // as in mountns.Own
			tale(newPair(t))
		})
	}
}

// unsaved: alive or dead, a node with unsaved changes keeps the volume, and gives it back at its end.
func (x *pair) unsaved() {
	t := x.t
	x.use(0)
	x.dirty(0, "first", "hello")

	x.refused(1, "node-1", "5 bytes", "csi-s3 lease "+x.volume()+" --break")
	x.killed(0)
	for died := time.Now(); time.Since(died) < leaseTTL+15*time.Second; time.Sleep(5 * time.Second) {
		x.refused(1, "node-1")
	}
	// It comes back: at once. Its drain frees the volume: at once.
	x.p[0].start(t)
	check(t, x.k[0].publish(false))
	x.leave(0)
	begun := time.Now()
	x.use(1)
	if took := time.Since(begun); took > 9*time.Second {
		t.Errorf("a volume that was given back was mounted after %v", took)
	}
	if got, err := os.ReadFile(filepath.Join(x.k[1].target, "first")); err != nil || string(got) != "hello" {
		t.Errorf("%q, %v", got, err)
	}
	// So does a SIGTERM.
	check(t, x.p[1].stop(syscall.SIGTERM))
	begun = time.Now()
	x.use(0)
	if took := time.Since(begun); took > 9*time.Second {
		t.Errorf("after a SIGTERM the volume was mounted after %v", took)
	}
	x.leave(0)
	x.p[1].start(t)
	x.leave(1)
}

// dead: a node that dies with nothing unsaved is followed after a minute.
func (x *pair) dead() {
	t := x.t
	x.use(0)
	x.killed(0)
	if took := x.inherited(1); took < leaseTTL-time.Second {
		t.Errorf("a clean lease was taken over after %v", took)
	} else {
		t.Logf("a clean lease of a dead node was taken over after %v", took.Round(time.Second))
	}
	check(t, x.k[1].publish(false))
	x.leave(1)
	x.p[0].start(t)
	check(t, x.k[0].publish(false))
	x.leave(0)
}

// stopped: a node that stands still, and is followed meanwhile because a person broke its lease, changes nothing any more
// and keeps what it has.
func (x *pair) stopped() {
	t := x.t
	x.use(0)
	x.dirty(0, "second", "unsaved")
	first := x.p[0].cmd.Process
	check(t, first.Signal(syscall.SIGSTOP))
	defer func() { _ = first.Signal(syscall.SIGCONT) }() // of a process that may have ended
	out, err := x.csi(1, "lease", x.volume(), "--break")
	if err != nil || !strings.Contains(out, "GIVEN UP: what node node-1 has and the bucket does not, 7 bytes") {
		t.Fatalf("lease --break: %v\n%s", err, out)
	}
	if took := x.inherited(1); took < leaseTTL-time.Second {
		t.Errorf("a broken lease was taken over after %v: its holder may have sent something still", took)
	}
	check(t, x.k[1].publish(false))
	x.meter.reset()
	check(t, x.p[0].cmd.Process.Signal(syscall.SIGCONT))
	if out, err := x.csi(0, "flush", x.k[0].target); err == nil {
		t.Errorf("a flush succeeded: %s", out)
	}
	time.Sleep(20 * time.Second) // more than a renewal
	if n := x.mutations(); n > 0 {
		t.Errorf("%d requests that change the bucket after another node followed: %s", n, &x.meter)
	}
	t.Logf("after it went on: %s", &x.meter)
	if x.meter.count() == 0 && !strings.Contains(x.p[0].log.String(), "node node-2 took the volume over") {
		t.Error("the stopped node did not go on")
	}
	if err := os.WriteFile(filepath.Join(x.k[0].target, "third"), []byte("x"), 0o644); !errors.Is(err, syscall.EROFS) {
		t.Errorf("a change on the old node: %v", err)
	}
	if got, err := os.ReadFile(filepath.Join(x.k[0].target, "second")); err != nil || string(got) != "unsaved" {
		t.Errorf("a read on the old node: %q, %v", got, err)
	}
	check(t, os.WriteFile(filepath.Join(x.k[1].target, "third"), []byte("new"), 0o644))

	// It keeps what it has, until a person saved it.
	check(t, x.k[0].unpublish())
	if err := x.k[0].unstage(); status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), "7 bytes") || !strings.Contains(err.Error(), "node-2") {
		t.Errorf("unstage on the old node: %v", err)
	}
	if err := x.p[0].stop(syscall.SIGTERM); err == nil || !strings.Contains(err.Error(), "exit status") {
		t.Errorf("the old node ended with %v", err)
	}
	x.p[0].start(t)
	x.refused(0, "node-2", "csi-s3 recover")
	check(t, x.p[0].stop(syscall.SIGTERM))
	saved := filepath.Join(x.p[0].dir, "saved")
	if out, err := x.csi(0, "recover", filepath.Join(x.p[0].dir, "cache"), "--to", saved, "--discard", x.k[0].volume.GetVolumeId()); err != nil {
		t.Fatalf("recover: %v\n%s", err, out)
	}
	if got, err := os.ReadFile(filepath.Join(saved, "files", "second")); err != nil || string(got) != "unsaved" {
		t.Errorf("saved: %q, %v", got, err)
	}
	x.p[0].start(t)
	check(t, x.k[0].unstage())
	x.leave(1)
	x.use(0)
	if got, err := os.ReadFile(filepath.Join(x.k[0].target, "third")); err != nil || string(got) != "new" {
		t.Errorf("%q, %v", got, err)
	}
	x.leave(0)
	check(t, x.k[0].delete())
}
