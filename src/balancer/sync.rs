//! The lock of the lease table and the counters of requests in flight: types of std, or of loom
//! while loom models the leases.

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
