//! Health of one instance: layers that are kept apart, and the one status derived from them.
//!
//! ```text
//! admin     drained by an operator's order, or in service     ─┐
//! registry  unknown, passing, warning, critical, maintenance   │
//! active    our own checks: up, down                           ├─► HealthStatus
//! passive   what outcomes say: ok, degraded                    │
//! breaker   closed, open, half open                           ─┘
//! ```
//!
//! Each layer holds what it says and since when, and none overwrites another: an instance that is drained *and* critical is
//! still critical when the drain is lifted. A layer takes an instance out, holds it back, or has no objection; the worst counts.
//! The state machines behind the last three are in [`checks`], [`grade`] and
//! [`breaker`], and what is decided for a pool as a whole in [`ejection`].

pub(crate) mod address;
pub(crate) mod breaker;
pub(crate) mod checks;
pub(crate) mod ejection;
pub(crate) mod grade;
pub(crate) mod layers;
pub(crate) mod slow_start;
pub(crate) mod window;
