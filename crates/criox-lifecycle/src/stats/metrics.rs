//! The requests for metrics, and rows as their messages.
//!
//! Unlike CRI-O, rows of a container name its namespace and pod.

use std::sync::Arc;

use criox_cri::v1;
use criox_stats::metrics::{self, BASE_LABELS, Container, Groups, Kind, Row};

use super::answer::{READING, Reader};
use crate::context::{Context, blocking};
use crate::engine::Lifecycle;
use crate::error::Result;
use crate::index::PodView;
use crate::record::{ContainerPhase, ContainerRecord, SandboxPhase};

/// The container's name in rows of a pod as a whole, as the kubelet's pause containers had it.
const POD: &str = "POD";

impl Lifecycle {
    /// ListMetricDescriptors: the same for as long as the daemon lives.
    pub fn metric_descriptors(&self) -> Vec<v1::MetricDescriptor> {
        let groups = Groups::asked(&self.context.config.stats.included_pod_metrics);
        let descriptor = |family: &metrics::Family| v1::MetricDescriptor {
            name: family.name.into(),
            help: family.help.into(),
            label_keys: BASE_LABELS.iter().chain(family.labels).map(|&label| label.into()).collect(),
        };
        groups.families().map(descriptor).collect()
    }

    /// The pods that have metrics: those that are ready.
    pub fn pods_with_metrics(&self) -> Vec<Arc<PodView>> {
        self.measured_pod_sandboxes(None)
    }

    /// Their metrics, in this order; of pods that are not ready there are none.
    ///
    /// # Errors
    /// The kernel does not answer for half a minute.
    pub async fn metrics_of(&self, views: Vec<Arc<PodView>>) -> Result<Vec<v1::PodSandboxMetrics>> {
        let context = self.context.clone();
        blocking("reading of cgroups", "metrics of pods", READING, move || {
            let groups = Groups::asked(&context.config.stats.included_pod_metrics);
            let mut reader = Reader::new(&context);
            let ready = views.iter().filter(|view| view.sandbox.phase == SandboxPhase::Ready);
            context.index.probes().note_heavy();
            Ok(ready.map(|view| pod(&context, &mut reader, view, &groups)).collect())
        })
        .await
    }
}

fn pod(context: &Context, reader: &mut Reader<'_>, view: &PodView, groups: &Groups) -> v1::PodSandboxMetrics {
    let id = view.sandbox.id.to_string();
    let mut interfaces = Vec::new();
    if groups.network() {
        let probe = context.index.probes().pod(context, &view.sandbox);
        interfaces = probe.interfaces(&mut reader.scratch).unwrap_or_default();
    }
    let base = base_labels(&id, "", view, POD);
    let mut rows = Vec::new();
    metrics::pod(&interfaces, &mut |row| rows.push(metric(&base, row)));
    let running = view.listed_containers().filter(|record| record.phase == ContainerPhase::Running);
    let container_metrics = running
        .map(|record| v1::ContainerMetrics {
            container_id: record.id.to_string(),
            metrics: container(context, reader, view, record, groups),
        })
        .collect();
    v1::PodSandboxMetrics { pod_sandbox_id: id, metrics: rows, container_metrics }
}

fn container(
    context: &Context,
    reader: &mut Reader<'_>,
    view: &PodView,
    record: &ContainerRecord,
    groups: &Groups,
) -> Vec<v1::Metric> {
    let probes = context.index.probes();
    let measured = Container {
        probe: &probes.container(context, record),
        cgroups: &context.cgroups,
        cgroup: &record.cgroup,
        pid: record.process.map(|process| process.pid),
        started_at: record.started_at,
        room: probes.walker().room(),
    };
    let name = record.config.0.metadata.as_ref().map(|metadata| metadata.name.as_str()).unwrap_or_default();
    let base = base_labels(record.id.as_str(), &record.image.name, view, name);
    let mut rows = Vec::new();
    measured.rows(groups, reader.age, &mut reader.scratch, &mut |row| rows.push(metric(&base, row)));
    rows
}

/// The labels that all rows of one object have.
type Base = [String; BASE_LABELS.len()];

fn base_labels(id: &str, image: &str, view: &PodView, container: &str) -> Base {
    let metadata = view.sandbox.config.0.metadata.clone().unwrap_or_default();
    [id.into(), image.into(), metadata.namespace, metadata.name, container.into()]
}

fn metric(base: &Base, row: Row<'_>) -> v1::Metric {
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
