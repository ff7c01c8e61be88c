#!/usr/bin/env python3
"""Has a proxy take the servers of one service from pickd.

    ./pickd_follow.py user-service nginx --file /etc/nginx/pickd/user-service.conf
    ./pickd_follow.py user-service haproxy --socket /run/haproxy/admin.sock --backend user-service

Asks pickd every second for the instances of the service, and tells the proxy what has changed: nginx by a file of `server`
lines and a reload, HAProxy through its runtime API. While pickd does not answer, the proxy keeps what it has.

Needs Python's standard library alone.
"""

import argparse
import dataclasses
import ipaddress
import json
import logging
import math
import os
import pathlib
import shlex
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request

log = logging.getLogger("pickd_follow")
TIMEOUT = 2.0


@dataclasses.dataclass(frozen=True)
class Server:
    """A registered instance. Without share it takes no new requests."""

    ip: str
    port: int
    # In sixteenths, the steps in which pickd weighs.
    share: int
    drained: bool


class Unavailable(Exception):
    """pickd or the proxy gave no good answer: what is in force stays."""


def servers_of(agent, service):
    """The instances of the service, by address and port."""
    url = f"{agent}/services/{urllib.parse.quote(service, safe='')}"
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=TIMEOUT) as response:
            instances = json.load(response)["instances"]
    except urllib.error.HTTPError as error:
        # No registry lists it any more. While one of them has not answered yet, pickd says 503.
        if error.code == 404:
            return []
        raise Unavailable(f"pickd: {error}") from error
    except (OSError, ValueError) as error:
        raise Unavailable(f"pickd: {error}") from error
    found = []
    for instance in instances.values():
        ip = resolved(instance["host"])
        if ip is None:
            continue
        share = round(instance["effective_weight"] * 16)
        found.append(Server(ip, instance["port"], share, instance.get("reason") == "drained"))
    return sorted(found, key=lambda server: (server.ip, server.port))


# The addresses of names as they were last resolved; None for names that never were.
resolved_before = {}


def resolved(host):
    """An IP address: what comes from a registry never reaches a configuration as it is."""
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        pass
    try:
        resolved_before[host] = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0][4][0]
    except (OSError, UnicodeError) as error:
        if host not in resolved_before:
            log.warning("instances at %s are left out: %s", host, error)
            resolved_before[host] = None
    return resolved_before[host]


class Nginx:
    """A file that an `upstream` block includes."""

    def __init__(self, options):
        self.path = pathlib.Path(options.file)
        self.test, self.reload = shlex.split(options.test), shlex.split(options.reload)
        self.pause = options.pause
        self.in_force, self.tried = None, -math.inf

    @staticmethod
    def render(servers):
        unit = math.gcd(*(server.share for server in servers)) or 1
        lines = ["# Written by pickd_follow.py."]
        for server in servers:
            host = f"[{server.ip}]" if ":" in server.ip else server.ip
            state = f"weight={server.share // unit}" if server.share else "down"
            lines.append(f"server {host}:{server.port} {state};")
        # nginx refuses an upstream without any server.
        lines += [] if servers else ["server 127.0.0.1:9 down;"]
        return "\n".join(lines) + "\n"

    def write(self, text):
        new = self.path.with_name(self.path.name + ".new")
        new.write_text(text)
        os.replace(new, self.path)

    def follow(self, servers):
        usable = {(server.ip, server.port) for server in servers if server.share}
        text = self.render(servers)
        if self.in_force == (usable, text):
            return
        # A reload starts new workers. An instance that comes or goes is worth one, a weight can wait.
        urgent = self.in_force is not None and self.in_force[0] != usable
        if not urgent and time.monotonic() < self.tried + self.pause:
            return
        self.tried = time.monotonic()
        before = self.path.read_text() if self.path.exists() else None
        self.write(text)
        try:
            self.run(self.test)
        except Unavailable:
            if before is None:
                self.path.unlink()
            else:
                self.write(before)
            raise
        self.run(self.reload)
        self.in_force = (usable, text)
        log.info("reloaded with %d of %d servers", len(usable), len(servers))

    @staticmethod
    def run(command):
        try:
            subprocess.run(command, check=True, capture_output=True, text=True, timeout=30)
        except subprocess.CalledProcessError as error:
            raise Unavailable(f"{shlex.join(command)}: {error.stderr.strip()}") from error
        except (OSError, subprocess.TimeoutExpired) as error:
            raise Unavailable(f"{shlex.join(command)}: {error}") from error


class HAProxy:
    """The servers of a `server-template`, as slots for instances."""

    FORCED_MAINT, FORCED_DRAIN = 0x01, 0x08

    def __init__(self, options):
        self.socket, self.backend = options.socket, options.backend

    def ask(self, command):
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
                connection.settimeout(TIMEOUT)
                connection.connect(self.socket)
                connection.sendall(command.encode() + b"\n")
                answer = b""
                while part := connection.recv(65536):
                    answer += part
                return answer.decode(errors="replace").strip()
        except OSError as error:
            raise Unavailable(f"HAProxy: {self.socket}: {error}") from error

    def slots(self):
        """What HAProxy has: address, port, weight and state of each server, by its name."""
        answer = self.ask(f"show servers state {self.backend}")
        lines = [line for line in answer.splitlines() if line]
        if len(lines) < 2 or not lines[1].startswith("# "):
            raise Unavailable(f"HAProxy: show servers state {self.backend}: {answer}")
        names = lines[1][2:].split()
        slots = {}
        for line in lines[2:]:
            row = dict(zip(names, line.split()))
            admin = int(row["srv_admin_state"])
            state = "maint" if admin & self.FORCED_MAINT else "drain" if admin & self.FORCED_DRAIN else "ready"
            slots[row["srv_name"]] = (row["srv_addr"], int(row["srv_port"]), int(row["srv_uweight"]), state)
        return slots

    @staticmethod
    def wanted(server, largest):
        """Weights of HAProxy are 0 to 256. The weight of an instance that is out does not matter, and stays."""
        if server.share:
            return max(1, round(server.share * min(1.0, 256 / largest))), "ready"
        return None, "drain" if server.drained else "maint"

    def follow(self, servers):
        slots = self.slots()
        largest = max((server.share for server in servers), default=0)
        by_address = {(server.ip, server.port): server for server in servers}
        held = {slot[:2]: name for name, slot in slots.items() if slot[:2] in by_address}
        free = [name for name, slot in slots.items() if name not in held.values()]
        # Requests to the instance of before may be in flight: slots that were free already come first.
        free.sort(key=lambda name: slots[name][3] != "maint")
        commands = [("state maint", name) for name in free if slots[name][3] != "maint"]
        left_out = 0
        for address, server in by_address.items():
            weight, state = self.wanted(server, largest)
            name = held.get(address)
            if name is None:
                # An instance that is out needs no slot.
                if not server.share:
                    continue
                if not free:
                    left_out += 1
                    continue
                name = free.pop(0)
                commands.append((f"addr {server.ip} port {server.port}", name))
                weight_now, state_now = None, "maint"
            else:
                weight_now, state_now = slots[name][2:]
            if weight is not None and weight != weight_now:
                commands.append((f"weight {weight}", name))
            if state != state_now:
                commands.append((f"state {state}", name))
        for command, name in commands:
            answer = self.ask(f"set server {self.backend}/{name} {command}")
            log.info("%s/%s %s %s", self.backend, name, command, f"({answer})" if answer else "")
        if left_out:
            raise Unavailable(f"{left_out} instances have no slot: raise the number of the server-template")


def main():
    parser = argparse.ArgumentParser(description="Has a proxy take the servers of one service from pickd.")
    parser.add_argument("service")
    parser.add_argument("--agent", default=os.environ.get("PICKD_AGENT", "http://127.0.0.1:7425"), help="URL of pickd")
    parser.add_argument("--interval", type=float, default=1.0, help="seconds from one question to the next")
    parser.add_argument("--once", action="store_true", help="tell the proxy once, and end")
    proxies = parser.add_subparsers(required=True)
    nginx = proxies.add_parser("nginx", help="a file of server lines, and a reload")
    nginx.add_argument("--file", required=True, help="the file that the upstream block includes")
    nginx.add_argument("--test", default="nginx -t", help="command that fails if the configuration is wrong")
    nginx.add_argument("--reload", default="nginx -s reload", help="command that reloads")
    nginx.add_argument("--pause", type=float, default=5.0, help="seconds between reloads for weights alone")
    nginx.set_defaults(proxy=Nginx)
    haproxy = proxies.add_parser("haproxy", help="slots of a server-template, set through the runtime API")
    haproxy.add_argument("--socket", required=True, help="path of the stats socket, of level admin")
    haproxy.add_argument("--backend", required=True)
    haproxy.set_defaults(proxy=HAProxy)
    options = parser.parse_args()
    logging.basicConfig(format="pickd_follow.py: %(message)s", level=logging.INFO)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))

    proxy, trouble = options.proxy(options), None
    while True:
        try:
            proxy.follow(servers_of(options.agent, options.service))
            trouble = None
        except Unavailable as error:
            # Once for each trouble, not every second.
            if trouble != (trouble := str(error)):
                log.warning("%s", error)
        if options.once:
            sys.exit(1 if trouble else 0)
        time.sleep(options.interval)


if __name__ == "__main__":
    main()
