//! pickd, the pick daemon: which instance takes the next request?
//!
//! pickd keeps one balancer per service in memory. Registries (Consul, etcd, files) feed the
//! balancers. Callers ask over HTTP (`GET /pick/{service}`), from the command line, or in-process
//! with this library:
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
//! `docs/library.md` and `examples/` show more of the library. `README.md` and `docs/` describe the
//! agent.
//!
//! # The rooms, in reading order
//!
//! | module | what it is |
//! |---|---|
//! | [`balancer`] | the core: instances, views, strategies, health, statistics, leases, overrides. Start here |
//! | `discovery` | registries: a `Watcher` for each, with retries, guard, merge and coalescing |
//! | `probe` | active checks: the schedule, and HTTP, TCP and gRPC checks of instances |
//! | `api` | the HTTP interface: parse, ask the core, answer |
//! | `metrics` | every series in one table, read from the core at scrape time |
//! | `config` | the configuration as written, and as meant: valid by construction |
//! | `client` | HTTP calls of many services through their balancers, and active checks, for programs |
//! | `agent` | the only place where rooms meet: it builds and joins them, and owns every task and timer |
//! | `cli` | arguments become calls, results become exit codes |
//! | `http_client`, `telemetry`, `duration` | one constructor of HTTP clients; logs; durations such as `250ms` |
//! | `local_error` | errors of this host that say nothing about an instance |
//!
//! # The layers, and the invariants
//!
//! - **Imports point down**: `cli -> agent -> { client | config } -> { api | discovery | probe } -> {
//!   http_client | local_error | telemetry | duration } -> metrics -> balancer`. Rooms on one floor
//!   do not import each other. The core has floors of its own. `tools/imports` holds both, and finds an import
//!   that points up.
//! - **The core is pure**: no I/O, no runtime, no logs. Time comes through a
//!   [`Clock`](balancer::Clock), bytes through a [`Render`](balancer::Render). A transition returns
//!   what happened, and the agent logs it.
//! - **One view.** All that a pick reads is one immutable value in one `ArcSwap`. A pick takes no
//!   lock and allocates nothing. A reader never sees half of two views.
//! - **Live state belongs to the address.** Requests in flight, response time and counters survive
//!   new views, weight changes, another strategy, and a registration that goes and comes back.
//!   Identity (the place on a hash ring) belongs to the id.
//! - **A lease ends once**: it is reported or it expires, whichever comes first. Open leases are
//!   requests in flight, exactly. Their memory is bounded, and a pick without a lease never waits
//!   for them.
//! - **Only a trusted registry empties a pool.** A registry that is away or has no leader removes
//!   no instance. A registry that has lost its memory, or drops most of a service at once, removes
//!   no instance that accepts connections: pickd holds those for a bounded time. Every answer shows
//!   the age of the data. Unknown, empty, none available and not synced are four answers
//!   ([`PickError`]).
//! - **Local judgement never empties a pool.** Admin, registry, active checks, grades and breakers
//!   are layers that do not overwrite each other. Breakers eject at most half of a pool and never
//!   the last instance. When checks take out the rest, the pool is in panic mode: all instances are
//!   candidates, and the answer says so. An ejection applies to the very next pick.
//! - **The lowest tier is picked alone** while any of it can be picked. Tiers are decided when a view
//!   is made, so that a pool of one tier has no work with them. A pick goes on to the next tier when
//!   it accepts no instance of the tier in turn.
//! - **The registry decides, unless told otherwise.** A service whose instances are all critical in
//!   the registry is closed. With `fail_open` it is picked from, and each answer says so.
//! - **A session stays while its instance can be picked**, or is drained, and moves once when it
//!   cannot. An exclusion diverts one pick. Without sticky sessions, no pick asks about sessions.
//! - **An override stands beside the data of the registry**, and overwrites none of it. It belongs
//!   to the id, follows a machine to a new id, and never passes to another machine. It ends when an
//!   operator lifts it or when its time is over, and keeps its origin and reason.
//! - **Values are valid.** A [`Weight`], a [`ServiceName`] or a configuration that exists is in
//!   range. The edge refuses invalid input, with its place.
//! - **Constructors start nothing.** Tasks belong to the agent, which stops and joins them, and to
//!   what a program starts by name: `HealthChecks::start`, `EmbeddedAgent::start`.
//!
//! # Features
//!
//! `agent` (default): everything around the core, and the binary. With `default-features = false` the
//! crate is [`balancer`] alone, and
//! depends on `arc-swap`, `fastrand`, `siphasher`, `thiserror` and `xxhash-rust`.

#[cfg(feature = "agent")]
pub mod agent;
#[cfg(feature = "agent")]
pub mod api;
pub mod balancer;
#[cfg(feature = "agent")]
pub mod cli;
#[cfg(feature = "agent")]
pub mod client;
#[cfg(feature = "agent")]
pub mod config;
#[cfg(feature = "agent")]
pub mod discovery;
#[cfg(feature = "agent")]
mod duration;
#[cfg(feature = "agent")]
pub mod http_client;
#[cfg(feature = "agent")]
mod local_error;
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
pub use balancer::hash_ring::ConsistentHash;
pub use balancer::instance::{HealthStatus, InstanceId, ServiceInstance, ServiceName, Weight};
pub use balancer::load_balancer::LoadBalancer;
pub use balancer::load_balancer::pick::{Acquired, Pick};
pub use balancer::outcome::Outcome;
pub use balancer::statistics::Statistics;
#[cfg(feature = "agent")]
pub use client::{HealthChecks, ServiceRequest, Services};

/// The programs of the guide to the library, run as tests.
#[cfg(doctest)]
#[doc = include_str!("../docs/library.md")]
struct LibraryGuide;

/// The counterparts of the Python API, compiled as a test.
#[cfg(all(doctest, feature = "agent"))]
#[doc = include_str!("../docs/from-the-seed.md")]
struct FromTheSeed;
