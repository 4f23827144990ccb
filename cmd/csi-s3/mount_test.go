package main

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/csi-s3/csi-s3/pkg/s3"
)

// testProcess has no surroundings but the given environment.
func testProcess(env map[string]string) *process {
	return &process{
		stdout: io.Discard, stderr: io.Discard,
		getenv:     func(k string) string { return env[k] },
		signals:    make(chan os.Signal, 2),
		startCheck: 500 * time.Millisecond,
	}
}

// answering serves one status and S3 error body for every request.
func answering(t *testing.T, status int, body string) string {
	t.Helper()
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/xml")
		w.WriteHeader(status)
		io.WriteString(w, body)
	}))
	t.Cleanup(srv.Close)
	return srv.URL
}

// What can never work is refused before the mount, in one line that says what to do, and within the time of the check.
func TestMountRefused(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	keys := map[string]string{"AWS_ACCESS_KEY_ID": "AKtest", "AWS_SECRET_ACCESS_KEY": "secret-of-test", "HOME": dir}
	down := httptest.NewServer(http.NotFoundHandler())
	down.Close()
	hang := make(chan struct{})
	silent := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		select {
		case <-hang:
		case <-r.Context().Done():
		}
	}))
	t.Cleanup(silent.Close)
	t.Cleanup(func() { close(hang) })

	xml := func(code string) string { return "<Error><Code>" + code + "</Code><Message>m</Message></Error>" }
	for _, c := range []struct {
		name string
		env  map[string]string
		args []string
		code int
		want string
	}{
		{"not a source", keys, []string{"bucket", dir}, exitUsage, "s3://BUCKET"},
		{"no bucket name", keys, []string{"s3:///p", dir}, exitUsage, "names no bucket"},
		{"dots in the prefix", keys, []string{"s3://b/a/../c", dir}, exitUsage, "no empty component"},
		{"unknown option", keys, []string{"-o", "frobnicate", "s3://b", dir}, exitUsage, "frobnicate"},
		{"unknown flag", keys, []string{"--frobnicate", "s3://b", dir}, exitUsage, "--frobnicate"},
		{"memory", keys, []string{"--memory", "1Mi", "s3://b", dir}, exitUsage, "64Mi"},
		{"no directory", keys, []string{"s3://b", filepath.Join(dir, "absent")}, exitRefused, "make the directory first"},
		{"a file", keys, []string{"s3://b", file}, exitRefused, "not a directory"},
		{"no keys", map[string]string{"HOME": dir}, []string{"s3://b", dir}, exitRefused, "AWS_ACCESS_KEY_ID"},
		{"endpoint without scheme", keys, []string{"--endpoint", "minio:9000", "s3://b", dir}, exitRefused, "http"},
		{"no CA file", keys, []string{"--ca-bundle", "/absent.pem", "s3://b", dir}, exitRefused, "CA bundle"},
		{"name that the server does not take", keys, []string{"--endpoint", answering(t, 400, xml("InvalidBucketName")), "s3://b", dir}, exitRefused, "name of the bucket"},
		{"missing bucket", keys, []string{"--endpoint", answering(t, 404, xml("NoSuchBucket")), "s3://nobucket", dir}, exitRefused, `no bucket "nobucket"`},
		{"unknown key", keys, []string{"--endpoint", answering(t, 403, xml("InvalidAccessKeyId")), "s3://b", dir}, exitRefused, "refuses these credentials"},
		{"wrong secret", keys, []string{"--endpoint", answering(t, 403, xml("SignatureDoesNotMatch")), "s3://b", dir}, exitRefused, "SignatureDoesNotMatch"},
		{"wrong region", keys, []string{"--endpoint", answering(t, 301, xml("PermanentRedirect")), "s3://b", dir}, exitRefused, "--region"},
		{"endpoint down", keys, []string{"--endpoint", down.URL, "s3://b", dir}, exitUnavailable, "does not answer"},
		{"endpoint silent", keys, []string{"--endpoint", silent.URL, "s3://b", dir}, exitUnavailable, "does not answer"},
		{"endpoint failing", keys, []string{"--endpoint", answering(t, 503, xml("SlowDown")), "s3://b", dir}, exitUnavailable, "does not answer"},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := testProcess(c.env)
			begin := time.Now()
			err := p.run(t.Context(), append([]string{"mount"}, c.args...))
			if err == nil {
				t.Fatal("mounted")
			}
			if took := time.Since(begin); took > 5*time.Second {
				t.Errorf("took %v", took)
			}
			if got := exitCode(err); got != c.code {
				t.Errorf("exit code %d, want %d: %v", got, c.code, err)
			}
			text := err.Error()
			if !strings.Contains(text, c.want) {
				t.Errorf("the error does not say %q: %s", c.want, text)
			}
			if strings.Contains(text, "\n") {
				t.Errorf("more than one line: %s", text)
			}
			if strings.Contains(text, "AKtest") || strings.Contains(text, "secret-of-test") {
				t.Errorf("credentials in the error: %s", text)
			}
		})
	}
}

func TestCommandLine(t *testing.T) {
	for _, c := range []struct {
		args []string
		code int
		want string // in the output or the error
	}{
		{nil, exitOK, "csi-s3 mount s3://BUCKET/PREFIX DIR"},
		{[]string{"--help"}, exitOK, "Exit codes"},
		{[]string{"mount", "--help"}, exitOK, "AWS_ACCESS_KEY_ID"},
		{[]string{"version"}, exitOK, "csi-s3 unknown"},
		{[]string{"--version"}, exitOK, "csi-s3 unknown"},
		{[]string{"frobnicate"}, exitUsage, "unknown command"},
		{[]string{"mount"}, exitUsage, "s3://BUCKET[/PREFIX] is missing"},
		{[]string{"mount", "s3://b"}, exitUsage, "DIR is missing"},
		{[]string{"flush"}, exitUsage, "DIR is missing"},
		{[]string{"flush", "a", "b"}, exitUsage, "one argument too many"},
		{[]string{"flush", "/proc/self/absent"}, exitRefused, "does not exist"},
		{[]string{"flush", "/"}, exitRefused, "not a directory of a csi-s3 mount"},
		{[]string{"lease"}, exitUsage, "s3://BUCKET[/PREFIX] is missing"},
		{[]string{"lease", "bucket"}, exitUsage, "s3://BUCKET"},
		{[]string{"lease", "--help"}, exitOK, "GIVES UP FOR GOOD"},
		{[]string{"recover"}, exitUsage, "CACHE-DIRECTORY is missing"},
		{[]string{"recover", "/"}, exitUsage, "--list or --to"},
		{[]string{"recover", "/", "--list", "--to", "x"}, exitUsage, "--list or --to"},
		{[]string{"recover", "/", "--list", "--discard", "v"}, exitUsage, "--discard needs --to"},
		{[]string{"recover", "/proc/self/fdinfo", "--list"}, exitRefused, "not one of csi-s3"},
		{[]string{"recover", "--help"}, exitOK, "will not come back"},
		{[]string{"--log-level", "loud", "version"}, exitUsage, "loud"},
	} {
		var out strings.Builder
		p := testProcess(nil)
		p.stdout = &out
		err := p.run(t.Context(), c.args)
		if got := exitCode(err); got != c.code {
			t.Errorf("%q: exit code %d, want %d: %v", c.args, got, c.code, err)
		}
		text := out.String()
		if err != nil {
			text += err.Error()
		}
		if !strings.Contains(text, c.want) {
			t.Errorf("%q does not say %q: %s", c.args, c.want, text)
		}
	}
}

func TestParseSource(t *testing.T) {
	for _, c := range []struct {
		source, bucket string
		prefix         s3.Key
		id             string
	}{
		{"s3://b", "b", "", "b"},
		{"s3://b/", "b", "", "b"},
		{"s3://b/a", "b", "a/", "b/a"},
		{"s3://b/a/c d/", "b", "a/c d/", "b/a/c d"},
	} {
		bucket, prefix, err := parseSource(c.source)
		if err != nil || bucket != c.bucket || prefix != c.prefix {
			t.Errorf("%s: %q %q %v", c.source, bucket, prefix, err)
		}
		if id := (place{bucket: bucket, prefix: prefix}).volumeID(); id != c.id {
			t.Errorf("%s: volume ID %q, want %q", c.source, id, c.id)
		}
	}
	for _, bad := range []string{"", "b", "http://b", "s3:/b", "s3://", "s3:///a", "s3://b/a//c", "s3://b//a", "s3://b/./a", "s3://user@b/a", "s3://b:1/a", "s3://b/a\x00"} {
		if bucket, prefix, err := parseSource(bad); err == nil {
			t.Errorf("%q parsed as %q %q", bad, bucket, prefix)
		} else if exitCode(err) != exitUsage {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

// Two places never share a cache, however their parts are cut.
func TestCacheDir(t *testing.T) {
	p := testProcess(nil)
	seen := map[string]place{}
	for _, at := range []place{
		{"b", "", "http://x"}, {"b", "a/", "http://x"}, {"b", "", "http://y"}, {"c", "", "http://x"}, {"b", "a/b/", "http://x"},
	} {
		dir, err := p.cacheDir("/c", at)
		if err != nil {
			t.Fatal(err)
		}
		if other, ok := seen[dir]; ok {
			t.Errorf("%v and %v share %s", at, other, dir)
		}
		if again, _ := p.cacheDir("/c", at); again != dir {
			t.Errorf("%v: %s, then %s", at, dir, again)
		}
		seen[dir] = at
	}
}

func TestExitCode(t *testing.T) {
	for _, c := range []struct {
		err  error
		want int
	}{
		{nil, exitOK},
		{errors.New("x"), exitFailure},
		{usageError("x"), exitUsage},
		{context.DeadlineExceeded, exitUnavailable},
		{s3.ErrUnavailable, exitUnavailable},
		{&exitError{exitDirty, s3.ErrUnavailable}, exitDirty},
	} {
		if got := exitCode(c.err); got != c.want {
			t.Errorf("%v: %d, want %d", c.err, got, c.want)
		}
	}
}
