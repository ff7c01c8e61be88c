//! A TCP proxy that counts connections open at once, and requests. It can answer 403 for a path.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

pub(crate) struct Proxy {
    address: SocketAddr,
    counts: Arc<Counts>,
    task: JoinHandle<()>,
}

#[derive(Default)]
struct Counts {
    open: AtomicUsize,
    most: AtomicUsize,
    requests: AtomicUsize,
    /// Requests for this path are not forwarded, and how many there were.
    forbidden: Mutex<Option<String>>,
    refused: AtomicUsize,
}

impl Proxy {
    /// Forwards connections to a port on 127.0.0.1.
    pub(crate) async fn to(port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let counts = Arc::new(Counts::default());
        let counted = Arc::clone(&counts);
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let counts = Arc::clone(&counted);
                tokio::spawn(async move {
                    let open = counts.open.fetch_add(1, Ordering::SeqCst) + 1;
                    counts.most.fetch_max(open, Ordering::SeqCst);
                    if let Ok(server) = TcpStream::connect(("127.0.0.1", port)).await {
                        pass(client, server, &counts).await;
                    }
                    counts.open.fetch_sub(1, Ordering::SeqCst);
                });
            }
        });
        Self { address, counts, task }
    }

    pub(crate) fn address(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The highest number of connections open at once.
    pub(crate) fn most_connections(&self) -> usize {
        self.counts.most.load(Ordering::SeqCst)
    }

    /// Answers requests for this path with 403.
    pub(crate) fn forbid(&self, path: &str) {
        *self.counts.forbidden.lock().unwrap() = Some(path.to_owned());
    }

    /// Answers of 403 so far.
    pub(crate) fn refused(&self) -> usize {
        self.counts.refused.load(Ordering::SeqCst)
    }

    /// Requests so far.
    pub(crate) fn requests(&self) -> usize {
        self.counts.requests.load(Ordering::SeqCst)
    }
}

/// Forwards bytes until either side closes. The watcher sends each request in one write, so a
/// request starts at the start of a read.
async fn pass(client: TcpStream, server: TcpStream, counts: &Counts) {
    let (mut from_client, to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let to_client = tokio::sync::Mutex::new(to_client);
    let up = async {
        let mut buffer = vec![0; 64 << 10];
        while let Ok(read @ 1..) = from_client.read(&mut buffer).await {
            if buffer.starts_with(b"GET ") {
                counts.requests.fetch_add(1, Ordering::SeqCst);
            }
            if counts.forbids(&buffer[..read]) {
                counts.refused.fetch_add(1, Ordering::SeqCst);
                let answer = "HTTP/1.1 403 Forbidden\r\nContent-Length: 17\r\n\r\nPermission denied";
                if to_client.lock().await.write_all(answer.as_bytes()).await.is_err() {
                    break;
                }
            } else if to_server.write_all(&buffer[..read]).await.is_err() {
                break;
            }
        }
    };
    let down = async {
        let mut buffer = vec![0; 64 << 10];
        while let Ok(read @ 1..) = from_server.read(&mut buffer).await {
            if to_client.lock().await.write_all(&buffer[..read]).await.is_err() {
                break;
            }
        }
    };
    tokio::select! {
        () = up => {}
        () = down => {}
    }
}

impl Counts {
    fn forbids(&self, request: &[u8]) -> bool {
        let Some(path) = self.forbidden.lock().unwrap().clone() else {
            return false;
        };
        let after = request
            .strip_prefix(b"GET ")
            .and_then(|rest| rest.strip_prefix(path.as_bytes()));
        matches!(after, Some([b' ' | b'?', ..]))
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}
