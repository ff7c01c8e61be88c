//! All integration tests, in one binary: what a user of the library, the agent or the command line would see.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that fails has nothing better to do"
)]

mod balancer;
mod house;
