//! A stand-in for Consul with faults that a real Consul cannot show on demand: indexes that go
//! back, answers that break off, servers without a leader. A request blocks as in Consul, until the
//! index has passed the requested index, or has gone back.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;

/// The present content of answers.
#[derive(Clone)]
pub(crate) struct State {
    pub(crate) index: u64,
    /// The header in place of the index, if set.
    pub(crate) index_text: Option<String>,
    pub(crate) known_leader: bool,
    pub(crate) last_contact: Duration,
    pub(crate) filtered: bool,
    pub(crate) services: BTreeMap<String, Vec<Value>>,
    /// Names in the catalog besides those of `services`.
    pub(crate) listed: Vec<String>,
    /// Status and body of the answers to `POST /v1/internal/acl/authorize` and `GET
    /// /v1/acl/token/self`.
    pub(crate) rights: [(u16, &'static str); 2],
    /// No request blocks. With `true`, each answer has a higher index than the answer before.
    pub(crate) never_blocks: Option<bool>,
    pub(crate) fault: Option<Fault>,
    /// The fault applies to paths that end with this text.
    pub(crate) fault_at: &'static str,
}

/// A fault of an answer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Fault {
    /// An error status, with the index that Consul sends with errors.
    Status(u16),
    /// 429 with this `Retry-After` in seconds.
    RetryAfter(u16),
    /// 429 with the text that Consul sends when an address has too many connections.
    TooManyConnections,
    /// Long polls get 504 after this time, as from a proxy.
    CutAfter(Duration),
    /// The connection of a long poll is closed after this time.
    CloseAfter(Duration),
    /// Requests without `stale` get 500, as with a lost quorum.
    NotWithoutStale,
    /// A connection reset instead of an answer.
    Reset,
    /// Headers, half of the body, and the end.
    CutShort,
    /// Headers, and then nothing.
    Stall,
    /// A complete answer with incomplete JSON.
    HalfJson,
}

#[derive(Clone, Debug)]
pub(crate) struct Asked {
    pub(crate) path: String,
    pub(crate) query: String,
    /// The request line and the headers.
    pub(crate) head: String,
    pub(crate) body: String,
    /// Requests in progress, this request included.
    pub(crate) at_once: usize,
}

pub(crate) struct FakeConsul {
    address: SocketAddr,
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

struct Shared {
    state: watch::Sender<State>,
    asked: Mutex<Vec<Asked>>,
    answers: std::sync::atomic::AtomicU64,
    busy: Mutex<usize>,
}

/// An entry of a health answer.
pub(crate) fn entry(service: &str, id: &str, port: u16) -> Value {
    json!({ "Node": { "Node": "n1", "Address": "10.0.0.1" }, "Service": { "ID": id, "Service": service, "Port": port }, "Checks": [] })
}

impl FakeConsul {
    /// Starts a stand-in that has these services with these numbers of instances.
    pub(crate) async fn start(services: &[(&str, u16)]) -> Self {
        let instances = |name: &str, count| {
            (1..=count)
                .map(|i| entry(name, &format!("{name}-{i}"), 8000 + i))
                .collect()
        };
        let services = services
            .iter()
            .map(|(name, count)| ((*name).to_owned(), instances(name, *count)))
            .collect();
        let state = State {
            index: 100,
            index_text: None,
            known_leader: true,
            last_contact: Duration::ZERO,
            filtered: false,
            services,
            listed: vec![String::from("consul")],
            rights: [(200, r#"[{"Allow":false}]"#), (403, "ACL not found")],
            never_blocks: None,
            fault: None,
            fault_at: "",
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            state: watch::Sender::new(state),
            asked: Mutex::default(),
            answers: Default::default(),
            busy: Mutex::default(),
        });
        let served = Arc::clone(&shared);
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, Arc::clone(&served)));
            }
        });
        Self { address, shared, task }
    }

    pub(crate) fn address(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Changes the state, and wakes blocked requests.
    pub(crate) fn change(&self, change: impl FnOnce(&mut State)) {
        self.shared.state.send_modify(change);
    }

    /// Changes the state without waking blocked requests.
    pub(crate) fn change_silently(&self, change: impl FnOnce(&mut State)) {
        self.shared.state.send_if_modified(|state| {
            change(state);
            false
        });
    }

    /// All requests so far.
    pub(crate) fn asked(&self) -> Vec<Asked> {
        self.shared.asked.lock().unwrap().clone()
    }
}

impl Drop for FakeConsul {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(mut stream: TcpStream, shared: Arc<Shared>) {
    let mut pending = Vec::new();
    while let Some((head, body)) = question(&mut stream, &mut pending).await {
        let target = head.split_whitespace().nth(1).unwrap_or_default().to_owned();
        let (path, query) = target.split_once('?').unwrap_or((&target, ""));
        let at_once = {
            let mut busy = shared.busy.lock().unwrap();
            *busy += 1;
            *busy
        };
        shared.asked.lock().unwrap().push(Asked {
            path: path.to_owned(),
            query: query.to_owned(),
            head,
            body,
            at_once,
        });
        let mut writer = Writer(&stream);
        // A client that disconnects while its request blocks has no request in progress.
        let go_on = tokio::select! {
            go_on = answer(&mut writer, &shared, path, query) => go_on,
            () = hung_up(&stream) => false,
        };
        *shared.busy.lock().unwrap() -= 1;
        if !go_on {
            return;
        }
    }
}

/// Writes through a shared reference, so that another future can watch the end of the connection.
struct Writer<'a>(&'a TcpStream);

impl Writer<'_> {
    async fn write(&mut self, mut bytes: &[u8]) -> bool {
        while !bytes.is_empty() {
            if self.0.writable().await.is_err() {
                return false;
            }
            match self.0.try_write(bytes) {
                Ok(written) => bytes = &bytes[written..],
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(_) => return false,
            }
        }
        true
    }
}

async fn hung_up(stream: &TcpStream) {
    let mut byte = [0];
    loop {
        match stream.peek(&mut byte).await {
            Ok(0) | Err(_) => return,
            Ok(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

/// Head and body of the next request on this connection.
async fn question(stream: &mut TcpStream, pending: &mut Vec<u8>) -> Option<(String, String)> {
    loop {
        if let Some(end) = pending.windows(4).position(|window| window == b"\r\n\r\n") {
            let head = String::from_utf8(pending[..end + 4].to_vec()).unwrap();
            let length = head
                .lines()
                .find_map(|line| line.to_lowercase().strip_prefix("content-length:")?.trim().parse().ok());
            let whole = end + 4 + length.unwrap_or(0);
            if pending.len() >= whole {
                let request = String::from_utf8(pending.drain(..whole).collect()).unwrap();
                return Some((head, request[end + 4..].to_owned()));
            }
        }
        let mut buffer = [0; 4096];
        match stream.read(&mut buffer).await {
            Ok(read @ 1..) => pending.extend_from_slice(&buffer[..read]),
            _ => return None,
        }
    }
}

async fn answer(stream: &mut Writer<'_>, shared: &Shared, path: &str, query: &str) -> bool {
    let mut changes = shared.state.subscribe();
    let param = |name: &str| {
        query
            .split('&')
            .find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='))
    };
    let asked: Option<u64> = param("index").map(|index| index.parse().unwrap());
    let wait = param("wait").map_or(0, |wait| wait.trim_end_matches("ms").parse().unwrap());
    let until = Instant::now() + Duration::from_millis(wait);
    let cut = match changes.borrow().fault.filter(|_| asked.is_some()) {
        Some(Fault::CutAfter(time) | Fault::CloseAfter(time)) => Some(Instant::now() + time),
        _ => None,
    };
    // As in Consul, the answer at the end of a wait is the state from the start of the wait.
    let mut state = changes.borrow_and_update().clone();
    let blocks = |state: &State| {
        let fault = state.fault.filter(|_| path.ends_with(state.fault_at));
        let blocks = matches!(fault, None | Some(Fault::CutAfter(_) | Fault::CloseAfter(_)));
        blocks && state.never_blocks.is_none()
    };
    while asked == Some(state.index) && blocks(&state) {
        match tokio::time::timeout_at(cut.unwrap_or(until).min(until), changes.changed()).await {
            Ok(_) => state = changes.borrow_and_update().clone(),
            Err(_) => break,
        }
    }
    let cut = cut.is_some_and(|cut| cut < until && cut <= Instant::now());
    let answered = shared.answers.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
    if state.never_blocks == Some(true) {
        state.index += answered;
    }

    if path.contains("/acl/") {
        let (status, text) = state.rights[usize::from(path.ends_with("/self"))];
        return stream.write(failure(status, text).as_bytes()).await;
    }
    let body = match path.strip_prefix("/v1/health/service/") {
        Some(name) => json!(state.services.get(name).cloned().unwrap_or_default()),
        None => {
            let names = state
                .services
                .iter()
                .filter(|(_, instances)| !instances.is_empty())
                .map(|(name, _)| name);
            Value::Object(
                names
                    .chain(&state.listed)
                    .map(|name| (name.clone(), json!([])))
                    .collect(),
            )
        }
    }
    .to_string();
    let index = state.index_text.clone().unwrap_or_else(|| state.index.to_string());
    // The leader, asked without `stale`, never lags.
    let (known_leader, last_contact) = match query.contains("stale") {
        true => (state.known_leader, state.last_contact),
        false => (true, Duration::ZERO),
    };
    let head = |length: usize| {
        let filtered = if state.filtered {
            "X-Consul-Results-Filtered-By-ACLs: true\r\n"
        } else {
            ""
        };
        format!(
            "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nX-Consul-Index: {index}\r\nX-Consul-Knownleader: {known_leader}\r\n\
             X-Consul-Lastcontact: {}\r\n{filtered}Content-Length: {length}\r\n\r\n",
            last_contact.as_millis()
        )
    };
    let good = format!("{}{body}", head(body.len()));
    let half = &body[..body.len() / 2];
    match state.fault.filter(|_| path.ends_with(state.fault_at)) {
        Some(Fault::NotWithoutStale) if query.contains("stale") => stream.write(good.as_bytes()).await,
        None => stream.write(good.as_bytes()).await,
        Some(Fault::CutAfter(_)) if cut => stream.write(failure(504, "upstream timeout").as_bytes()).await,
        Some(Fault::CloseAfter(_)) if cut => false,
        Some(Fault::CutAfter(_) | Fault::CloseAfter(_)) => stream.write(good.as_bytes()).await,
        Some(Fault::RetryAfter(seconds)) => {
            let head = format!("HTTP/1.1 429 Too Many Requests\r\nRetry-After: {seconds}\r\nContent-Length: 0\r\n\r\n");
            stream.write(head.as_bytes()).await
        }
        Some(Fault::TooManyConnections) => {
            let text = "Your IP is issuing too many concurrent connections, please rate limit your calls\n";
            let answer = format!(
                "HTTP/1.1 429 Too Many Requests\r\nContent-Type: text/plain\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{text}",
                text.len()
            );
            stream.write(answer.as_bytes()).await;
            false
        }
        Some(Fault::NotWithoutStale) => stream.write(failure(500, "No cluster leader").as_bytes()).await,
        Some(Fault::Status(status)) => stream.write(failure(status, "rpc error").as_bytes()).await,
        Some(Fault::HalfJson) => stream.write(format!("{}{half}", head(half.len())).as_bytes()).await,
        Some(Fault::CutShort) => {
            stream.write(format!("{}{half}", head(body.len())).as_bytes()).await;
            false
        }
        Some(Fault::Stall) => {
            stream.write(head(body.len()).as_bytes()).await;
            std::future::pending().await
        }
        Some(Fault::Reset) => {
            // Closing a connection with unread data and without lingering sends a reset.
            #[expect(deprecated, reason = "zero seconds do not block")]
            let _ = stream.0.set_linger(Some(Duration::ZERO));
            false
        }
    }
}

fn failure(status: u16, text: &str) -> String {
    format!(
        "HTTP/1.1 {status} Whatever\r\nX-Consul-Index: 1\r\nX-Consul-Knownleader: false\r\nContent-Length: {}\r\n\r\n{text}",
        text.len()
    )
}
