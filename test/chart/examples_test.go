package chart

import (
	"os"
	"path/filepath"
	"testing"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
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
	if err != nil || len(files) < 3 {
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
				for key, value := range sc.Parameters {
					if want, ok := class.Parameters[key]; ok && value != want {
						t.Errorf("%s: %s is %s, in the chart %s", file, key, value, want)
					}
				}
			}
		}
		for _, o := range objects {
			switch o := o.(type) {
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
