// Command livenessprobe stands in for the sidecar of that name, which is not published as a Go module: GET /healthz
// asks a CSI driver whether it lives.
package main

import (
	"context"
	"flag"
	"fmt"
	"log"
	"net/http"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

func main() {
	address := flag.String("csi-address", "/run/csi/socket", "the driver's socket")
	timeout := flag.Duration("probe-timeout", time.Second, "of one question")
	port := flag.Int("health-port", 9808, "where it is asked")
	endpoint := flag.String("http-endpoint", "", "the same, as an address")
	flag.Int("v", 0, "without effect")
	flag.Parse()
	if *endpoint == "" {
		*endpoint = fmt.Sprintf(":%d", *port)
	}
	conn, err := grpc.NewClient("unix://"+*address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		log.Fatal(err)
	}
	http.HandleFunc("GET /healthz", func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), *timeout)
		defer cancel()
		p, err := csi.NewIdentityClient(conn).Probe(ctx, &csi.ProbeRequest{})
		if err != nil || p.GetReady() != nil && !p.GetReady().GetValue() {
			http.Error(w, "not ready", http.StatusInternalServerError)
			return
		}
		fmt.Fprint(w, "ok")
	})
	log.Fatal(http.ListenAndServe(*endpoint, nil)) //nolint:gosec // in a test
}
