package config_test

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/csi-s3/csi-s3/pkg/config"
)

func TestParseMount(t *testing.T) {
	base := config.DefaultMount()
	for _, c := range []struct {
		options string
		change  func(*config.Mount)
	}{
		{"", func(*config.Mount) {}},
		{"rw", func(*config.Mount) {}},
		{"ro", func(m *config.Mount) { m.ReadOnly = true }},
		{"ro,rw", func(*config.Mount) {}},
		{"access=rwx", func(m *config.Mount) { m.Access, m.Fsync = "rwx", "bucket" }},
		{"fsync=node,access=rwx", func(m *config.Mount) { m.Access = "rwx" }},
		{"access=rox", func(m *config.Mount) { m.Access, m.ReadOnly = "rox", true }},
		{"immutable", func(m *config.Mount) { m.Immutable, m.ReadOnly = true, true }},
		{"exclusive,allow_other", func(m *config.Mount) { m.Exclusive, m.AllowOther = true, true }},
		{"size=100Mi,uid=1000,gid=4294967294", func(m *config.Mount) { m.Size, m.Uid, m.Gid = 100<<20, 1000, 4294967294 }},
		{"file-mode=0666,dir-mode=777", func(m *config.Mount) { m.FileMode, m.DirMode = 0o666, 0o777 }},
		{"settle=250ms,io-timeout=1m", func(m *config.Mount) { m.Settle, m.IOTimeout = 250*time.Millisecond, time.Minute }},
		{"conflict=overwrite", func(m *config.Mount) {
			m.Conflict = "overwrite"
		}},
		{"takeover=after-ttl", func(m *config.Mount) { m.Takeover = "after-ttl" }},
		{"uid=1,uid=2", func(m *config.Mount) { m.Uid = 2 }},
	} {
		want := base
		c.change(&want)
		got, err := config.ParseMount(strings.Split(c.options, ","))
		if err != nil || got != want {
			t.Errorf("%s: %+v, %v\nwant %+v", c.options, got, err, want)
		}
	}
	if got, err := config.ParseMount(nil); err != nil || got != base {
		t.Errorf("no options: %+v, %v", got, err)
	}
}

func TestParseMountRefuses(t *testing.T) {
	for _, option := range []string{
		"nonsense", "nonsense=1", "RO", " ro", "ro=1", "ro=", "uid", "uid=", "uid=-1", "uid=root", "uid=4294967295", "uid=4294967296",
		"file-mode=1777", "file-mode=0o644", "dir-mode=888", "size=", "size=-1", "size=1.5Gi", "size=1Mib", "size=9999999Pi",
		"access=rwop", "takeover=now", "fsync=", "settle=1", "settle=-1s", "allow-other", "suid", "dev", "context=x",
	} {
		_, err := config.ParseMount([]string{option})
		if !errors.Is(err, config.ErrOption) {
			t.Errorf("%q: %v", option, err)
			continue
		}
		name, _, _ := strings.Cut(option, "=")
		if !strings.Contains(err.Error(), name) {
			t.Errorf("%q is not named: %v", option, err)
		}
	}
}

// Every option changes a mount: none is accepted and then forgotten.
func TestMountOptionsAllWork(t *testing.T) {
	values := map[string]string{
		"access": "rwx", "fsync": "bucket", "conflict": "overwrite", "takeover": "after-ttl", "size": "1", "uid": "1", "gid": "1", "file-mode": "1",
		"dir-mode": "1", "settle": "1h", "io-timeout": "1h",
	}
	for _, o := range config.MountOptions() {
		text := o.Name
		if o.Form != "" {
			text += "=" + values[o.Name]
		}
		got, err := config.ParseMount([]string{text})
		if err != nil || got == config.DefaultMount() {
			t.Errorf("%s: %v, changed %v", text, err, got != config.DefaultMount())
		}
		if o.Help == "" || o.Default == "" {
			t.Errorf("%s has no help or default", o.Name)
		}
	}
}

func TestParseSize(t *testing.T) {
	for text, want := range map[string]int64{"0": 0, "7": 7, "5k": 5000, "1G": 1e9, "1Ki": 1 << 10, "3Gi": 3 << 30, "1Pi": 1 << 50, "9223372036854775807": 1<<63 - 1} {
		if got, err := config.ParseSize(text); err != nil || got != want {
			t.Errorf("%s: %d, %v", text, got, err)
		}
	}
	for _, bad := range []string{"", "Mi", "-1", "1.5Gi", "1Xi", "1K", "1 Gi", "9223372036854775808", "9007199254740993Ki", "1MiMi"} {
		if n, err := config.ParseSize(bad); err == nil {
			t.Errorf("%q is %d", bad, n)
		}
	}
}

func TestFormatSize(t *testing.T) {
	for n, want := range map[int64]string{0: "0 bytes", 1023: "1023 bytes", 1024: "1Ki", 1536: "1.5Ki", 256 << 20: "256Mi", 1<<30 + 1: "1.0Gi", 2048 << 50: "2048Pi"} {
		if got := config.FormatSize(n); got != want {
			t.Errorf("%d: %q, want %q", n, got, want)
		}
	}
}

// The README's table is the vocabulary's, word by word.
func TestREADME(t *testing.T) {
	text, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, begin := strings.Cut(string(text), "| --- | --- | --- |\n")
	got, _, end := strings.Cut(rest, "<!-- end of options -->")
	if !begin || !end {
		t.Fatal("README.md has no table of options")
	}
	var want strings.Builder
	for _, o := range config.MountOptions() {
		fmt.Fprintf(&want, "| `%s` | %s | %s |\n", strings.ReplaceAll(o.String(), "|", `\|`), o.Default, o.Help)
	}
	if got != want.String() {
		t.Errorf("README.md has\n%s\nwant\n%s", got, want.String())
	}
}
