//! Errors of the system that say nothing about the other side of a connection: this host lacks files,
//! ports or memory. Such an error must not take a whole pool out.

use std::error::Error;
use std::io;

/// The number of the system's error, if this host lacks a resource.
pub(crate) fn lack(error: &io::Error) -> Option<i32> {
    const OUT_OF_MEMORY: i32 = 12;
    const OUT_OF_FILES: [i32; 2] = [23, 24];
    let number = error.raw_os_error()?;
    let is_lack =
        error.kind() == io::ErrorKind::AddrNotAvailable || number == OUT_OF_MEMORY || OUT_OF_FILES.contains(&number);
    is_lack.then_some(number)
}

/// Whether an error, or any error that caused it, is such a lack.
pub(crate) fn is_lack(error: &(dyn Error + 'static)) -> bool {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if error.downcast_ref().and_then(lack).is_some() {
            return true;
        }
        cause = error.source();
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("outer")]
    struct Outer(#[source] io::Error);

    #[test]
    fn a_lack_of_local_resources_is_found_below_other_errors() {
        for number in [12, 23, 24, 99] {
            let error = io::Error::from_raw_os_error(number);
            assert_eq!(lack(&error), Some(number));
            assert!(is_lack(&Outer(error)));
        }
        // Refused, reset, timed out, no route.
        for number in [111, 104, 110, 113] {
            let error = io::Error::from_raw_os_error(number);
            assert_eq!(lack(&error), None);
            assert!(!is_lack(&Outer(error)));
        }
        assert!(!is_lack(&io::Error::other("not of the system")));
    }
}
