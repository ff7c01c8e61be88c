"""Registers backends in Consul and etcd, and keeps them registered.

    register.py --service user-service --port 8080 --consul user-1 user-2 --etcd user-1 user-3

Names of backends are resolved, so that callers of pickd get addresses. Consul checks its instances itself. In etcd an
instance is a key with a lease. The lease is kept alive while the backend answers: the key of a backend that has stopped
vanishes within LEASE_SECONDS.

The file /tmp/registered exists while every backend is registered.
"""

import argparse
import base64
import json
import pathlib
import socket
import time
import urllib.request

CONSUL = "http://consul:8500"
ETCD = "http://etcd:2379"
INTERVAL_SECONDS = 1
LEASE_SECONDS = 5
REGISTERED = pathlib.Path("/tmp/registered")


def request(method, url, body=None):
    data = None if body is None else json.dumps(body).encode()
    headers = {"Content-Type": "application/json"}
    with urllib.request.urlopen(urllib.request.Request(url, data, headers, method=method), timeout=2) as answer:
        text = answer.read()
    return json.loads(text) if text else None


def consul(service, name, address, port):
    """Registers an instance at Consul's agent, unless it is registered with this address already."""
    known = request("GET", f"{CONSUL}/v1/agent/services").get(name)
    if known and (known["Service"], known["Address"], known["Port"]) == (service, address, port):
        return
    request("PUT", f"{CONSUL}/v1/agent/service/register", {
        "ID": name,
        "Name": service,
        "Address": address,
        "Port": port,
        "Check": {"HTTP": f"http://{address}:{port}/healthz", "Interval": "1s", "Timeout": "1s", "Status": "passing"},
    })
    print(f"consul: {service}/{name} is {address}:{port}", flush=True)


class Etcd:
    """Instances in etcd, each with a lease of its own. Speaks to the JSON gateway of the v3 API."""

    def __init__(self):
        self.leases = {}  # name: (lease, address)

    def register(self, service, name, address, port):
        lease, registered = self.leases.get(name, (None, None))
        if registered == address and self.kept(lease):
            return
        lease = request("POST", f"{ETCD}/v3/lease/grant", {"TTL": LEASE_SECONDS})["ID"]
        request("POST", f"{ETCD}/v3/kv/put", {
            "key": base64.b64encode(f"/services/{service}/{name}".encode()).decode(),
            "value": base64.b64encode(f"{address}:{port}".encode()).decode(),
            "lease": lease,
        })
        self.leases[name] = (lease, address)
        print(f"etcd: {service}/{name} is {address}:{port}", flush=True)

    @staticmethod
    def kept(lease):
        """Renews a lease, and returns whether the lease exists."""
        result = request("POST", f"{ETCD}/v3/lease/keepalive", {"ID": lease})["result"]
        return int(result.get("TTL", 0)) > 0


def every_round(arguments, etcd):
    """Registers all that answer. Returns what went wrong, a line for each backend and registry."""
    wrong = []
    for registry, names in (("consul", arguments.consul), ("etcd", arguments.etcd)):
        for name in names:
            try:
                address = socket.gethostbyname(name)
                with urllib.request.urlopen(f"http://{address}:{arguments.port}/healthz", timeout=1):
                    pass
                register = consul if registry == "consul" else etcd.register
                register(arguments.service, name, address, arguments.port)
            except (OSError, KeyError, ValueError) as error:
                wrong.append(f"{registry}: {arguments.service}/{name}: {error}")
    return wrong


def main():
    parser = argparse.ArgumentParser(description="registers backends in Consul and etcd")
    parser.add_argument("--service", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--consul", nargs="*", default=[], metavar="NAME")
    parser.add_argument("--etcd", nargs="*", default=[], metavar="NAME")
    arguments = parser.parse_args()

    etcd = Etcd()
    before = []
    while True:
        wrong = every_round(arguments, etcd)
        for line in wrong:
            if line not in before:
                print(line, flush=True)
        before = wrong
        if wrong:
            REGISTERED.unlink(missing_ok=True)
        else:
            REGISTERED.touch()
        time.sleep(INTERVAL_SECONDS)


main()
