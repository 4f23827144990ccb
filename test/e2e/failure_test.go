package e2e

import (
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"
)

// plugin is the process ID of the node plugin, as seen from here.
func plugin(t *testing.T) int {
	t.Helper()
	pids, err := suite.Processes("csi-s3")
	if err != nil {
		t.Fatal(err)
	}
	for _, pid := range pids {
		args, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		if err == nil && strings.Contains(string(args), "--mode=node") {
			return pid
		}
	}
	return 0
}

// newPlugin waits for another node plugin than the one with this process ID, which the kubelet knows.
func newPlugin(t *testing.T, old int) {
	t.Helper()
	eventually(t, func() error {
		if pid := plugin(t); pid == 0 || pid == old {
			return fmt.Errorf("the node plugin is %d, it was %d", pid, old)
		}
		return nil
	})
	kubectl(t, "-n", release, "wait", "--for=condition=Ready", "pod", "-l", "app.kubernetes.io/component=node", "--timeout=120s")
}

// TestPluginEnds takes the node plugin away under pods. Until mounts outlive it, what the pods have open ends with it;
// nothing that was written may, and pods that come later must not notice.
func TestPluginEnds(t *testing.T) {
	install(t)
	for _, how := range []string{"deleted", "killed"} {
		t.Run(how, func(t *testing.T) {
			ns := namespace(t)
			apply(t, ns, claim("data", release, "ReadWriteOnce")+pod("one", "data", "sleep 1000", "")+
				claim("idle", release, "ReadWriteOnce")+pod("two", "idle", "sleep 1000", ""))
			ready(t, ns, "one", "two")
			_, data, _ := volumeOf(t, ns, "data")
			_, idle, _ := volumeOf(t, ns, "idle")
			old := plugin(t)
			for _, p := range []string{"one", "two"} {
				if out, err := sh(t, ns, p, "for i in $(seq 50); do echo $i > /data/$i; done"); err != nil {
					t.Fatal(out, err)
				}
			}
			if how == "killed" {
				if err := syscall.Kill(old, syscall.SIGKILL); err != nil {
					t.Fatal(err)
				}
			} else {
				kubectl(t, "-n", release, "delete", "pod", "-l", "app.kubernetes.io/component=node")
			}
			newPlugin(t, old)

			// A pod that comes while the old one is there: the kubelet believes the volume staged.
			s := steps{t, time.Now()}
			apply(t, ns, pod("three", "data", "for i in $(seq 50); do test $(cat /data/$i) = $i || exit 1; done; echo new > /data/new", ""))
			succeeded(t, ns, "three")
			s.done("a new pod beside the old one")
			holds(t, data, "new", "new\n")
			// One that goes and nobody comes: what it wrote is uploaded before its volume is let go.
			kubectl(t, "-n", ns, "delete", "pod", "one", "two", "three", "--timeout=120s")
			s.done("all pods deleted")
			for i := 1; i <= 50; i++ {
				holds(t, idle, fmt.Sprint(i), fmt.Sprintln(i))
				holds(t, data, fmt.Sprint(i), fmt.Sprintln(i))
			}
			noMounts(t)
			s.done("all volumes unstaged")
		})
	}
}

// TestControlPlaneEnds takes controller and kubelet away while they are at work.
func TestControlPlaneEnds(t *testing.T) {
	install(t)
	ns := namespace(t)
	const count = 10
	var b strings.Builder
	for i := range count {
		name := fmt.Sprint("p", i)
		b.WriteString(claim(name, release, "ReadWriteOnce") + pod(name, name, "echo x > /data/f; sleep 1000", ""))
	}
	apply(t, ns, b.String())
	kubectl(t, "-n", release, "delete", "pod", "-l", "app.kubernetes.io/component=controller", "--wait=false", "--grace-period=0", "--force")
	restartKubelet(t)
	kubectl(t, "-n", ns, "wait", "--for=condition=Ready", "pod", "--all", "--timeout=300s")
	var buckets []string
	for i := range count {
		_, name, _ := volumeOf(t, ns, fmt.Sprint("p", i))
		buckets = append(buckets, name)
	}
	kubectl(t, "-n", ns, "delete", "pod", "--all", "--wait=false")
	restartKubelet(t)
	kubectl(t, "-n", ns, "delete", "pvc", "--all", "--wait=false")
	kubectl(t, "-n", release, "delete", "pod", "-l", "app.kubernetes.io/component=controller", "--wait=false", "--grace-period=0", "--force")
	for _, name := range buckets {
		noBucket(t, name)
	}
	noMounts(t)
}

// restartKubelet kills the kubelet; the node starts it again.
func restartKubelet(t *testing.T) {
	t.Helper()
	pids, err := suite.Processes("kube")
	if err != nil {
		t.Fatal(err)
	}
	for _, pid := range pids {
		args, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		if err == nil && strings.Contains(string(args), "\x00kubelet\x00") {
			if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
			return
		}
	}
	t.Fatalf("the kubelet is not among %v", pids)
}

// TestServerAway has no S3 server for a while: pods end all the same, what they wrote arrives, and what was asked for
// meanwhile is done.
func TestServerAway(t *testing.T) {
	install(t)
	server := serve(t)
	ns := namespace(t)
	t.Cleanup(func() { server.set(true) })
	apply(t, ns, claim("data", release, "ReadWriteOnce")+pod("writer", "data", "sleep 1000", "")+
		claim("shared", release, "ReadWriteMany")+pod("sharer", "shared", "exec 3> /data/ours; until [ -e /tmp/go ]; do sleep 0.1; done; echo ours >&3; sleep 1000", "")+
		claim("gone", release, "ReadWriteOnce"))
	ready(t, ns, "writer", "sharer")
	_, data, _ := volumeOf(t, ns, "data")
	_, shared, _ := volumeOf(t, ns, "shared")
	_, gone, _ := volumeOf(t, ns, "gone")
	if out, err := sh(t, ns, "writer", "ls /data"); err != nil { // as any program does that looks for its files
		t.Fatal(out, err)
	}

	server.set(false)
	s := steps{t, time.Now()}
	if out, err := sh(t, ns, "writer", "echo mine > /data/mine; cat /data/mine"); err != nil || out != "mine\n" {
		t.Errorf("writing without the server: %q, %v", out, err)
	}
	if out, err := sh(t, ns, "sharer", "touch /tmp/go; ls /data > /dev/null 2>&1 & sleep 1"); err != nil {
		t.Errorf("writing without the server: %q, %v", out, err)
	}
	apply(t, ns, claim("late", release, "ReadWriteOnce")+pod("late", "late", "echo late > /data/f", ""))
	kubectl(t, "-n", ns, "delete", "pvc", "gone", "--wait=false")
	kubectl(t, "-n", ns, "delete", "pod", "writer", "sharer", "--timeout=120s")
	s.done("pods ended without server")
	eventually(t, func() error {
		if out := events(t, ns, "late"); !strings.Contains(out, "10.200.0.1:9000") {
			return fmt.Errorf("the claim's events do not name the server: %s", out)
		}
		return nil
	})
	s.done("an event says so")
	server.set(true)
	holds(t, data, "mine", "mine\n")
	holds(t, shared, "ours", "ours\n")
	s.done("all that was written arrived")
	succeeded(t, ns, "late")
	noBucket(t, gone)
	s.done("what was asked for is done")
}
