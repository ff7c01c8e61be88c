//! Session tokens: which instance a session is at, signed, so that any agent with the same key
//! honours the token and no client can make its own.
//!
//! ```text
//! token = session | instance | moves | tag
//!         64 bits   64 bits    32      64 bits, as 56 characters of 0-9a-f
//!
//! session   a SipHash of the key of the caller, or a random number for a caller without a key
//! instance  a hash of the id of the instance, which is the same on every agent
//! moves     how often the session has moved: of two places, the one with more moves is newer
//! tag       a SipHash of service, session, instance and moves with the session key
//! ```
//!
//! The key of the caller cannot be read from a token. The hash of the id of the instance hides
//! nothing: the id stands in each answer. Making a valid token without the session key takes 2^63
//! tries on average, each of them a pick.

use std::fmt;
use std::hash::Hasher as _;
use std::str::FromStr;
use std::sync::Arc;

use arc_swap::ArcSwap;
use siphasher::sip::SipHasher24;
use xxhash_rust::xxh3::xxh3_64;

/// The characters of a token.
const LENGTH: usize = 56;

/// The secret that signs session tokens: 128 bits. Agents with the same key honour each other's
/// tokens. The key is a handle: clones share it.
///
/// ```
/// use pickd::balancer::{Environment, SessionKey};
///
/// let bits: SessionKey = "00112233445566778899aabbccddeeff".parse()?;
/// let environment = Environment { session_key: bits, ..Environment::default() };
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct SessionKey(Arc<ArcSwap<SipHasher24>>);

/// The text is not a session key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a session key: expected 32 characters of 0-9 a-f")]
pub struct InvalidSessionKey;

impl SessionKey {
    /// Makes a key of these bits.
    #[must_use]
    pub fn new(bits: [u8; 16]) -> Self {
        Self(Arc::new(ArcSwap::from_pointee(SipHasher24::new_with_key(&bits))))
    }

    /// Replaces the bits in every clone by those of another key. Tokens of the earlier bits are no
    /// longer honoured, and keys of callers begin new sessions.
    pub fn replace(&self, other: &Self) {
        self.0.store(other.0.load_full());
    }

    /// The session of a key of a caller.
    pub(crate) fn session_of(&self, service: &str, key: &[u8]) -> u64 {
        self.hash(b"key", service, &[key])
    }

    /// Signs the place of a session.
    pub(crate) fn sign(&self, service: &str, session: u64, place: Place) -> SessionToken {
        SessionToken {
            session,
            place,
            tag: self.tag(service, session, place),
        }
    }

    /// Reads a token. `None` if this key did not sign it for this service. The comparison takes the
    /// same time for every wrong tag.
    pub(crate) fn read(&self, service: &str, text: &str) -> Option<SessionToken> {
        let token = SessionToken::parse(text)?;
        let tag = self.tag(service, token.session, token.place);
        (std::hint::black_box(tag ^ token.tag) == 0).then_some(token)
    }

    fn tag(&self, service: &str, session: u64, place: Place) -> u64 {
        let parts = [
            &session.to_le_bytes()[..],
            &place.instance.to_le_bytes(),
            &place.moves.to_le_bytes(),
        ];
        self.hash(b"tag", service, &parts)
    }

    /// A hash for one purpose. No name of a service contains a zero byte, so that no two inputs of a
    /// purpose are the same bytes.
    fn hash(&self, purpose: &[u8; 3], service: &str, parts: &[&[u8]]) -> u64 {
        let mut hasher = **self.0.load();
        hasher.write(purpose);
        hasher.write(service.as_bytes());
        hasher.write(&[0]);
        parts.iter().for_each(|part| hasher.write(part));
        hasher.finish()
    }
}

impl Default for SessionKey {
    /// Bits of a fast generator that is not secure: a caller that knows many of its numbers may
    /// find the key.
    fn default() -> Self {
        Self::new(fastrand::u128(..).to_le_bytes())
    }
}

/// 32 hexadecimal digits, such as `openssl rand -hex 16` prints.
impl FromStr for SessionKey {
    type Err = InvalidSessionKey;

    fn from_str(text: &str) -> Result<Self, InvalidSessionKey> {
        if text.len() != 32 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(InvalidSessionKey);
        }
        let bits = u128::from_str_radix(text, 16).map_err(|_| InvalidSessionKey)?;
        Ok(Self::new(bits.to_be_bytes()))
    }
}

impl fmt::Debug for SessionKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SessionKey(..)")
    }
}

/// Where a session is: the hash of the id of an instance, and the number of moves before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) instance: u64,
    pub(crate) moves: u32,
}

/// The hash of an id of an instance, the same on every agent.
pub(crate) fn instance_hash(id: &str) -> u64 {
    xxh3_64(id.as_bytes())
}

/// A session and its instance, signed. Display shows the text for the caller; any agent with the
/// same [`SessionKey`] honours it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct SessionToken {
    pub(crate) session: u64,
    pub(crate) place: Place,
    tag: u64,
}

impl fmt::Display for SessionToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Place { instance, moves } = self.place;
        write!(f, "{:016x}{instance:016x}{moves:08x}{:016x}", self.session, self.tag)
    }
}

/// A token lets its holder be taken for the session, so it is not shown.
impl fmt::Debug for SessionToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SessionToken(..)")
    }
}

impl SessionToken {
    /// Reads the text of a token, without a look at its tag.
    fn parse(text: &str) -> Option<Self> {
        if text.len() != LENGTH || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return None;
        }
        let part = |from: usize, to: usize| u64::from_str_radix(text.get(from..to)?, 16).ok();
        Some(Self {
            session: part(0, 16)?,
            place: Place {
                instance: part(16, 32)?,
                moves: part(32, 40)? as u32,
            },
            tag: part(40, LENGTH)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PLACE: Place = Place { instance: 7, moves: 2 };

    #[test]
    fn a_token_is_honoured_by_each_agent_with_the_key() {
        let (one, other) = (SessionKey::new([1; 16]), SessionKey::new([1; 16]));
        let token = one.sign("web", 42, PLACE);
        assert_eq!(other.read("web", &token.to_string()), Some(token));
        assert_eq!(other.read("api", &token.to_string()), None, "it is of another service");
        let stranger = SessionKey::new([2; 16]);
        assert_eq!(stranger.read("web", &token.to_string()), None);
        stranger.replace(&one);
        assert_eq!(stranger.read("web", &token.to_string()), Some(token));
    }

    #[test]
    fn text_that_is_no_token_is_refused() {
        let key = SessionKey::new([1; 16]);
        let token = key.sign("web", 42, PLACE).to_string();
        let far = format!("{token}0");
        for text in ["", "x", &token[1..], &far, &"\u{e9}".repeat(28), &"+".repeat(56)] {
            assert_eq!(key.read("web", text), None, "{text}");
        }
    }

    #[test]
    fn a_key_has_32_digits_and_is_never_shown() {
        let text = "00112233445566778899aabbccddeeff";
        let key: SessionKey = text.parse().unwrap();
        assert_eq!(format!("{key:?}"), "SessionKey(..)");
        assert_eq!(format!("{:?}", key.sign("web", 1, PLACE)), "SessionToken(..)");
        let same: SessionKey = text.to_uppercase().parse().unwrap();
        assert_eq!(same.sign("web", 1, PLACE), key.sign("web", 1, PLACE));
        for text in ["", "0011", &text[1..], &format!("{text}0"), &"+".repeat(32)] {
            assert!(text.parse::<SessionKey>().is_err(), "{text}");
        }
    }

    proptest! {
        /// A client that changes any character of a token has no token any more.
        #[test]
        fn no_changed_token_is_honoured(session: u64, instance: u64, moves: u32, place in 0..LENGTH, digit in 1..16_u32) {
            let key = SessionKey::new([3; 16]);
            let text = key.sign("web", session, Place { instance, moves }).to_string();
            let mut changed: Vec<char> = text.chars().collect();
            let before = changed[place].to_digit(16).unwrap();
            changed[place] = char::from_digit((before + digit) % 16, 16).unwrap();
            let changed: String = changed.into_iter().collect();
            prop_assert_eq!(key.read("web", &changed), None);
            let token = key.read("web", &text).unwrap();
            prop_assert_eq!((token.session, token.place), (session, Place { instance, moves }));
        }
    }
}
