package e2e

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/csi-s3/csi-s3/test/e2e/cluster"
)

// TestChart is what helm itself says of the chart, and the server of its manifests.
func TestChart(t *testing.T) {
	install(t)
	t.Log(helm(t, "lint", root+"/charts/csi-s3", "--strict", "--set", "secret.endpoint="+endpoint+",secret.accessKey=a,secret.secretKey=b"))
	for _, values := range []string{"", "metrics.enabled=true,controller.replicas=2,storageClass.bucket=b,storageClass.name=dry", "multiCSI=true,storageClass.name=other"} {
		args := []string{"template", release, root + "/charts/csi-s3", "-n", release, "--kube-version", "1.36", "--set", "secret.endpoint=" + endpoint + ",secret.accessKey=a,secret.secretKey=b"}
		if values != "" {
			args = append(args, "--set", values)
		}
		manifest := helm(t, args...)
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		out, err := suite.Kubectl(ctx, manifest, "-n", release, "apply", "--dry-run=server", "--validate=strict", "-f", "-")
		cancel()
		if err != nil {
			t.Errorf("values %q: %v", values, err)
		}
		t.Logf("%q: %d objects", values, strings.Count(out, "\n"))
	}
	t.Log(helm(t, "test", release, "-n", release, "--timeout", "3m"))
}

// TestExamples applies every example as its comment says.
func TestExamples(t *testing.T) {
	install(t)
	tried := map[string]bool{}
	example := func(name string, use func(t *testing.T)) {
		tried[name] = true
		t.Run(strings.TrimSuffix(name, ".yaml"), func(t *testing.T) {
			file := filepath.Join(root, "examples", name)
			t.Cleanup(func() {
				if t.Failed() {
					explain(t, "default")
				}
				ctx, cancel := context.WithTimeout(context.Background(), patience)
				defer cancel()
				if out, err := suite.Kubectl(ctx, "", "delete", "--timeout=120s", "-f", file); err != nil {
					t.Errorf("the example does not go: %v %s", err, out)
				}
			})
			begin := time.Now()
			kubectl(t, "apply", "-f", file)
			use(t)
			t.Logf("%.1f s", time.Since(begin).Seconds())
		})
	}
	rollout := func(t *testing.T, what string) {
		t.Helper()
		kubectl(t, "rollout", "status", what, "--timeout=180s")
	}

	example("pvc-nginx.yaml", func(t *testing.T) {
		ready(t, "default", "csi-s3-test-nginx")
		_, name, _ := volumeOf(t, "default", "csi-s3-pvc")
		holds(t, name, "html/index.html", "from S3\n")
		if out, err := sh(t, "default", "csi-s3-test-nginx", "wget -qO- http://127.0.0.1/"); err != nil || out != "from S3\n" {
			t.Errorf("nginx serves %q, %v", out, err)
		}
	})
	put(t, "datasets", "imagenet/1", "one")
	example("static-bucket.yaml", func(t *testing.T) {
		volumeOf(t, "default", "datasets")
		deleteLater(t, "pod", "reads-datasets")
		apply(t, "default", pod("reads-datasets", "datasets", "grep one /data/1 && ! touch /data/2", ""))
		succeeded(t, "default", "reads-datasets")
	})
	put(t, "shared", "of-others", "")
	example("shared-bucket.yaml", func(t *testing.T) {
		if _, name, prefix := volumeOf(t, "default", "reports"); name != "shared" || prefix != "default/reports" {
			t.Errorf("the volume is %s/%s", name, prefix)
		}
	})
	deleteLater(t, "pvc", "data-redis-0") // a StatefulSet leaves it
	example("statefulset-redis.yaml", func(t *testing.T) {
		rollout(t, "statefulset/redis")
		if out := kubectl(t, "exec", "redis-0", "--", "redis-cli", "set", "key", "value"); out != "OK\n" {
			t.Errorf("redis says %q", out)
		}
		kubectl(t, "delete", "pod", "redis-0")
		rollout(t, "statefulset/redis")
		if out := kubectl(t, "exec", "redis-0", "--", "redis-cli", "get", "key"); out != "value\n" {
			t.Errorf("after the pod was deleted redis says %q", out)
		}
	})
	example("rwx-webroot.yaml", func(t *testing.T) {
		kubectl(t, "wait", "--for=condition=Complete", "job/webroot-publish", "--timeout=180s")
		rollout(t, "deployment/webroot")
		_, name, _ := volumeOf(t, "default", "webroot")
		want, err := object(t, name, "index.html")
		if err != nil {
			t.Fatal(err)
		}
		for p := range strings.FieldsSeq(kubectl(t, "get", "pod", "-l", "app=webroot", "-o", "name")) {
			if out, err := sh(t, "default", p, "wget -qO- http://127.0.0.1/"); err != nil || out != want {
				t.Errorf("%s serves %q, %v", p, out, err)
			}
		}
	})
	put(t, "models", "current/model-1", "x")
	example("model-registry.yaml", func(t *testing.T) {
		rollout(t, "deployment/inference")
		for i := range 2 {
			model := fmt.Sprint("model-", i+1)
			put(t, "models", "current/"+model, "x")
			eventually(t, func() error {
				for p := range strings.FieldsSeq(kubectl(t, "get", "pod", "-l", "app=inference", "-o", "name")) {
					if out := kubectl(t, "logs", p); !strings.Contains(out, model) {
						return fmt.Errorf("%s does not see %s: %s", p, model, out)
					}
				}
				return nil
			})
		}
	})

	// The tenant's server has a certificate that only its own CA makes good.
	ca := tlsFront(t, 9443)
	kubectl(t, "create", "namespace", "tenant-a")
	deleteLater(t, "namespace", "tenant-a")
	kubectl(t, "-n", "tenant-a", "create", "secret", "generic", "s3", "--from-literal=endpoint=https://"+cluster.Addr+":9443",
		"--from-literal=accessKeyID="+suite.s3.AccessKey, "--from-literal=secretAccessKey="+suite.s3.SecretKey, "--from-literal=caBundle="+ca)
	helm(t, "upgrade", release, root+"/charts/csi-s3", "-n", release, "--reuse-values", "--set", "rbac.secretsInAllNamespaces=true", "--wait")
	example("tenant-secret.yaml", func(t *testing.T) {
		ready(t, "tenant-a", "files")
		_, name, _ := volumeOf(t, "tenant-a", "files")
		holds(t, name, "hello", "hello\n")
	})

	all, err := filepath.Glob(filepath.Join(root, "examples", "*.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range all {
		if !tried[filepath.Base(f)] {
			t.Errorf("%s was not tried", f)
		}
	}
}

// tlsFront serves the S3 server with TLS on a port of the node, and returns the certificate of the CA.
func tlsFront(t *testing.T, port int) string {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	key := func() *ecdsa.PrivateKey {
		k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		must(err)
		return k
	}
	caKey, serverKey := key(), key()
	ca := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "tenant CA"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour), KeyUsage: x509.KeyUsageCertSign,
	}
	server := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "tenant"}, IPAddresses: []net.IP{net.ParseIP(cluster.Addr)},
		NotBefore: ca.NotBefore, NotAfter: ca.NotAfter, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	caDER, err := x509.CreateCertificate(rand.Reader, ca, ca, &caKey.PublicKey, caKey)
	must(err)
	der, err := x509.CreateCertificate(rand.Reader, server, ca, &serverKey.PublicKey, caKey)
	must(err)
	l, err := suite.Listen(port)
	must(err)
	t.Cleanup(func() { l.Close() })
	front := &gate{conns: map[net.Conn]bool{}}
	// Ends with the listener.
	go front.serve(tls.NewListener(l, &tls.Config{
		MinVersion:   tls.VersionTLS12,
		Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: serverKey}},
	}))
	var b bytes.Buffer
	must(pem.Encode(&b, &pem.Block{Type: "CERTIFICATE", Bytes: caDER}))
	return b.String()
}
