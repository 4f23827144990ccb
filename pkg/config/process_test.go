package config_test

import (
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/csi-s3/csi-s3/pkg/config"
)

func parseProcess(args map[string]string) (config.Process, error) {
	p := config.DefaultProcess()
	for _, f := range config.ProcessFlags() {
		if v, given := args[f.Name]; given {
			if err := f.Set(&p, v); err != nil {
				return p, err
			}
		}
	}
	return p, p.Validate()
}

func TestProcess(t *testing.T) {
	p, err := parseProcess(map[string]string{
		"mode": "node", "endpoint": "unix:///run/x.sock", "driver-name": "ru.yandex.s3.csi", "node-id": "n1", "cache-dir": "/var/cache",
		"keeper-socket": "/run/k.sock", "metrics-addr": "127.0.0.1:9810", "memory": "512Mi", "cluster-id": "uid",
	})
	want := config.Process{Mode: "node", Endpoint: "/run/x.sock", DriverName: "ru.yandex.s3.csi", NodeID: "n1", CacheDir: "/var/cache",
		KeeperSocket: "/run/k.sock", MetricsAddr: "127.0.0.1:9810", Memory: 512 << 20, ClusterID: "uid"}
	if err != nil || p != want || !p.Node() || p.Controller() {
		t.Fatalf("%+v, %v", p, err)
	}
	if p, err = parseProcess(map[string]string{"mode": "controller"}); err != nil || p.Node() || !p.Controller() {
		t.Fatalf("%+v, %v", p, err)
	}
}

// The defaults in the table are those of the struct.
func TestProcessDefaults(t *testing.T) {
	var p config.Process
	for _, f := range config.ProcessFlags() {
		if f.Default != "" {
			if err := f.Set(&p, f.Default); err != nil {
				t.Error(err)
			}
		}
		if f.Help == "" || f.Form == "" {
			t.Errorf("%s has no help or form", f.Name)
		}
	}
	if p != config.DefaultProcess() {
		t.Fatalf("%+v, want %+v", p, config.DefaultProcess())
	}
}

func TestProcessRefuses(t *testing.T) {
	for _, c := range []map[string]string{
		{"mode": "both"}, {"endpoint": "tcp://0.0.0.0:1"}, {"endpoint": "/csi/csi.sock"}, {"endpoint": "unix://csi.sock"}, {"endpoint": ""},
		{"driver-name": ""}, {"driver-name": "a/b"}, {"driver-name": "-a"}, {"driver-name": strings.Repeat("a", 64)},
		{"cache-dir": "cache"}, {"keeper-socket": "k"}, {"metrics-addr": "9810"}, {"memory": "1Mi"}, {"memory": "lots"},
	} {
		for name := range c {
			if _, err := parseProcess(c); !errors.Is(err, config.ErrFlag) || !strings.Contains(err.Error(), "--"+name) {
				t.Errorf("%v: %v", c, err)
			}
		}
	}
	for missing, args := range map[string]map[string]string{
		"--node-id":   {"mode": "node", "cache-dir": "/c"},
		"--cache-dir": {"node-id": "n"},
	} {
		if _, err := parseProcess(args); !errors.Is(err, config.ErrFlag) || !strings.Contains(err.Error(), missing) {
			t.Errorf("%v: %v", args, err)
		}
	}
}

// What the chart renders is what this package reads: arguments, parameters and secrets.
func TestChart(t *testing.T) {
	files, err := filepath.Glob("../../test/chart/testdata/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	drivers, classes, secrets := 0, 0, 0
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for document := range strings.SplitSeq(string(text), "\n---\n") {
			if _, args, found := strings.Cut(document, "            - driver\n"); found {
				drivers++
				checkArgs(t, file, args)
			}
			switch {
			case strings.Contains(document, "\nkind: StorageClass\n"):
				classes++
				if _, err := config.ParseParameters(with(metadata, pairs(t, document, "parameters")...)); err != nil {
					t.Errorf("%s: %v", file, err)
				}
			case strings.Contains(document, "\nkind: Secret\n"):
				secrets++
				s, err := config.ParseSecret(with(nil, pairs(t, document, "stringData")...))
				if err != nil || s.VirtualHost != strings.Contains(document, "pathStyle") || s.Insecure != strings.Contains(document, "insecure") {
					t.Errorf("%s: %+v, %v", file, s, err)
				}
			}
		}
	}
	if drivers == 0 || classes == 0 || secrets == 0 {
		t.Fatalf("%d drivers, %d classes, %d secrets in %v", drivers, classes, secrets, files)
	}
}

func checkArgs(t *testing.T, file, after string) {
	known := map[string]bool{"log-level": true}
	for _, f := range config.ProcessFlags() {
		known[f.Name] = true
	}
	args := map[string]string{}
	for line := range strings.Lines(after) {
		arg, found := strings.CutPrefix(strings.TrimSpace(line), "- --")
		if !found {
			break
		}
		name, value, _ := strings.Cut(arg, "=")
		if !known[name] {
			t.Errorf("%s: --%s is no flag", file, name)
		}
		args[name] = value
	}
	if _, err := parseProcess(args); err != nil || len(args) < 4 {
		t.Errorf("%s: %v, %v", file, args, err)
	}
}

var yamlPair = regexp.MustCompile(`^  (\S+): "(.*)"$`)

// pairs reads the quoted strings of one mapping at the top of a rendered document.
func pairs(t *testing.T, document, mapping string) []string {
	t.Helper()
	_, rest, found := strings.Cut(document, "\n"+mapping+":\n")
	if !found {
		return nil
	}
	var out []string
	for line := range strings.Lines(rest) {
		line = strings.TrimSuffix(line, "\n")
		if !strings.HasPrefix(line, "  ") {
			break
		}
		m := yamlPair.FindStringSubmatch(line)
		if m == nil {
			t.Fatalf("cannot read %q", line)
		}
		out = append(out, m[1], strings.ReplaceAll(m[2], `\n`, "\n"))
	}
	return out
}
