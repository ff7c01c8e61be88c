//! All integration tests, in one binary so that it links once: what a user of the library, the agent or the command line
//! would see, against real servers, real sockets and the real binary.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::disallowed_methods,
    clippy::print_stderr,
    reason = "tests and their helpers fail the test, measure real time, read the environment and print what explains a failure"
)]

mod api;
mod balancer;
mod consul_watcher;
mod house;
mod support;
