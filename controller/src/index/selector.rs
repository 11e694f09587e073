//! Label selectors of services.

use std::collections::BTreeMap;

/// Whether labels have every pair of a service's selector. An empty selector selects nothing.
pub(super) fn selects(
    selector: &BTreeMap<String, String>,
    labels: &BTreeMap<String, String>,
) -> bool {
    !selector.is_empty()
        && selector
            .iter()
            .all(|(key, value)| labels.get(key) == Some(value))
}
