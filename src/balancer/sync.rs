//! The lock of the leases and the counters of requests in flight: std's, or loom's while the leases are modelled.

#[cfg(pickd_loom)]
pub(crate) use loom::sync::{
    Mutex, MutexGuard,
    atomic::{AtomicU32 as CountU32, AtomicU64 as CountU64},
};
#[cfg(not(pickd_loom))]
pub(crate) use std::sync::{
    Mutex, MutexGuard,
    atomic::{AtomicU32 as CountU32, AtomicU64 as CountU64},
};
