//! A client of many services: HTTP calls through balancers, with retries and active checks.
//!
//! ```text
//! Services::call_service ──► Directory ──► LoadBalancer::call_with ──► HTTP request, per attempt
//!                                                  ▲
//! HealthChecks ── results of checks ───────────────┘
//! ```
//!
//! | file | job |
//! |---|---|
//! | [`services`] | the services of a program: registration, checks, calls, overview |
//! | [`request`] | what a call sends, and whether it may be sent again |
//! | [`answer`] | what an answer, or its absence, says about request and instance |
//! | [`retry_after`] | for how long an instance asks not to be called |
//! | [`health_checks`] | runs the prober of the agent for the balancers of a program |
//!
//! Knows nothing of registries and of pickd's own HTTP interface. The balancer decides about
//! retries, health and instances. [`Services`] and [`HealthChecks`] are the only places outside the
//! agent that start tasks, and only on request: they need a tokio runtime.

mod answer;
mod health_checks;
mod request;
mod retry_after;
mod services;

pub use answer::{RequestError, ServiceAnswer, ServiceError};
pub use health_checks::HealthChecks;
pub use request::{InvalidRequest, ServiceRequest};
pub use reqwest::Method;
pub use services::Services;
