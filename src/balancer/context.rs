//! The caller's wishes for a pick: key, tags, exclusions.

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
}

impl<'a> Context<'a> {
    /// A context without key, tags and exclusions.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            key: None,
            exclude: &[],
            tags: &[],
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
        self
    }

    /// The affinity key.
    #[must_use]
    pub const fn key(&self) -> Option<&'a [u8]> {
        self.key
    }

    #[inline]
    pub(crate) fn admits_all(&self) -> bool {
        self.exclude.is_empty() && self.tags.is_empty()
    }

    pub(crate) fn admits(&self, instance: &ServiceInstance) -> bool {
        !self.exclude.contains(&instance.id().as_str()) && self.tags.iter().all(|tag| instance.has_tag(tag))
    }
}
