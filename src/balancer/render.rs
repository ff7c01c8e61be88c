//! How an instance becomes the bytes of an answer: opaque to the core.

use super::instance::{HealthStatus, ServiceInstance, ServiceName};

/// What a body is rendered from.
#[derive(Clone, Copy, Debug)]
pub struct Described<'a> {
    /// The service.
    pub service: &'a ServiceName,
    /// The instance.
    pub instance: &'a ServiceInstance,
    /// Its derived status.
    pub status: HealthStatus,
}

/// An instance as answers carry it: opaque bytes to the core.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bodies {
    /// JSON without its closing brace, so that the fields of one answer can be appended.
    pub json: Box<[u8]>,
    /// One line of text.
    pub text: Box<[u8]>,
}

/// Turns an instance into bytes, once per change of it and never per pick.
pub trait Render: Send + Sync {
    /// The bodies of one instance.
    fn render(&self, described: &Described<'_>) -> Bodies;
}

/// For users of the library, who need no bytes.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoBodies;

impl Render for NoBodies {
    fn render(&self, _described: &Described<'_>) -> Bodies {
        Bodies::default()
    }
}
