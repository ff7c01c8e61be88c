//! All integration tests, in one binary so that it links once: what a user of the library, the
//! agent or the command line would see, against real servers, real sockets and the real binary.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::disallowed_methods,
    clippy::print_stderr,
    reason = "tests and their helpers fail the test, measure real time, read the environment and print what explains a failure"
)]

mod adaptive;
mod agent_consul;
mod api;
mod balancer;
mod client;
mod command_line;
mod consul_limits;
mod consul_scope;
mod consul_secured;
mod consul_watcher;
mod datacenters;
mod documentation;
mod embedded;
mod etcd_docs;
mod etcd_faults;
mod etcd_formats;
mod etcd_keys;
mod etcd_registry;
mod etcd_scale;
mod etcd_secured;
mod flapping;
mod health;
mod holds;
mod house;
mod integrations_clients;
mod integrations_consul;
mod integrations_etcd;
mod judgement;
mod leases;
mod library;
mod lifecycle;
mod monitoring;
mod names;
mod overrides;
mod registrations;
mod reserve;
mod secret_values;
mod service_manager;
mod sessions;
mod slow_clients;
mod support;
mod tiers;
mod two_registries;
