package e2e

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"os/signal"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/csi-s3/csi-s3/test/e2e/cluster"
	"github.com/csi-s3/csi-s3/test/minio"
)

const root = "../.."

// versions are what the binaries of Kubernetes say they are; the chart and kubectl ask.
const versions = "-X k8s.io/component-base/version.gitVersion=v1.36.3 -X k8s.io/component-base/version.gitMajor=1" +
	" -X k8s.io/component-base/version.gitMinor=36 -X k8s.io/component-base/version.gitTreeState=clean" +
	" -X k8s.io/component-base/version.gitCommit=module -X k8s.io/client-go/pkg/version.gitVersion=v1.36.3"

// kubeBinaries are the packages of the module kube whose binaries the cluster runs.
var kubeBinaries = []string{
	"./cmd/...", "github.com/kubernetes-csi/external-provisioner/v6/cmd/csi-provisioner", "helm.sh/helm/v3/cmd/helm",
	"k8s.io/kubernetes/test/images/agnhost",
}

// suite is what all tests share: one cluster, one S3 server.
var suite struct {
	*cluster.Cluster
	s3  *minio.Server
	bin string
}

func TestMain(m *testing.M) {
	code, err := run(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		code = max(code, 1)
	}
	os.Exit(code)
}

func run(m *testing.M) (code int, err error) {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if os.Geteuid() != 0 {
		if os.Getenv("CI") != "true" {
			fmt.Println("skipped: a cluster needs root")
			return 0, nil
		}
		return 1, errors.New("a cluster needs root")
	}
	if suite.bin, err = filepath.Abs(filepath.Join(root, "bin", "e2e")); err != nil {
		return 1, err
	}
	begin := time.Now()
	if err := build(ctx); err != nil {
		return 1, err
	}
	fmt.Printf("binaries after %.1f s\n", time.Since(begin).Seconds())
	dir, err := os.MkdirTemp("", "e2e") // paths of sockets must be short
	if err != nil {
		return 1, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	suite.s3, err = minio.Launch(ctx, filepath.Join(dir, "minio"))
	if err != nil {
		return 1, err
	}
	defer func() { err = errors.Join(err, suite.s3.Stop()) }()
	images, err := images(ctx)
	if err != nil {
		return 1, err
	}
	begin = time.Now()
	suite.Cluster, err = cluster.Up(ctx, filepath.Join(dir, "node"), suite.bin, images)
	if err != nil {
		return 1, err
	}
	defer func() { err = errors.Join(err, suite.Down()) }()
	fmt.Printf("cluster after %.1f s\n", time.Since(begin).Seconds())
	// An interrupted suite cleans up as well.
	done := make(chan int, 1)
	go func() { done <- m.Run() }()
	select {
	case code = <-done:
		return code, nil
	case <-ctx.Done():
		return 1, ctx.Err()
	}
}

// build makes the binaries that are not there yet.
func build(ctx context.Context) error {
	steps := []struct {
		dir  string
		args []string
	}{
		{"kube", []string{"test", "-c", "-vet=off", "-ldflags", "-s -w", "-o", filepath.Join(suite.bin, "e2e.test"), "./storage"}},
		{"kube", append([]string{"build", "-ldflags", "-s -w " + versions, "-o", suite.bin + "/"}, kubeBinaries...)},
		{root, []string{"build", "-trimpath", "-ldflags", "-s -w -X main.version=e2e", "-o", suite.bin + "/", "./cmd/csi-s3"}},
	}
	for _, s := range steps {
		cmd := exec.CommandContext(ctx, "go", s.args...)
		cmd.Dir = s.dir
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("go %s: %w: %s", strings.Join(s.args, " "), err, out)
		}
	}
	// The suite of Kubernetes wants a kubectl of its own.
	script := fmt.Sprintf("#!/bin/sh\nexec %s kubectl \"$@\"\n", filepath.Join(suite.bin, "kube"))
	return os.WriteFile(filepath.Join(suite.bin, "kubectl"), []byte(script), 0o755)
}

// images are those that the chart and the examples name, made of what is on this machine.
func images(ctx context.Context) ([]cluster.Image, error) {
	busybox, err := busybox(ctx)
	if err != nil {
		return nil, err
	}
	nginx, err := nginx(ctx)
	if err != nil {
		return nil, err
	}
	redis := cluster.Image{Entrypoint: []string{"redis-server"}, Files: map[string]string{
		"usr/bin/redis-server": "/usr/bin/redis-check-rdb", "usr/bin/redis-cli": "/usr/bin/redis-cli",
	}}
	if err := libraries(ctx, redis.Files); err != nil {
		return nil, err
	}
	static := func(name string) cluster.Image {
		return cluster.Image{Entrypoint: []string{"/" + name}, Files: map[string]string{name: filepath.Join(suite.bin, name)}}
	}
	driver := static("csi-s3")
	driver.Files["etc/ssl/certs/ca-certificates.crt"] = "/etc/ssl/certs/ca-certificates.crt"
	// By the last part of the image's name.
	known := map[string]cluster.Image{
		"csi-s3": driver, "csi-provisioner": static("csi-provisioner"),
		"csi-node-driver-registrar": static("csi-node-driver-registrar"), "livenessprobe": static("livenessprobe"),
		"busybox": busybox, "nginx": with(nginx, busybox), "redis": with(redis, busybox),
	}
	// Those of Kubernetes' own tests.
	names := []string{"registry.k8s.io/e2e-test-images/busybox:1.37.0-1", "registry.k8s.io/e2e-test-images/nginx:1.15-4", "registry.k8s.io/e2e-test-images/agnhost:2.63.0"}
	known["agnhost"] = with(static("agnhost"), busybox)
	pause := cluster.Image{
		Names: []string{"localhost/pause:e2e"}, Files: map[string]string{"bin/sleep": "/bin/busybox"},
		Entrypoint: []string{"/bin/sleep", "2147483647"},
	}
	all := []cluster.Image{pause}
	ours, err := imageNames(ctx)
	if err != nil {
		return nil, err
	}
	for _, name := range slices.Concat(names, ours, []string{busyboxImage}) {
		base, _, _ := strings.Cut(path.Base(name), ":")
		im, ok := known[base]
		if !ok {
			return nil, fmt.Errorf("image %s: nothing here can stand for it", name)
		}
		im.Names = []string{full(name)}
		all = append(all, im)
	}
	return all, nil
}

// busyboxImage is the image of the tests' own pods.
const busyboxImage = "busybox:1.37"

// full is an image's name with what container runtimes leave out.
func full(name string) string {
	first, _, slash := strings.Cut(name, "/")
	switch {
	case !slash:
		return "docker.io/library/" + name
	case !strings.ContainsAny(first, ".:"):
		return "docker.io/" + name
	}
	return name
}

var imageLine = regexp.MustCompile(`(?m)^[\s-]*image: *"?([^\s"#]+)"?`)

// imageNames are the images that the chart and the examples name.
func imageNames(ctx context.Context) ([]string, error) {
	chart, err := exec.CommandContext(ctx, filepath.Join(suite.bin, "helm"), "template", "csi-s3", filepath.Join(root, "charts", "csi-s3"), "--kube-version", "1.36", "--set", "secret.endpoint=http://x,secret.accessKey=x,secret.secretKey=x").Output()
	if err != nil {
		return nil, fmt.Errorf("helm template: %w", err)
	}
	text := string(chart)
	files, err := filepath.Glob(filepath.Join(root, "examples", "*.yaml"))
	if err != nil {
		return nil, err
	}
	for _, f := range files {
		example, err := os.ReadFile(f)
		if err != nil {
			return nil, err
		}
		text += string(example)
	}
	var names []string
	for _, m := range imageLine.FindAllStringSubmatch(text, -1) {
		names = append(names, m[1])
	}
	slices.Sort(names)
	return slices.Compact(names), nil
}

// with adds the files of another image.
func with(im, other cluster.Image) cluster.Image {
	for k, v := range other.Files {
		if im.Files[k] == "" {
			im.Files[k] = v
		}
	}
	im.Links, im.Dirs = other.Links, append(im.Dirs, other.Dirs...)
	if im.Texts == nil {
		im.Texts = map[string]string{}
	}
	for k, v := range other.Texts {
		im.Texts[k] = v
	}
	return im
}

func busybox(ctx context.Context) (cluster.Image, error) {
	im := cluster.Image{
		Entrypoint: nil, Cmd: []string{"sh"},
		Files: map[string]string{"bin/busybox": "/bin/busybox"}, Links: map[string]string{}, Dirs: []string{"tmp", "var/tmp", "run"},
		Texts: map[string]string{
			"etc/passwd": "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534::/:/bin/false\n",
			"etc/group":  "root:x:0:\nnogroup:x:65534:\n",
		},
	}
	applets, err := exec.CommandContext(ctx, "/bin/busybox", "--list").Output()
	if err != nil {
		return im, fmt.Errorf("busybox-static is missing: %w", err)
	}
	for name := range strings.FieldsSeq(string(applets)) {
		if name != "busybox" {
			im.Links["bin/"+name] = "busybox"
		}
	}
	return im, nil
}

// nginx is the server of Debian's package, which is not installed: it would be started.
func nginx(ctx context.Context) (cluster.Image, error) {
	dir := filepath.Join(suite.bin, "nginx")
	binary := filepath.Join(dir, "usr", "sbin", "nginx")
	if _, err := os.Stat(binary); err != nil {
		script := `set -e; rm -rf "$1"; mkdir -p "$1"; cd "$1"; apt-get download -q nginx || { apt-get update -q; apt-get download -q nginx; }; dpkg -x nginx_*.deb .; rm nginx_*.deb`
		if out, err := exec.CommandContext(ctx, "sh", "-c", script, "sh", dir).CombinedOutput(); err != nil {
			return cluster.Image{}, fmt.Errorf("package nginx: %w: %s", err, out)
		}
	}
	im := cluster.Image{
		Entrypoint: []string{"/usr/sbin/nginx", "-e", "/dev/stderr", "-g", "daemon off;"},
		Files:      map[string]string{"usr/sbin/nginx": binary},
		Dirs:       []string{"var/lib/nginx", "var/log/nginx", "usr/share/nginx/html"},
		Texts: map[string]string{"etc/nginx/nginx.conf": "user root;\npid /run/nginx.pid;\nevents {}\nhttp {\n  access_log off;\n" +
			"  server { listen 80; root /usr/share/nginx/html; }\n}\n"},
	}
	return im, libraries(ctx, im.Files)
}

// libraries adds the shared libraries of the programs.
func libraries(ctx context.Context, files map[string]string) error {
	for _, program := range slices.Sorted(maps.Values(files)) {
		out, err := exec.CommandContext(ctx, "ldd", program).CombinedOutput()
		if err != nil {
			return fmt.Errorf("ldd %s: %w: %s", program, err, out)
		}
		for line := range strings.Lines(string(out)) {
			if strings.Contains(line, "not found") {
				return fmt.Errorf("%s needs %s", program, line)
			}
			for _, word := range strings.Fields(line) {
				if strings.HasPrefix(word, "/") {
					files[strings.TrimPrefix(word, "/")] = word
				}
			}
		}
	}
	return nil
}
