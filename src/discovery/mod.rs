//! Discovery: registries become whole snapshots of services.
//!
//! ```text
//! Consul ──┐                          ┌────────────── reconcile ───────────────┐
//! etcd   ──┼─► Update ─► supervise ─► │ guard ─► merge ─► coalesce             │ ─► Directory
//! file   ──┘ (watcher)   (retries)    │ (holds)  (one view)  (limits the rate) │
//!                                     └────────────────────────────────────────┘
//! ```
//!
//! A [`Watcher`] is level-triggered: an update says what a service *is*, never what changed. One
//! pure [`diff`](crate::balancer::diff()) in the core finds the changes. A watcher knows the
//! protocol of its registry and nothing else: [`supervise`] retries, [`guard`] holds large drops,
//! [`registrations`] joins what one registry lists for one address, and [`merge`] joins the
//! registries.
//!
//! The files import only downwards:
//!
//! ```text
//! consul  etcd  file    reconcile
//! supervise             guard  coalesce
//!                       merge  registrations
//! watcher   what a watcher is, and what it sends
//! shared    what several registries read or print in the same way
//! ```
//!
//! # How to add a registry
//!
//! 1. A folder or file here: `mod.rs` watches, `wire.rs` (or `formats`) turns bytes into instances
//!    and is pure, `client.rs` knows the endpoints. A `pub const SOURCE: Source` names the
//!    registry.
//! 2. Keep these promises, each with a test. Cancelling `next` loses nothing. One bad instance
//!    costs only itself and is counted. An answer that cannot be decoded is an error, not an empty
//!    list. Nothing is empty before [`Update::Synced`]. After a gap, readings say so
//!    ([`Trust::AfterGap`]), and each is confirmed by a second reading. Every request has a
//!    deadline and a size limit.
//! 3. A table in `config`, a source in `agent`, a section in `docs/registries.md`.

pub mod coalesce;
pub mod consul;
pub mod etcd;
pub mod file;
pub mod guard;
pub mod merge;
pub mod reconcile;
pub mod registrations;
mod shared;
pub mod supervise;
mod watcher;

pub use watcher::{CONFIRM_AFTER, Reading, Reason, Trust, Update, WatchError, Watcher};
