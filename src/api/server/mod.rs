//! The HTTP server: listeners, and the connections that they accept.
//!
//! Knows nothing of routes: a listener is given a router, and every file here can be read without
//! one. Imports inside this folder point down:
//!
//! ```text
//! listener        binds an address, and serves a router on it
//! accept          one loop a listener: accepts connections, owns their tasks
//! connection      one connection: HTTP/1.1, and time limits for slow clients
//! authorization   which clients may change what picks do
//! allowed_hosts   which Host headers a loopback listener accepts
//! body  peer  unix_socket  wake
//! ```

pub(super) mod allowed_hosts;
pub(super) mod authorization;
pub(super) mod body;
pub(super) mod peer;

mod accept;
mod connection;
mod listener;
mod unix_socket;
mod wake;

pub use self::connection::Limits;
pub use self::listener::{Listen, Listener};
pub use self::peer::NeedsPeer;
pub use self::unix_socket::{SocketAccess, set_access};
