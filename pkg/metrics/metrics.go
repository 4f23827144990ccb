package metrics

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// Metrics is the process's registry. The zero value is not usable, nil is.
type Metrics struct {
	registry *prometheus.Registry
	rpc      *prometheus.HistogramVec
	volumes  *volumes
}

// New makes a registry with the catalogue and Go's own process metrics; version is a label of csi_s3_build_info.
func New(version string) *Metrics {
	m := &Metrics{
		registry: prometheus.NewRegistry(),
		rpc:      rpcSeconds(),
		volumes:  newVolumes(),
	}
	m.registry.MustRegister(
		m.rpc, m.volumes, buildInfo(version),
		collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
	)
	return m
}

// RPC records one finished CSI call: its full method name, its gRPC code as text, and how long it took.
func (m *Metrics) RPC(method, code string, d time.Duration) {
	if m == nil {
		return
	}
	m.rpc.WithLabelValues(method, code).Observe(d.Seconds())
}

// Volume makes read the source of the metrics of volume id until remove is called. A second source of the same id
// takes the place of the first. read runs in a scrape: it must be cheap and must not wait for S3.
func (m *Metrics) Volume(id string, read func() Volume) (remove func()) {
	if m == nil {
		return func() {}
	}
	return m.volumes.add(id, read)
}

// Handler serves the metrics in Prometheus's formats.
func (m *Metrics) Handler() http.Handler {
	if m == nil {
		return http.NotFoundHandler()
	}
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{Registry: m.registry})
}

// Serve answers GET /metrics on addr until ctx ends; then it returns nil. An addr without a
// host listens on the loopback address only, since the metrics name volumes and buckets.
func (m *Metrics) Serve(ctx context.Context, addr string) error {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return fmt.Errorf("metrics address %q: %w", addr, err)
	}
	if host == "" {
		host = "127.0.0.1"
	}
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", net.JoinHostPort(host, port))
	if err != nil {
		return fmt.Errorf("metrics address %q: %w", addr, err)
	}
	return m.serve(ctx, l)
}

func (m *Metrics) serve(ctx context.Context, l net.Listener) error {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", m.Handler())
	srv := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second, WriteTimeout: 30 * time.Second}
	// Ends with ctx; a scrape under way is cut off, nobody waits for it.
	stop := context.AfterFunc(ctx, func() { srv.Close() }) //nolint:errcheck // there is nothing left to do about a listener that does not close
	defer stop()
	if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve metrics: %w", err)
	}
	return nil
}

// volumes collects the gauges of all registered volumes.
type volumes struct {
	descs     []*prometheus.Desc // one for each of volumeGauges
	lastError *prometheus.Desc

	mu   sync.Mutex
	read map[string]*source // by volume ID; guarded by mu
}

// source is a pointer so that a stale remove does not take its successor away.
type source struct{ read func() Volume }

func newVolumes() *volumes {
	vs := &volumes{
		read:      map[string]*source{},
		lastError: prometheus.NewDesc(lastErrorName, lastErrorHelp, []string{"volume", "class"}, nil),
	}
	for _, g := range volumeGauges {
		vs.descs = append(vs.descs, prometheus.NewDesc(g.name, g.help, []string{"volume"}, nil))
	}
	return vs
}

func (vs *volumes) add(id string, read func() Volume) (remove func()) {
	s := &source{read}
	vs.mu.Lock()
	defer vs.mu.Unlock()
	vs.read[id] = s
	return func() {
		vs.mu.Lock()
		defer vs.mu.Unlock()
		if vs.read[id] == s {
			delete(vs.read, id)
		}
	}
}

// Describe implements prometheus.Collector.
func (vs *volumes) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range vs.descs {
		ch <- d
	}
	ch <- vs.lastError
}

// Collect implements prometheus.Collector. The sources run without the lock: they may take locks of their own.
func (vs *volumes) Collect(ch chan<- prometheus.Metric) {
	vs.mu.Lock()
	now := make(map[string]*source, len(vs.read))
	for id, s := range vs.read {
		now[id] = s
	}
	vs.mu.Unlock()
	for id, s := range now {
		v := s.read()
		for i, g := range volumeGauges {
			ch <- prometheus.MustNewConstMetric(vs.descs[i], kindOf(g.name), g.of(v), id)
		}
		if v.ErrorClass != "" {
			ch <- prometheus.MustNewConstMetric(vs.lastError, prometheus.GaugeValue, 1, id, v.ErrorClass)
		}
	}
}
