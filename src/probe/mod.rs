//! stub
#![allow(missing_docs, dead_code)]
mod settings;
use crate::balancer::*;
pub use settings::{HealthCheck, HttpCheck, InvalidCheck, Plan, ProbeSettings};
use std::sync::Arc;
use std::time::Duration;
#[derive(Debug, Clone)]
pub struct ProbeHandle;
impl ProbeHandle {
    pub fn set(&self, _s: ServiceName, _p: Option<Plan>, _a: impl IntoIterator<Item = Address>) {}
    pub fn configure(&self, _s: ProbeSettings) {}
}
#[derive(Debug)]
pub struct Checked {
    pub service: ServiceName,
    pub address: Address,
    pub check: Check,
    pub took: Duration,
}
pub struct Prober;
impl Prober {
    pub fn new(_s: ProbeSettings, _f: Arc<dyn Fn(Checked) + Send + Sync>) -> Self {
        Self
    }
    pub fn handle(&self) -> ProbeHandle {
        ProbeHandle
    }
    pub async fn run(self, stop: tokio_util::sync::CancellationToken) {
        stop.cancelled().await
    }
}
