//! pickd, the pick daemon: which instance should take the next request?
//!
//! One balancer a service, in memory, fed by registries (Consul, etcd, files) and asked over HTTP (`GET /pick/{service}`), from
//! the command line, or in-process as this library:
//!
//! ```
//! use pickd::{Context, LoadBalancer, LoadBalancerConfig, LoadBalancingStrategy, ServiceInstance, Weight};
//!
//! let config = LoadBalancerConfig::new(LoadBalancingStrategy::WeightedRoundRobin);
//! let balancer = LoadBalancer::new("user-service".parse()?, config);
//! balancer.add_instance(ServiceInstance::new("user-1", "10.0.1.10", 8080)?);
//! balancer.add_instance(ServiceInstance::new("user-2", "10.0.1.11", 8080)?.with_weight(Weight::new(2)?));
//!
//! let mut picks = Vec::new();
//! for _ in 0..300 {
//!     picks.push(balancer.select_instance(&Context::new())?.id().to_string());
//! }
//! assert_eq!(picks.iter().filter(|id| *id == "user-2").count(), 200);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! More of it in `docs/library.md` and `examples/`; what the agent does for its operators in `README.md` and `docs/`.
//!
//! # The rooms, in reading order
//!
//! | module | what it is |
//! |---|---|
//! | [`balancer`] | the core: instances, views, strategies, health, statistics, leases, orders. Start here, with the story of one pick |
//! | `discovery` | registries in: a `Watcher` for each, retried, doubted, merged, coalesced into views |
//! | `probe` | active checks out: whose turn it is, and HTTP, TCP and gRPC questions to instances |
//! | `api` | the HTTP interface: parse, ask the core, answer |
//! | `metrics` | every series in one table, read from the core at scrape time |
//! | `config` | what an operator writes, and what is meant by it: valid by construction |
//! | `agent` | the only place where rooms meet: it builds them, joins them, owns every task, timer and the stop |
//! | `cli` | what is typed becomes a call, what comes of it an exit code |
//! | `http_client`, `telemetry`, `duration` | one constructor of HTTP clients; logs, set up once; durations as people write them |
//!
//! # The layers, and what holds
//!
//! - **Imports point down**: `cli -> agent -> config -> { api | discovery | probe } -> { http_client | telemetry | duration } -> metrics -> balancer`.
//!   Rooms on one floor do not know each other. `tests/integration/house.rs` finds a path that points up.
//! - **The core is pure**: no I/O, no runtime, no logs. Time comes through a [`Clock`](balancer::Clock), bytes through a [`Render`](balancer::Render); a transition
//!   returns what happened, and somebody else reports it.
//! - **One view.** All that a pick reads is one immutable value in one `ArcSwap`. A pick takes no lock and allocates nothing; readers
//!   never see half of two views.
//! - **Live state belongs to the address.** In flight, response time and counters outlive views, weight changes, another strategy,
//!   and a registration that goes and comes back. Identity (the place on a ring) belongs to the id.
//! - **A lease ends once**, reported or expired, whichever comes first. Open leases are requests in flight, exactly; memory for them
//!   is bounded, and no pick without a lease waits for them.
//! - **Nothing empties a pool but a registry that is believed.** One that is away or knows no leader takes nothing away; one that
//!   has just come back, not at once: what it lacks is held, for a bounded time. The age of its word is on show. Unknown, empty,
//!   none available and not synced are four answers ([`PickError`]).
//! - **Local judgement never empties a pool.** Admin, registry, checks, grades and breakers are layers that do not overwrite each
//!   other. Breakers take out half of a pool at most and never the last; when checks take out the rest, all are candidates and
//!   the answer says so. Whoever is taken out is so for the very next pick.
//! - **An operator's order stands beside what the registry says**, and overwrites none of it. It belongs to the id, ends when it is
//!   lifted or its time is over, and keeps who gave it and why.
//! - **Values are valid.** A [`Weight`], a [`ServiceName`], a configuration that exists is in range; what is refused is refused at the
//!   edge, with its place.
//! - **Constructors start nothing.** Tasks belong to the agent, which stops and joins them.
//!
//! # Features
//!
//! `agent` (default): everything around the core, and the binary. With `default-features = false` the crate is [`balancer`] alone, and
//! depends on `arc-swap`, `fastrand`, `siphasher`, `thiserror` and `xxhash-rust`.

#[cfg(feature = "agent")]
pub mod agent;
#[cfg(feature = "agent")]
pub mod api;
pub mod balancer;
#[cfg(feature = "agent")]
pub mod cli;
#[cfg(feature = "agent")]
pub mod config;
#[cfg(feature = "agent")]
pub mod discovery;
#[cfg(feature = "agent")]
mod duration;
#[cfg(feature = "agent")]
pub mod http_client;
#[cfg(feature = "agent")]
pub mod metrics;
#[cfg(feature = "agent")]
pub mod probe;
#[cfg(feature = "agent")]
pub mod telemetry;

pub use balancer::config::{LoadBalancerConfig, LoadBalancingStrategy};
pub use balancer::context::Context;
pub use balancer::directory::Directory;
pub use balancer::error::PickError;
pub use balancer::instance::{HealthStatus, InstanceId, ServiceInstance, ServiceName, Weight};
pub use balancer::load_balancer::LoadBalancer;
pub use balancer::load_balancer::pick::{Acquired, Pick};
pub use balancer::outcome::Outcome;
pub use balancer::statistics::Statistics;

/// The programs in the guide to the library, run as tests.
#[cfg(doctest)]
#[doc = include_str!("../docs/library.md")]
struct LibraryGuide;
