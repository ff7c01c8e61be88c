//! Text from registries: equal but for case, and fit for a terminal.

use std::borrow::Cow;

/// Every letter in lower case, one letter for one. Texts that are equal but for case have the same
/// result.
///
/// Consul compares names in the same way (`strings.ToLower` of Go).
pub(crate) fn lower_case(text: &str) -> Cow<'_, str> {
    let lower = |letter: char| letter.to_lowercase().next().unwrap_or(letter);
    if text.chars().all(|letter| lower(letter) == letter) {
        return Cow::Borrowed(text);
    }
    Cow::Owned(text.chars().map(lower).collect())
}

/// Whether a terminal shows the character and nothing else happens: no control characters, no
/// characters that change the direction of text (U+202E), and no spaces but the usual one.
#[must_use]
pub fn is_printable(character: char) -> bool {
    // `str::escape_debug` escapes what is not printable, and quotes and backslashes as well. It
    // takes a combining mark at the start of a text for unprintable, hence the letter before it.
    let mut text = [b'a'; 5];
    let length = 1 + character.encode_utf8(&mut text[1..]).len();
    let escaped = std::str::from_utf8(&text[..length]).ok().map(str::escape_debug);
    matches!(character, '"' | '\'' | '\\') || escaped.and_then(|mut text| text.nth(1)) == Some(character)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn letters_of_every_script_lose_their_case() {
        for (text, lower) in [
            ("Redis-01", "redis-01"),
            ("É", "é"),
            ("aΣ", "aσ"),
            // The Kelvin sign, and I with a dot: single letters for Consul as well.
            ("\u{212a}", "k"),
            ("\u{130}x", "ix"),
        ] {
            assert_eq!(lower_case(text), lower);
        }
        assert!(matches!(lower_case("redis_é.1"), Cow::Borrowed("redis_é.1")));
    }

    #[test]
    fn what_moves_a_cursor_or_hides_is_not_printable() {
        for printable in ['a', 'é', ' ', '"', '\'', '\\', '/', '+', '\u{301}', '漢', '🦀'] {
            assert!(is_printable(printable), "{printable:?}");
        }
        for hidden in [
            '\0',
            '\n',
            '\u{1b}',
            '\u{7f}',
            '\u{85}',
            '\u{a0}',
            '\u{ad}',
            '\u{200b}',
            '\u{202e}',
            '\u{2028}',
            '\u{2066}',
            '\u{feff}',
            '\u{e0001}',
            '\u{f8ff}',
        ] {
            assert!(!is_printable(hidden), "{hidden:?}");
        }
    }
}
