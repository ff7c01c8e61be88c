//! `Retry-After`: for how long an instance asks not to be called (RFC 9110, section 10.2.3).

use std::time::{Duration, SystemTime};

use reqwest::header::{DATE, HeaderMap, HeaderName, RETRY_AFTER};

/// The time that the answer asks for; `None` if it asks for none, or the time is over.
///
/// A date is compared with the `Date` of the same answer, so that a clock that differs from the
/// clock of the instance does no harm. `now` stands in for an answer without a date.
pub(super) fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let asked = text(headers, RETRY_AFTER)?;
    let time = if !asked.is_empty() && asked.bytes().all(|byte| byte.is_ascii_digit()) {
        // A number that does not fit is a very long time.
        Duration::from_secs(asked.parse().unwrap_or(u64::from(u32::MAX)))
    } else {
        let sent = text(headers, DATE).and_then(|date| httpdate::parse_http_date(date).ok());
        let until = httpdate::parse_http_date(asked).ok()?;
        until.duration_since(sent.unwrap_or(now)).ok()?
    };
    (!time.is_zero()).then_some(time)
}

fn text(headers: &HeaderMap, name: HeaderName) -> Option<&str> {
    headers.get(name)?.to_str().ok().map(str::trim)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(retry_after: &str, date: Option<&str>) -> Option<u64> {
        let mut headers = HeaderMap::new();
        headers.insert(RETRY_AFTER, retry_after.parse().unwrap());
        if let Some(date) = date {
            headers.insert(DATE, date.parse().unwrap());
        }
        let now = httpdate::parse_http_date("Sun, 06 Nov 1994 08:49:00 GMT").unwrap();
        super::retry_after(&headers, now).map(|time| time.as_secs())
    }

    #[test]
    fn seconds_and_dates_are_times() {
        for (header, date, seconds) in [
            ("120", None, Some(120)),
            (" 7 ", None, Some(7)),
            ("0", None, None),
            ("99999999999999999999", None, Some(u64::from(u32::MAX))),
            ("Sun, 06 Nov 1994 08:49:37 GMT", None, Some(37)),
            // The obsolete forms of a date.
            ("Sunday, 06-Nov-94 08:49:37 GMT", None, Some(37)),
            ("Sun Nov  6 08:49:37 1994", None, Some(37)),
            ("Sun, 06 Nov 1994 08:48:59 GMT", None, None),
            // The clock of the instance is an hour ahead.
            (
                "Sun, 06 Nov 1994 09:49:37 GMT",
                Some("Sun, 06 Nov 1994 09:49:30 GMT"),
                Some(7),
            ),
            ("Sun, 06 Nov 1994 08:49:37 GMT", Some("today"), Some(37)),
            ("-1", None, None),
            ("1.5", None, None),
            ("soon", None, None),
            ("", None, None),
        ] {
            assert_eq!(asked(header, date), seconds, "{header} {date:?}");
        }
        assert_eq!(retry_after(&HeaderMap::new(), SystemTime::UNIX_EPOCH), None);
    }
}
