//! Tests against real servers, real sockets and the real binary. One program, so that it links once.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::disallowed_methods,
    clippy::print_stderr,
    reason = "helpers of tests fail the test, measure real time, read the environment and print what explains a failure"
)]

mod consul_watcher;
mod support;
