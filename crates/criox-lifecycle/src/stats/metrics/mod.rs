//! Figures as metrics for Prometheus: a kubelet whose statistics come from CRI serves them at `/metrics/cadvisor`. Names,
//! labels and units are those that cAdvisor gave them; groups and their switch (`included_pod_metrics`) are CRI-O's.
//! Values are whole numbers, for the message has no others: seconds are cut.
//!
//! Unlike CRI-O, rows of a container name its namespace and pod.

mod container;
mod families;
mod process;

use std::sync::Arc;

use criox_cri::v1;
use criox_sys::cgroup::stats::Wanted;
use criox_sys::netdev::Interface;

use super::answer::{READING, Reader, is_counted};
use super::probe::now;
use crate::context::{Context, blocking};
use crate::engine::Lifecycle;
use crate::error::Result;
use crate::index::PodView;
use crate::record::{ContainerPhase, ContainerRecord, SandboxPhase};
use families::{BASE_LABELS, Family, GROUPS, Group};

/// The container's name in rows of a pod as a whole, as the kubelet's pause containers had it.
const POD: &str = "POD";

impl Lifecycle {
    /// ListMetricDescriptors: the same for as long as the daemon lives.
    pub fn metric_descriptors(&self) -> Vec<v1::MetricDescriptor> {
        let groups = included(&self.context.config.stats.included_pod_metrics);
        GROUPS
            .iter()
            .filter(|(group, _)| groups.contains(group))
            .flat_map(|(_, families)| families.iter())
            .map(|family| v1::MetricDescriptor {
                name: family.name.into(),
                help: family.help.into(),
                label_keys: BASE_LABELS.iter().chain(family.labels).map(|&label| label.into()).collect(),
            })
            .collect()
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
            let groups = included(&context.config.stats.included_pod_metrics);
            let mut reader = Reader::new(&context);
            let ready = views.iter().filter(|view| view.sandbox.phase == SandboxPhase::Ready);
            context.index.probes().note_heavy();
            Ok(ready.map(|view| pod(&context, &mut reader, view, &groups)).collect())
        })
        .await
    }
}

/// The groups that the configuration asks for, and the one that is always there.
fn included(asked: &[String]) -> Vec<Group> {
    let is_asked = |group: &Group| match group.key() {
        None => true,
        Some(key) => asked.iter().any(|asked| asked == key || asked == "all"),
    };
    GROUPS.iter().map(|(group, _)| *group).filter(is_asked).collect()
}

/// Rows of one object.
struct Rows {
    base: [String; BASE_LABELS.len()],
    rows: Vec<v1::Metric>,
}

impl Rows {
    fn new(id: &str, image: &str, view: &PodView, container: &str) -> Self {
        let metadata = view.sandbox.config.0.metadata.clone().unwrap_or_default();
        let base = [id.into(), image.into(), metadata.namespace, metadata.name, container.into()];
        Self { base, rows: Vec::new() }
    }

    fn push(&mut self, family: &Family, value: u64) {
        self.push_with(family, [], value);
    }

    /// With values for the family's own labels.
    fn push_with<const N: usize>(&mut self, family: &Family, labels: [&str; N], value: u64) {
        debug_assert_eq!(labels.len(), family.labels.len(), "{}", family.name);
        let own = labels.iter().map(|&label| label.to_owned());
        self.rows.push(v1::Metric {
            name: family.name.into(),
            // Read at this moment.
            timestamp: 0,
            metric_type: family.kind.into(),
            label_values: self.base.iter().cloned().chain(own).collect(),
            value: Some(v1::UInt64Value { value }),
        });
    }
}

fn pod(
    context: &Context,
    reader: &mut Reader<'_>,
    view: &PodView,
    groups: &[Group],
) -> v1::PodSandboxMetrics {
    let id = view.sandbox.id.to_string();
    let mut rows = Rows::new(&id, "", view, POD);
    rows.push(&families::LAST_SEEN, seconds(now()));
    if groups.contains(&Group::Network) {
        let probe = context.index.probes().pod(context, &view.sandbox);
        let interfaces = probe.interfaces(&mut reader.scratch).unwrap_or_default();
        for interface in interfaces.iter().filter(|interface| is_counted(interface)) {
            network(&mut rows, interface);
        }
    }
    let running = view.listed_containers().filter(|record| record.phase == ContainerPhase::Running);
    let container_metrics = running
        .map(|record| v1::ContainerMetrics {
            container_id: record.id.to_string(),
            metrics: of_container(context, reader, view, record, groups),
        })
        .collect();
    v1::PodSandboxMetrics { pod_sandbox_id: id, metrics: rows.rows, container_metrics }
}

fn of_container(
    context: &Context,
    reader: &mut Reader<'_>,
    view: &PodView,
    record: &ContainerRecord,
    groups: &[Group],
) -> Vec<v1::Metric> {
    let config = &record.config.0;
    let name = config.metadata.as_ref().map(|metadata| metadata.name.as_str()).unwrap_or_default();
    let mut rows = Rows::new(record.id.as_str(), &record.image.name, view, name);
    rows.push(&families::LAST_SEEN, seconds(now()));
    let has = |group: Group| groups.contains(&group);
    let wanted = Wanted {
        cpu: has(Group::Cpu),
        io: has(Group::DiskIo),
        huge_pages: has(Group::HugePages),
        memory: has(Group::Memory),
        oom: has(Group::Oom),
        spec: has(Group::Spec),
        pids: has(Group::Process),
    };
    let probe = context.index.probes().container(context, record);
    let detail = context.cgroups.detail(&record.cgroup, wanted, &mut reader.scratch);
    let usage = reader.usage(&probe).what;
    if let Some(cpu) = usage.cpu.filter(|_| has(Group::Cpu)) {
        container::cpu(&mut rows, &cpu, &detail);
    }
    if has(Group::Disk) {
        container::disk(&mut rows, probe.layer().figure.map(|layer| layer.what), context.index.layer_room());
    }
    if has(Group::DiskIo) {
        container::disk_io(&mut rows, &detail.devices);
    }
    if has(Group::HugePages) {
        container::huge_pages(&mut rows, &detail.huge_pages);
    }
    if let Some(memory) = usage.memory.filter(|_| has(Group::Memory)) {
        container::memory(&mut rows, &memory, &detail);
    }
    if has(Group::Oom) {
        rows.push(&families::OOM_EVENTS, detail.oom_kills);
    }
    if has(Group::Process) {
        let tasks = probe.gauges.tasks(&mut reader.scratch).unwrap_or(0);
        let processes = process::look(context, record);
        container::processes(&mut rows, &processes, tasks, detail.tasks_max);
    }
    if has(Group::Spec) {
        container::spec(&mut rows, &detail, record.started_at);
    }
    if has(Group::Pressure) {
        container::pressure(&mut rows, &usage);
    }
    rows.rows
}

fn network(rows: &mut Rows, interface: &Interface) {
    let name = interface.name.as_str();
    for (families, counters) in [(&families::RECEIVE, interface.rx), (&families::TRANSMIT, interface.tx)] {
        let [bytes, packets, dropped, errors] = families;
        rows.push_with(bytes, [name], counters.bytes);
        rows.push_with(packets, [name], counters.packets);
        rows.push_with(dropped, [name], counters.dropped);
        rows.push_with(errors, [name], counters.errors);
    }
}

/// Whole seconds of nanoseconds.
fn seconds(nanoseconds: i64) -> u64 {
    u64::try_from(nanoseconds).unwrap_or(0) / 1_000_000_000
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(keys: &[&str]) -> Vec<Group> {
        included(&keys.iter().map(|&key| key.to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn groups_are_served_when_they_are_asked_for() {
        assert_eq!(asked(&[]), [Group::Always]);
        assert_eq!(asked(&["oom", "diskIO"]), [Group::Always, Group::DiskIo, Group::Oom]);
        assert_eq!(asked(&["all"]).len(), GROUPS.len());
    }
}
