#!/bin/bash
# Writes go.mod and go.sum beside this script for a Kubernetes version, with the etcd that the version pins: gen.sh v1.36.3
set -euo pipefail
cd "$(dirname "$0")"; export GOFLAGS=-mod=mod
V=$1; STAGING=v0.${V#v1.}
MOD=$(go mod download -json "k8s.io/kubernetes@$V" | sed -n 's/.*"GoMod": "\(.*\)",/\1/p')
rm -f go.sum
{
  echo "module kubecp"; echo; sed -n '/^go /p' "$MOD"; echo
  echo "require k8s.io/kubernetes $V"
  sed -n 's/^\tgo.etcd.io\/etcd\/server\/v3 \(v[^ ]*\).*/require go.etcd.io\/etcd\/server\/v3 \1/p' "$MOD"
  echo; echo "tool ("; echo "	k8s.io/kubernetes/cmd/kube-apiserver"; echo "	go.etcd.io/etcd/server/v3"; echo ")"; echo
  # Kubernetes' own staging modules are v0.0.0 in its go.mod, and v0.x.y when published.
  echo "replace ("; sed -n "s/^\t\(k8s.io\/[^ ]*\) => .\/staging.*/\t\1 => \1 $STAGING/p" "$MOD"; echo ")"
} > go.mod
go list -deps tool > /dev/null
