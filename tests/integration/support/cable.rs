//! A TCP proxy that a test can cut, stall and mend: the network between an agent and its registry.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

const PASSING: u8 = 0;
/// All connections are closed, new connections at once.
const CUT: u8 = 1;
/// No byte passes, and connections stay open.
const STALLED: u8 = 2;
const GONE: u8 = 3;

/// Connections are cut when the proxy is dropped.
pub(crate) struct Cable {
    address: SocketAddr,
    state: Arc<State>,
}

struct State {
    mode: AtomicU8,
    open: Mutex<Vec<TcpStream>>,
}

impl Cable {
    /// Forwards connections to a port on 127.0.0.1.
    pub(crate) fn to(port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(State {
            mode: AtomicU8::new(PASSING),
            open: Mutex::default(),
        });
        let accepting = Arc::clone(&state);
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                match accepting.mode.load(Ordering::SeqCst) {
                    GONE => return,
                    CUT => continue,
                    _ => {}
                }
                let Ok(server) = TcpStream::connect(("127.0.0.1", port)) else {
                    continue;
                };
                let _ = (client.set_nodelay(true), server.set_nodelay(true));
                let pairs = [(&client, &server), (&server, &client)]
                    .map(|(a, b)| (a.try_clone().unwrap(), b.try_clone().unwrap()));
                for (from, to) in pairs {
                    let state = Arc::clone(&accepting);
                    std::thread::spawn(move || pass(from, to, &state));
                }
                accepting.open.lock().unwrap().extend([client, server]);
            }
        });
        Self { address, state }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(crate) fn cut(&self) {
        self.state.mode.store(CUT, Ordering::SeqCst);
        for stream in self.state.open.lock().unwrap().drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    pub(crate) fn stall(&self) {
        self.state.mode.store(STALLED, Ordering::SeqCst);
    }

    /// Stalled connections continue, and new connections are accepted again.
    pub(crate) fn mend(&self) {
        self.state.mode.store(PASSING, Ordering::SeqCst);
    }
}

fn pass(mut from: TcpStream, mut to: TcpStream, state: &State) {
    let mut buffer = vec![0; 64 << 10];
    while let Ok(read @ 1..) = from.read(&mut buffer) {
        while state.mode.load(Ordering::SeqCst) == STALLED {
            std::thread::sleep(Duration::from_millis(5));
        }
        if to.write_all(&buffer[..read]).is_err() {
            break;
        }
    }
    let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
}

impl Drop for Cable {
    fn drop(&mut self) {
        self.cut();
        self.state.mode.store(GONE, Ordering::SeqCst);
        // Wakes the thread that waits for connections.
        let _ = TcpStream::connect(self.address);
    }
}
