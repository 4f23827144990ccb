// Package cluster runs a single-node Kubernetes on this machine, without a registry and without touching the machine:
// etcd, API server, controller manager, scheduler, kubelet, containerd and runc, in mount, network, process, UTS and IPC
// namespaces of their own. All of it ends with the first process of the namespaces, and that one with the process that
// called Up; Down checks that nothing is left.
//
// node.sh is what runs inside. Images come from tar files that image.go packs from binaries of this machine. There is no
// DNS and no kube-proxy: the API server's Service address is on the loopback device, and other servers are reached by
// Addr, where Listen opens sockets that this process serves.
package cluster
