//! The caller's wishes for a pick: key, session, tags, named port, exclusions.

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
    pub(crate) session: Option<&'a str>,
    /// Whether there are tags or a port: a pick without them asks this one question.
    pub(crate) narrows: bool,
    pub(crate) key_from: KeyFrom,
}

/// Where the affinity key comes from, if there is one: an earlier source replaces a later one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum KeyFrom {
    #[default]
    Key,
    Session,
    User,
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
            session: None,
            narrows: false,
            key_from: KeyFrom::Key,
        }
    }

    /// Sets the affinity key: `consistent_hash` picks the same instance for equal keys, and a service
    /// with sticky sessions keeps the session of a key at its instance. Otherwise the key has no
    /// effect. Replaces a [session id](Self::with_session_id) and a [user id](Self::with_user_id).
    #[must_use]
    pub fn with_key(mut self, key: &'a (impl AsRef<[u8]> + ?Sized)) -> Self {
        self.key = Some(key.as_ref());
        self.key_from = KeyFrom::Key;
        self
    }

    /// Sets the id of the session as the affinity key, unless a [key](Self::with_key) is given.
    /// Replaces a user id. An empty id counts as none.
    ///
    /// ```
    /// use pickd::Context;
    ///
    /// let context = Context::new().with_session_id("s-42").with_user_id("ada");
    /// assert_eq!(context.key(), Some(&b"s-42"[..]));
    /// ```
    #[must_use]
    pub fn with_session_id(self, id: &'a (impl AsRef<[u8]> + ?Sized)) -> Self {
        self.with_key_from(KeyFrom::Session, id.as_ref())
    }

    /// Sets the id of the user as the affinity key, unless a key or a session id is given. An empty
    /// id counts as none.
    #[must_use]
    pub fn with_user_id(self, id: &'a (impl AsRef<[u8]> + ?Sized)) -> Self {
        self.with_key_from(KeyFrom::User, id.as_ref())
    }

    fn with_key_from(mut self, from: KeyFrom, key: &'a [u8]) -> Self {
        if !key.is_empty() && (self.key.is_none() || from <= self.key_from) {
            self.key = Some(key);
            self.key_from = from;
        }
        self
    }

    /// Sets the session token of an earlier [pick](crate::Pick::session). A service with sticky
    /// sessions picks the instance that the token names, as long as it can. Text that is no token of
    /// the service counts as none.
    #[must_use]
    pub const fn with_session(mut self, token: &'a str) -> Self {
        self.session = Some(token);
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

    /// The session token.
    #[must_use]
    pub const fn session(&self) -> Option<&'a str> {
        self.session
    }

    /// Whether the instance has the tags and the port.
    pub(crate) fn fits(&self, instance: &ServiceInstance) -> bool {
        self.tags.iter().all(|tag| instance.has_tag(tag))
            && self.port.is_none_or(|port| instance.named_port(port).is_some())
    }

    #[inline]
    pub(crate) fn admits_all(&self) -> bool {
        self.exclude.is_empty() && !self.narrows
    }

    pub(crate) fn admits(&self, instance: &ServiceInstance) -> bool {
        !self.exclude.contains(&instance.id().as_str()) && self.fits(instance)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_comes_before_the_session_and_the_session_before_the_user() {
        let (user, session, key) = ("user", "session", "key");
        for context in [
            Context::new().with_user_id(user).with_session_id(session).with_key(key),
            Context::new().with_key(key).with_session_id(session).with_user_id(user),
            Context::new().with_session_id(session).with_key(key).with_user_id(user),
        ] {
            assert_eq!(context.key(), Some(&b"key"[..]));
        }
        for context in [
            Context::new().with_user_id(user).with_session_id(session),
            Context::new().with_session_id(session).with_user_id(user),
            Context::new()
                .with_session_id(session)
                .with_session_id("")
                .with_user_id(user),
        ] {
            assert_eq!(context.key(), Some(&b"session"[..]));
        }
        assert_eq!(
            Context::new().with_session_id("").with_user_id(user).key(),
            Some(&b"user"[..])
        );
        assert_eq!(Context::new().with_user_id("").key(), None);
    }
}
