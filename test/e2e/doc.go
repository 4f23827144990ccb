// Package e2e is the chart and the driver on a real Kubernetes: API server, scheduler, controller manager, kubelet and
// containerd on this machine (package cluster), the real csi-provisioner, MinIO. Each test installs what a user would
// install, and looks at what a user would see.
package e2e
