#!/usr/bin/env bash
# Creates a user of etcd, and a role of the same name, with one right below one prefix and no other.
#
#   ./create-user.sh pickd read /services/ password-file
#   ./create-user.sh user-service write /services/user-service/ password-file
#
# Endpoints, TLS and a user that may manage users come from etcdctl's own variables. A user or role that exists already is
# changed: password and right are then as given here. Other rights of the role stay.
set -euo pipefail

name=${1:?"usage: create-user.sh NAME read|write PREFIX PASSWORD_FILE"}
right=${2:?"read or write"}
prefix=${3:?"the prefix of the keys"}
password=${4:?"a file with the password"}
export ETCDCTL_API=3

etcdctl role get "$name" >/dev/null 2>&1 || etcdctl role add "$name"
etcdctl role grant-permission "$name" "$right" "$prefix" --prefix=true
if etcdctl user get "$name" >/dev/null 2>&1; then
    etcdctl user passwd "$name" --interactive=false <"$password"
else
    etcdctl user add "$name" --interactive=false <"$password"
fi
etcdctl user grant-role "$name" "$name"
