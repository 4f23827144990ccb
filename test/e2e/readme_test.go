package e2e

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestReadme is what the README promises: helm install, a claim, a pod, an object; and that nothing stays when it is
// taken away again.
func TestReadme(t *testing.T) {
	serve(t)
	uninstall(t)
	s := steps{t, time.Now()}
	helm(t, readme("install", "--create-namespace")...)
	s.done("helm install --wait")
	ns := namespace(t)
	apply(t, ns, claim("data", release, "ReadWriteOnce"))
	pv, name, _ := volumeOf(t, ns, "data")
	s.done("PVC bound")
	apply(t, ns, pod("writer", "data", "mkdir -p /data/a && echo hello > /data/a/b && sleep 1000", ""))
	ready(t, ns, "writer")
	s.done("pod running")
	holds(t, name, "a/b", "hello\n")
	s.done("file is an object")
	kubectl(t, "-n", ns, "delete", "pod", "writer")
	s.done("pod deleted")
	apply(t, ns, pod("reader", "data", "grep hello /data/a/b && df -h /data", ""))
	succeeded(t, ns, "reader")
	s.done("second pod read it")
	t.Log(kubectl(t, "-n", ns, "logs", "reader"))
	kubectl(t, "-n", ns, "delete", "pod", "reader")
	kubectl(t, "-n", ns, "delete", "pvc", "data")
	noBucket(t, name)
	s.done("PVC deleted, bucket gone")
	if out, err := try(t, "wait", "--for=delete", "pv/"+pv, "--timeout=60s"); err != nil {
		t.Errorf("the PV stays: %v %s", err, out)
	}

	// Data that belongs to a release that goes is not touched, nor are its mounts left behind.
	apply(t, ns, claim("kept", release, "ReadWriteOnce")+pod("writer", "kept", "echo kept > /data/f; sleep 1000", ""))
	ready(t, ns, "writer")
	_, kept, _ := volumeOf(t, ns, "kept")
	holds(t, kept, "f", "kept\n")
	s.last = time.Now()
	helm(t, readme("upgrade", "--set", "driver.logLevel=debug")...)
	s.done("helm upgrade --wait")
	if got, err := sh(t, ns, "writer", "cat /data/f"); err != nil || got != "kept\n" {
		t.Errorf("after an upgrade, of which the node plugin hears at its next restart: %q, %v", got, err)
	}
	kubectl(t, "-n", ns, "delete", "pod", "writer")
	uninstall(t)
	s.done("helm uninstall --wait")
	holds(t, kept, "f", "kept\n")
	eventually(t, func() error { // pods take a moment to end
		for _, kind := range []string{"all", "secrets,configmaps,serviceaccounts,roles,rolebindings,leases,pdb"} {
			for line := range strings.Lines(kubectl(t, "-n", release, "get", kind, "-o", "name")) {
				if !strings.Contains(line, "kube-root-ca.crt") && !strings.Contains(line, "serviceaccount/default") {
					return fmt.Errorf("left in the namespace: %s", line)
				}
			}
		}
		return nil
	})
	if out := kubectl(t, "get", "csidrivers,storageclasses,clusterroles,clusterrolebindings", "-o", "name"); strings.Contains(out, release) {
		t.Errorf("left in the cluster: %s", out)
	}
	noMounts(t)
	install(t)
	kubectl(t, "-n", ns, "delete", "pvc", "kept")
	noBucket(t, kept)
	s.done("installed again, PVC deleted")
}

// noMounts waits until the node has no mount of the driver.
func noMounts(t *testing.T) {
	t.Helper()
	eventually(t, func() error {
		lines, err := mounts()
		if err == nil && len(lines) > 0 {
			err = fmt.Errorf("mounts are left:\n%s", strings.Join(lines, "\n"))
		}
		return err
	})
}

// mounts are the driver's on the node; other tests may mount on this machine too.
func mounts() ([]string, error) {
	lines, err := suite.Mounts(" - fuse.csi-s3 ")
	return slices.DeleteFunc(lines, func(l string) bool { return !strings.Contains(l, " /var/lib/kubelet/") }), err
}
