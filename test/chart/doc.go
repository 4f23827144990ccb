// Package chart tests charts/csi-s3 with Helm as a library: it renders the chart for the values that users set, holds
// the result to the golden files under testdata (written with -update) and to the API types of Kubernetes, and checks
// that wrong values are refused with words that help. It needs no cluster.
package chart
