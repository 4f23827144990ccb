package config_test

import (
	"errors"
	"maps"
	"reflect"
	"regexp"
	"strings"
	"testing"

	"github.com/csi-s3/csi-s3/pkg/config"
)

// metadata is what csi-provisioner sends with --extra-create-metadata.
var metadata = map[string]string{
	"csi.storage.k8s.io/pvc/name": "data", "csi.storage.k8s.io/pvc/namespace": "team", "csi.storage.k8s.io/pv/name": "pvc-1",
}

func with(m map[string]string, pairs ...string) map[string]string {
	out := maps.Clone(m)
	if out == nil {
		out = map[string]string{}
	}
	for i := 0; i < len(pairs); i += 2 {
		out[pairs[i]] = pairs[i+1]
	}
	return out
}

func TestVolumeIDOfParameters(t *testing.T) {
	const uuid = "pvc-0b7e3c8e-5b0d-4b8e-9f4e-2f8f0c1d2e3f"
	long := strings.Repeat("n", 200)
	for _, c := range []struct {
		parameters map[string]string
		name, want string
	}{
		{nil, uuid, uuid},
		{map[string]string{"bucket": "shared"}, uuid, "shared/" + uuid},
		{with(metadata, "bucket", "shared", "prefix", "${pvc.namespace}/${pvc.name}"), uuid, "shared/team/data"},
		{with(metadata, "bucket", "shared", "prefix", "x-${pv.name}/"), uuid, "shared/x-pvc-1"},
		{map[string]string{"bucket": "shared", "prefix": "${pv.name}"}, uuid, "shared/" + uuid},
		{with(metadata, "bucket", "${pvc.namespace}-bucket"), uuid, "team-bucket/" + uuid},
		{map[string]string{"bucket": "shared", "prefix": "fixed"}, uuid, "shared/fixed"},
		{map[string]string{"bucket": "shared", "prefix": "a$b{c}"}, uuid, "shared/a$b{c}"},
		{nil, "Upper", "csi-s3-*"},
		{nil, long, "csi-s3-*"},
		{nil, "10.0.0.1", "csi-s3-*"},
		{nil, "ab", "csi-s3-*"},
		{nil, "xn--a", "csi-s3-*"},
		{nil, "../../etc", "csi-s3-*"},
		{map[string]string{"bucket": "shared"}, "a/../b", "shared/csi-s3-*"},
		{with(metadata, "bucket", "${pvc.namespace}", "csi.storage.k8s.io/pvc/namespace", "n1"), uuid, "csi-s3-*/" + uuid},
	} {
		p, err := config.ParseParameters(c.parameters)
		if err != nil {
			t.Errorf("%v: %v", c.parameters, err)
			continue
		}
		id, err := p.VolumeID(c.name)
		again, _ := p.VolumeID(c.name)
		pattern := strings.ReplaceAll(regexp.QuoteMeta(c.want), `\*`, "[0-9a-f]{40}")
		if err != nil || !regexp.MustCompile("^"+pattern+"$").MatchString(id.String()) || id != again {
			t.Errorf("%v, %s: %s, %v, want %s", c.parameters, c.name, id, err, c.want)
		}
		if parsed, err := config.ParseVolumeID(id.String()); err != nil || parsed != id {
			t.Errorf("%s parses as %v, %v", id, parsed, err)
		}
	}
	// Two names never become one bucket.
	p, err := config.ParseParameters(nil)
	if err != nil {
		t.Fatal(err)
	}
	seen := map[config.VolumeID]string{}
	for _, name := range []string{"vol", "Vol", "VOL", "vol_", "vol/", "vol-", "vo", uuid, strings.ToUpper(uuid)} {
		id, err := p.VolumeID(name)
		if other, taken := seen[id]; err != nil || taken {
			t.Errorf("%s and %s are %s, %v", name, other, id, err)
		}
		seen[id] = name
	}
	if _, err := p.VolumeID(""); err == nil {
		t.Error("a volume without a name")
	}
}

func TestParseParameters(t *testing.T) {
	p, err := config.ParseParameters(with(metadata, "bucket", "b-1", "prefix", "p", "onDelete", "retain", "mounter", "geesefs",
		"options", "--memory-limit 1000 --dir-mode 0777", "csi.storage.k8s.io/fstype", "ext4", "csi.storage.k8s.io/provisioner-secret-name", "s"))
	want := config.Parameters{Bucket: "b-1", Prefix: "p", OnDelete: "retain", Options: "--memory-limit 1000 --dir-mode 0777", PVCNamespace: "team", PVCName: "data", PVName: "pvc-1"}
	if err != nil || p != want {
		t.Fatalf("%+v, %v", p, err)
	}
	if p, err = config.ParseParameters(nil); err != nil || p != (config.Parameters{OnDelete: "delete"}) {
		t.Fatalf("%+v, %v", p, err)
	}
}

func TestParseParametersRefuses(t *testing.T) {
	for _, c := range []struct {
		parameters map[string]string
		name       string
	}{
		{map[string]string{"buckett": "x"}, "buckett"},
		{map[string]string{"Bucket": "x"}, "Bucket"},
		{map[string]string{"usePrefix": "true"}, "usePrefix"},
		{map[string]string{"bucket": "a/b"}, "bucket"},
		{map[string]string{"bucket": ".."}, "bucket"},
		{map[string]string{"prefix": "p"}, "bucket"},
		{map[string]string{"bucket": "shared", "prefix": "/"}, "prefix"},
		{map[string]string{"bucket": "shared", "prefix": "/p"}, "prefix"},
		{map[string]string{"bucket": "shared", "prefix": "../p"}, "prefix"},
		{map[string]string{"bucket": "shared", "prefix": ".csi-s3"}, "prefix"},
		{map[string]string{"bucket": "shared", "prefix": "${pvc.uid}"}, "pvc.uid"},
		{map[string]string{"bucket": "shared", "prefix": "${pvc.name"}, "prefix"},
		{map[string]string{"bucket": "shared", "prefix": "${pvc.name}"}, "--extra-create-metadata"},
		{with(metadata, "bucket", "shared", "prefix", "${pvc.name}", "csi.storage.k8s.io/pvc/name", "../x"), "pvc.name"},
		{with(metadata, "bucket", "shared", "prefix", "${pvc.name}", "csi.storage.k8s.io/pvc/name", ".."), "prefix"},
		{map[string]string{"onDelete": "keep"}, "onDelete"},
		{map[string]string{"mounter": "s3fs"}, "s3fs"},
		{map[string]string{"options": "--log-file /etc/passwd"}, "--log-file"},
	} {
		_, err := config.ParseParameters(c.parameters)
		if !errors.Is(err, config.ErrParameter) || !strings.Contains(err.Error(), c.name) {
			t.Errorf("%v: %v", c.parameters, err)
		}
	}
}

func TestAttributes(t *testing.T) {
	p, err := config.ParseParameters(with(metadata, "bucket", "shared", "options", "--uid 7 --region eu-1 --no-verify-ssl --cheap"))
	if err != nil {
		t.Fatal(err)
	}
	a, err := config.ParseAttributes(p.Attributes(5 << 30))
	if err != nil || a.Capacity != 5<<30 || !a.Provisioned || !reflect.DeepEqual(a.Geesefs.Options, []string{"uid=7"}) || len(a.Ignored) > 0 {
		t.Fatalf("%+v, %v", a, err)
	}
	if s := a.Geesefs.Apply(config.Secret{Region: "other"}); s.Region != "eu-1" || !s.Insecure || s.VirtualHost {
		t.Fatalf("%+v", s)
	}

	// A PV of yandex-cloud/k8s-csi-s3, static and provisioned, as the kubelet hands it over.
	a, err = config.ParseAttributes(map[string]string{
		"mounter": "geesefs", "options": "--memory-limit 1000 --dir-mode 0777 --file-mode 0666", "capacity": "10Gi", "bucket": "shared",
		"usePrefix": "true", "storage.kubernetes.io/csiProvisionerIdentity": "x", "csi.storage.k8s.io/pod.name": "p", "csi.storage.k8s.io/ephemeral": "false",
	})
	if err != nil || a.Capacity != 10<<30 || a.Provisioned || !reflect.DeepEqual(a.Geesefs.Options, []string{"dir-mode=0777", "file-mode=0666"}) ||
		!reflect.DeepEqual(a.Ignored, []string{"usePrefix"}) || !reflect.DeepEqual(a.Geesefs.Ignored, []string{"--memory-limit"}) {
		t.Fatalf("%+v, %v", a, err)
	}
	if a, err = config.ParseAttributes(nil); err != nil || !reflect.DeepEqual(a, config.Attributes{}) {
		t.Fatalf("%+v, %v", a, err)
	}
	for key, value := range map[string]string{"capacity": "-1", "options": "--nonsense", "mounter": "rclone", "csi-s3.dev/provisioned": "x"} {
		if _, err := config.ParseAttributes(map[string]string{key: value}); !errors.Is(err, config.ErrParameter) || !strings.Contains(err.Error(), key) {
			t.Errorf("%s=%s: %v", key, value, err)
		}
	}
}

func FuzzParseParameters(f *testing.F) {
	f.Add("shared", "${pvc.namespace}/${pvc.name}", "retain", "--dir-mode 0777", "team", "data", "pvc-1")
	f.Add("", "", "", "", "", "", "x")
	f.Add("${pvc.name}", "${", "", `-o "a b"`, "..", "/", "../..")
	f.Fuzz(func(t *testing.T, bucket, prefix, onDelete, options, namespace, claim, name string) {
		p, err := config.ParseParameters(map[string]string{
			"bucket": bucket, "prefix": prefix, "onDelete": onDelete, "options": options,
			"csi.storage.k8s.io/pvc/namespace": namespace, "csi.storage.k8s.io/pvc/name": claim,
		})
		if err != nil {
			if !errors.Is(err, config.ErrParameter) {
				t.Fatal(err)
			}
			return
		}
		id, err := p.VolumeID(name)
		if err != nil {
			return
		}
		parsed, err := config.ParseVolumeID(id.String())
		if err != nil || parsed != id {
			t.Fatalf("%+v gives %q, which parses as %+v, %v", p, id, parsed, err)
		}
		if (id.Prefix == "") != (bucket == "") {
			t.Fatalf("%+v gives %q", p, id)
		}
		if a, err := config.ParseAttributes(p.Attributes(1)); err != nil || a.Capacity != 1 {
			t.Fatalf("%+v, %v", a, err)
		}
	})
}

func FuzzParseSize(f *testing.F) {
	for _, s := range []string{"0", "100Mi", "1.5Gi", "9223372036854775807", "-1", "1e3", "7k"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		n, err := config.ParseSize(s)
		if err != nil {
			return
		}
		if n < 0 {
			t.Fatalf("%q is %d", s, n)
		}
		// Written exactly, a size reads back.
		if text := config.FormatSize(n); !strings.ContainsAny(text, ". ") {
			if again, err := config.ParseSize(text); err != nil || again != n {
				t.Fatalf("%q is %d is %q is %d, %v", s, n, text, again, err)
			}
		}
	})
}
