// Package driver serves the Container Storage Interface: it validates requests, calls package provision for the
// controller's part and package volume for the node's, and maps errors to gRPC codes (status.go, the only place).
//
// Every call may be repeated at any time and answers as the first did. A second call for what another call is at work
// on is answered with Aborted at once, as the specification asks; the caller comes again.
//
// Requests hold credentials. They are logged by protosanitizer's rules only, and never in an error.
//
// Start reading at Serve in driver.go.
package driver
