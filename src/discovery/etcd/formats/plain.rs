//! `host:port` as text, as registrator, go-zero and people write it.

use super::registration::{Decoded, InvalidRegistration, Place};

pub(super) fn read(place: &Place<'_>, value: &[u8]) -> Decoded {
    let text = std::str::from_utf8(value).map_err(|_| InvalidRegistration::ValueNotText)?;
    Ok(vec![place.instance(text.trim().parse()?)?])
}
