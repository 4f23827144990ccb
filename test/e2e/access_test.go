package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/csi-s3/csi-s3/test/e2e/cluster"
)

// TestAccess is who may do what with a volume: users, groups, modes of access, parts of it.
func TestAccess(t *testing.T) {
	install(t)

	t.Run("fsgroup", func(t *testing.T) {
		t.Parallel()
		ns := namespace(t)
		user := "  securityContext: {runAsUser: 1000, runAsGroup: 3000, fsGroup: 2000, runAsNonRoot: true}"
		apply(t, ns, claim("data", release, "ReadWriteOnce")+
			pod("one", "data", "id; set -e; mkdir /data/d; echo mine > /data/d/f; chmod 600 /data/d/f; ls -lan /data /data/d; test $(stat -c %g /data/d/f) = 2000", user))
		succeeded(t, ns, "one")
		t.Log(kubectl(t, "-n", ns, "logs", "one"))
		_, name, _ := volumeOf(t, ns, "data")
		holds(t, name, "d/f", "mine\n")
		// Another user of the group, and one that is in no group.
		apply(t, ns, pod("two", "data", "set -e; echo two > /data/two; ! cat /data/d/f", "  securityContext: {runAsUser: 1001, fsGroup: 2000}"))
		succeeded(t, ns, "two")
	})

	t.Run("readonly", func(t *testing.T) {
		t.Parallel()
		ns := namespace(t)
		apply(t, ns, claim("data", release, "ReadWriteOnce")+pod("writer", "data", "echo x > /data/f", ""))
		succeeded(t, ns, "writer")
		kubectl(t, "-n", ns, "delete", "pod", "writer")
		reader := strings.ReplaceAll(pod("reader", "data", "cat /data/f && ! touch /data/g 2> /tmp/why && cat /tmp/why && grep -q 'Read-only' /tmp/why", ""), "claimName: data}", "claimName: data, readOnly: true}")
		apply(t, ns, reader)
		succeeded(t, ns, "reader")
	})

	t.Run("rwop", func(t *testing.T) {
		t.Parallel()
		ns := namespace(t)
		apply(t, ns, claim("data", release, "ReadWriteOncePod")+pod("one", "data", "sleep 1000", ""))
		ready(t, ns, "one")
		apply(t, ns, pod("two", "data", "sleep 1000", ""))
		eventually(t, func() error {
			if out := events(t, ns, "two"); !strings.Contains(out, "ReadWriteOncePod") {
				return fmt.Errorf("a second pod is not refused: %s", out)
			}
			return nil
		})
		kubectl(t, "-n", ns, "delete", "pod", "one")
		ready(t, ns, "two")
	})

	t.Run("rwx", func(t *testing.T) {
		t.Parallel()
		ns := namespace(t)
		apply(t, ns, claim("data", release, "ReadWriteMany")+pod("one", "data", "sleep 1000", "")+pod("two", "data", "sleep 1000", ""))
		ready(t, ns, "one", "two")
		for i, pair := range [][2]string{{"one", "two"}, {"two", "one"}} {
			if out, err := sh(t, ns, pair[0], fmt.Sprintf("echo %d > /data/f", i)); err != nil {
				t.Fatal(out, err)
			}
			if out, err := sh(t, ns, pair[1], "cat /data/f"); err != nil || out != fmt.Sprintln(i) {
				t.Errorf("%s reads %q, %v", pair[1], out, err)
			}
		}
	})

	t.Run("subpath", func(t *testing.T) {
		t.Parallel()
		ns := namespace(t)
		script := "echo $0 > /data/f && sleep 1000"
		one := strings.ReplaceAll(pod("one", "data", script, ""), "mountPath: /data}", "mountPath: /data, subPath: a/b}")
		two := strings.ReplaceAll(pod("two", "data", "ls /data; "+script, ""), "mountPath: /data}", "mountPath: /data, subPathExpr: $(NAME)}")
		two = strings.ReplaceAll(two, "      volumeMounts", "      env: [{name: NAME, value: c}]\n      volumeMounts")
		apply(t, ns, claim("data", release, "ReadWriteOnce")+one+two)
		ready(t, ns, "one", "two")
		_, name, _ := volumeOf(t, ns, "data")
		holds(t, name, "a/b/f", "sh\n")
		holds(t, name, "c/f", "sh\n")
	})

	t.Run("stats", func(t *testing.T) {
		t.Parallel()
		ns := namespace(t)
		const size = 64 << 20
		apply(t, ns, claim("data", release, "ReadWriteOnce")+
			pod("one", "data", fmt.Sprintf("head -c %d /dev/zero > /data/f; df -k /data; sleep 1000", size), ""))
		ready(t, ns, "one")
		eventually(t, func() error {
			v, err := volumeStats(t, ns, "data")
			if err != nil {
				return err
			}
			const capacity = 1 << 30
			if v.Used < size || v.Used > size+1<<20 || v.Capacity != capacity || v.Available != capacity-v.Used {
				return fmt.Errorf("the kubelet sees %+v, written were %d of %d bytes", v, size, capacity)
			}
			return nil
		})
	})

	t.Run("options", func(t *testing.T) {
		t.Parallel()
		ns := namespace(t)
		apply(t, ns, class("csi-s3-options", "", "[uid=1234, file-mode=0640, dir-mode=0750]")+claim("data", "csi-s3-options", "ReadWriteOnce"))
		deleteLater(t, "storageclass", "csi-s3-options")
		_, name, _ := volumeOf(t, ns, "data")
		put(t, name, "theirs/f", "x")
		apply(t, ns, pod("one", "data", `test "$(stat -c '%u %a' /data/theirs/f)" = "1234 640" && test "$(stat -c %a /data/theirs)" = 750`, ""))
		succeeded(t, ns, "one")
	})
}

// TestPlaces is where the data of a volume is: a prefix of a shared bucket, a bucket that was there before; and when it
// stays.
func TestPlaces(t *testing.T) {
	install(t)

	t.Run("shared", func(t *testing.T) {
		t.Parallel()
		ns := namespace(t)
		apply(t, ns, class("csi-s3-shared-e2e", "bucket: tenant-a\n  prefix: ${pvc.namespace}/${pvc.name}", "[]")+
			claim("one", "csi-s3-shared-e2e", "ReadWriteOnce")+claim("two", "csi-s3-shared-e2e", "ReadWriteOnce")+
			pod("one", "one", "echo 1 > /data/f", "")+pod("two", "two", "ls -A /data | grep . || echo 2 > /data/f", ""))
		deleteLater(t, "storageclass", "csi-s3-shared-e2e")
		succeeded(t, ns, "one", "two")
		holds(t, "tenant-a", ns+"/one/f", "1\n")
		holds(t, "tenant-a", ns+"/two/f", "2\n")
		put(t, "tenant-a", ns+"/one-of-others", "theirs")
		kubectl(t, "-n", ns, "delete", "pod", "one")
		pv, _, _ := volumeOf(t, ns, "one")
		kubectl(t, "-n", ns, "delete", "pvc", "one")
		kubectl(t, "wait", "--for=delete", "pv/"+pv, "--timeout=120s")
		if keys := list(t, "tenant-a", ns+"/one"); !slices.Equal(keys, []string{ns + "/one-of-others"}) {
			t.Errorf("after the claim was deleted: %q", keys)
		}
		holds(t, "tenant-a", ns+"/two/f", "2\n")
	})

	t.Run("retain", func(t *testing.T) {
		t.Parallel()
		ns := namespace(t)
		c := strings.ReplaceAll(class("csi-s3-retain", "", "[]"), "reclaimPolicy: Delete", "reclaimPolicy: Retain")
		apply(t, ns, c+claim("data", "csi-s3-retain", "ReadWriteOnce")+pod("one", "data", "echo kept > /data/f", ""))
		deleteLater(t, "storageclass", "csi-s3-retain")
		succeeded(t, ns, "one")
		pv, name, _ := volumeOf(t, ns, "data")
		kubectl(t, "-n", ns, "delete", "pod", "one")
		kubectl(t, "-n", ns, "delete", "pvc", "data")
		kubectl(t, "wait", "--for=jsonpath={.status.phase}=Released", "pv/"+pv, "--timeout=60s")
		kubectl(t, "delete", "pv", pv)
		holds(t, name, "f", "kept\n")
	})

	t.Run("static", func(t *testing.T) {
		t.Parallel()
		ns := namespace(t)
		put(t, "datasets-e2e", "images/1.txt", "one")
		apply(t, ns, static("static-e2e", "datasets-e2e/images", ns, "data")+
			pod("one", "data", "test $(cat /data/1.txt) = one && echo two > /data/2.txt", ""))
		deleteLater(t, "pv", "static-e2e")
		succeeded(t, ns, "one")
		holds(t, "datasets-e2e", "images/2.txt", "two\n")
		kubectl(t, "-n", ns, "delete", "pod", "one")
		kubectl(t, "-n", ns, "delete", "pvc", "data")
		kubectl(t, "delete", "pv", "static-e2e")
		holds(t, "datasets-e2e", "images/1.txt", "one")
	})
}

// class is a StorageClass with the release's secret.
func class(name, parameters, options string) string {
	if parameters != "" {
		parameters = "\n  " + parameters
	}
	for _, kind := range []string{"provisioner", "node-stage", "node-publish"} {
		parameters += fmt.Sprintf("\n  csi.storage.k8s.io/%[1]s-secret-name: csi-s3-secret\n  csi.storage.k8s.io/%[1]s-secret-namespace: %[2]s", kind, release)
	}
	return fmt.Sprintf(`
apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata: {name: %s}
provisioner: csi-s3.dev
reclaimPolicy: Delete
mountOptions: %s
parameters: %s
---`, name, options, parameters)
}

// static is a PersistentVolume for one claim of a namespace, with that claim. Its secret is named once, as many people
// do.
func static(name, handle, namespace, claimName string) string {
	return fmt.Sprintf(`
apiVersion: v1
kind: PersistentVolume
metadata: {name: %[1]s}
spec:
  storageClassName: ""
  capacity: {storage: 10Gi}
  accessModes: [ReadWriteMany]
  persistentVolumeReclaimPolicy: Retain
  claimRef: {namespace: %[3]s, name: %[4]s}
  csi:
    driver: csi-s3.dev
    volumeHandle: %[2]s
    nodeStageSecretRef: {name: csi-s3-secret, namespace: %[5]s}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: %[4]s}
spec:
  storageClassName: ""
  volumeName: %[1]s
  accessModes: [ReadWriteMany]
  resources: {requests: {storage: 10Gi}}
---`, name, handle, namespace, claimName, release)
}

// events are the messages of an object's events.
func events(t *testing.T, namespace, object string) string {
	t.Helper()
	return kubectl(t, "-n", namespace, "get", "events", "--field-selector", "involvedObject.name="+object, "-o", `jsonpath={range .items[*]}{.reason}: {.message}{"\n"}{end}`)
}

// stats is what the kubelet says of a volume, in bytes.
type stats struct {
	Used      int64 `json:"usedBytes"`
	Capacity  int64 `json:"capacityBytes"`
	Available int64 `json:"availableBytes"`
}

func volumeStats(t *testing.T, namespace, claim string) (stats, error) {
	t.Helper()
	var summary struct {
		Pods []struct {
			Volumes []struct {
				stats
				PVC struct{ Name, Namespace string } `json:"pvcRef"`
			} `json:"volume"`
		} `json:"pods"`
	}
	text := kubectl(t, "get", "--raw", "/api/v1/nodes/"+cluster.Node+"/proxy/stats/summary")
	if err := json.Unmarshal([]byte(text), &summary); err != nil {
		return stats{}, err
	}
	for _, p := range summary.Pods {
		for _, v := range p.Volumes {
			if v.PVC.Namespace == namespace && v.PVC.Name == claim {
				return v.stats, nil
			}
		}
	}
	return stats{}, errors.New("the kubelet does not know the volume")
}
