package chart

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strings"
	"testing"

	"helm.sh/helm/v3/pkg/chart"
	"helm.sh/helm/v3/pkg/chart/loader"
	"helm.sh/helm/v3/pkg/chartutil"
	"helm.sh/helm/v3/pkg/engine"
	"helm.sh/helm/v3/pkg/lint"
	"helm.sh/helm/v3/pkg/lint/support"
	"helm.sh/helm/v3/pkg/strvals"
	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/util/yaml"
)

var update = flag.Bool("update", false, "write the golden files")

const chartDir = "../../charts/csi-s3"

// readme is what the README tells people to set.
const readme = "secret.endpoint=http://minio.minio:9000,secret.accessKey=AK,secret.secretKey=SK"

// cases are the values that users come with; each has a golden file of its name.
var cases = []struct{ name, set string }{
	// Every key of the older charts, at once; what is set after a file comes on top of it.
	{"yandex-complete", "@yandex.yaml,secret.accessKey=AK,secret.secretKey=SK"},
	{"kubeblocks-complete", "@kubeblocks.yaml,secret.accessKey=AK,secret.secretKey=SK"},
	{"readme", readme},
	{"yandex", readme + ",storageClass.singleBucket=shared,storageClass.mounter=geesefs," +
		"storageClass.mountOptions=--memory-limit 1000 --dir-mode 0777 --file-mode 0666,storageClass.reclaimPolicy=Retain," +
		"tolerations.all=false,tolerations.controller[0].key=cp,tolerations.controller[0].operator=Exists," +
		"tolerations.node[0].key=gpu,tolerations.node[0].operator=Exists,nodeSelector.zone=a,kubeletPath=/data/kubelet/," +
		"images.csi=cr.yandex/x/csi-s3-driver:1,driver.name=ru.yandex.s3.csi"},
	{"kubeblocks", "secret.cloudProvider=aliyun,secret.region=cn-hangzhou,secret.accessKey=AK,secret.secretKey=SK," +
		"storageClass.bucket=kb-${pvc.namespace},storageClass.prefix=${pvc.name},storageClass.mountOptions=,storageClass.name=kb," +
		"tolerations[0].key=db,tolerations[0].operator=Exists,daemonsetTolerations[0].key=db,daemonsetTolerations[0].operator=Exists,csiName=s3"},
	{"second-release", readme + ",multiCSI=true,storageClass.name=csi-s3-b,storageClass.onDelete=retain"},
	{"per-namespace-secrets", "secret.create=false,storageClass.secretName=s3,storageClass.secretNamespace=${pvc.namespace}," +
		"rbac.secretsInAllNamespaces=true,storageClass.default=true,metrics.enabled=true,controller.replicas=2,secret.name=s3"},
	{"tls", "secret.endpoint=https://minio.minio,secret.accessKey=AK,secret.secretKey=SK,secret.region=eu,secret.pathStyle=false," +
		"secret.insecure=true,secret.sessionToken=T,image.tag=dev,imagePullSecrets[0].name=pull"},
	{"everything", "@everything.yaml"},
}

func load(t *testing.T) *chart.Chart {
	t.Helper()
	c, err := loader.Load(chartDir)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// parse reads values as --set does; a leading @FILE is --values with a file of testdata/values.
func parse(set string) (map[string]any, error) {
	values := map[string]any{}
	if file, ok := strings.CutPrefix(set, "@"); ok {
		file, set, _ = strings.Cut(file, ",")
		var err error
		if values, err = chartutil.ReadValuesFile(filepath.Join("testdata", "values", file)); err != nil {
			return nil, err
		}
	}
	return values, strvals.ParseInto(set, values)
}

// render is helm template: schema, values, templates. It returns one stream of documents and the notes.
func render(c *chart.Chart, set string) (manifest, notes string, err error) {
	values, err := parse(set)
	if err != nil {
		return "", "", err
	}
	all, err := chartutil.ToRenderValues(c, values,
		chartutil.ReleaseOptions{Name: "csi-s3", Namespace: "csi-s3", Revision: 1, IsInstall: true}, nil)
	if err != nil {
		return "", "", err
	}
	files, err := engine.Render(c, all)
	if err != nil {
		return "", "", err
	}
	names := make([]string, 0, len(files))
	for name := range files {
		names = append(names, name)
	}
	sort.Strings(names)
	var b strings.Builder
	for _, name := range names {
		switch text := strings.TrimSpace(files[name]); {
		case strings.HasSuffix(name, "NOTES.txt"):
			notes = text
		case strings.HasSuffix(name, ".yaml") && text != "":
			fmt.Fprintf(&b, "---\n# Source: %s\n%s\n", name, text)
		}
	}
	return b.String(), notes, nil
}

func TestGolden(t *testing.T) {
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			manifest, notes, err := render(load(t), c.set)
			if err != nil {
				t.Fatal(err)
			}
			decode(t, manifest)
			got := manifest + "---\n# NOTES\n" + "# " + strings.ReplaceAll(notes, "\n", "\n# ") + "\n"
			golden := filepath.Join("testdata", c.name+".yaml")
			if *update {
				if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if got != string(want) {
				t.Errorf("differs from %s (look at the change, then run with -update); first difference: %s", golden, firstDifference(got, string(want)))
			}
		})
	}
}

func firstDifference(got, want string) string {
	g, w := strings.Split(got, "\n"), strings.Split(want, "\n")
	for i := range min(len(g), len(w)) {
		if g[i] != w[i] {
			return fmt.Sprintf("line %d is %q, want %q", i+1, g[i], w[i])
		}
	}
	return fmt.Sprintf("%d lines, want %d", len(g), len(w))
}

// decode reads every document into the type of its kind and refuses fields that the type does not have: a misspelt
// field is dropped by a cluster without a word.
func decode(t *testing.T, manifest string) []runtime.Object {
	t.Helper()
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{appsv1.AddToScheme, corev1.AddToScheme, rbacv1.AddToScheme, storagev1.AddToScheme,
		coordinationv1.AddToScheme, policyv1.AddToScheme, batchv1.AddToScheme} {
		if err := add(scheme); err != nil {
			t.Fatal(err)
		}
	}
	decoder := serializer.NewCodecFactory(scheme, serializer.EnableStrict).UniversalDeserializer()
	var objects []runtime.Object
	documents := yaml.NewDocumentDecoder(io.NopCloser(strings.NewReader(manifest)))
	buf := make([]byte, 1<<20)
	for {
		n, err := documents.Read(buf)
		if errors.Is(err, io.EOF) {
			return objects
		}
		if err != nil {
			t.Fatal(err)
		}
		if len(bytes.TrimSpace(buf[:n])) == 0 {
			continue
		}
		object, _, err := decoder.Decode(buf[:n], nil, nil)
		if err != nil {
			t.Errorf("%v in\n%s", err, buf[:n])
			continue
		}
		objects = append(objects, object)
	}
}

// find returns the only object of its type in manifest.
func find[T runtime.Object](t *testing.T, manifest string) T {
	t.Helper()
	var found []T
	for _, o := range decode(t, manifest) {
		if x, ok := o.(T); ok {
			found = append(found, x)
		}
	}
	if len(found) != 1 {
		t.Fatalf("%d objects of type %T", len(found), *new(T))
	}
	return found[0]
}

// TestPromises checks what does not read itself off a golden file.
func TestPromises(t *testing.T) {
	manifest, _, err := render(load(t), readme)
	if err != nil {
		t.Fatal(err)
	}
	driver := find[*storagev1.CSIDriver](t, manifest)
	class := find[*storagev1.StorageClass](t, manifest)
	secret := find[*corev1.Secret](t, manifest)
	node := find[*appsv1.DaemonSet](t, manifest)
	controller := find[*appsv1.Deployment](t, manifest)

	if class.Provisioner != driver.Name {
		t.Errorf("class for %s, driver %s", class.Provisioner, driver.Name)
	}
	if s := driver.Spec; *s.AttachRequired || !*s.PodInfoOnMount || !*s.RequiresRepublish || *s.FSGroupPolicy != storagev1.FileFSGroupPolicy {
		t.Errorf("CSIDriver %+v", s)
	}
	for key, want := range map[string]string{"endpoint": "http://minio.minio:9000", "accessKeyID": "AK", "secretAccessKey": "SK"} {
		if secret.StringData[key] != want {
			t.Errorf("secret %s is %q, want %q", key, secret.StringData[key], want)
		}
	}
	for _, call := range []string{"provisioner", "node-stage", "node-publish"} {
		prefix := "csi.storage.k8s.io/" + call + "-secret-"
		if class.Parameters[prefix+"name"] != secret.Name || class.Parameters[prefix+"namespace"] != secret.Namespace {
			t.Errorf("%s takes its secret from %s/%s", call, class.Parameters[prefix+"namespace"], class.Parameters[prefix+"name"])
		}
	}
	// The kubelet finds the socket where the registrar says it is, through the volume that the driver writes to.
	socket := ""
	for _, v := range node.Spec.Template.Spec.Volumes {
		if v.Name == "plugin" {
			socket = v.HostPath.Path + "/csi.sock"
		}
	}
	registered := false
	privileged := 0
	for _, c := range node.Spec.Template.Spec.Containers {
		for _, a := range c.Args {
			registered = registered || a == "--kubelet-registration-path="+socket
		}
		if c.SecurityContext.Privileged != nil && *c.SecurityContext.Privileged {
			privileged++
		}
	}
	if !registered {
		t.Errorf("no container registers %s", socket)
	}
	if privileged != 1 {
		t.Errorf("%d privileged containers, want the driver alone", privileged)
	}
	for _, c := range controller.Spec.Template.Spec.Containers {
		if c.SecurityContext.Privileged != nil || *c.SecurityContext.AllowPrivilegeEscalation {
			t.Errorf("controller's %s is privileged", c.Name)
		}
	}
	if strings.Contains(manifest[strings.Index(manifest, "kind: StorageClass"):], "SK") {
		t.Error("the secret key is in the StorageClass")
	}
	all := decode(t, manifest)
	for _, o := range all {
		if role, ok := o.(*rbacv1.ClusterRole); ok {
			for _, r := range role.Rules {
				for _, res := range r.Resources {
					if res == "secrets" {
						t.Error("the default installation may read secrets of the whole cluster")
					}
				}
			}
		}
	}
}

// TestClasses checks what storageClasses take from storageClass, and that the driver may read their secrets and no other.
func TestClasses(t *testing.T) {
	manifest, _, err := render(load(t), "@everything.yaml")
	if err != nil {
		t.Fatal(err)
	}
	bucket := map[string]string{}
	readable := map[string][]string{} // secrets by role
	for _, o := range decode(t, manifest) {
		switch o := o.(type) {
		case *storagev1.StorageClass:
			bucket[o.Name] = o.Parameters["bucket"]
		case *rbacv1.Role:
			for _, r := range o.Rules {
				if slices.Contains(r.Resources, "secrets") {
					readable[o.Name] = r.ResourceNames
				}
			}
		case *corev1.Secret:
			t.Errorf("a secret is made beside existingSecret: %s", o.Name)
		}
	}
	if want := map[string]string{"fast": "shared", "models": "models", "own": ""}; !maps.Equal(bucket, want) {
		t.Errorf("buckets of the classes %v, want %v", bucket, want)
	}
	secrets := []string{"vault-made", "models"}
	if want := map[string][]string{"csi-s3-provisioner": secrets, "csi-s3-node": secrets}; !maps.EqualFunc(readable, want, slices.Equal) {
		t.Errorf("the driver may read %v, want %v", readable, want)
	}
}

func TestRefused(t *testing.T) {
	for _, c := range []struct{ name, set, want string }{
		{"no endpoint", "secret.accessKey=a,secret.secretKey=b", "secret.endpoint is missing"},
		{"no access key", "secret.endpoint=http://x,secret.secretKey=b", "secret.accessKey is missing"},
		{"no secret key", "secret.endpoint=http://x,secret.accessKey=b", "secret.secretKey is missing"},
		{"endpoint without scheme", readme + ",secret.endpoint=minio:9000", "/secret/endpoint"},
		{"unknown key", readme + ",secrets.endpoint=x", "secrets"},
		{"misspelt key", readme + ",secret.acessKey=x", "acessKey"},
		{"reclaim policy", readme + ",storageClass.reclaimPolicy=Keep", "reclaimPolicy"},
		{"mounter", readme + ",storageClass.mounter=rclone", "mounts by itself"},
		{"two buckets", readme + ",storageClass.bucket=a,storageClass.singleBucket=b", "one setting"},
		{"prefix without bucket", readme + ",storageClass.prefix=a", "needs storageClass.bucket"},
		{"no region", "secret.cloudProvider=aws,secret.accessKey=a,secret.secretKey=b", "secret.region is needed"},
		{"driver name", readme + ",driver.name=CSI_S3", "/driver/name"},
		{"port", readme + ",metrics.port=70000", "/metrics/port"},
		{"kubelet path", readme + ",kubeletPath=var/lib/kubelet", "/kubeletPath"},
		{"class without a name", readme + ",storageClasses[0].bucket=a", "name"},
		{"misspelt key of a class", readme + ",storageClasses[0].name=a,storageClasses[0].buckt=a", "buckt"},
		{"misspelt resources", readme + ",node.resources.request.cpu=1", "request"},
		{"misspelt toleration", readme + ",tolerations.node[0].keys=a", "/tolerations"},
		{"misspelt budget", readme + ",controller.podDisruptionBudget.minAvailable=1", "minAvailable"},
		{"misspelt affinity", readme + ",affinity.podAfinity.a=b", "podAfinity"},
		{"class of another mounter", readme + ",storageClasses[0].name=a,storageClasses[0].mounter=s3fs", "mounts by itself"},
		{"CA", readme + ",secret.caBundle=/etc/ca.pem", "/secret/caBundle"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, _, err := render(load(t), c.set)
			if err == nil {
				t.Fatal("rendered")
			}
			// Helm names a field either as /a/b or as a.b, depending on its version.
			if text := err.Error(); !strings.Contains(text, c.want) && !strings.Contains(text, strings.ReplaceAll(strings.TrimPrefix(c.want, "/"), "/", ".")) {
				t.Errorf("the error does not say %q: %v", c.want, err)
			}
		})
	}
}

func TestLint(t *testing.T) {
	for _, c := range cases {
		values, err := parse(c.set)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range lint.All(chartDir, values, "csi-s3", true).Messages {
			if m.Severity >= support.WarningSev {
				t.Errorf("%s: %v", c.name, m)
			}
		}
	}
}
