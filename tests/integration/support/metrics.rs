//! A parser of the Prometheus text format.

use std::collections::BTreeMap;

/// Name and labels of a series.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Series {
    pub(crate) name: String,
    pub(crate) labels: BTreeMap<String, String>,
}

impl Series {
    /// Parses `name{label="value",...}`, with labels in any order.
    pub(crate) fn parse(text: &str) -> Self {
        let (name, labels) = text.split_once('{').unwrap_or((text, "}"));
        let labels = labels.strip_suffix("\"}").unwrap_or_default().split("\",");
        let labels = labels.filter(|label| !label.is_empty()).map(|label| {
            let (name, value) = label.split_once("=\"").unwrap();
            (name.to_owned(), value.to_owned())
        });
        Self {
            name: name.to_owned(),
            labels: labels.collect(),
        }
    }
}

/// All samples, in the order of the text.
pub(crate) fn samples(text: &str) -> Vec<(Series, f64)> {
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let parsed = lines.map(|line| {
        let (series, value) = line.rsplit_once(' ').unwrap();
        (Series::parse(series), value.parse().unwrap())
    });
    parsed.collect()
}
