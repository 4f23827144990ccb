package config_test

import (
	"errors"
	"reflect"
	"strings"
	"testing"

	"github.com/csi-s3/csi-s3/pkg/config"
)

func TestParseGeesefs(t *testing.T) {
	for options, want := range map[string]config.Geesefs{
		"":       {},
		" \t\n ": {},
		"--memory-limit 1000 --dir-mode 0777 --file-mode 0666": {Options: []string{"dir-mode=0777", "file-mode=0666"}, Ignored: []string{"--memory-limit"}},
		"--uid=1000 -gid 1000 --region ru-central1":            {Options: []string{"uid=1000", "gid=1000"}, Region: "ru-central1"},
		`--region "a b" --cache "/var/c\"ache\\"`:              {Region: "a b", Ignored: []string{"--cache"}},
		"--no-verify-ssl --subdomain --no-systemd":             {Insecure: true, VirtualHost: true, Ignored: []string{"--no-systemd"}},
		"--no-verify-ssl=false --subdomain=true":               {VirtualHost: true},
		"-o allow_other -o ro,nosuid":                          {Options: []string{"allow_other", "ro"}},
		"--cheap --cheap --stat-cache-ttl 30s --list-type=1":   {Ignored: []string{"--cheap", "--stat-cache-ttl", "--list-type"}},
	} {
		got, err := config.ParseGeesefs(options)
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%q: %+v, %v", options, got, err)
		}
		if _, err := config.ParseMount(got.Options); err != nil {
			t.Errorf("%q gives options %q: %v", options, got.Options, err)
		}
	}
}

func TestParseGeesefsRefuses(t *testing.T) {
	for options, name := range map[string]string{
		"--log-file /tmp/x":                 "--log-file",
		"--shared-config=/root/.aws/config": "--shared-config",
		"--profile admin":                   "--profile",
		"--endpoint http://evil":            "--endpoint",
		"--iam":                             "--iam",
		"--iam=false":                       "--iam",
		"--sse-c a2V5":                      "--sse-c",
		"--storage-class GLACIER":           "--storage-class",
		"--mode-attr x":                     "--mode-attr",
		"--ignore-fsync":                    "--ignore-fsync",
		"--nonsense 1":                      "--nonsense",
		"--":                                "--",
		"---cheap":                          "---cheap",
		"allow_other":                       "allow_other",
		"-":                                 "-",
		"--uid":                             "--uid",
		"--uid root":                        "uid",
		"--dir-mode 0x1ff":                  "dir-mode",
		"--cheap=perhaps":                   "--cheap",
		"-o suid":                           "suid",
		`--region "x`:                       "quote",
		"--dir-mode 0777 stray":             "stray",
		"--memory-limit cheap -debug_x":     "-debug_x",
		"--cache a --gc-interval 3 --iam x": "--iam",
		"-o allow_other,dev":                "dev",
	} {
		got, err := config.ParseGeesefs(options)
		if !errors.Is(err, config.ErrOption) || !strings.Contains(err.Error(), name) || !reflect.DeepEqual(got, config.Geesefs{}) {
			t.Errorf("%q: %+v, %v", options, got, err)
		}
	}
}

// What passes for a volume's options can be mounted.
func FuzzParseGeesefs(f *testing.F) {
	for _, s := range []string{"--dir-mode 0777", `--region "a\"b"`, "-o ro,allow_other", "--uid=4294967295", "--=", "-o="} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, options string) {
		g, err := config.ParseGeesefs(options)
		if err != nil {
			if !errors.Is(err, config.ErrOption) {
				t.Fatal(err)
			}
			return
		}
		if _, err := config.ParseMount(g.Options); err != nil {
			t.Fatalf("%q gives %q: %v", options, g.Options, err)
		}
	})
}
