package metrics_test

import (
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/csi-s3/csi-s3/pkg/metrics"
)

func scrape(t *testing.T, h http.Handler) string {
	t.Helper()
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	if w.Code != http.StatusOK {
		t.Fatalf("scrape: %d %s", w.Code, w.Body)
	}
	return w.Body.String()
}

func TestScrape(t *testing.T) {
	m := metrics.New("v1.2.3")
	m.RPC("/csi.v1.Node/NodeStageVolume", "OK", 30*time.Millisecond)
	remove := m.Volume("b/p", func() metrics.Volume {
		return metrics.Volume{DirtyBytes: 7, DirtyFiles: 2, Queue: 3, OldestDirtyAge: 1.5, CacheBytes: 11, CacheLimit: 13, HitRate: .25, HiddenKeys: 1,
			Conflicts: 4, Damaged: 6, Quarantined: 5, Failing: true, ErrorClass: "denied"}
	})
	body := scrape(t, m.Handler())
	for _, want := range []string{
		`csi_s3_build_info{version="v1.2.3"} 1`,
		`csi_s3_rpc_duration_seconds_count{code="OK",method="/csi.v1.Node/NodeStageVolume"} 1`,
		`csi_s3_dirty_bytes{volume="b/p"} 7`,
		`csi_s3_dirty_files{volume="b/p"} 2`,
		`csi_s3_queue_length{volume="b/p"} 3`,
		`csi_s3_oldest_dirty_seconds{volume="b/p"} 1.5`,
		`csi_s3_cache_bytes{volume="b/p"} 11`,
		`csi_s3_cache_limit_bytes{volume="b/p"} 13`,
		`csi_s3_cache_hit_ratio{volume="b/p"} 0.25`,
		`csi_s3_hidden_keys{volume="b/p"} 1`,
		"# TYPE csi_s3_conflicts_total counter",
		`csi_s3_conflicts_total{volume="b/p"} 4`,
		`csi_s3_cache_damaged_blocks_total{volume="b/p"} 6`,
		`csi_s3_quarantined_files{volume="b/p"} 5`,
		`csi_s3_uploads_failing{volume="b/p"} 1`,
		`csi_s3_last_error{class="denied",volume="b/p"} 1`,
		"go_goroutines ",
	} {
		if !strings.Contains(body, want) {
			t.Errorf("no %s in\n%s", want, body)
		}
	}
	remove()
	if body := scrape(t, m.Handler()); strings.Contains(body, "csi_s3_dirty_bytes{") {
		t.Error("a removed volume is still reported")
	}
}

func TestEndpoints(t *testing.T) {
	m := metrics.New("v1")
	m.Endpoints(func() []metrics.Endpoint {
		return []metrics.Endpoint{
			{URL: "https://a", Lookups: metrics.Load{Limit: 1, Busy: 2, Waiting: 3, Throttled: 4}, Reads: metrics.Load{Limit: 5},
				Writes: metrics.Load{Limit: 6}, Corrupt: 7, Compared: 8, Hedged: 9},
			{URL: "https://b", Corrupt: 10},
		}
	})
	body := scrape(t, m.Handler())
	for _, want := range []string{
		`csi_s3_requests_limit{endpoint="https://a",kind="lookups"} 1`,
		`csi_s3_requests_busy{endpoint="https://a",kind="lookups"} 2`,
		`csi_s3_requests_waiting{endpoint="https://a",kind="lookups"} 3`,
		`csi_s3_requests_throttled_total{endpoint="https://a",kind="lookups"} 4`,
		`csi_s3_requests_limit{endpoint="https://a",kind="reads"} 5`,
		`csi_s3_requests_limit{endpoint="https://a",kind="writes"} 6`,
		"# TYPE csi_s3_requests_throttled_total counter",
		"# TYPE csi_s3_requests_limit gauge",
		`csi_s3_bodies_corrupt_total{endpoint="https://a"} 7`,
		`csi_s3_bodies_corrupt_total{endpoint="https://b"} 10`,
		`csi_s3_bodies_compared_total{endpoint="https://a"} 8`,
		`csi_s3_reads_hedged_total{endpoint="https://a"} 9`,
	} {
		if !strings.Contains(body, want) {
			t.Errorf("no %s in\n%s", want, body)
		}
	}
}

// A volume that is mounted again replaces its source; the first mount's remove must not take the second away.
func TestVolumeReplaced(t *testing.T) {
	m := metrics.New("")
	first := m.Volume("b", func() metrics.Volume { return metrics.Volume{DirtyBytes: 1} })
	m.Volume("b", func() metrics.Volume { return metrics.Volume{DirtyBytes: 2} })
	first()
	if body := scrape(t, m.Handler()); !strings.Contains(body, `csi_s3_dirty_bytes{volume="b"} 2`) {
		t.Error("the second source is gone")
	}
}

func TestNil(t *testing.T) {
	var m *metrics.Metrics
	m.RPC("x", "OK", time.Second)
	m.Volume("b", nil)()
	m.Endpoints(nil)
	w := httptest.NewRecorder()
	m.Handler().ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	if w.Code != http.StatusNotFound {
		t.Errorf("code %d", w.Code)
	}
}

func TestServe(t *testing.T) {
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := free.Addr().String()
	free.Close()
	_, port, _ := net.SplitHostPort(addr)

	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- metrics.New("").Serve(ctx, ":"+port) }()
	deadline := time.Now().Add(10 * time.Second)
	for {
		resp, err := http.Get("http://" + addr + "/metrics")
		if err == nil {
			body, _ := io.ReadAll(resp.Body)
			resp.Body.Close()
			if resp.StatusCode != http.StatusOK || !strings.Contains(string(body), "csi_s3_build_info") {
				t.Fatalf("%d %s", resp.StatusCode, body)
			}
			break
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Millisecond)
	}
	if err := metrics.New("").Serve(t.Context(), ":"+port); err == nil {
		t.Error("a second server on the same port started")
	}
	if err := metrics.New("").Serve(t.Context(), "nonsense"); err == nil {
		t.Error("an address without a port was taken")
	}
	cancel()
	select {
	case err := <-served:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("Serve outlives its context")
	}
}
