//! Rendering of an instance into the bytes of an answer. The core does not read these bytes.

use super::instance::{HealthStatus, ServiceInstance, ServiceName};

/// The input of a renderer.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Described<'a> {
    /// The service.
    pub service: &'a ServiceName,
    /// The instance.
    pub instance: &'a ServiceInstance,
    /// The derived status of the instance.
    pub status: HealthStatus,
}

/// The rendered bytes of an instance. The core does not read them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bodies {
    /// JSON without its closing brace, so that the fields of one answer can be appended.
    pub json: Box<[u8]>,
    /// One line of text.
    pub text: Box<[u8]>,
}

/// Renders instances. Each change of an instance renders it once; a pick renders nothing.
pub trait Render: Send + Sync {
    /// Renders the bodies of one instance.
    fn render(&self, described: &Described<'_>) -> Bodies;
}

/// A renderer without output, for programs that use the library and need no bytes.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoBodies;

impl Render for NoBodies {
    fn render(&self, _described: &Described<'_>) -> Bodies {
        Bodies::default()
    }
}
