//! The requests for statistics, and figures as the messages of CRI.
//!
//! Only what runs is listed: figures of what has ended would be taken for those of its successor. A list is read by a
//! thread of its own, one entry after the other; each block carries the time at which it was read.

use std::sync::Arc;
use std::time::Duration;

use criox_cri::v1;
use criox_stats::{Meter, PodProbe, Taken, now};
use criox_sys::cgroup::stats::{Psi, PsiLine, Scratch, Usage};
use criox_sys::netdev::Interface;

use super::sampler;
use crate::context::{Context, blocking};
use crate::engine::Lifecycle;
use crate::error::Result;
use crate::index::PodView;
use crate::record::{ContainerPhase, ContainerRecord, SandboxPhase};
use crate::status;

/// Reading a node's cgroups takes milliseconds.
pub(super) const READING: Duration = Duration::from_secs(30);
/// The interface that CNI calls the pod's first one.
const FIRST_INTERFACE: &str = "eth0";

impl Lifecycle {
    /// ContainerStats. Of a container that doesn't run there is little to say: its attributes.
    ///
    /// # Errors
    /// Unknown, or a prefix of several IDs.
    pub async fn container_stats(&self, id: &str) -> Result<v1::ContainerStats> {
        let (_, record) = self.context.index.container(id)?;
        let mut stats = self.container_stats_of(vec![record.clone()]).await?;
        Ok(stats.pop().unwrap_or_else(|| v1::ContainerStats {
            attributes: Some(container_attributes(&record)),
            ..Default::default()
        }))
    }

    /// The containers that a list of statistics has: those that run and pass the filter.
    pub fn measured_containers(
        &self,
        filter: Option<&v1::ContainerStatsFilter>,
    ) -> Vec<Arc<ContainerRecord>> {
        let pods = self.context.index.pods();
        let containers = pods.iter().flat_map(|view| view.listed_containers());
        containers
            .filter(|record| record.phase == ContainerPhase::Running)
            .filter(|record| status::container_stats_pass(record, filter))
            .cloned()
            .collect()
    }

    /// Their statistics, in this order; those that have ended meanwhile are left out.
    ///
    /// # Errors
    /// The kernel does not answer for half a minute.
    pub async fn container_stats_of(
        &self,
        records: Vec<Arc<ContainerRecord>>,
    ) -> Result<Vec<v1::ContainerStats>> {
        let context = self.context.clone();
        blocking("reading of cgroups", "statistics of containers", READING, move || {
            let mut reader = Reader::new(&context);
            let measured = records
                .iter()
                .filter(|record| matches!(record.phase, ContainerPhase::Created | ContainerPhase::Running));
            Ok(measured.map(|record| reader.container(record)).collect())
        })
        .await
    }

    /// PodSandboxStats.
    ///
    /// # Errors
    /// Unknown, or a prefix of several IDs.
    pub async fn pod_sandbox_stats(&self, id: &str) -> Result<v1::PodSandboxStats> {
        let view = self.context.index.pod(id)?;
        let mut stats = self.pod_sandbox_stats_of(vec![view.clone()]).await?;
        Ok(stats.pop().unwrap_or_else(|| v1::PodSandboxStats {
            attributes: Some(sandbox_attributes(&view)),
            // A kubelet looks into it unasked.
            linux: Some(v1::LinuxPodSandboxStats::default()),
            windows: None,
        }))
    }

    /// The pods that a list of statistics has: those that are ready and pass the filter.
    pub fn measured_pod_sandboxes(&self, filter: Option<&v1::PodSandboxStatsFilter>) -> Vec<Arc<PodView>> {
        let mut pods = self.context.index.pods();
        pods.retain(|view| {
            view.sandbox.phase == SandboxPhase::Ready && status::sandbox_stats_pass(&view.sandbox, filter)
        });
        pods
    }

    /// Their statistics, in this order; of pods that are not ready there are none.
    ///
    /// # Errors
    /// The kernel does not answer for half a minute.
    pub async fn pod_sandbox_stats_of(&self, views: Vec<Arc<PodView>>) -> Result<Vec<v1::PodSandboxStats>> {
        let context = self.context.clone();
        blocking("reading of cgroups", "statistics of pods", READING, move || {
            let mut reader = Reader::new(&context);
            context.index.probes().note_heavy();
            let ready = views.iter().filter(|view| view.sandbox.phase == SandboxPhase::Ready);
            Ok(ready.map(|view| reader.pod(view)).collect())
        })
        .await
    }
}

/// Reads one object after the other into one buffer.
pub(super) struct Reader<'a> {
    context: &'a Context,
    /// How old a collected figure may be.
    pub(super) age: Duration,
    pub(super) scratch: Scratch,
    /// Where writable layers lie, as ImageFsInfo names it.
    mountpoint: String,
}

impl<'a> Reader<'a> {
    pub(super) fn new(context: &'a Context) -> Self {
        let images = format!("{}-images", context.config.root.storage_driver);
        Self {
            context,
            age: sampler::age(context),
            scratch: Scratch::default(),
            mountpoint: context.store.graph_root().join(images).to_string_lossy().into_owned(),
        }
    }

    fn container(&mut self, record: &ContainerRecord) -> v1::ContainerStats {
        let probe = self.context.index.probes().container(self.context, record);
        let meter = probe.meter();
        let taken = meter.usage(self.age, &mut self.scratch);
        let rate = rate(meter, &taken);
        let layer = probe.layer();
        v1::ContainerStats {
            attributes: Some(container_attributes(record)),
            cpu: cpu(&taken, rate),
            memory: memory(&taken),
            writable_layer: layer.map(|layer| v1::FilesystemUsage {
                timestamp: layer.at,
                fs_id: Some(v1::FilesystemIdentifier { mountpoint: self.mountpoint.clone() }),
                used_bytes: value(layer.what.bytes),
                inodes_used: value(layer.what.inodes),
            }),
            swap: swap(&taken),
            io: io(&taken),
        }
    }

    fn pod(&mut self, view: &PodView) -> v1::PodSandboxStats {
        let probe = self.context.index.probes().pod(self.context, &view.sandbox);
        let running = view.listed_containers().filter(|record| record.phase == ContainerPhase::Running);
        let containers: Vec<v1::ContainerStats> = running.map(|record| self.container(record)).collect();
        let mut linux = match probe.meter() {
            Some(meter) => {
                let taken = meter.usage(self.age, &mut self.scratch);
                let rate = rate(meter, &taken);
                v1::LinuxPodSandboxStats {
                    cpu: cpu(&taken, rate),
                    memory: memory(&taken),
                    io: io(&taken),
                    ..Default::default()
                }
            }
            None => sum(&containers, &probe),
        };
        linux.process = self.processes(view, &probe);
        linux.network = probe.interfaces(&mut self.scratch).map(network);
        linux.containers = containers;
        v1::PodSandboxStats { attributes: Some(sandbox_attributes(view)), linux: Some(linux), windows: None }
    }

    fn processes(&mut self, view: &PodView, probe: &PodProbe) -> Option<v1::ProcessUsage> {
        let count = match probe.meter() {
            Some(meter) => meter.tasks(&mut self.scratch)?,
            None => {
                let mut count = 0;
                for record in
                    view.listed_containers().filter(|record| record.phase == ContainerPhase::Running)
                {
                    let probe = self.context.index.probes().container(self.context, record);
                    count += probe.meter().tasks(&mut self.scratch).unwrap_or(0);
                }
                count
            }
        };
        Some(v1::ProcessUsage { timestamp: now(), process_count: value(count) })
    }
}

fn rate(meter: &Meter, taken: &Taken<Usage>) -> Option<u64> {
    meter.rate(taken.what.cpu?.usage_ns)
}

/// A pod that shares its cgroup with others is what its containers are, and were.
fn sum(containers: &[v1::ContainerStats], probe: &PodProbe) -> v1::LinuxPodSandboxStats {
    let number = |value: &Option<v1::UInt64Value>| value.map_or(0, |value| value.value);
    let cpus = || containers.iter().filter_map(|container| container.cpu.as_ref());
    let memories = || containers.iter().filter_map(|container| container.memory.as_ref());
    let of_cpus =
        |field: fn(&v1::CpuUsage) -> &Option<v1::UInt64Value>| cpus().map(|cpu| number(field(cpu))).sum();
    let of_memories = |field: fn(&v1::MemoryUsage) -> &Option<v1::UInt64Value>| {
        value(memories().map(|memory| number(field(memory))).sum())
    };
    let used: u64 = of_cpus(|cpu| &cpu.usage_core_nano_seconds);
    v1::LinuxPodSandboxStats {
        cpu: Some(v1::CpuUsage {
            timestamp: now(),
            usage_core_nano_seconds: value(used.saturating_add(probe.past())),
            usage_nano_cores: value(of_cpus(|cpu| &cpu.usage_nano_cores)),
            psi: None,
        }),
        memory: Some(v1::MemoryUsage {
            timestamp: now(),
            working_set_bytes: of_memories(|memory| &memory.working_set_bytes),
            available_bytes: None,
            usage_bytes: of_memories(|memory| &memory.usage_bytes),
            rss_bytes: of_memories(|memory| &memory.rss_bytes),
            page_faults: of_memories(|memory| &memory.page_faults),
            major_page_faults: of_memories(|memory| &memory.major_page_faults),
            psi: None,
        }),
        ..Default::default()
    }
}

#[expect(clippy::unnecessary_wraps, reason = "what the message's fields take")]
fn value(value: u64) -> Option<v1::UInt64Value> {
    Some(v1::UInt64Value { value })
}

fn container_attributes(record: &ContainerRecord) -> v1::ContainerAttributes {
    let config = &record.config.0;
    v1::ContainerAttributes {
        id: record.id.to_string(),
        metadata: Some(config.metadata.clone().unwrap_or_default()),
        labels: config.labels.clone(),
        annotations: config.annotations.clone(),
    }
}

fn sandbox_attributes(view: &PodView) -> v1::PodSandboxAttributes {
    let config = &view.sandbox.config.0;
    v1::PodSandboxAttributes {
        id: view.sandbox.id.to_string(),
        metadata: Some(config.metadata.clone().unwrap_or_default()),
        labels: config.labels.clone(),
        annotations: config.annotations.clone(),
    }
}

fn cpu(taken: &Taken<Usage>, rate: Option<u64>) -> Option<v1::CpuUsage> {
    let cpu = taken.what.cpu?;
    Some(v1::CpuUsage {
        timestamp: taken.at,
        usage_core_nano_seconds: value(cpu.usage_ns),
        usage_nano_cores: rate.and_then(value),
        psi: cpu.psi.map(psi),
    })
}

fn memory(taken: &Taken<Usage>) -> Option<v1::MemoryUsage> {
    let memory = taken.what.memory?;
    Some(v1::MemoryUsage {
        timestamp: taken.at,
        working_set_bytes: value(memory.working_set()),
        available_bytes: memory.available().and_then(value),
        usage_bytes: value(memory.usage),
        rss_bytes: value(memory.rss),
        page_faults: memory.page_faults.and_then(value),
        major_page_faults: memory.major_page_faults.and_then(value),
        psi: memory.psi.map(psi),
    })
}

fn swap(taken: &Taken<Usage>) -> Option<v1::SwapUsage> {
    let memory = taken.what.memory?;
    Some(v1::SwapUsage {
        timestamp: taken.at,
        swap_available_bytes: memory.swap_available().and_then(value),
        swap_usage_bytes: value(memory.swap?),
    })
}

fn io(taken: &Taken<Usage>) -> Option<v1::IoUsage> {
    Some(v1::IoUsage { timestamp: taken.at, psi: Some(psi(taken.what.io?)) })
}

fn psi(read: Psi) -> v1::PsiStats {
    let line = |line: PsiLine| v1::PsiData {
        // The kernel counts microseconds.
        total: line.total_us.saturating_mul(1000),
        avg10: line.avg10,
        avg60: line.avg60,
        avg300: line.avg300,
    };
    v1::PsiStats { full: Some(line(read.full)), some: Some(line(read.some)) }
}

fn network(interfaces: Vec<Interface>) -> v1::NetworkUsage {
    let mut usages: Vec<v1::NetworkInterfaceUsage> = interfaces
        .into_iter()
        .map(|interface| v1::NetworkInterfaceUsage {
            name: interface.name,
            rx_bytes: value(interface.rx.bytes),
            rx_errors: value(interface.rx.errors),
            tx_bytes: value(interface.tx.bytes),
            tx_errors: value(interface.tx.errors),
        })
        .collect();
    let first = usages.iter().position(|usage| usage.name == FIRST_INTERFACE).unwrap_or(0);
    let default_interface = (first < usages.len()).then(|| usages.remove(first));
    v1::NetworkUsage { timestamp: now(), default_interface, interfaces: usages }
}

#[cfg(test)]
mod tests {
    use criox_sys::cgroup::stats::{Cpu, Limits, Memory};
    use criox_sys::netdev::Counters;

    use super::*;

    fn interface(name: &str, bytes: u64) -> Interface {
        let counters = Counters { bytes, ..Counters::default() };
        Interface { name: name.into(), rx: counters, tx: counters }
    }

    #[test]
    fn the_pods_first_interface_is_the_default_one() {
        let names = |usage: &v1::NetworkUsage| -> Vec<String> {
            let default = usage.default_interface.iter();
            default.chain(&usage.interfaces).map(|interface| interface.name.clone()).collect()
        };
        let usage = network(vec![interface("net1", 1), interface("eth0", 2)]);
        assert_eq!(names(&usage), ["eth0", "net1"]);
        assert!(usage.timestamp > 0);
        // Another name than CNI's usual one.
        assert_eq!(names(&network(vec![interface("ens3", 1)])), ["ens3"]);
        assert_eq!(network(Vec::new()).default_interface, None);
    }

    #[test]
    fn blocks_that_were_not_read_are_absent() {
        let taken = Taken::now(Usage::default());
        assert!(cpu(&taken, None).is_none() && memory(&taken).is_none());
        assert!(swap(&taken).is_none() && io(&taken).is_none());
    }

    #[test]
    fn a_container_without_a_limit_has_no_available_memory() {
        let limits = Limits { memory: Some(100), swap: None };
        let read = Memory { usage: 50, inactive_file: 20, limits, ..Memory::default() };
        let taken = |memory| Taken::now(Usage { memory: Some(memory), ..Usage::default() });
        let message = memory(&taken(read)).expect("memory");
        assert_eq!((message.working_set_bytes, message.available_bytes), (value(30), value(70)));
        let unlimited = Memory { limits: Limits::default(), ..read };
        assert_eq!(memory(&taken(unlimited)).expect("memory").available_bytes, None);
    }

    #[test]
    fn pressure_is_in_nanoseconds() {
        let line = PsiLine { total_us: 3, avg10: 1.0, ..PsiLine::default() };
        let read = Psi { some: line, full: PsiLine::default() };
        let usage = Usage { cpu: Some(Cpu { usage_ns: 1, psi: Some(read) }), ..Usage::default() };
        let message = cpu(&Taken::now(usage), Some(7)).expect("a CPU");
        let some = message.psi.and_then(|psi| psi.some).expect("pressure");
        assert_eq!((some.total, message.usage_nano_cores), (3000, value(7)));
    }
}
