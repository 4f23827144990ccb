// Package kube asks the Kubernetes API server for what a CSI call does not carry, and tells it what no call's answer says.
//
// Of the CSI calls only stage and publish bring credentials. After a crash of the node plugin, or of the node, a volume
// may have data in the cache that no mount serves, and the kubelet may ask for nothing but its unstage. The volume's
// PersistentVolume names the secret that it was staged with; the node's role may read it where the chart owns it.
//
// Nothing is watched, and a secret is never kept: it is a rare question, asked with the service account's rights.
//
// What goes wrong between the calls becomes an Event of the volume's claim and of its pods (Events): a goroutine of its own
// delivers them, so that nobody waits for the API server, and folds what repeats itself into a count.
package kube
