package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

const (
	release = "csi-s3" // the release, its namespace and its class
	// patience is how long a step may take on a slow machine.
	patience = 3 * time.Minute
)

// kubectl runs kubectl and fails the test where it fails.
func kubectl(t *testing.T, args ...string) string {
	t.Helper()
	out, err := try(t, args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func try(t *testing.T, args ...string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
	defer cancel()
	return suite.Kubectl(ctx, "", args...)
}

// apply makes the objects of a manifest.
func apply(t *testing.T, namespace, manifest string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if _, err := suite.Kubectl(ctx, manifest, "-n", namespace, "apply", "-f", "-"); err != nil {
		t.Fatalf("%v\n%s", err, manifest)
	}
}

// get decodes an object, or a list.
func get[T any](t *testing.T, args ...string) (object T) {
	t.Helper()
	if err := json.Unmarshal([]byte(kubectl(t, append([]string{"get", "-o", "json"}, args...)...)), &object); err != nil {
		t.Fatal(err)
	}
	return object
}

func helm(t *testing.T, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
	defer cancel()
	out, err := suite.Helm(ctx, args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// readme are the arguments of the README's installation.
func readme(command string, more ...string) []string {
	return append([]string{command, release, root + "/charts/csi-s3", "-n", release,
		"--set", "secret.endpoint=" + endpoint, "--set", "secret.accessKey=" + suite.s3.AccessKey, "--set", "secret.secretKey=" + suite.s3.SecretKey,
		"--wait", "--timeout", "3m"}, more...)
}

// install makes sure that the release is there as the README says, with metrics.
func install(t *testing.T) {
	t.Helper()
	serve(t)
	if !installed(t) {
		helm(t, readme("install", "--create-namespace", "--set", "metrics.enabled=true")...)
	}
}

// uninstall makes sure that it is not there.
func uninstall(t *testing.T) {
	t.Helper()
	if installed(t) {
		helm(t, "uninstall", release, "-n", release, "--wait")
	}
}

func installed(t *testing.T) bool {
	t.Helper()
	return slices.Contains(strings.Fields(helm(t, "list", "-A", "-q")), release)
}

// namespace is one of the test's own. When the test ends, all in it must go.
func namespace(t *testing.T) string {
	t.Helper()
	name := strings.ToLower(strings.NewReplacer("/", "-", "_", "-", " ", "-").Replace(t.Name()))
	kubectl(t, "create", "namespace", name)
	t.Cleanup(func() {
		if t.Failed() {
			explain(t, name)
		}
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if _, err := suite.Kubectl(ctx, "", "delete", "namespace", name, "--timeout=120s"); err != nil {
			t.Errorf("the namespace does not go: %v", err)
		}
	})
	return name
}

// explain logs what a person would look at.
func explain(t *testing.T, namespace string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	for _, args := range [][]string{
		{"get", "pvc,pod,pv", "-n", namespace, "-o", "wide"},
		{"get", "events", "-n", namespace, "--sort-by=.lastTimestamp"},
		{"get", "pod", "-n", release, "-o", "wide"},
		{"logs", "-n", release, "-l", "app.kubernetes.io/component=node", "-c", "csi-s3", "--tail=60"},
		{"logs", "-n", release, "-l", "app.kubernetes.io/component=controller", "--all-containers", "--tail=40"},
	} {
		out, err := suite.Kubectl(ctx, "", args...)
		t.Logf("kubectl %s:\n%s%v", strings.Join(args, " "), out, err)
	}
}

// deleteLater makes sure that objects go when the test ends.
func deleteLater(t *testing.T, args ...string) {
	t.Helper()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if _, err := suite.Kubectl(ctx, "", append([]string{"delete", "--ignore-not-found"}, args...)...); err != nil {
			t.Error(err)
		}
	})
}

// steps logs how long each step took.
type steps struct {
	t    *testing.T
	last time.Time
}

func (s *steps) done(what string) {
	s.t.Helper()
	s.t.Logf("%-28s %6.1f s", what, time.Since(s.last).Seconds())
	s.last = time.Now()
}

// eventually waits for a condition, which says what is not so yet.
func eventually(t *testing.T, is func() error) {
	t.Helper()
	end := time.Now().Add(patience)
	for {
		err := is()
		if err == nil {
			return
		}
		if time.Now().After(end) {
			t.Fatal(err)
		}
		time.Sleep(200 * time.Millisecond)
	}
}

// claim is a PVC.
func claim(name, class, mode string) string {
	return fmt.Sprintf(`
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: %s}
spec:
  storageClassName: %s
  accessModes: [%s]
  resources: {requests: {storage: 1Gi}}
---`, name, class, mode)
}

// pod runs a shell script with a claim at /data. more goes into its spec, with an indent of 2.
func pod(name, claim, script, more string) string {
	return fmt.Sprintf(`
apiVersion: v1
kind: Pod
metadata: {name: %s}
spec:
  terminationGracePeriodSeconds: 1
  restartPolicy: Never
  containers:
    - name: main
      image: %s
      command: [sh, -c, %q]
      volumeMounts: [{name: data, mountPath: /data}]
  volumes: [{name: data, persistentVolumeClaim: {claimName: %s}}]
%s
---`, name, busyboxImage, script, claim, more)
}

// ready waits for pods to run.
func ready(t *testing.T, namespace string, pods ...string) {
	t.Helper()
	for _, p := range pods {
		kubectl(t, "-n", namespace, "wait", "--for=condition=Ready", "pod/"+p, "--timeout=180s")
	}
}

// succeeded waits for pods to end well.
func succeeded(t *testing.T, namespace string, pods ...string) {
	t.Helper()
	for _, p := range pods {
		phase := ""
		eventually(t, func() error {
			phase = kubectl(t, "-n", namespace, "get", "pod", p, "-o", "jsonpath={.status.phase}")
			if phase != "Succeeded" && phase != "Failed" {
				return fmt.Errorf("pod %s is %s", p, phase)
			}
			return nil
		})
		if phase == "Failed" {
			t.Fatalf("pod %s failed: %s", p, kubectl(t, "-n", namespace, "logs", p))
		}
	}
}

// sh runs a script in a pod.
func sh(t *testing.T, namespace, pod, script string) (string, error) {
	t.Helper()
	return try(t, "-n", namespace, "exec", pod, "--", "sh", "-c", script)
}

// volumeOf is the PersistentVolume of a bound claim, and its bucket and prefix.
func volumeOf(t *testing.T, namespace, claim string) (pv, bucketName, prefix string) {
	t.Helper()
	kubectl(t, "-n", namespace, "wait", "--for=jsonpath={.status.phase}=Bound", "pvc/"+claim, "--timeout=180s")
	pv = kubectl(t, "-n", namespace, "get", "pvc", claim, "-o", "jsonpath={.spec.volumeName}")
	handle := kubectl(t, "get", "pv", pv, "-o", "jsonpath={.spec.csi.volumeHandle}")
	bucketName, prefix, _ = strings.Cut(handle, "/")
	return pv, bucketName, prefix
}
