package conformance_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/csi-s3/csi-s3/test/minio"
)

// recoverRun is csi-s3 recover.
func recoverRun(t *testing.T, p *process, args ...string) (output string, code int) {
	t.Helper()
	c := exec.CommandContext(t.Context(), p.binary, append([]string{"recover"}, args...)...)
	out, err := c.CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return string(out), c.ProcessState.ExitCode()
}

// TestRecover: the bucket goes away for good while a volume has data that it does not hold, and the driver dies. An
// operator finds the data in the cache, saves it, gives the cache up, and the volume can be unstaged.
func TestRecover(t *testing.T) {
	if !ownMounts(t) {
		return
	}
	server := minio.Start(t)
	p := newProcess(t)
	k := newKubelet(t, p, secrets(server))
	check(t, k.create("pvc-gone", nil))
	check(t, k.stage())
	check(t, k.publish(false))
	stored := bytes.Repeat([]byte("stored "), 300<<10)
	check(t, os.WriteFile(filepath.Join(k.target, "base"), stored, 0o644))
	if out, err := exec.CommandContext(t.Context(), p.binary, "flush", k.target).CombinedOutput(); err != nil {
		t.Fatalf("flush: %v: %s", err, out)
	}
	check(t, server.Signal(syscall.SIGSTOP))
	defer func() { check(t, server.Signal(syscall.SIGCONT)) }() // the end of the test stops it in order
	want := map[string][]byte{}
	dirty := 0
	for name, size := range map[string]int{"one": 1, "dir/two": 5 << 20, "dir/deep/three": 100_000} {
		want[name] = bytes.Repeat([]byte(name), size/len(name)+1)
		dirty += len(want[name])
		check(t, writeFile(filepath.Join(k.target, name), want[name], true))
	}
	f, err := os.OpenFile(filepath.Join(k.target, "base"), os.O_WRONLY, 0)
	check(t, err)
	_, err = f.WriteAt([]byte("changed"), 1<<20)
	check(t, errors.Join(err, f.Close()))

	cacheDir, to := filepath.Join(p.dir, "cache"), filepath.Join(p.dir, "saved")
	if out, code := recoverRun(t, p, cacheDir, "--list"); code != 3 || !strings.Contains(out, "a process uses the cache") {
		t.Errorf("recover of a cache in use: %d, %s", code, out)
	}
	_ = p.stop(syscall.SIGKILL) // as it is told
	p.start(t)
	check(t, k.unpublish())
	if err := k.unstage(); status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), "drained") {
		t.Errorf("an unstage of what a dead process left: %v", err)
	}

	out, code := recoverRun(t, p, cacheDir, "--list")
	for _, name := range []string{`"dir/two"`, `"dir/deep/three"`, `"one"`, `"base"`, k.volume.GetVolumeId()} {
		if code != 0 || !strings.Contains(out, name) {
			t.Fatalf("list does not say %s: %d, %s", name, code, out)
		}
	}
	dir := regexp.MustCompile(`cache in (\S+):`).FindStringSubmatch(out)[1]
	if out, code := recoverRun(t, p, dir, "--to", to, "--discard", "another"); code != 3 || !strings.Contains(out, "nothing was done") {
		t.Errorf("discard of another volume: %d, %s", code, out)
	}
	if _, err := os.Lstat(to); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("what was refused made %s: %v", to, err)
	}
	if out, code := recoverRun(t, p, dir, "--to", to); code != 0 {
		t.Fatalf("recover: %d, %s", code, out)
	}
	copied := bytes.Repeat([]byte{0}, len(stored))
	copy(copied[1<<20:], "changed")
	want["base"] = copied
	for name, content := range want {
		got, err := os.ReadFile(filepath.Join(to, "files", name))
		if err != nil || !bytes.Equal(got, content) {
			t.Errorf("%s: %d bytes, want %d (%v)", name, len(got), len(content), err)
		}
	}
	var report struct {
		Complete   bool
		FilesSaved int
		BytesSaved int
	}
	text, err := os.ReadFile(filepath.Join(to, "recover-report.json"))
	check(t, err)
	check(t, json.Unmarshal(text, &report))
	if !report.Complete || report.FilesSaved < len(want) || report.BytesSaved != dirty+len("changed") {
		t.Errorf("report: %+v, want %d files and %d bytes", report, len(want), dirty)
	}
	if err := k.unstage(); status.Code(err) != codes.Unavailable {
		t.Errorf("an unstage after the data was saved and not given up: %v", err)
	}
	if out, code := recoverRun(t, p, dir, "--to", to+"-2", "--discard", k.volume.GetVolumeId()); code != 0 || !strings.Contains(out, "given up") {
		t.Fatalf("recover: %d, %s", code, out)
	}
	check(t, k.unstage())
	t.Logf("%d files with %d bytes that no bucket had were saved", report.FilesSaved, report.BytesSaved)
}
