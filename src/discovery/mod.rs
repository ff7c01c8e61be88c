//! I/O in: registries become whole snapshots of services.
//!
//! ```text
//! Consul ──┐ Watcher::next()                guard           merge         (all of it: reconcile)
//! etcd   ──┼──► Update ──► supervise ──► large drops ──► one desired ──► coalesce ──► Directory::apply
//! file   ──┘               retry, age     are held       view a service
//! ```
//!
//! A [`Watcher`] is level-triggered: it says what a service *is*, never what changed; one pure
//! [`diff`](crate::balancer::diff()) in the core finds that. It knows its registry's protocol and nothing else: retrying is
//! [`supervise`]'s job, doubting a large drop is [`guard`]'s, and agreeing with other registries is [`merge`]'s.
//!
//! # How to add a registry
//!
//! 1. A folder or file here: `mod.rs` watches, `wire.rs` (or `formats.rs`) turns what is on the wire into instances and is
//!    pure, `client.rs` knows the endpoints. A `pub const SOURCE: Source` names it.
//! 2. Keep these promises, each with a test: cancelling `next` loses nothing; one bad instance costs only itself and is counted;
//!    an undecodable answer is an error, not an empty list; nothing is empty before [`Update::Synced`]; a gap is admitted
//!    ([`Trust::AfterGap`]) and what was read after it is read once more; every request has a deadline and a size limit.
//! 3. A table in `config/raw.rs`, its checked form in `config/mod.rs`, one line in `agent.rs`, a section in `docs/registries.md`.

pub mod coalesce;
pub mod consul;
pub mod etcd;
pub mod file;
pub mod guard;
pub mod merge;
pub mod reconcile;
pub mod supervise;
mod watcher;

pub use watcher::{CONFIRM_AFTER, Reading, Reason, Trust, Update, WatchError, Watcher};
