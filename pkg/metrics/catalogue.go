package metrics

import "github.com/prometheus/client_golang/prometheus"

// Volume is what a volume reports about itself at a scrape.
type Volume struct {
	DirtyBytes     int64   // bytes not yet in the bucket
	DirtyFiles     int     // files that hold such bytes
	Queue          int     // changes that wait for the bucket
	OldestDirtyAge float64 // seconds since the oldest such byte was written
	CacheBytes     int64   // bytes that the cache holds on the disk
	CacheLimit     int64   // bytes that it may hold
	HitRate        float64 // part of the read bytes that came from the cache, 0 to 1
	HiddenKeys     int64   // keys that POSIX cannot name
	Conflicts      int64   // since the mount: files for whose names there were others' objects
	Damaged        int64   // since the mount: blocks of the cache that the disk has changed
	Quarantined    int     // files whose changes a loss of power made unusable
	Failing        bool    // changes wait for the bucket and do not get there
	ErrorClass     string  // why, in one word of few; empty when nothing is wrong
}

// gauge is one number of every volume. A name that ends with _total is a counter.
type gauge struct {
	name, help string
	of         func(Volume) float64
}

// lastError is 1 for the one class that the last error of a volume has; no series when there is none.
const (
	lastErrorName = "csi_s3_last_error"
	lastErrorHelp = "Always 1; the label class says why changes of the volume do not get into the bucket. Absent when they do."
)

// volumeGauges are the metrics with the one label volume, the volume ID. A name ends with its unit.
var volumeGauges = [...]gauge{
	{"csi_s3_dirty_bytes", "Bytes written that are not yet in the bucket.", func(v Volume) float64 { return float64(v.DirtyBytes) }},
	{"csi_s3_dirty_files", "Files that hold bytes not yet in the bucket.", func(v Volume) float64 { return float64(v.DirtyFiles) }},
	{"csi_s3_queue_length", "Changes (uploads, copies, deletes) that wait for the bucket.", func(v Volume) float64 { return float64(v.Queue) }},
	{"csi_s3_oldest_dirty_seconds", "Age of the oldest byte that is not yet in the bucket.", func(v Volume) float64 { return v.OldestDirtyAge }},
	{"csi_s3_cache_bytes", "Bytes that the volume's cache holds on the node's disk.", func(v Volume) float64 { return float64(v.CacheBytes) }},
	{"csi_s3_cache_limit_bytes", "Bytes that the volume's cache may hold.", func(v Volume) float64 { return float64(v.CacheLimit) }},
	{"csi_s3_cache_hit_ratio", "Part of the bytes read that came from the cache, 0 to 1.", func(v Volume) float64 { return v.HitRate }},
	{"csi_s3_hidden_keys", "Keys of the bucket that POSIX cannot name and the mount does not show.", func(v Volume) float64 { return float64(v.HiddenKeys) }},
	{"csi_s3_conflicts_total", "Files that others changed in the bucket while they were changed here, or made where a directory was moved to; both are kept.", func(v Volume) float64 { return float64(v.Conflicts) }},
	{"csi_s3_cache_damaged_blocks_total", "Blocks of the volume's cache that the node's disk gave back other than they were stored.", func(v Volume) float64 { return float64(v.Damaged) }},
	{"csi_s3_quarantined_files", "Files whose changes a loss of power made unusable; what is left is in the cache's directory quarantine.", func(v Volume) float64 { return float64(v.Quarantined) }},
	{"csi_s3_uploads_failing", "1 while changes wait for the bucket and do not get there.", func(v Volume) float64 { return number(v.Failing) }},
}

// Endpoint is what the requests of the process to one S3 endpoint report at a scrape.
type Endpoint struct {
	URL                    string
	Lookups, Reads, Writes Load
	Corrupt                int64 // bodies received that were not what they should be
	Compared               int64 // bodies asked for twice, to compare them
	Hedged                 int64 // reads asked for again because the answer was late
}

// Load is how busy the requests of one kind are.
type Load struct {
	Limit, Busy, Waiting int
	Throttled            int64
}

// loadGauges have the labels endpoint and kind, the others of an endpoint have the label endpoint.
var loadGauges = [...]struct {
	name, help string
	of         func(Load) float64
}{
	{"csi_s3_requests_limit", "Requests that may be under way at once; it follows what the server bears.", func(l Load) float64 { return float64(l.Limit) }},
	{"csi_s3_requests_busy", "Requests under way.", func(l Load) float64 { return float64(l.Busy) }},
	{"csi_s3_requests_waiting", "Requests that wait until others end.", func(l Load) float64 { return float64(l.Waiting) }},
	{"csi_s3_requests_throttled_total", "Requests that the server answered with 503 or 429, or not in time.", func(l Load) float64 { return float64(l.Throttled) }},
}

var endpointGauges = [...]struct {
	name, help string
	of         func(Endpoint) float64
}{
	{"csi_s3_bodies_corrupt_total", "Bodies received whose checksum was wrong, or of which two copies differed; they were asked for again.", func(e Endpoint) float64 { return float64(e.Corrupt) }},
	{"csi_s3_bodies_compared_total", "Bodies asked for twice, since they came over plain HTTP and without a checksum.", func(e Endpoint) float64 { return float64(e.Compared) }},
	{"csi_s3_reads_hedged_total", "Small reads asked for again because the answer was late.", func(e Endpoint) float64 { return float64(e.Hedged) }},
}

func number(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

// rpcSeconds is the duration of CSI calls. NodeUnstageVolume waits for uploads, hence the long tail.
func rpcSeconds() *prometheus.HistogramVec {
	return prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name:    "csi_s3_rpc_duration_seconds",
		Help:    "Duration of CSI calls by method and gRPC code.",
		Buckets: []float64{.005, .02, .1, .5, 2, 10, 60, 120},
	}, []string{"method", "code"})
}

// buildInfo is always 1; its labels say what runs.
func buildInfo(version string) prometheus.Collector {
	return prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name:        "csi_s3_build_info",
		Help:        "Always 1; the label version says what runs.",
		ConstLabels: prometheus.Labels{"version": version},
	}, func() float64 { return 1 })
}
