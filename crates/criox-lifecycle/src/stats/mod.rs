//! Statistics: which pods and containers are measured by `criox-stats`; `criox-answers` makes its figures messages.
//!
//! | module | what |
//! |---|---|
//! | [`probes`] | the probes of what there is, which follow the index |
//! | [`answer`] | the requests |
//! | [`sampler`] | a beat that notes the time of the CPU, for the rates |
//! | [`metrics`] | the requests for metrics |
//!
//! What can't be read is absent, and never fails a list.

mod answer;
mod metrics;
mod probes;
mod sampler;

use std::path::PathBuf;
use std::sync::Arc;

use criox_cri::ids::ContainerId;
use criox_stats::{ContainerProbe, Layers};

pub(crate) use probes::Probes;

use crate::context::Context;
use crate::descriptors;

/// What other work keeps of the process's descriptors for itself, in parts of the limit.
const DESCRIPTOR_SHARE: u64 = 2;

/// Starts what is done beside requests; it ends with the runtime.
pub(crate) fn start(context: &Arc<Context>) {
    let limit = descriptors::raise().unwrap_or(u64::MAX);
    let kept = usize::try_from(limit / DESCRIPTOR_SHARE).unwrap_or(usize::MAX);
    criox_sys::cgroup::stats::set_descriptor_limit(kept);
    tokio::spawn(sampler::run(context.clone()));
    let walker = context.index.probes().walker().clone();
    let layers = Arc::new(WritableLayers(context.clone()));
    tokio::spawn(walker.run(layers, context.store.graph_root().to_owned()));
}

/// The writable layers of all containers.
struct WritableLayers(Arc<Context>);

impl Layers for WritableLayers {
    type Id = ContainerId;

    fn each(&self, show: &mut dyn FnMut(&ContainerId, Arc<ContainerProbe>)) {
        let probes = self.0.index.probes();
        for view in self.0.index.pods() {
            for record in probes::measured(&view) {
                show(&record.id, probes.container(&self.0, record));
            }
        }
    }

    fn directory(&self, id: &ContainerId) -> std::io::Result<PathBuf> {
        let store = &self.0.store;
        let container = store.container(id.as_str()).map_err(std::io::Error::other)?;
        // containers/storage: overlay/<layer>/diff.
        Ok(store.graph_root().join("overlay").join(&container.layer).join("diff"))
    }
}
