//! `[metrics]`.

use serde::Deserialize;
use toml::Spanned;

use super::checker::Checker;
use crate::metrics::INSTANCE_SERIES;

/// `[metrics]`
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct MetricsConfig {
    /// How many instances get series of their own, 0..=100,000. 0 turns those series off.
    pub instance_series: usize,
}

/// `[metrics]`
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table")]
pub(super) struct RawMetrics {
    instance_series: Option<Spanned<i64>>,
}

impl Checker<'_> {
    pub(super) fn metrics(&mut self, raw: &RawMetrics) -> MetricsConfig {
        let mut instance_series = INSTANCE_SERIES;
        if let Some(written) = &raw.instance_series {
            match usize::try_from(*written.get_ref()) {
                Ok(most @ 0..=100_000) => instance_series = most,
                _ => {
                    let found = written.get_ref();
                    self.refuse(
                        written.span(),
                        format!("metrics.instance_series {found}: expected 0 (off) to 100000"),
                    );
                }
            }
        }
        MetricsConfig { instance_series }
    }
}
