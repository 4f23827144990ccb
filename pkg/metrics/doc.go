// Package metrics is the catalogue of what the process tells Prometheus: every metric once, with its unit and its
// help, in catalogue.go, and the HTTP handler that serves them.
//
// There is no global registry: New makes one, and whoever measures gets the *Metrics handed down. A nil *Metrics works
// and measures nothing, so tests and small commands need none. All methods are safe for concurrent use.
//
// What a volume knows about itself (dirty bytes, queue, cache) is not counted a second time here: Volume registers a
// function that is asked at each scrape and must answer without waiting for S3.
package metrics
