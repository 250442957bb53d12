//! The requests for statistics.
//!
//! Only what runs is listed: figures of what has ended would be taken for those of its successor. A list is read by a
//! thread of its own, one entry after the other. What is read becomes messages in `criox-answers`.

use std::sync::Arc;
use std::time::Duration;

use criox_answers::{stats, status};
use criox_cri::v1;
use criox_records::{ContainerPhase, ContainerRecord, SandboxPhase};
use criox_stats::{Meter, PodProbe, Taken};
use criox_sys::cgroup::stats::{Scratch, Usage};

use super::sampler;
use crate::context::{Context, blocking};
use crate::engine::Lifecycle;
use crate::error::Result;
use crate::index::PodView;

/// Reading a node's cgroups takes milliseconds.
pub(super) const READING: Duration = Duration::from_secs(30);

impl Lifecycle {
    /// ContainerStats. Of a container that doesn't run there is little to say: its attributes.
    ///
    /// # Errors
    /// Unknown, or a prefix of several IDs.
    pub async fn container_stats(&self, id: &str) -> Result<v1::ContainerStats> {
        let (_, record) = self.context.index.container(id)?;
        let mut stats = self.container_stats_of(vec![record.clone()]).await?;
        Ok(stats.pop().unwrap_or_else(|| v1::ContainerStats {
            attributes: Some(status::container_attributes(&record)),
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
            attributes: Some(status::sandbox_attributes(&view.sandbox)),
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
        stats::container(record, &taken, rate, probe.layer(), &self.mountpoint)
    }

    fn pod(&mut self, view: &PodView) -> v1::PodSandboxStats {
        let probe = self.context.index.probes().pod(self.context, &view.sandbox);
        let running = view.listed_containers().filter(|record| record.phase == ContainerPhase::Running);
        let containers: Vec<v1::ContainerStats> = running.map(|record| self.container(record)).collect();
        let mut linux = match probe.meter() {
            Some(meter) => {
                let taken = meter.usage(self.age, &mut self.scratch);
                let rate = rate(meter, &taken);
                stats::pod(&taken, rate)
            }
            None => stats::sum(&containers, probe.past()),
        };
        linux.process = self.processes(view, &probe);
        linux.network = probe.interfaces(&mut self.scratch).map(stats::network);
        linux.containers = containers;
        v1::PodSandboxStats {
            attributes: Some(status::sandbox_attributes(&view.sandbox)),
            linux: Some(linux),
            windows: None,
        }
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
        Some(stats::processes(count))
    }
}

fn rate(meter: &Meter, taken: &Taken<Usage>) -> Option<u64> {
    meter.rate(taken.what.cpu?.usage_ns)
}
