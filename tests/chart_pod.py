"""Runs the pod of the chart's DaemonSet for real: `podman kube play`, beside a real Consul.

podman 4.3, Debian's, plays the part of the kubelet, and does less. What is done here in its place: the address of the
node and variables within variables (`expand_environment`), probes (`probe`), secrets and init containers
(`play_daemonset`).
"""

import copy
import http.client
import ipaddress
import json
import os
import pathlib
import re
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.parse
import uuid

import yaml

# Each in PATH or where podman looks for it; then the Debian package that brings it.
PROGRAMS = {
    "podman": "podman",
    "runc": "runc",
    "conmon": "conmon",
    "netavark": "netavark",
    "aardvark-dns": "aardvark-dns",
    "catatonit": "catatonit",
    "iptables": "iptables",
}
FOLDERS = [*os.environ["PATH"].split(":"), "/usr/sbin", "/sbin", "/usr/lib/podman", "/usr/libexec/podman"]

# crun wants cgroups that not every machine has. Without limits of its own podman asks for more than a machine without
# CAP_SYS_RESOURCE may have; both numbers are the same because podman 4.3 swaps them in pods.
CONTAINERS_CONF = """\
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
[network]
network_backend = "netavark"
[containers]
default_ulimits = ["nofile=4096:4096", "nproc=1000:1000"]
"""

SERVICE = "user-service"


class Failed(Exception):
    pass


def expect(condition, message):
    if not condition:
        raise Failed(message)


def until(what, question, seconds=30):
    """The first answer to the question that is not None, asked until its time is over."""
    end = time.monotonic() + seconds
    while True:
        answer = question()
        if answer is not None:
            return answer
        expect(time.monotonic() < end, f"not within {seconds} s: {what}")
        time.sleep(0.05)


def get(host, port, path, method="GET", body=None, headers=None):
    """Status and text of an answer; None while there is none."""
    connection = http.client.HTTPConnection(host, port, timeout=5)
    try:
        connection.request(method, path, body, headers or {})
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def libraries(program):
    found = subprocess.run(["ldd", program], capture_output=True, text=True).stdout
    return re.findall(r"(/\S+)", found)


class Podman:
    """An engine with a storage and networks of its own, all of it below one folder."""

    def __init__(self, folder):
        self.folder = folder
        (folder / "networks").mkdir()
        (folder / "containers.conf").write_text(CONTAINERS_CONF)
        self.environment = {**os.environ, "CONTAINERS_CONF": str(folder / "containers.conf")}
        self.environment["PATH"] = ":".join(FOLDERS)
        self.command = ["podman", "--root", folder / "storage", "--runroot", folder / "run", "--tmpdir", folder / "tmp"]
        self.command += ["--network-config-dir", folder / "networks", "--storage-driver", "vfs"]
        self.network = f"pickd-chart-{os.getpid()}"

    def __call__(self, *arguments, **options):
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "timeout": 120} | options
        done = subprocess.run([*self.command, *arguments], env=self.environment, **options)
        if done.returncode:
            raise Failed(f"podman {' '.join(map(str, arguments))}: {done.stderr or done.stdout}")
        return done.stdout.strip() if options["text"] else None

    def make_image(self, name, programs, entrypoint):
        """An image of some programs of this machine, with the libraries they need and nothing else."""
        root = self.folder / "root"
        for source, target in programs.items():
            (root / target).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, root / target)
            subprocess.run(["strip", root / target], stderr=subprocess.DEVNULL, check=False)
            for library in libraries(source):
                target = root / library.lstrip("/")
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(library, target)
        archive = self.folder / "root.tar"
        subprocess.run(["tar", "-C", root, "-cf", archive, "."], check=True)
        changes = ["--change", f"ENTRYPOINT {json.dumps(entrypoint)}", "--change", "ENV PATH=/usr/bin:/bin"]
        self("import", "--quiet", *changes, archive, name)
        shutil.rmtree(root)
        archive.unlink()

    def secret_folder(self, name, keys):
        """A secret as a kubelet mounts it: `fsGroup` is its group, and may read."""
        folder = self.folder / "secrets" / name
        folder.mkdir(parents=True)
        for key, value in keys.items():
            (folder / key).write_text(value)
            os.chown(folder / key, 0, 65532)
            (folder / key).chmod(0o440)
        return folder

    def play(self, *objects):
        file = self.folder / "play.yaml"
        file.write_text(yaml.safe_dump_all(objects))
        # A pod in the network of the node says so itself.
        network = [] if objects[-1]["spec"].get("hostNetwork") else ["--network", self.network]
        self("kube", "play", *network, file)

    def play_to_its_end(self, pod):
        """Plays a pod of one container, and waits until that has ended well."""
        self.play(pod)
        name = f"{pod['metadata']['name']}-{pod['spec']['containers'][0]['name']}"
        state = until(f"{name} has ended", lambda: self.ended(name))
        expect(state["ExitCode"] == 0, f"{name} ended with {state['ExitCode']}: {self('logs', name)}")

    def ended(self, container):
        state = self.inspect(container)["State"]
        return state if state["Status"] == "exited" else None

    def inspect(self, container):
        return json.loads(self("container", "inspect", container))[0]

    def address(self, container):
        found = self.inspect(container)["NetworkSettings"]["Networks"]
        return found[self.network]["IPAddress"]

    def remove_all(self):
        for command in (["pod", "rm", "--force", "--all", "--time", "5"], ["rm", "--force", "--all", "--time", "5"],
                        ["network", "rm", "--force", self.network], ["volume", "prune", "--force"],
                        ["rmi", "--force", "--all"]):
            try:
                self(*command)
            except (Failed, subprocess.TimeoutExpired) as error:
                print(f"tests/chart: while tidying up: {error}", file=sys.stderr)


def play_daemonset(podman, render, name, host_ip, secrets):
    """Plays the template of the DaemonSet as a pod, and does what a kubelet does and podman 4.3 does not."""
    spec = copy.deepcopy(render.pod["spec"])
    for volume in spec["volumes"]:
        if secret := volume.pop("secret", None):
            volume["hostPath"] = {"path": str(secrets[secret["secretName"]]), "type": "Directory"}
    # Init containers one after another, each as a pod: within the pod, podman waits 20 s for one that has ended.
    for container in spec.pop("initContainers", []):
        expand_environment(container, host_ip)
        mounted = {mount["name"] for mount in container["volumeMounts"]}
        volumes = [volume for volume in spec["volumes"] if volume["name"] in mounted]
        alone = {**spec, "containers": [container], "volumes": volumes, "restartPolicy": "Never"}
        podman.play_to_its_end(pod(f"{name}-init", {}, alone))
    for container in spec["containers"]:
        expand_environment(container, host_ip)
        if spec.get("hostNetwork"):
            # There is nothing to map, which podman takes for an error.
            del container["ports"]
    # Without annotations: podman refuses values of more than 63 characters, and a checksum has 64.
    podman.play(render.one("ConfigMap"), pod(name, render.pod["metadata"]["labels"], spec))


def pod(name, labels, spec):
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": labels}, "spec": spec}


def expand_environment(container, host_ip):
    """Variables from `status.hostIP`, and variables within variables: podman knows neither."""
    known = {}
    for variable in container.get("env", []):
        if variable.pop("valueFrom", None) == {"fieldRef": {"fieldPath": "status.hostIP"}}:
            variable["value"] = host_ip
        variable["value"] = re.sub(r"\$\((\w+)\)", lambda found: known.get(found[1], found[0]), variable["value"])
        known[variable["name"]] = variable["value"]


def probe(container, which, host):
    """Asks as the kubelet would. podman makes probes a `curl` within the container, where there is none."""
    asked = container[which]["httpGet"]
    port = next(port["containerPort"] for port in container["ports"] if port["name"] == asked["port"])
    answer = get(host, port, asked["path"])
    return answer and answer[0]


def check_confinement(podman, container):
    """What the kernel says of the process: the security context has arrived."""
    found = podman.inspect(container)
    expect(found["HostConfig"]["ReadonlyRootfs"], f"{container}: its root file system is writable")
    status = pathlib.Path(f"/proc/{found['State']['Pid']}/status").read_text()
    status = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    for field, wanted in {
        "Uid": ["65532"] * 4,
        "Gid": ["65532"] * 4,
        "CapEff": ["0000000000000000"],
        "CapBnd": ["0000000000000000"],
        "NoNewPrivs": ["1"],
        "Seccomp": ["2"],
    }.items():
        expect(status[field].split() == wanted, f"{container}: {field} is {status[field]}")


def curl_of(notes, containing):
    """The command that NOTES.txt tells to run."""
    lines = [line.strip() for line in notes.splitlines() if line.strip().startswith("curl ") and containing in line]
    expect(len(lines) == 1, f"NOTES.txt has {len(lines)} commands with {containing}:\n{notes}")
    return [*shlex.split(lines[0]), "--silent", "--show-error", "--fail", "--max-time", "5"]


def answered(command):
    found = subprocess.run(command, capture_output=True, text=True)
    return found.stdout if found.returncode == 0 else None


class Consul:
    """A Consul with ACLs that deny by default, in a container at an address known before it runs."""

    def __init__(self, podman, address):
        self.podman, self.address = podman, address
        self.token = str(uuid.uuid4())

    def start(self):
        master = f'tokens {{ master = "{self.token}", agent = "{self.token}" }}'
        acl = f'acl {{ enabled = true, default_policy = "deny", {master} }}'
        options = ["--detach", "--name", "consul", "--network", self.podman.network, "--ip", self.address]
        options += ["--tmpfs", "/tmp", "--user", "0", "consul:test"]
        self.podman("run", *options, "agent", "-dev", "-client", "0.0.0.0", "-log-level", "warn", "-hcl", acl)
        policy = {"Name": "pickd", "Rules": 'service_prefix "" { policy = "read" } node_prefix "" { policy = "read" }'}
        until("Consul takes a policy", lambda: self.put("/v1/acl/policy", policy))

    def put(self, path, body):
        """What it answers; None while it does not accept it."""
        status, text = get(self.address, 8500, path, "PUT", json.dumps(body), {"X-Consul-Token": self.token}) or (0, "")
        return text if status == 200 else None

    def register(self, identity, port):
        body = {"ID": identity, "Name": SERVICE, "Address": self.address, "Port": port}
        until(f"{identity} is registered", lambda: self.put("/v1/agent/service/register", body))


def scenario(podman, Render, done):
    network = json.loads(podman("network", "inspect", podman.network))[0]
    hosts = ipaddress.ip_network(network["subnets"][0]["subnet"])
    # The Consul of the "node".
    consul = Consul(podman, str(hosts[200]))
    pickds_token, admin_token = str(uuid.uuid4()), str(uuid.uuid4())
    secrets = {
        "consul-token": podman.secret_folder("consul-token", {"token": pickds_token}),
        "admin-token": podman.secret_folder("admin-token", {"pickd": admin_token}),
    }

    published = free_port()
    values = {
        "consul": {"address": "http://$(HOST_IP):8500", "token": {"existingSecret": "consul-token"}},
        "adminToken": {"existingSecret": "admin-token", "key": "pickd"},
        "hostPort": {"enabled": True, "ip": "127.0.0.1", "port": published},
        "config": {"services": {SERVICE: {"strategy": "round_robin"}}},
    }
    render = Render(values)
    container = render.container
    started = time.monotonic()
    play_daemonset(podman, render, "agent", consul.address, secrets)
    host = podman.address(podman("pod", "inspect", "agent", "--format", "{{.InfraContainerID}}"))
    for which in ("startupProbe", "livenessProbe"):
        until(f"{which} passes without a Consul", lambda: probe(container, which, host) == 200 or None)
    alive = time.monotonic() - started
    expect(probe(container, "readinessProbe", host) == 503, "the pod is ready without a Consul")
    check_confinement(podman, "agent-pickd")
    done(f"pod of the DaemonSet: alive after {alive:.1f} s, not ready without Consul; uid 65532, read-only, no rights")

    consul.start()
    # Consul itself is the instance: something that really answers at the address picked.
    consul.register("user-1", 8500)
    token = {"SecretID": pickds_token, "Policies": [{"Name": "pickd"}]}
    until("Consul takes a token", lambda: consul.put("/v1/acl/token", token))
    until("the pod is ready", lambda: probe(container, "readinessProbe", host) == 200 or None)
    command = curl_of(render.notes, f"127.0.0.1:{published}")
    picked = json.loads(until("a pick is answered", lambda: answered(command)))
    expect(picked["address"] == f"{consul.address}:8500", f"picked {picked}")
    address, _, port = picked["address"].rpartition(":")
    expect(get(address, int(port), "/v1/status/leader")[0] == 200, "nothing answers at the address picked")
    consul.register("user-2", 8502)
    until("what is registered later is picked, too", lambda: ":8502" in (answered(command) or "") or None)
    done(f"its probes pass, and `{' '.join(command[:2])}` of NOTES.txt picks what is registered in Consul, with a token")

    drain = f"/services/{SERVICE}/instances/{urllib.parse.quote(picked['id'], safe='')}/drain"
    for shown, status in ((str(uuid.uuid4()), 403), (admin_token, 200)):
        answer = get(host, 7425, drain, "PUT", None, {"Authorization": f"Bearer {shown}"})
        expect(answer and answer[0] == status, f"a drain is answered with {answer}, and not with {status}")
    done("the admin token of its secret is the one that it asks for")

    # The pod of `helm test`, with the name of the Service leading to the agent.
    test = render.one("Pod")
    test["metadata"].pop("annotations")
    expand_environment(test["spec"]["containers"][0], consul.address)
    test["spec"]["hostAliases"] = [{"ip": host, "hostnames": ["pickd.apps.svc"]}]
    podman.play_to_its_end(test)
    done("the pod of `helm test` succeeds")

    folder = podman.folder / "run-pickd"
    # A name of its own for each: podman keeps one volume for a ConfigMap, and these are all of one release.
    values["fullnameOverride"] = "beside"
    values["socket"] = {"enabled": True, "hostPath": str(folder)}
    values["hostPort"]["port"] = free_port()
    values["config"]["api"] = {"socket_mode": "0600"}
    render = Render(values)
    play_daemonset(podman, render, "beside", consul.address, secrets)
    command = curl_of(render.notes, "--unix-socket")
    until("a pick is answered over the Unix socket", lambda: answered(command))
    found = (folder / "pickd.sock").stat()
    expect((found.st_uid, found.st_mode & 0o777) == (65532, 0o600), f"the socket is {found}")
    expect(folder.stat().st_uid == 65532, "the folder of the socket is not pickd's")
    check_confinement(podman, "beside-pickd")
    done("the pod with a socket: its folder was made, given to it by the init container, and curl picks over it")

    port = free_port()
    del values["socket"], values["hostPort"], values["config"]["api"]
    values |= {"fullnameOverride": "host", "hostNetwork": True, "bindAddress": "127.0.0.1", "port": port}
    values["service"] = {"enabled": False}
    render = Render(values)
    play_daemonset(podman, render, "host", consul.address, secrets)
    for which in ("startupProbe", "livenessProbe", "readinessProbe"):
        asked = render.container[which]["httpGet"]["host"]
        until(f"{which} passes at {asked}", lambda: probe(render.container, which, asked) == 200 or None)
    command = curl_of(render.notes, f"127.0.0.1:{port}")
    until("a pick is answered on the node's loopback", lambda: answered(command))
    check_confinement(podman, "host-pickd")
    done("the pod in the network of the node, on its loopback: its probes pass, and curl picks")

    for name in ("agent", "beside", "host"):
        podman("pod", "stop", "--time", "10", name)
        state = until(f"{name} has ended", lambda: podman.ended(f"{name}-pickd"))
        expect(state["ExitCode"] == 0, f"{name} ended with {state['ExitCode']} on SIGTERM")
    expect(not (folder / "pickd.sock").exists(), "the socket is left behind")
    done("all end on SIGTERM with 0")


def missing():
    found = {program for program in PROGRAMS if any(pathlib.Path(folder, program).exists() for folder in FOLDERS)}
    return [program for program in PROGRAMS if program not in found]


def install():
    """Gets what is missing from the packages of Debian. Returns why it cannot."""
    if os.geteuid() != 0:
        return "it takes root"
    if not missing():
        return None
    if not shutil.which("apt-get"):
        return f"{', '.join(missing())} and apt-get are missing"
    packages = [PROGRAMS[program] for program in missing()]
    print(f"tests/chart: installing {', '.join(packages)}", flush=True)
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    subprocess.run(["apt-get", "-q", "update"], env=environment, capture_output=True)
    command = ["apt-get", "-q", "-y", "install", "--no-install-recommends", *packages]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode or missing():
        return f"{', '.join(missing())} cannot be installed: {done.stderr.strip()[-500:]}"
    return None


def run(Render, pickd, consul, done):
    """Runs the pod. Returns why there is no engine to do it with, if there is none; raises if the pod does not do."""
    why = install()
    if why:
        return why
    folder = pathlib.Path(tempfile.mkdtemp(prefix="pickd-chart-pod-"))
    podman = Podman(folder)
    try:
        try:
            # What fails with this image is the machine's fault, and not the chart's.
            init = Render({"state": {"enabled": True}}).pod["spec"]["initContainers"][0]["image"]
            podman.make_image(init, {"/bin/chown": "bin/chown"}, [])
            podman("network", "create", podman.network)
            podman("run", "--rm", "--network", podman.network, init, "chown", "--version")
        except (Failed, subprocess.TimeoutExpired) as error:
            return f"podman cannot run a container here: {error}"
        podman.make_image(Render({}).container["image"], {pickd: "pickd"}, ["/pickd"])
        podman.make_image("consul:test", {consul: "consul"}, ["/consul"])
        done("podman runs, with images of this machine's files under the chart's names")
        try:
            scenario(podman, Render, done)
        except BaseException:
            for name in podman("ps", "--all", "--format", "{{.Names}}").split():
                logs = subprocess.run([*podman.command, "logs", "--tail", "20", name], env=podman.environment,
                                      stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
                print(f"tests/chart: {name} says:\n{logs.stdout}", file=sys.stderr)
            raise
    finally:
        podman.remove_all()
        shutil.rmtree(folder)
    return None
