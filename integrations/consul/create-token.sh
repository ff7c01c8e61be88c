#!/usr/bin/env bash
# Creates a Consul token with the rights of pickd-policy.hcl, and writes its secret to a file that only its owner can read.
#
#   CONSUL_HTTP_TOKEN_FILE=management-token ./create-token.sh /etc/pickd/consul-token
#
# The address of Consul and a token that may manage ACLs come from Consul's own variables. A policy `pickd` that exists
# already is updated; each run creates a new token.
set -euo pipefail

file=${1:?"usage: create-token.sh FILE"}
policy=$(dirname "${BASH_SOURCE[0]}")/pickd-policy.hcl

if consul acl policy read -name pickd >/dev/null 2>&1; then
    consul acl policy update -name pickd -rules "@$policy" >/dev/null
else
    consul acl policy create -name pickd -description 'Read services and nodes' -rules "@$policy" >/dev/null
fi
umask 077
consul acl token create -description pickd -policy-name pickd | awk '$1 == "SecretID:" { print $2 }' >"$file.new"
[[ -s $file.new ]] || { echo "create-token.sh: consul printed no SecretID" >&2; exit 1; }
mv "$file.new" "$file"
