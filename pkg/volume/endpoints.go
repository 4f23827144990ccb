package volume

import (
	"github.com/csi-s3/csi-s3/pkg/metrics"
	"github.com/csi-s3/csi-s3/pkg/s3/s3sdk"
)

// Endpoints reports the requests of all volumes, by S3 endpoint. It does not wait for them.
func (s *Set) Endpoints() []metrics.Endpoint {
	var all []metrics.Endpoint
	for url, st := range s.transports.Stats() {
		all = append(all, metrics.Endpoint{
			URL: url, Lookups: load(st.Lookups), Reads: load(st.Reads), Writes: load(st.Writes),
			Corrupt: st.Corrupt, Compared: st.Compared, Hedged: st.Hedged,
		})
	}
	return all
}

func load(l s3sdk.Load) metrics.Load {
	return metrics.Load{Limit: l.Limit, Busy: l.Busy, Waiting: l.Waiting, Throttled: l.Throttled}
}
