package chart

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

// TestExamples holds the examples to the API types and to the names that the chart gives by default.
func TestExamples(t *testing.T) {
	manifest, _, err := render(load(t), readme)
	if err != nil {
		t.Fatal(err)
	}
	class := find[*storagev1.StorageClass](t, manifest)
	secret := find[*corev1.Secret](t, manifest)

	files, err := filepath.Glob("../../examples/*.yaml")
	if err != nil || len(files) < 7 {
		t.Fatalf("%d examples, %v", len(files), err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		classes := map[string]bool{"": true, class.Name: true}
		objects := decode(t, string(text))
		for _, o := range objects {
			if sc, ok := o.(*storagev1.StorageClass); ok {
				classes[sc.Name] = true
				if sc.Provisioner != class.Provisioner {
					t.Errorf("%s: provisioner %s", file, sc.Provisioner)
				}
				tenant := strings.Contains(sc.Parameters["csi.storage.k8s.io/provisioner-secret-namespace"], "${")
				for key, value := range sc.Parameters {
					// The secrets of tenants are not the chart's, but all calls take the same one.
					if call, part, ok := strings.Cut(key, "-secret-"); ok && tenant {
						if want := sc.Parameters["csi.storage.k8s.io/provisioner-secret-"+part]; value != want {
							t.Errorf("%s: %s-secret-%s is %s, of the provisioner %s", file, call, part, value, want)
						}
						continue
					}
					if want, ok := class.Parameters[key]; ok && value != want {
						t.Errorf("%s: %s is %s, in the chart %s", file, key, value, want)
					}
				}
			}
		}
		claims := map[string]bool{}
		for _, o := range objects {
			if claim, ok := o.(*corev1.PersistentVolumeClaim); ok {
				claims[claim.Namespace+"/"+claim.Name] = true
			}
		}
		for _, o := range objects {
			if spec, namespace := podSpec(o); spec != nil {
				checkPod(t, file, namespace, *spec, claims)
			}
			switch o := o.(type) {
			case *appsv1.StatefulSet:
				for _, claim := range o.Spec.VolumeClaimTemplates {
					if !classes[*claim.Spec.StorageClassName] {
						t.Errorf("%s: class %s exists nowhere", file, *claim.Spec.StorageClassName)
					}
				}
			case *corev1.PersistentVolumeClaim:
				if !classes[*o.Spec.StorageClassName] {
					t.Errorf("%s: class %s exists nowhere", file, *o.Spec.StorageClassName)
				}
			case *corev1.PersistentVolume:
				if o.Spec.CSI.Driver != class.Provisioner {
					t.Errorf("%s: driver %s", file, o.Spec.CSI.Driver)
				}
				if ref := o.Spec.CSI.NodeStageSecretRef; ref.Name != secret.Name || ref.Namespace != secret.Namespace {
					t.Errorf("%s: secret %s/%s", file, ref.Namespace, ref.Name)
				}
			}
		}
	}
}

// podSpec is what o runs, and in which namespace; nil for an object that runs nothing.
func podSpec(o runtime.Object) (*corev1.PodSpec, string) {
	switch o := o.(type) {
	case *corev1.Pod:
		return &o.Spec, o.Namespace
	case *appsv1.Deployment:
		return &o.Spec.Template.Spec, o.Namespace
	case *appsv1.StatefulSet:
		return &o.Spec.Template.Spec, o.Namespace
	case *batchv1.Job:
		return &o.Spec.Template.Spec, o.Namespace
	}
	return nil, ""
}

// checkPod: what it runs is of a fixed version, and the claims it names are in the same file and namespace.
func checkPod(t *testing.T, file, namespace string, spec corev1.PodSpec, claims map[string]bool) {
	t.Helper()
	for _, c := range slices.Concat(spec.InitContainers, spec.Containers) {
		if _, tag, ok := strings.Cut(c.Image, ":"); !ok || tag == "latest" {
			t.Errorf("%s: image %s of %s has no version", file, c.Image, c.Name)
		}
	}
	for _, v := range spec.Volumes {
		if v.PersistentVolumeClaim != nil && !claims[namespace+"/"+v.PersistentVolumeClaim.ClaimName] {
			t.Errorf("%s: claim %s is not in the file", file, v.PersistentVolumeClaim.ClaimName)
		}
	}
}
