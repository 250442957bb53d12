//! Rows of figures as the metrics of CRI. Unlike CRI-O, rows of a container name its namespace and pod.

use criox_cri::v1;
use criox_records::SandboxRecord;
use criox_stats::metrics::{BASE_LABELS, Family, Kind, Row};

/// The descriptor of a family.
pub fn descriptor(family: &Family) -> v1::MetricDescriptor {
    v1::MetricDescriptor {
        name: family.name.into(),
        help: family.help.into(),
        label_keys: BASE_LABELS.iter().chain(family.labels).map(|&label| label.into()).collect(),
    }
}

/// The labels that all rows of one object have.
pub type Base = [String; BASE_LABELS.len()];

/// Those of a container by its name and image, or of a pod as a whole by its sandbox's ID.
pub fn base_labels(id: &str, image: &str, sandbox: &SandboxRecord, container: &str) -> Base {
    let metadata = sandbox.config.0.metadata.clone().unwrap_or_default();
    [id.into(), image.into(), metadata.namespace, metadata.name, container.into()]
}

/// A row of figures, read at this moment.
pub fn metric(base: &Base, row: Row<'_>) -> v1::Metric {
    let mut label_values = Vec::with_capacity(base.len() + row.labels.len());
    label_values.extend_from_slice(base);
    label_values.extend(row.labels.iter().map(|&label| label.to_owned()));
    let kind = match row.family.kind {
        Kind::Counter => v1::MetricType::Counter,
        Kind::Gauge => v1::MetricType::Gauge,
    };
    v1::Metric {
        name: row.family.name.into(),
        // Read at this moment.
        timestamp: 0,
        metric_type: kind.into(),
        label_values,
        value: Some(v1::UInt64Value { value: row.value }),
    }
}
