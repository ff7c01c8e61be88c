//! The difference between two views of a service.

use std::cmp::Ordering;

use super::instance::{InstanceId, ServiceInstance};

/// The ids that differ between two views.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Changes {
    /// Ids that are only in the new view.
    pub added: Vec<InstanceId>,
    /// Ids that are in both views, with different instances.
    pub updated: Vec<InstanceId>,
    /// Ids that are only in the old view.
    pub removed: Vec<InstanceId>,
}

impl Changes {
    /// Whether nothing changed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.added.is_empty() && self.updated.is_empty() && self.removed.is_empty()
    }
}

/// Compares two views in one pass. Each view is sorted by id and has every id once.
#[must_use]
pub fn diff<'a>(
    old: impl IntoIterator<Item = &'a ServiceInstance>,
    new: impl IntoIterator<Item = &'a ServiceInstance>,
) -> Changes {
    let mut changes = Changes::default();
    let (mut old, mut new) = (old.into_iter().peekable(), new.into_iter().peekable());
    loop {
        let order = match (old.peek(), new.peek()) {
            (Some(was), Some(is)) => was.id().cmp(is.id()),
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (None, None) => return changes,
        };
        match order {
            Ordering::Less => changes.removed.extend(old.next().map(|was| was.id().clone())),
            Ordering::Greater => changes.added.extend(new.next().map(|is| is.id().clone())),
            Ordering::Equal => {
                let (was, is) = (old.next(), new.next());
                let same = was.zip(is).is_some_and(|(was, is)| std::ptr::eq(was, is) || was == is);
                if !same {
                    changes.updated.extend(is.map(|is| is.id().clone()));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::balancer::instance::Weight;

    fn view(ids: &[(&str, i64)]) -> Vec<ServiceInstance> {
        let instance = |(id, weight): &(&str, i64)| {
            let weight = Weight::new(*weight).unwrap();
            ServiceInstance::new(id, "10.0.0.1", 80).unwrap().with_weight(weight)
        };
        ids.iter().map(instance).collect()
    }

    #[test]
    fn each_id_is_added_updated_removed_or_left_alone() {
        let old = view(&[("a", 1), ("b", 1), ("c", 1), ("e", 1)]);
        let new = view(&[("b", 1), ("c", 2), ("d", 1), ("f", 1)]);
        let changes = diff(&old, &new);
        let ids = |ids: &[InstanceId]| ids.iter().map(InstanceId::to_string).collect::<Vec<_>>().join(" ");
        assert_eq!(ids(&changes.added), "d f");
        assert_eq!(ids(&changes.updated), "c");
        assert_eq!(ids(&changes.removed), "a e");
        assert!(diff(&old, &old).is_empty());
        assert_eq!(diff(&[], &new).added.len(), 4);
        assert_eq!(diff(&old, &[]).removed.len(), 4);
    }
}
