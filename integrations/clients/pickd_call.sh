# Calls one of the instances of a service that pickd picks, with retry and report. Source this file: bash, curl and jq.
#
#   pickd_call user-service /healthz
#   pickd_call user-service /users -H 'Content-Type: application/json' -d '{"name":"ada"}'
#
# Prints the body of the answer; ends with 0 if the status is below 500, and is not 429. At most three instances are asked.
# Without options of curl the request is a GET, and any failure is retried. With options it may not be safe to repeat, so
# only a refused connection and a rejection (429, 503) are retried.
#
# PICKD_AGENT: the agent (http://127.0.0.1:7425). PICKD_CALL_TIMEOUT: seconds that one instance may take (5).
# shellcheck shell=bash

pickd_call() { # SERVICE PATH [CURL_OPTION...]
    local service=$1 path=$2 agent=${PICKD_AGENT:-http://127.0.0.1:7425} query=n=1 outcome='' pick body
    shift 2 && body=$(mktemp) || return
    for _ in 1 2 3; do
        pick=$(curl -sf -m 2 -X POST "$agent/pick/$service?$query") || break
        outcome=$(_pickd_try "$pick" "$body" "$path" "$@")
        [[ $outcome != success && ($# == 0 || $outcome == connect_error || $outcome == rejected) ]] || break
        query+="&exclude=$(jq -r '.id | @uri' <<<"$pick")"
    done
    cat "$body" && rm -f "$body" && [[ $outcome == success ]]
}

_pickd_try() { # PICK BODY PATH [CURL_OPTION...]: one request; reports its outcome and prints it
    local pick=$1 body=$2 url status seconds code outcome
    url=http://$(jq -r .address <<<"$pick")$3 && shift 3 && : >"$body"
    read -r status seconds code < <(
        curl -s -m "${PICKD_CALL_TIMEOUT:-5}" -o "$body" -w '%{http_code} %{time_total} ' "$@" "$url"
        echo $?
    )
    case $code:$status in
    0:429 | 0:503) outcome=rejected ;;
    0:5??) outcome=failure ;;
    0:*) outcome=success ;;
    6:* | 7:*) outcome=connect_error ;;
    28:*) outcome=timeout ;;
    *) outcome=failure ;;
    esac
    jq -c --arg outcome "$outcome" --arg seconds "$seconds" '{$outcome, latency_ms: ($seconds | tonumber * 1000)}
        + if .lease then {lease} else {service, instance: .id} end' <<<"$pick" |
        curl -s -m 2 -o /dev/null -H 'Content-Type: application/json' -d @- \
            "${PICKD_AGENT:-http://127.0.0.1:7425}/report" || true
    echo "$outcome"
}
