#!/usr/bin/env python3
"""Keeps one instance registered in etcd for as long as this program runs.

    ./register.py --endpoints http://127.0.0.1:2379 /services/user-service/user-1 10.0.1.10:8080

The key is bound to a lease. SIGTERM and SIGINT revoke the lease, and the instance leaves at once. If this program or its
machine dies, the instance leaves within the lease's time to live. A lease that etcd has lost is replaced.

Needs Python's standard library alone: it speaks to etcd's JSON gateway (etcd 3.4 and later).
"""

import argparse
import base64
import json
import logging
import os
import signal
import ssl
import threading
import urllib.error
import urllib.request

log = logging.getLogger("register.py")
REQUEST_TIMEOUT = 3.0
RETRY = 1.0


class Unavailable(Exception):
    """No endpoint gave a good answer."""


class LeaseLost(Exception):
    """etcd does not know the lease, or not any more."""


class Etcd:
    """etcd's JSON gateway, at the first endpoint that answers."""

    def __init__(self, endpoints, user=None, password=None, tls=None):
        self.endpoints = endpoints
        self.user, self.password, self.token = user, password, None
        # Without the proxies of the environment: etcd is asked directly.
        handlers = [urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=tls)]
        self.opener = urllib.request.build_opener(*handlers)

    def call(self, path, body):
        reasons = []
        # One try more than there are endpoints: a token may have expired.
        for _ in range(len(self.endpoints) + 1):
            try:
                return self.ask(path, body)
            except (OSError, ValueError) as error:
                reasons.append(f"{self.endpoints[0]}: {reason(error)}")
                # The next call begins with an endpoint that may be better.
                self.endpoints.append(self.endpoints.pop(0))
                self.token = None
        raise Unavailable("; ".join(reasons))

    def ask(self, path, body):
        if self.user and not self.token:
            answer = self.post("/v3/auth/authenticate", {"name": self.user, "password": self.password})
            self.token = answer["token"]
        return self.post(path, body)

    def post(self, path, body):
        headers = {"Content-Type": "application/json"}
        if self.token:
            headers["Authorization"] = self.token
        request = urllib.request.Request(self.endpoints[0] + path, json.dumps(body).encode(), headers)
        with self.opener.open(request, timeout=REQUEST_TIMEOUT) as response:
            answer = json.load(response)
        if "error" in answer:
            raise ValueError(answer["error"])
        return answer

    def grant(self, ttl):
        return self.call("/v3/lease/grant", {"TTL": ttl})["ID"]

    def put(self, key, value, lease):
        self.call("/v3/kv/put", {"key": base64_of(key), "value": base64_of(value), "lease": lease})

    def keep_alive(self, lease):
        # A lease that is gone is answered as one without time to live.
        answer = self.call("/v3/lease/keepalive", {"ID": lease})
        if int(answer["result"].get("TTL", 0)) <= 0:
            raise LeaseLost

    def revoke(self, lease):
        self.call("/v3/lease/revoke", {"ID": lease})


def base64_of(text):
    return base64.b64encode(text.encode()).decode()


def reason(error):
    if isinstance(error, urllib.error.HTTPError):
        return f"{error.code} {error.read(500).decode(errors='replace').strip()}"
    return str(error)


def run(etcd, key, value, ttl, stop):
    """Registers, and keeps the registration until `stop` is set."""
    lease, registered = None, False
    while not stop.is_set():
        try:
            if not registered:
                lease = etcd.grant(ttl)
                etcd.put(key, value, lease)
                registered = True
                log.info("registered %s, lease %x", key, int(lease))
            else:
                etcd.keep_alive(lease)
            stop.wait(ttl / 3)
        except LeaseLost:
            log.warning("lease %x is lost", int(lease))
            registered = False
        except Unavailable as error:
            log.warning("etcd: %s", error)
            stop.wait(RETRY)
    if lease is not None:
        try:
            etcd.revoke(lease)
        except Unavailable as error:
            log.warning("lease not revoked, it ends within %s s: %s", ttl, error)


def main():
    parser = argparse.ArgumentParser(description="Keeps one instance registered in etcd.")
    parser.add_argument("key", help="such as /services/user-service/user-1")
    parser.add_argument("value", help='such as 10.0.1.10:8080, or JSON: {"host": "10.0.1.10", "port": 8080, "weight": 2}')
    parser.add_argument("--endpoints", default="http://127.0.0.1:2379", help="URLs of members, separated by commas")
    parser.add_argument("--ttl", type=int, default=15, help="seconds after which a registration without keep-alive ends")
    parser.add_argument("--user", help="a user of etcd")
    parser.add_argument("--password-file", help="file with the password of the user")
    parser.add_argument("--cacert", help="PEM file of the authority that signed etcd's certificate")
    parser.add_argument("--cert", help="PEM file of the client's certificate")
    parser.add_argument("--key-file", help="PEM file of the client's key")
    options = parser.parse_args()
    logging.basicConfig(format="register.py: %(message)s", level=logging.INFO)

    password = None
    if options.password_file:
        with open(options.password_file, encoding="utf-8") as file:
            password = file.read().rstrip("\n")
    tls = ssl.create_default_context(cafile=options.cacert)
    if options.cert:
        tls.load_cert_chain(options.cert, options.key_file)

    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    endpoints = options.endpoints.split(",")
    run(Etcd(endpoints, options.user, password, tls), options.key, options.value, options.ttl, stop)


if __name__ == "__main__":
    main()
