//! All integration tests, in one binary: what a user of the library, the agent or the command line would see.

mod balancer;
mod house;
