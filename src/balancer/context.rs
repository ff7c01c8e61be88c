//! The caller's wishes for a pick: key, tags, named port, exclusions.

use super::instance::ServiceInstance;

/// The caller's wishes for a pick. All parts are borrowed, so that a context costs nothing.
///
/// ```
/// use pickd::Context;
///
/// let context = Context::new()
///     .with_key("session-42")
///     .with_tags(&["v2"])
///     .with_exclude(&["user-1"]);
/// assert_eq!(context.key(), Some(&b"session-42"[..]));
/// ```
#[derive(Clone, Copy, Debug, Default)]
pub struct Context<'a> {
    pub(crate) key: Option<&'a [u8]>,
    pub(crate) exclude: &'a [&'a str],
    pub(crate) tags: &'a [&'a str],
    pub(crate) port: Option<&'a str>,
    /// Whether there are tags or a port: a pick without them asks this one question.
    pub(crate) narrows: bool,
}

impl<'a> Context<'a> {
    /// A context without key, tags and exclusions.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            key: None,
            exclude: &[],
            tags: &[],
            port: None,
            narrows: false,
        }
    }

    /// Sets the affinity key: `consistent_hash` picks the same instance for equal keys. Other
    /// strategies ignore the key.
    #[must_use]
    pub fn with_key(mut self, key: &'a (impl AsRef<[u8]> + ?Sized)) -> Self {
        self.key = Some(key.as_ref());
        self
    }

    /// Sets the ids that must not be picked, such as the id of an instance that just failed.
    /// Unknown ids are ignored.
    #[must_use]
    pub const fn with_exclude(mut self, ids: &'a [&'a str]) -> Self {
        self.exclude = ids;
        self
    }

    /// Sets the tags that an instance must have. An instance must have all of them.
    #[must_use]
    pub const fn with_tags(mut self, tags: &'a [&'a str]) -> Self {
        self.tags = tags;
        self.narrows = !tags.is_empty() || self.port.is_some();
        self
    }

    /// Sets the name of the port that an instance must have, as in its metadata `port-<name>`: see
    /// [`ServiceInstance::named_port`].
    #[must_use]
    pub const fn with_port(mut self, name: &'a str) -> Self {
        self.port = Some(name);
        self.narrows = true;
        self
    }

    /// The affinity key.
    #[must_use]
    pub const fn key(&self) -> Option<&'a [u8]> {
        self.key
    }

    /// The name of the port that an instance must have.
    #[must_use]
    pub const fn port(&self) -> Option<&'a str> {
        self.port
    }

    #[inline]
    pub(crate) fn admits_all(&self) -> bool {
        self.exclude.is_empty() && !self.narrows
    }

    pub(crate) fn admits(&self, instance: &ServiceInstance) -> bool {
        !self.exclude.contains(&instance.id().as_str())
            && self.tags.iter().all(|tag| instance.has_tag(tag))
            && self.port.is_none_or(|port| instance.named_port(port).is_some())
    }

    /// The same without tags and port, for candidates that have them.
    pub(crate) const fn of_narrowed(&self) -> Self {
        Self {
            tags: &[],
            port: None,
            narrows: false,
            ..*self
        }
    }
}
