package e2e

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// TestScale has many claims and pods at once, and nothing left of them.
func TestScale(t *testing.T) {
	const count = 50
	install(t)
	ns := namespace(t)
	before := pluginState(t)
	s := steps{t, time.Now()}
	var b strings.Builder
	for i := range count {
		name := fmt.Sprint("p", i)
		b.WriteString(claim(name, release, "ReadWriteOnce"))
		b.WriteString(pod(name, name, fmt.Sprintf("head -c 4000000 /dev/urandom > /data/random && echo %s > /data/f && sleep 1000", name), ""))
	}
	apply(t, ns, b.String())
	s.done("applied")
	kubectl(t, "-n", ns, "wait", "--for=condition=Ready", "pod", "--all", "--timeout=300s")
	s.done("all pods running")
	peak := pluginState(t)
	buckets := map[string]string{}
	for _, pvc := range get[corev1.PersistentVolumeClaimList](t, "-n", ns, "pvc").Items {
		buckets[pvc.Spec.VolumeName] = pvc.Name
	}
	for name, want := range buckets {
		holds(t, name, "f", want+"\n")
	}
	s.done("all files are objects")
	kubectl(t, "-n", ns, "delete", "pod", "--all", "--timeout=300s")
	s.done("all pods deleted")
	kubectl(t, "-n", ns, "delete", "pvc", "--all", "--timeout=300s")
	for name := range buckets {
		noBucket(t, name)
	}
	s.done("all claims and buckets deleted")
	eventually(t, func() error {
		if out := kubectl(t, "get", "pv", "-o", "name"); out != "" {
			for name := range buckets {
				if strings.Contains(out, name) {
					return fmt.Errorf("the PV %s stays", name)
				}
			}
		}
		return nil
	})
	noMounts(t)
	var after state
	eventually(t, func() error {
		after = pluginState(t)
		// Timers and connections of the process come and go.
		if after.goroutines > before.goroutines+20 || after.files > before.files+20 {
			return fmt.Errorf("the plugin keeps something: %+v, before %+v", after, before)
		}
		return nil
	})
	t.Logf("plugin before %+v, with %d volumes %+v, after %+v", before, count, peak, after)
}

// state is what a process has.
type state struct {
	goroutines, files int
	rss, peak         int // KiB
}

// pluginState looks at the node plugin.
func pluginState(t *testing.T) (s state) {
	t.Helper()
	pid := plugin(t)
	if pid == 0 {
		t.Fatal("the node plugin does not run")
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	field := func(name string) int {
		_, rest, _ := strings.Cut(string(status), name+":")
		n, err := strconv.Atoi(strings.Fields(rest)[0])
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	s.rss, s.peak = field("VmRSS"), field("VmHWM")
	fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		t.Fatal(err)
	}
	s.files = len(fds)
	s.goroutines = goroutines(t)
	return s
}

// goroutines is what the node plugin's metrics say.
func goroutines(t *testing.T) int {
	t.Helper()
	ip := kubectl(t, "-n", release, "get", "pod", "-l", "app.kubernetes.io/component=node", "-o", "jsonpath={.items[0].status.podIP}")
	text, err := suite.Run(t.Context(), "/bin/busybox", "wget", "-qO-", "http://"+ip+":9810/metrics")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(text) {
		if value, ok := strings.CutPrefix(line, "go_goroutines "); ok {
			n, err := strconv.Atoi(strings.TrimSpace(value))
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
	}
	t.Fatal("no go_goroutines among the metrics")
	return 0
}
