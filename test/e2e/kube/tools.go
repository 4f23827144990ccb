//go:build tools

// Package tools names the programs of other modules that the cluster runs. They are built by path; one module for all
// means that what they share is compiled once.
package tools

import (
	_ "github.com/kubernetes-csi/external-provisioner/v6/cmd/csi-provisioner"
	_ "helm.sh/helm/v3/cmd/helm"
	_ "k8s.io/kubernetes/test/images/agnhost"
)
