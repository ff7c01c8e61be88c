#!/usr/bin/env bash
# Keeps one instance registered in etcd for as long as this script runs.
#
#   ETCDCTL_ENDPOINTS=http://127.0.0.1:2379 ./register.sh /services/user-service/user-1 10.0.1.10:8080
#
# The key is bound to a lease of TTL seconds (15). SIGTERM and SIGINT revoke the lease, and the instance leaves at once. If
# this script or its machine dies, the instance leaves within TTL. A lease that etcd has lost is replaced.
# Endpoints, TLS and user come from etcdctl's own variables.
set -euo pipefail

key=${1:?"usage: register.sh KEY VALUE"}
value=${2:?"usage: register.sh KEY VALUE"}
ttl=${TTL:-15}
export ETCDCTL_API=3
lease='' answer=''

say() { echo "register.sh: $*" >&2; }

# etcdctl, bounded: `lease keep-alive --once` has no timeout of its own. `answer` is what it printed, the error last.
ctl() { answer=$(timeout 3 etcdctl --dial-timeout=1s --command-timeout=2s "$@" 2>&1); }

failed() { say "$1: ${answer##*$'\n'}"; }

register() {
    ctl lease grant "$ttl" || { failed "no lease"; return 1; }
    lease=$(sed -nE 's/^lease ([0-9a-f]+) granted .*/\1/p' <<<"$answer")
    ctl put --lease="$lease" -- "$key" "$value" || { failed "not put"; return 1; }
    say "registered $key, lease $lease"
}

leave() {
    trap '' TERM INT
    [[ ! $lease ]] || ctl lease revoke "$lease" || failed "lease $lease not revoked, it ends within $ttl s"
    exit 0
}
trap leave TERM INT

# In the background, so that a signal ends the wait at once.
pause() {
    sleep "$1" >/dev/null 2>&1 &
    wait "$!" || true
}

registered() { until register; do pause 1; done; }

registered
# One process for each keep-alive: one that stays would outlive a script that is killed, and renew the lease for ever.
while true; do
    pause "$((ttl / 3))"
    until ctl lease keep-alive --once "$lease"; do
        failed "not renewed"
        [[ $answer != *"requested lease not found"* ]] || registered
        pause 1
    done
done
