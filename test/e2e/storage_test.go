package e2e

import (
	"context"
	"encoding/xml"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/csi-s3/csi-s3/test/e2e/cluster"
)

// storageDriver is what Kubernetes' suite is told of us. Its tests of fsGroup want the kubelet to change the owner of
// every file, which is what a volume with a mount group does without.
const storageDriver = `
ShortName: s3
StorageClass: {FromExistingClassName: csi-s3}
DriverInfo:
  Name: csi-s3.dev
  SupportedSizeRange: {Min: 1Mi}
  SupportedFsType: {"": {}}
  RequiredAccessModes: [ReadWriteMany]
  Capabilities:
    persistence: true
    exec: true
    multipods: true
    RWX: true
    readWriteOncePod: true
    fsGroup: false
    block: false
`

// TestStorage is Kubernetes' own suite for storage drivers (External.Storage, default fs): every test that the driver's
// capabilities ask for and that one node can run. Those that its authors call disruptive, serial or slow are left out.
func TestStorage(t *testing.T) {
	install(t)
	dir := t.TempDir()
	driver := filepath.Join(dir, "driver.yaml")
	if err := os.WriteFile(driver, []byte(storageDriver), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Minute)
	defer cancel()
	_, err := suite.Network(ctx, filepath.Join(suite.bin, "e2e.test"), "-kubeconfig", suite.Kubeconfig(), "-provider", "local",
		"-kubectl-path", filepath.Join(suite.bin, "kubectl"), "-storage.testdriver", driver,
		"-ginkgo.focus", `External.Storage.*default fs`, "-ginkgo.skip", `\[Disruptive\]|\[Serial\]|\[Slow\]`, "-ginkgo.no-color",
		"-ginkgo.timeout", "18m", "-report-dir", dir, "-allowed-not-ready-nodes", "0")
	ran, passed, skipped := report(t, dir)
	t.Logf("%d tests ran on node %s, %d passed; %d are for capabilities that are not declared, or were left out", ran, cluster.Node, passed, skipped)
	if err != nil {
		t.Errorf("the suite ended with an error: %s", strings.SplitN(err.Error(), "\n", 2)[0])
	}
	if passed < 15 {
		t.Errorf("only %d tests passed", passed)
	}
}

// report reads the suite's JUnit report.
func report(t *testing.T, dir string) (ran, passed, skipped int) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "junit*.xml"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no report: %v", err)
	}
	text, err := os.ReadFile(files[0])
	if err != nil {
		t.Fatal(err)
	}
	var r struct {
		Suites []struct {
			Cases []struct {
				Name    string  `xml:"name,attr"`
				Time    float64 `xml:"time,attr"`
				Skipped *struct {
					Message string `xml:"message,attr"`
				} `xml:"skipped"`
				Failure *struct {
					Text string `xml:",chardata"`
				} `xml:"failure"`
			} `xml:"testcase"`
		} `xml:"testsuite"`
	}
	if err := xml.Unmarshal(text, &r); err != nil {
		t.Fatal(err)
	}
	for _, s := range r.Suites {
		for _, c := range s.Cases {
			switch {
			case !strings.HasPrefix(c.Name, "[It]"):
			case c.Skipped != nil:
				skipped++
			case c.Failure != nil:
				ran++
				t.Errorf("%s: %s", c.Name, c.Failure.Text)
			default:
				ran, passed = ran+1, passed+1
				t.Logf("%5.1f s  %s", c.Time, c.Name)
			}
		}
	}
	return ran, passed, skipped
}
