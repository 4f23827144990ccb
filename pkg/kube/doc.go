// Package kube asks the Kubernetes API server for what a CSI call does not carry.
//
// Of the CSI calls only stage and publish bring credentials. After a crash of the node plugin, or of the node, a volume
// may have data in the cache that no mount serves, and the kubelet may ask for nothing but its unstage. The volume's
// PersistentVolume names the secret that it was staged with; the node's role may read it where the chart owns it.
//
// Nothing is cached and nothing is watched: it is a rare question, asked with the service account's rights.
package kube
