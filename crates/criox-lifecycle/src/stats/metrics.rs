//! The requests for metrics. Rows become messages in `criox-answers`.

use std::sync::Arc;

use criox_answers::metrics::{base_labels, descriptor, metric};
use criox_cri::v1;
use criox_records::{ContainerPhase, ContainerRecord, SandboxPhase};
use criox_stats::metrics::{self, Container, Groups};

use super::answer::{READING, Reader};
use crate::context::{Context, blocking};
use crate::engine::Lifecycle;
use crate::error::Result;
use crate::index::PodView;

/// The container's name in rows of a pod as a whole, as the kubelet's pause containers had it.
const POD: &str = "POD";

impl Lifecycle {
    /// ListMetricDescriptors: the same for as long as the daemon lives.
    pub fn metric_descriptors(&self) -> Vec<v1::MetricDescriptor> {
        let groups = Groups::asked(&self.context.config.stats.included_pod_metrics);
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
    let base = base_labels(&id, "", &view.sandbox, POD);
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
    let base = base_labels(record.id.as_str(), &record.image.name, &view.sandbox, name);
    let mut rows = Vec::new();
    measured.rows(groups, reader.age, &mut reader.scratch, &mut |row| rows.push(metric(&base, row)));
    rows
}
