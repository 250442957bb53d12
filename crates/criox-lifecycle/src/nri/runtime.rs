//! What plugins ask of criox by themselves: everything that there is, when they join, and changes.

use std::sync::Arc;
use std::time::Duration;

use criox_nri::proto::{ContainerEviction, ContainerUpdate};
use criox_nri::{Everything, Marks, Runtime};
use criox_records::{ContainerPhase, ContainerRecord, SandboxPhase, SandboxRecord};
use futures_util::future::{BoxFuture, FutureExt as _};

use super::{describe, updates};
use crate::context::{Context, blocking};

/// For reading the specifications of all containers.
const READ: Duration = Duration::from_secs(2);

/// The pods of this daemon.
pub(super) struct Backend(pub(super) Arc<Context>);

type Found = (Vec<Arc<SandboxRecord>>, Vec<Arc<ContainerRecord>>);

impl Runtime for Backend {
    fn snapshot(&self, marks: &Marks) -> BoxFuture<'static, Everything> {
        let found = look(&self.0, marks);
        let context = self.0.clone();
        async move { describe_all(&context, found).await }.boxed()
    }

    fn update(&self, updates: Vec<ContainerUpdate>) -> BoxFuture<'_, Vec<ContainerUpdate>> {
        updates::unsolicited(&self.0, updates).boxed()
    }

    fn evict(&self, evictions: Vec<ContainerEviction>) -> BoxFuture<'_, ()> {
        updates::evict(&self.0, evictions);
        std::future::ready(()).boxed()
    }
}

/// What is shown, and what is being created and has been told of; not what has been told to go.
fn look(context: &Context, marks: &Marks) -> Found {
    let there =
        |id: &str, creating: bool| !marks.is_being_removed(id) && (!creating || marks.is_being_created(id));
    let (mut pods, mut containers) = (Vec::new(), Vec::new());
    for view in context.index.pods() {
        let pod = &view.sandbox;
        if !there(pod.id.as_str(), pod.phase == SandboxPhase::Creating) {
            continue;
        }
        pods.push(pod.clone());
        let shown = view
            .containers
            .values()
            .filter(|record| there(record.id.as_str(), record.phase == ContainerPhase::Creating));
        containers.extend(shown.cloned());
    }
    (pods, containers)
}

/// A disk that hangs makes descriptions poorer, and holds nobody up for long.
async fn describe_all(context: &Arc<Context>, (pods, containers): Found) -> Everything {
    let described = pods.iter().map(|pod| criox_nri_spec::pod(&context.paths, pod)).collect();
    let read = blocking("read of specifications", "all containers", READ, {
        let (context, containers) = (context.clone(), containers.clone());
        move || {
            let one = |record: &Arc<ContainerRecord>| match describe::read_spec(&context, record) {
                Ok(spec) => criox_nri_spec::with_spec(record, &spec),
                Err(_) => criox_nri_spec::container(record),
            };
            Ok(containers.iter().map(one).collect())
        }
    });
    let containers = match read.await {
        Ok(containers) => containers,
        Err(error) => {
            tracing::warn!(error = error.chain(), "an NRI plugin is told less of the containers");
            containers.iter().map(|record| criox_nri_spec::container(record)).collect()
        }
    };
    (described, containers)
}
