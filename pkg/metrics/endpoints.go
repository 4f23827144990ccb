package metrics

import (
	"strings"

	"github.com/prometheus/client_golang/prometheus"
)

// Endpoints makes read the source of the metrics of S3 endpoints, each URL once. It is called at most once. read runs in a
// scrape: it must be cheap and must not wait for S3.
func (m *Metrics) Endpoints(read func() []Endpoint) {
	if m == nil {
		return
	}
	m.registry.MustRegister(newEndpoints(read))
}

// endpoints collects the gauges of all endpoints.
type endpoints struct {
	read      func() []Endpoint
	loads     []*prometheus.Desc // one for each of loadGauges
	endpoints []*prometheus.Desc // one for each of endpointGauges
}

func newEndpoints(read func() []Endpoint) *endpoints {
	es := &endpoints{read: read}
	for _, g := range loadGauges {
		es.loads = append(es.loads, prometheus.NewDesc(g.name, g.help, []string{"endpoint", "kind"}, nil))
	}
	for _, g := range endpointGauges {
		es.endpoints = append(es.endpoints, prometheus.NewDesc(g.name, g.help, []string{"endpoint"}, nil))
	}
	return es
}

// Describe implements prometheus.Collector.
func (es *endpoints) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range append(es.loads[:len(es.loads):len(es.loads)], es.endpoints...) {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (es *endpoints) Collect(ch chan<- prometheus.Metric) {
	for _, e := range es.read() {
		for kind, l := range map[string]Load{"lookups": e.Lookups, "reads": e.Reads, "writes": e.Writes} {
			for i, g := range loadGauges {
				ch <- prometheus.MustNewConstMetric(es.loads[i], kindOf(g.name), g.of(l), e.URL, kind)
			}
		}
		for i, g := range endpointGauges {
			ch <- prometheus.MustNewConstMetric(es.endpoints[i], kindOf(g.name), g.of(e), e.URL)
		}
	}
}

// kindOf tells a counter by its name.
func kindOf(name string) prometheus.ValueType {
	if strings.HasSuffix(name, "_total") {
		return prometheus.CounterValue
	}
	return prometheus.GaugeValue
}
