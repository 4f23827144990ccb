#!/bin/bash
# Installs the Debian packages that the cluster and the images of the tests are made of. None of them starts anything.
set -euo pipefail
# package:what shows that it is there
need=(containerd:containerd runc:runc containernetworking-plugins:/usr/lib/cni/bridge iptables:iptables
  busybox-static:/bin/busybox redis-tools:redis-cli iproute2:ip openssl:openssl util-linux:nsenter
  ca-certificates:/etc/ssl/certs/ca-certificates.crt)
missing=()
for n in "${need[@]}"; do
  probe=${n#*:}
  [ -e "$probe" ] || command -v "$probe" > /dev/null 2>&1 || missing+=("${n%%:*}")
done
[ ${#missing[@]} -gt 0 ] || exit 0
if [ "$(id -u)" != 0 ]; then
  echo "missing packages: ${missing[*]}; install them or run as root" >&2
  exit 1
fi
apt-get update -q
DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends "${missing[@]}"
