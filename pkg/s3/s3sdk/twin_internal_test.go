package s3sdk

import (
	"io"
	"net/http"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// A body that is closed early breaks its second copy off.
func TestTwinEndsWithItsBody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var n, brokenOff atomic.Int64
		c := virtual(t, func(w http.ResponseWriter, r *http.Request) {
			if n.Add(1) == 2 {
				<-r.Context().Done()
				brokenOff.Add(1)
				return
			}
			w.Header().Set("Etag", `"tag"`)
			w.Header().Set("Content-Length", "4")
			_, _ = io.WriteString(w, "body")
		})
		c.plain = true
		start := time.Now()
		rc, _, err := c.Bucket("bkt").Get(t.Context(), "k", nil, "")
		if err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if err := rc.Close(); err != nil {
			t.Error(err)
		}
		synctest.Wait()
		if n.Load() != 2 || brokenOff.Load() != 1 || time.Since(start) != 0 {
			t.Errorf("%d requests, %d broken off after %v", n.Load(), brokenOff.Load(), time.Since(start))
		}
	})
}
