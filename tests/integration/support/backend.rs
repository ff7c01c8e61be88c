//! HTTP backends that a test controls: answer 200 or 500, hang, refuse, return.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

/// A backend in this process, at an address that stays reserved.
pub(crate) struct Backend {
    pub(crate) address: SocketAddr,
    shared: Arc<Shared>,
    accepting: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Default)]
struct Shared {
    /// The status of answers; 0: no answer.
    status: AtomicU16,
    /// Milliseconds from a request to its answer.
    takes: AtomicU64,
    stopped: AtomicBool,
    requests: AtomicUsize,
    connections: AtomicUsize,
    open: Mutex<Vec<TcpStream>>,
}

impl Backend {
    /// Starts a backend that answers 200.
    pub(crate) fn start() -> Self {
        Self::start_at("127.0.0.1:0")
    }

    pub(crate) fn start_at(address: &str) -> Self {
        let listener = TcpListener::bind(address).unwrap();
        let backend = Self {
            address: listener.local_addr().unwrap(),
            shared: Arc::default(),
            accepting: Mutex::default(),
        };
        backend.shared.status.store(200, Ordering::Relaxed);
        backend.accept(listener);
        backend
    }

    fn accept(&self, listener: TcpListener) {
        let shared = Arc::clone(&self.shared);
        let accepting = std::thread::spawn(move || {
            for stream in listener.incoming() {
                if shared.stopped.load(Ordering::Relaxed) {
                    return;
                }
                let Ok(stream) = stream else { continue };
                shared.connections.fetch_add(1, Ordering::Relaxed);
                shared.open.lock().unwrap().push(stream.try_clone().unwrap());
                let shared = Arc::clone(&shared);
                std::thread::spawn(move || {
                    let peer = stream.peer_addr().ok();
                    shared.serve(stream);
                    // A connection that is over keeps no file.
                    let mut open = shared.open.lock().unwrap();
                    open.retain(|other| other.peer_addr().is_ok_and(|other| Some(other) != peer));
                });
            }
        });
        *self.accepting.lock().unwrap() = Some(accepting);
    }

    /// Answers with this status from now on.
    pub(crate) fn answers(&self, status: u16) {
        self.shared.status.store(status, Ordering::Relaxed);
    }

    /// Answers this long after each request from now on.
    pub(crate) fn takes(&self, time: Duration) {
        self.shared.takes.store(time.as_millis() as u64, Ordering::Relaxed);
    }

    /// Accepts requests from now on, and answers none.
    pub(crate) fn hangs(&self) {
        self.answers(0);
    }

    /// Refuses connections, and closes open connections.
    pub(crate) fn stop(&self) {
        self.shared.stopped.store(true, Ordering::Relaxed);
        // Makes `accept` return.
        drop(TcpStream::connect_timeout(&self.address, Duration::from_secs(1)));
        if let Some(accepting) = self.accepting.lock().unwrap().take() {
            accepting.join().unwrap();
        }
        for stream in self.shared.open.lock().unwrap().drain(..) {
            drop(stream.shutdown(std::net::Shutdown::Both));
        }
    }

    /// Accepts connections again.
    pub(crate) fn restart(&self) {
        self.shared.stopped.store(false, Ordering::Relaxed);
        self.accept(TcpListener::bind(self.address).unwrap());
    }

    pub(crate) fn requests(&self) -> usize {
        self.shared.requests.load(Ordering::Relaxed)
    }

    pub(crate) fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::Relaxed)
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        if self.accepting.lock().unwrap().is_some() {
            self.stop();
        }
    }
}

impl Shared {
    fn serve(&self, mut stream: TcpStream) {
        let (mut head, mut byte) = (Vec::new(), [0; 512]);
        while let Ok(read @ 1..) = stream.read(&mut byte) {
            head.extend_from_slice(&byte[..read]);
            if !head.ends_with(b"\r\n\r\n") {
                continue;
            }
            head.clear();
            self.requests.fetch_add(1, Ordering::Relaxed);
            let status = self.status.load(Ordering::Relaxed);
            if status == 0 {
                continue;
            }
            std::thread::sleep(Duration::from_millis(self.takes.load(Ordering::Relaxed)));
            let answer = format!("HTTP/1.1 {status} Whatever\r\nContent-Length: 2\r\n\r\nok");
            if stream.write_all(answer.as_bytes()).is_err() {
                return;
            }
        }
    }
}
