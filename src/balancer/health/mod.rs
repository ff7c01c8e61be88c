//! Health of one instance: independent layers, and the status derived from them.
//!
//! ```text
//! admin     drained by an operator's order, or in service     ─┐
//! registry  unknown, passing, warning, critical, maintenance   │
//! active    active checks: up, down                            ├─► HealthStatus
//! passive   grade from outcomes: ok, degraded                  │
//! breaker   closed, open, half open                           ─┘
//! ```
//!
//! Each layer holds its own state and the time since when the state holds. No layer overwrites
//! another: an instance that is drained *and* critical is still critical after the drain is
//! lifted. A layer takes the instance out, degrades the instance, or does neither; the worst layer
//! counts. The state machines of the last three layers are in [`checks`], [`grade`] and
//! [`breaker`]. The decisions for a whole pool are in [`ejection`].

pub(crate) mod address;
pub(crate) mod breaker;
pub(crate) mod checks;
pub(crate) mod ejection;
pub(crate) mod flapping;
pub(crate) mod grade;
pub(crate) mod layers;
pub(crate) mod slow_start;
pub(crate) mod window;
