package e2e

import (
	"fmt"
	"strings"
	"testing"
)

// TestWrongInput is what a person sees who got something wrong: an event of the claim or of the pod says what to change,
// and when it was changed, things go on by themselves.
func TestWrongInput(t *testing.T) {
	install(t)
	// said waits for an event of an object that has all words.
	said := func(t *testing.T, ns, object string, words ...string) {
		t.Helper()
		eventually(t, func() error {
			all := events(t, ns, object)
			for line := range strings.Lines(all) {
				has := 0
				for _, w := range words {
					if strings.Contains(line, w) {
						has++
					}
				}
				if has == len(words) {
					t.Logf("%s: %s", object, strings.TrimSpace(line))
					return nil
				}
			}
			return fmt.Errorf("no event of %s says %q: %s", object, words, all)
		})
	}
	secret := func(name, url, key, id string) string {
		return fmt.Sprintf(`
apiVersion: v1
kind: Secret
metadata: {name: %s, namespace: %s}
stringData: {endpoint: %q, accessKeyID: %q, secretAccessKey: %q}
---`, name, release, url, id, key)
	}
	with := func(name, secret string) string {
		return strings.ReplaceAll(class(name, "", "[]"), "csi-s3-secret", secret)
	}
	good := suite.s3

	for _, c := range []struct {
		name, secret string
		words        []string
	}{
		{"key", secret("e2e-key", endpoint, "wrong", good.AccessKey), []string{"ProvisioningFailed", "SignatureDoesNotMatch"}},
		{"user", secret("e2e-user", endpoint, good.SecretKey, "nobody"), []string{"ProvisioningFailed", "InvalidAccessKeyId"}},
		{"refused", secret("e2e-refused", "http://10.200.0.1:9", good.SecretKey, good.AccessKey), []string{"ProvisioningFailed", "10.200.0.1:9", "connection refused"}},
		{"away", secret("e2e-away", "http://10.200.0.77:9000", good.SecretKey, good.AccessKey), []string{"ProvisioningFailed", "10.200.0.77:9000"}},
		{"url", secret("e2e-url", "10.200.0.1:9000", good.SecretKey, good.AccessKey), []string{"ProvisioningFailed", "endpoint", "https://"}},
		{"empty", strings.ReplaceAll(secret("e2e-empty", endpoint, good.SecretKey, good.AccessKey), "accessKeyID", "accesskeyid"), []string{"ProvisioningFailed", "accessKeyID"}},
	} {
		t.Run("secret-"+c.name, func(t *testing.T) {
			t.Parallel()
			name := "e2e-" + c.name
			deleteLater(t, "storageclass", name)
			deleteLater(t, "-n", release, "secret", name)
			ns := namespace(t)
			apply(t, release, c.secret+with(name, name))
			// The provisioner may read the secrets that the release knows.
			helmRole(t, name)
			apply(t, ns, claim("data", name, "ReadWriteOnce"))
			said(t, ns, "data", c.words...)
			// Mended, it goes on.
			apply(t, release, strings.ReplaceAll(secret(name, endpoint, good.SecretKey, good.AccessKey), "\n---", ""))
			_, made, _ := volumeOf(t, ns, "data")
			kubectl(t, "-n", ns, "delete", "pvc", "data")
			noBucket(t, made)
		})
	}
	t.Run("secret-missing", func(t *testing.T) {
		t.Parallel()
		ns := namespace(t)
		apply(t, ns, with("e2e-missing", "e2e-missing")+claim("data", "e2e-missing", "ReadWriteOnce"))
		deleteLater(t, "storageclass", "e2e-missing")
		helmRole(t, "e2e-missing")
		said(t, ns, "data", "e2e-missing", "not found")
	})
	t.Run("parameter", func(t *testing.T) {
		t.Parallel()
		ns := namespace(t)
		apply(t, ns, class("e2e-parameter", "buckett: x", "[]")+claim("data", "e2e-parameter", "ReadWriteOnce"))
		deleteLater(t, "storageclass", "e2e-parameter")
		said(t, ns, "data", "ProvisioningFailed", "buckett")
	})
	t.Run("option", func(t *testing.T) {
		t.Parallel()
		ns := namespace(t)
		apply(t, ns, class("e2e-option", "", "[fsync=never]")+claim("data", "e2e-option", "ReadWriteOnce"))
		deleteLater(t, "storageclass", "e2e-option")
		said(t, ns, "data", "ProvisioningFailed", "fsync", "node|bucket")
	})
	t.Run("pod", func(t *testing.T) {
		t.Parallel()
		deleteLater(t, "pv", "e2e-nobucket")
		ns := namespace(t)
		apply(t, ns, static("e2e-nobucket", "there-is-no-such-bucket", ns, "data")+pod("one", "data", "true", ""))
		said(t, ns, "one", "FailedMount", "there-is-no-such-bucket")
		put(t, "there-is-no-such-bucket", "f", "")
		succeeded(t, ns, "one")
	})
	t.Run("block", func(t *testing.T) {
		t.Parallel()
		ns := namespace(t)
		apply(t, ns, strings.ReplaceAll(claim("data", release, "ReadWriteOnce"), "resources:", "volumeMode: Block\n  resources:"))
		said(t, ns, "data", "ProvisioningFailed", "Filesystem")
	})
}

// helmRole lets the provisioner read a secret of the test, as the value rbac.secretNames does.
func helmRole(t *testing.T, secret string) {
	t.Helper()
	name := "read-" + secret
	kubectl(t, "-n", release, "create", "role", name, "--verb=get", "--resource=secrets", "--resource-name="+secret)
	deleteLater(t, "-n", release, "role", name)
	kubectl(t, "-n", release, "create", "rolebinding", name, "--role="+name, "--serviceaccount="+release+":csi-s3-controller")
	deleteLater(t, "-n", release, "rolebinding", name)
}
