//! etcd.

pub mod formats;

use crate::balancer::Source;

/// etcd, in answers and metric labels.
pub const SOURCE: Source = Source::new("etcd");
