//! A real Consul server for each test, on 127.0.0.1, with a data directory that outlives the
//! process.

use std::fs::File;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;

use super::{eventually, free_ports, signal};

/// A Consul server, killed when dropped.
pub(crate) struct Consul {
    process: Option<Child>,
    directory: TempDir,
    http_port: u16,
    https_port: u16,
    /// 0 without another datacenter.
    wan_port: u16,
    serf_port: u16,
    client: reqwest::Client,
    token: Option<String>,
}

impl Consul {
    /// Starts a server, and waits for its leader.
    pub(crate) async fn start() -> Self {
        Self::start_with(json!({})).await
    }

    /// Starts a server that refuses all requests without a token. Requests of this type use the
    /// management token.
    pub(crate) async fn start_with_acl() -> Self {
        let acl = json!({ "enabled": true, "default_policy": "deny", "tokens": { "master": MANAGEMENT } });
        let mut consul = Self::configured(json!({ "acl": acl }));
        consul.token = Some(MANAGEMENT.to_owned());
        consul.spawn();
        consul.wait_until_ready().await;
        consul
    }

    /// Starts a server with further settings.
    pub(crate) async fn start_with(extra: Value) -> Self {
        let mut consul = Self::configured(extra);
        consul.spawn();
        consul.wait_until_ready().await;
        consul
    }

    /// Starts a server of this datacenter, which joins the other server over the WAN ports.
    pub(crate) async fn start_in(datacenter: &str, other: Option<&Self>) -> Self {
        let [http, server, serf, wan] = free_ports();
        let mut consul = Self::configured(json!({
            "datacenter": datacenter,
            "ports": {
                "http": http, "server": server, "serf_lan": serf, "serf_wan": wan, "dns": -1, "grpc": -1, "https": -1
            },
            "retry_join_wan": other.map(|other| format!("127.0.0.1:{}", other.wan_port)).as_slice(),
            "retry_interval_wan": "1s",
        }));
        (consul.http_port, consul.wan_port) = (http, wan);
        consul.spawn();
        consul.wait_until_ready().await;
        consul
    }

    /// Waits until this server can ask the other datacenter.
    pub(crate) async fn reaches(&self, datacenter: &str) {
        let path = format!("/v1/catalog/services?dc={datacenter}");
        eventually(Duration::from_secs(30), &format!("a path to {datacenter}"), || async {
            let (status, _) = self.ask(reqwest::Method::GET, &path, None).await.ok()?;
            (status == 200).then_some(())
        })
        .await;
    }

    /// Starts a client agent of this server, with further settings.
    pub(crate) async fn start_client(&self, extra: Value) -> Self {
        let mut settings = json!({
            "node_name": "client", "server": false, "bootstrap": false,
            "retry_join": [format!("127.0.0.1:{}", self.serf_port)],
        });
        settings
            .as_object_mut()
            .unwrap()
            .extend(extra.as_object().unwrap().clone());
        Self::start_with(settings).await
    }

    /// Registers services `<prefix>0000`, `<prefix>0001`, ... with one instance each, number i at
    /// 10.1.0.1 and port 1000 + i.
    pub(crate) async fn register_many(&self, prefix: &str, services: usize) {
        let node = json!({ "Node": { "Verb": "set", "Node": { "Node": "many", "Address": "10.1.0.1" } } });
        self.put("/v1/txn", json!([node])).await;
        let entry = |i: usize| {
            let service =
                json!({ "ID": format!("{prefix}{i:04}"), "Service": format!("{prefix}{i:04}"), "Port": 1000 + i });
            json!({ "Service": { "Verb": "set", "Node": "many", "Service": service } })
        };
        // A transaction has 64 operations at most.
        let all: Vec<Value> = (0..services).map(entry).collect();
        for part in all.chunks(64) {
            self.put("/v1/txn", json!(part)).await;
        }
    }

    /// Chooses ports and writes the configuration; no process runs.
    pub(crate) fn not_started() -> Self {
        Self::configured(json!({}))
    }

    fn configured(extra: Value) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let [http, server, serf, https] = free_ports();
        let mut config = json!({
            "node_name": "server", "server": true, "bootstrap": true,
            "data_dir": directory.path().join("data"),
            "bind_addr": "127.0.0.1", "client_addr": "127.0.0.1",
            "ports": { "http": http, "server": server, "serf_lan": serf, "serf_wan": -1, "dns": -1, "grpc": -1, "https": -1 },
            "performance": { "raft_multiplier": 1 },
            "disable_update_check": true, "log_level": "WARN",
        });
        config
            .as_object_mut()
            .unwrap()
            .extend(extra.as_object().unwrap().clone());
        if config.get("cert_file").is_some() {
            config["ports"]["https"] = json!(https);
        }
        std::fs::write(directory.path().join("config.json"), config.to_string()).unwrap();
        std::fs::create_dir(directory.path().join("definitions")).unwrap();
        let client = pickd::http_client::client(Duration::from_secs(5), &Default::default()).unwrap();
        Self {
            process: None,
            directory,
            http_port: http,
            https_port: https,
            wan_port: 0,
            serf_port: serf,
            client,
            token: None,
        }
    }

    fn spawn(&mut self) {
        let program = std::env::var("PICKD_TEST_CONSUL")
            .expect("PICKD_TEST_CONSUL is not set: run tests/run, which finds or fetches the servers");
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.directory.path().join("log"))
            .unwrap();
        let config = self.directory.path().join("config.json");
        let child = Command::new(program)
            .args(["agent", "-config-file"])
            .arg(config)
            .arg("-config-dir")
            .arg(self.directory.path().join("definitions"))
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .expect("PICKD_TEST_CONSUL cannot be started");
        self.process = Some(child);
    }

    /// Waits until the server has a leader and has registered itself.
    async fn wait_until_ready(&self) {
        let ready = || async {
            let (status, services) = self
                .ask(reqwest::Method::GET, "/v1/catalog/services", None)
                .await
                .ok()?;
            (status == 200 && services.get("consul").is_some()).then_some(())
        };
        eventually(
            Duration::from_secs(30),
            &format!("Consul's leader; its log:\n{}", self.log()),
            ready,
        )
        .await;
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.directory.path().join("log")).unwrap_or_default()
    }

    /// Writes a file into the folder of definitions, and has the server read the folder.
    pub(crate) fn define(&self, name: &str, text: &str) {
        std::fs::write(self.directory.path().join("definitions").join(name), text).unwrap();
        self.signal("HUP");
    }

    /// Starts the server again at the same ports with its data.
    pub(crate) async fn restart(&mut self) {
        assert!(self.process.is_none());
        self.spawn();
        self.wait_until_ready().await;
    }

    /// `kill -9`.
    pub(crate) fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill().unwrap();
            process.wait().unwrap();
        }
    }

    /// Deletes all data of the server, which must not be running.
    pub(crate) fn wipe(&mut self) {
        assert!(self.process.is_none());
        std::fs::remove_dir_all(self.directory.path().join("data")).unwrap();
    }

    /// Sends a signal by name to the server.
    pub(crate) fn signal(&self, name: &str) {
        signal(self.process.as_ref().expect("the server runs"), name);
    }

    pub(crate) fn address(&self) -> String {
        format!("http://127.0.0.1:{}", self.http_port)
    }

    /// The address with TLS, of a server with a `cert_file`.
    pub(crate) fn https_address(&self) -> String {
        format!("https://127.0.0.1:{}", self.https_port)
    }

    pub(crate) fn port(&self) -> u16 {
        self.http_port
    }

    async fn ask(&self, method: reqwest::Method, path: &str, body: Option<&Value>) -> reqwest::Result<(u16, Value)> {
        let mut request = self.client.request(method, format!("{}{path}", self.address()));
        if let Some(token) = &self.token {
            request = request.header("x-consul-token", token);
        }
        if let Some(body) = body {
            request = request.body(body.to_string());
        }
        let response = request.send().await?;
        let status = response.status().as_u16();
        let text = response.text().await?;
        Ok((status, serde_json::from_str(&text).unwrap_or(Value::String(text))))
    }

    /// Sends a PUT that must succeed.
    pub(crate) async fn put(&self, path: &str, body: Value) -> Value {
        let (status, answer) = self.ask(reqwest::Method::PUT, path, Some(&body)).await.unwrap();
        assert_eq!(status, 200, "PUT {path}: {answer}");
        answer
    }

    /// Registers through the catalog: `id` of `service` on `node`, with further fields of the
    /// service.
    pub(crate) async fn register(&self, node: &str, service: &str, id: &str, port: i64, fields: Value) {
        let mut entry = json!({ "ID": id, "Service": service, "Port": port });
        entry
            .as_object_mut()
            .unwrap()
            .extend(fields.as_object().cloned().unwrap_or_default());
        self.put(
            "/v1/catalog/register",
            json!({ "Node": node, "Address": "10.0.0.1", "SkipNodeUpdate": false, "Service": entry }),
        )
        .await;
    }

    /// Sets a check through the catalog. An empty service makes a check of the node.
    pub(crate) async fn check(&self, node: &str, service_id: &str, check: &str, status: &str, output: &str) {
        let check =
            json!({ "CheckID": check, "Name": check, "Status": status, "Output": output, "ServiceID": service_id });
        self.put(
            "/v1/catalog/register",
            json!({ "Node": node, "Address": "10.0.0.1", "Check": check }),
        )
        .await;
    }

    /// Removes an instance, or without an id the whole node, from the catalog.
    pub(crate) async fn deregister(&self, node: &str, id: Option<&str>) {
        let mut what = json!({ "Node": node });
        if let Some(id) = id {
            what["ServiceID"] = json!(id);
        }
        self.put("/v1/catalog/deregister", what).await;
    }

    /// Creates a token with these rules.
    pub(crate) async fn token(&self, name: &str, rules: &str) -> String {
        self.put("/v1/acl/policy", json!({ "Name": name, "Rules": rules }))
            .await;
        let token = self
            .put("/v1/acl/token", json!({ "Policies": [{ "Name": name }] }))
            .await;
        token["SecretID"].as_str().unwrap().to_owned()
    }

    /// Takes a snapshot of all data.
    pub(crate) async fn snapshot(&self) -> bytes::Bytes {
        let response = self
            .client
            .get(format!("{}/v1/snapshot", self.address()))
            .send()
            .await
            .unwrap();
        response.error_for_status().unwrap().bytes().await.unwrap()
    }

    /// Restores a snapshot.
    pub(crate) async fn restore(&self, snapshot: bytes::Bytes) {
        let request = self
            .client
            .put(format!("{}/v1/snapshot", self.address()))
            .body(snapshot);
        request.send().await.unwrap().error_for_status().unwrap();
    }
}

/// The token that may do everything, where there are ACLs.
pub(crate) const MANAGEMENT: &str = "6b5a2c1e-0000-4000-8000-000000000001";

impl Drop for Consul {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("Consul's log:\n{}", self.log());
        }
        self.kill();
    }
}
