//! Tests against real servers, real sockets and the real binary. One program, so that it links once.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::disallowed_methods,
    reason = "helpers of tests fail the test, measure real time and read the environment"
)]

mod consul_watcher;
mod support;
