#!/bin/bash
# The first process of the cluster's namespaces. Cluster.Up starts it with these variables:
#   RUN   directory of everything that the node writes      BIN    the binaries
#   NODE  name of the node   NODE_IP, SVC_IP its addresses  CGROOT name of its control groups
set -euo pipefail

mount --make-rshared /
mount -t tmpfs -o mode=755 tmpfs /run
mkdir -p /run/lock
[ -L /var/run ] || mount --bind /run /var/run
mount --bind "$RUN/kubelet" /var/lib/kubelet
mount --bind "$RUN/varlog" /var/log
hostname "$NODE"

ip link set lo up
ip addr add "$SVC_IP/32" dev lo # the address of the Service "kubernetes"; there is no kube-proxy
ip link add e2e0 type veth peer name e2e1
ip addr add "$NODE_IP/24" dev e2e0
ip link set e2e0 up
ip link set e2e1 up
ip route add default via 10.200.0.254 dev e2e0 # nobody is there
echo 1 > /proc/sys/net/ipv4/ip_forward
printf '127.0.0.1 localhost\n%s %s\n' "$NODE_IP" "$NODE" > "$RUN/conf/hosts"
mount --bind "$RUN/conf/hosts" /etc/hosts
printf 'nameserver 127.0.0.1\n' > "$RUN/conf/resolv.conf"
mount --bind "$RUN/conf/resolv.conf" "$(readlink -f /etc/resolv.conf)"

cd "$RUN"
openssl genrsa -out pki/sa.key 2048 2>/dev/null
cat > conf/tokens.csv <<T
admin-token,admin,admin,"system:masters"
kcm-token,system:kube-controller-manager,kcm
sched-token,system:kube-scheduler,sched
kubelet-token,system:node:$NODE,kubelet,"system:nodes"
T
for user in admin kcm sched kubelet; do
  cat > "conf/$user.kubeconfig" <<T
apiVersion: v1
kind: Config
clusters: [{name: e2e, cluster: {server: "https://$SVC_IP:443", insecure-skip-tls-verify: true}}]
users: [{name: $user, user: {token: $user-token}}]
contexts: [{name: e2e, context: {cluster: e2e, user: $user}}]
current-context: e2e
T
done
cat > conf/kubelet.yaml <<T
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
authentication: {anonymous: {enabled: true}, webhook: {enabled: false}}
authorization: {mode: AlwaysAllow}
cgroupDriver: cgroupfs
cgroupRoot: /$CGROOT
failCgroupV1: false
containerRuntimeEndpoint: unix:///run/containerd/containerd.sock
podLogsDir: /var/log/pods
volumePluginDir: $RUN/kubelet/flex
resolvConf: $RUN/conf/resolv.conf
clusterDomain: cluster.local
oomScoreAdj: 0
failSwapOn: false
registerNode: true
imageGCHighThresholdPercent: 100 # images cannot be pulled again
evictionHard: {memory.available: 50Mi, nodefs.available: 1%, nodefs.inodesFree: 1%, imagefs.available: 1%}
syncFrequency: 10s
fileCheckFrequency: 10s
nodeStatusUpdateFrequency: 5s
volumeStatsAggPeriod: 5s
serializeImagePulls: false
maxPods: 110
T
cat > conf/containerd.toml <<T
version = 2
root = "$RUN/containerd"
state = "/run/containerd"
oom_score = 0
disabled_plugins = ["io.containerd.snapshotter.v1.btrfs","io.containerd.snapshotter.v1.zfs","io.containerd.snapshotter.v1.devmapper","io.containerd.snapshotter.v1.aufs","io.containerd.internal.v1.tracing","io.containerd.tracing.processor.v1.otlp"]
[grpc]
  address = "/run/containerd/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "localhost/pause:e2e"
  restrict_oom_score_adj = true
  disable_apparmor = true
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    default_runtime_name = "runc"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        SystemdCgroup = false
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "$RUN/cni"
T
cat > cni/10-e2e.conflist <<T
{"cniVersion":"0.4.0","name":"e2e","plugins":[
 {"type":"bridge","bridge":"cni0","isGateway":true,"ipMasq":false,"hairpinMode":true,
  "ipam":{"type":"host-local","dataDir":"/run/cni-ipam","ranges":[[{"subnet":"10.244.0.0/24"}]],"routes":[{"dst":"0.0.0.0/0"}]}}]}
T

set +e
# A component that ends is started again, as a node's init would.
start() {
  local name=$1
  shift
  (while :; do "$@" >> "log/$name.log" 2>&1 < /dev/null; sleep 0.2; done) &
}
K=$BIN/kube
start etcd "$K" etcd --data-dir "$RUN/etcd" --unsafe-no-fsync --listen-client-urls http://127.0.0.1:2379 \
  --advertise-client-urls http://127.0.0.1:2379 --listen-peer-urls http://127.0.0.1:2380 --logger zap --log-level warn
start containerd containerd -c conf/containerd.toml
start kube-apiserver "$K" kube-apiserver --etcd-servers http://127.0.0.1:2379 --bind-address 0.0.0.0 --secure-port 443 \
  --advertise-address "$NODE_IP" --service-cluster-ip-range 10.96.0.0/16 --cert-dir "$RUN/pki" \
  --token-auth-file conf/tokens.csv --authorization-mode Node,RBAC --allow-privileged \
  --enable-admission-plugins NodeRestriction --service-account-issuer https://kubernetes.default.svc \
  --service-account-key-file pki/sa.key --service-account-signing-key-file pki/sa.key \
  --kubelet-preferred-address-types InternalIP --endpoint-reconciler-type lease --max-requests-inflight 200
ctr() { command ctr -a /run/containerd/containerd.sock -n k8s.io "$@"; }
until ctr version > /dev/null 2>&1; do sleep 0.1; done
(for f in "$RUN"/images/*.tar; do ctr images import "$f" >> log/images.log 2>&1 || { echo "$f" > images.failed; exit; }; done; touch images.ready) &
until [ -s pki/apiserver.crt ] && "$K" kubectl --kubeconfig conf/admin.kubeconfig get --raw=/readyz > /dev/null 2>&1; do sleep 0.2; done
start kubelet "$K" kubelet --config conf/kubelet.yaml --kubeconfig conf/kubelet.kubeconfig --hostname-override "$NODE" \
  --node-ip "$NODE_IP" --root-dir /var/lib/kubelet --cert-dir "$RUN/kubelet/pki" -v 2
start kube-controller-manager "$K" kube-controller-manager --kubeconfig conf/kcm.kubeconfig --leader-elect=false \
  --use-service-account-credentials --service-account-private-key-file pki/sa.key --root-ca-file pki/apiserver.crt \
  --bind-address 127.0.0.1 --cert-dir "$RUN/pki/kcm" --attach-detach-reconcile-sync-period 10s --pvclaimbinder-sync-period 5s
start kube-scheduler "$K" kube-scheduler --kubeconfig conf/sched.kubeconfig --leader-elect=false --bind-address 127.0.0.1 \
  --cert-dir "$RUN/pki/sched"
touch started
while :; do wait; sleep 1; done
