//! Real etcd servers for each test, on 127.0.0.1, with data directories that outlive the processes.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use etcd_client::{Client, ConnectOptions, Txn, TxnOp};
use tempfile::TempDir;
use tokio::runtime::Runtime;

use super::{free_ports, signal, until};

/// A cluster of one to three members, killed when dropped.
pub(crate) struct Etcd {
    members: Vec<Member>,
    directory: TempDir,
    scheme: &'static str,
    arguments: Vec<String>,
    /// Arguments of `etcdctl` besides the endpoints.
    pub(crate) credentials: Vec<String>,
    runtime: Runtime,
}

struct Member {
    process: Option<Child>,
    client_port: u16,
    peer_port: u16,
}

impl Etcd {
    /// Starts one member.
    pub(crate) fn start() -> Self {
        Self::start_with(&[])
    }

    /// Starts one member with these arguments.
    pub(crate) fn start_with(arguments: &[&str]) -> Self {
        Self::started("http", free_ports::<2>().chunks(2), arguments)
    }

    /// Starts three members, and waits for their leader.
    pub(crate) fn cluster() -> Self {
        Self::started("http", free_ports::<6>().chunks(2), &[])
    }

    /// Starts one member with TLS for its clients.
    pub(crate) fn start_with_tls(arguments: &[&str], credentials: Vec<String>) -> Self {
        let mut etcd = Self::configured("https", free_ports::<2>().chunks(2), arguments);
        etcd.credentials = credentials;
        etcd.spawn(0);
        etcd.wait_until_ready();
        etcd
    }

    /// Chooses ports; no process runs.
    pub(crate) fn not_started() -> Self {
        Self::configured("http", free_ports::<2>().chunks(2), &[])
    }

    fn started<'a>(scheme: &'static str, ports: impl Iterator<Item = &'a [u16]>, arguments: &[&str]) -> Self {
        let mut etcd = Self::configured(scheme, ports, arguments);
        for member in 0..etcd.members.len() {
            etcd.spawn(member);
        }
        etcd.wait_until_ready();
        etcd
    }

    fn configured<'a>(scheme: &'static str, ports: impl Iterator<Item = &'a [u16]>, arguments: &[&str]) -> Self {
        let member = |ports: &[u16]| Member {
            process: None,
            client_port: ports[0],
            peer_port: ports[1],
        };
        Self {
            members: ports.map(member).collect(),
            directory: tempfile::tempdir().unwrap(),
            scheme,
            arguments: arguments.iter().map(ToString::to_string).collect(),
            credentials: Vec::new(),
            runtime: tokio::runtime::Builder::new_multi_thread()
                .worker_threads(1)
                .enable_all()
                .build()
                .unwrap(),
        }
    }

    fn spawn(&mut self, member: usize) {
        let cluster: Vec<String> = (0..self.members.len())
            .map(|other| format!("m{other}=http://127.0.0.1:{}", self.members[other].peer_port))
            .collect();
        let cluster = cluster.join(",");
        self.spawn_as(member, &cluster, "new");
    }

    fn spawn_as(&mut self, member: usize, cluster: &str, state: &str) {
        let program = std::env::var("PICKD_TEST_ETCD")
            .expect("PICKD_TEST_ETCD is not set: run tests/run, which finds or fetches the servers");
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.directory.path().join("log"))
            .unwrap();
        let (client, peer) = (
            self.url(member),
            format!("http://127.0.0.1:{}", self.members[member].peer_port),
        );
        let child = Command::new(program)
            .args(["--name", &format!("m{member}")])
            .arg("--data-dir")
            .arg(self.data(member))
            .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", cluster, "--initial-cluster-state", state])
            .args(["--logger", "zap", "--log-level", "warn"])
            .args(&self.arguments)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .expect("PICKD_TEST_ETCD cannot be started");
        self.members[member].process = Some(child);
    }

    fn data(&self, member: usize) -> PathBuf {
        self.directory.path().join(format!("data-{member}"))
    }

    /// The folder of this cluster.
    pub(crate) fn folder(&self) -> &Path {
        self.directory.path()
    }

    fn wait_until_ready(&self) {
        until(
            Duration::from_secs(30),
            &format!("etcd answers; its log:\n{}", self.log()),
            || {
                self.try_ctl(["get", "ready", "--command-timeout", "2s"])
                    .status
                    .success()
                    .then_some(())
            },
        );
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.directory.path().join("log")).unwrap_or_default()
    }

    pub(crate) fn url(&self, member: usize) -> String {
        format!("{}://127.0.0.1:{}", self.scheme, self.members[member].client_port)
    }

    pub(crate) fn port(&self) -> u16 {
        self.members[0].client_port
    }

    /// All endpoints, separated by commas.
    pub(crate) fn urls(&self) -> String {
        let urls: Vec<String> = (0..self.members.len()).map(|member| self.url(member)).collect();
        urls.join(",")
    }

    /// Starts a member at the same ports with its data, and waits until the member answers.
    pub(crate) fn restart(&mut self, member: usize) {
        assert!(self.members[member].process.is_none());
        self.spawn(member);
        self.wait_until_ready();
    }

    /// Starts a member without waiting, for a member that cannot answer yet.
    pub(crate) fn restart_only(&mut self, member: usize) {
        assert!(self.members[member].process.is_none());
        self.spawn(member);
    }

    /// Adds a fourth member as a learner, which has no vote and answers no requests.
    pub(crate) fn add_learner(&mut self) -> usize {
        let [client_port, peer_port] = free_ports();
        let member = self.members.len();
        let peer = format!("http://127.0.0.1:{peer_port}");
        self.ctl([
            "member",
            "add",
            &format!("m{member}"),
            "--learner",
            "--peer-urls",
            &peer,
        ]);
        self.members.push(Member {
            process: None,
            client_port,
            peer_port,
        });
        let cluster: Vec<String> = (0..=member)
            .map(|other| format!("m{other}=http://127.0.0.1:{}", self.members[other].peer_port))
            .collect();
        self.spawn_as(member, &cluster.join(","), "existing");
        member
    }

    /// `kill -9`.
    pub(crate) fn kill(&mut self, member: usize) {
        if let Some(mut process) = self.members[member].process.take() {
            process.kill().unwrap();
            process.wait().unwrap();
        }
    }

    /// Sends SIGTERM, and waits for the end.
    pub(crate) fn terminate(&mut self, member: usize) {
        self.signal(member, "TERM");
        let mut process = self.members[member].process.take().unwrap();
        process.wait().unwrap();
    }

    /// Deletes all data of a member, which must not be running.
    pub(crate) fn wipe(&self, member: usize) {
        assert!(self.members[member].process.is_none());
        std::fs::remove_dir_all(self.data(member)).unwrap();
    }

    /// Sends a signal by name to a member.
    pub(crate) fn signal(&self, member: usize, name: &str) {
        signal(self.members[member].process.as_ref().expect("the member runs"), name);
    }

    /// The member that is the leader.
    pub(crate) fn leader(&self) -> usize {
        until(Duration::from_secs(20), "a leader", || {
            (0..self.members.len()).find(|member| {
                let url = self.url(*member);
                let output = self.ctl_at(&url, ["endpoint", "status", "--write-out", "fields"]);
                let text = String::from_utf8_lossy(&output.stdout).into_owned();
                let field = |name: &str| {
                    text.lines()
                        .find_map(|line| line.strip_prefix(&format!("\"{name}\" : ")).map(str::to_owned))
                };
                field("Leader").is_some() && field("Leader") == field("MemberID")
            })
        })
    }

    /// Runs `etcdctl` with these arguments.
    pub(crate) fn try_ctl<'a>(&self, arguments: impl IntoIterator<Item = &'a str>) -> Output {
        self.ctl_at(&self.urls(), arguments)
    }

    fn ctl_at<'a>(&self, endpoints: &str, arguments: impl IntoIterator<Item = &'a str>) -> Output {
        etcdctl()
            .args(["--endpoints", endpoints])
            .args(&self.credentials)
            .args(arguments)
            .output()
            .unwrap()
    }

    /// Runs `etcdctl`, which must succeed, and returns its output.
    pub(crate) fn ctl<'a>(&self, arguments: impl IntoIterator<Item = &'a str>) -> String {
        let output = self.try_ctl(arguments);
        assert!(
            output.status.success(),
            "etcdctl: {}\n{}",
            String::from_utf8_lossy(&output.stderr),
            self.log()
        );
        String::from_utf8(output.stdout).unwrap()
    }

    pub(crate) fn put(&self, key: &str, value: &str) {
        self.ctl(["put", key, value]);
    }

    pub(crate) fn delete(&self, key: &str) {
        self.ctl(["del", key]);
    }

    /// Changes the password of a user.
    pub(crate) fn change_password(&self, user: &str, password: &str) {
        let mut child = etcdctl()
            .args(["--endpoints", &self.urls()])
            .args(&self.credentials)
            .args(["user", "passwd", user, "--interactive=false"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        child
            .stdin
            .take()
            .unwrap()
            .write_all(format!("{password}\n").as_bytes())
            .unwrap();
        assert!(child.wait().unwrap().success());
    }

    /// A separate client, and a runtime for the client.
    pub(crate) fn client(&self) -> (Client, &Runtime) {
        let urls: Vec<String> = (0..self.members.len())
            .filter(|member| self.members[*member].process.is_some())
            .map(|member| self.url(member))
            .collect();
        let options = ConnectOptions::new().with_timeout(Duration::from_secs(30));
        let client = self.runtime.block_on(Client::connect(urls, Some(options))).unwrap();
        (client, &self.runtime)
    }

    /// Puts many keys, 128 per transaction.
    pub(crate) fn put_many(&self, pairs: &[(String, String)]) {
        let (mut client, runtime) = self.client();
        runtime.block_on(async {
            for chunk in pairs.chunks(128) {
                let puts: Vec<TxnOp> = chunk
                    .iter()
                    .map(|(key, value)| TxnOp::put(key.as_str(), value.as_str(), None))
                    .collect();
                client.txn(Txn::new().and_then(puts)).await.unwrap();
            }
        });
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.log();
            let tail: Vec<&str> = log.lines().rev().take(20).collect();
            eprintln!("the end of etcd's log, backwards:\n{}", tail.join("\n"));
        }
        for member in 0..self.members.len() {
            self.kill(member);
        }
    }
}

/// `etcdctl`, without the environment variables that it reads.
pub(crate) fn etcdctl() -> Command {
    let program = std::env::var("PICKD_TEST_ETCDCTL")
        .expect("PICKD_TEST_ETCDCTL is not set: run tests/run, which finds or fetches the servers");
    let mut command = Command::new(program);
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("ETCDCTL_") {
            command.env_remove(name);
        }
    }
    command.env("ETCDCTL_API", "3").stdin(Stdio::null());
    command
}
