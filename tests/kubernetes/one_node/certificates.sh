#!/bin/sh
# Make the keys of a one-node cluster in the current folder: certificates.sh NODE_ADDRESS SERVICE_ADDRESS. Every program has a
# certificate of the same authority, and a kubeconfig with it; the names and groups are those that Kubernetes' own roles expect.
set -eu
openssl genrsa -out service-accounts.key 2048
openssl rsa -in service-accounts.key -pubout -out service-accounts.pub
openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=one-node -keyout ca.key -out ca.crt

issue() { # FILE SUBJECT ALTERNATIVE_NAMES
    openssl req -newkey rsa:2048 -nodes -subj "$2" -keyout "$1.key" -out "$1.csr"
    printf 'extendedKeyUsage=serverAuth,clientAuth\nsubjectAltName=%s\n' "$3" > "$1.ext"
    openssl x509 -req -in "$1.csr" -CA ca.crt -CAkey ca.key -CAcreateserial -days 2 -extfile "$1.ext" -out "$1.crt"
}

user() { # FILE SUBJECT
    issue "$1" "$2" "DNS:$1"
    for part in "set-cluster one-node --server=https://$address:6443 --certificate-authority=ca.crt --embed-certs" \
        "set-credentials $1 --client-certificate=$1.crt --client-key=$1.key --embed-certs" \
        "set-context one-node --cluster=one-node --user=$1" "use-context one-node"; do
        kubectl config --kubeconfig="$1.kubeconfig" $part
    done
}

address=$1
issue apiserver /CN=kube-apiserver "IP:$address,IP:$2,DNS:kubernetes,DNS:kubernetes.default,DNS:kubernetes.default.svc"
issue kubelet-client /O=system:masters/CN=apiserver DNS:apiserver
user admin /O=system:masters/CN=admin
user kubelet /O=system:nodes/CN=system:node:one-node
user controller-manager /CN=system:kube-controller-manager
user scheduler /CN=system:kube-scheduler
user proxy /CN=system:kube-proxy
user network-policies /O=system:masters/CN=kube-router
