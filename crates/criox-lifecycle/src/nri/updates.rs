//! Changes of containers that plugins ask for: limits, by the way that UpdateContainerResources goes, and ends.

use std::sync::Arc;
use std::time::Duration;

use criox_nri::Updates;
use criox_nri::proto::{ContainerEviction, ContainerUpdate};
use criox_nri_spec::update_of;

use crate::admit::Verb;
use crate::context::Context;
use crate::error::{Error, Result};
use crate::pod::{Origin, Request};

/// For one update. It may wait for another of the same container.
const UPDATE: Duration = Duration::from_secs(60);

/// Makes what plugins ask for. Evictions run beside.
///
/// # Errors
/// The first update that failed and may not.
pub(super) async fn apply(context: &Arc<Context>, updates: Updates) -> Result<()> {
    evict(context, updates.evictions);
    let mut result = Ok(());
    for update in updates.updates {
        let id = update.container_id.clone();
        match one(context, &update).await {
            Ok(()) => {}
            Err(error) if update.ignore_failure => {
                tracing::info!(
                    container = id,
                    error = error.chain(),
                    "an update that an NRI plugin asked for failed, as it may"
                );
            }
            Err(error) => result = result.and(Err(error)),
        }
    }
    result
}

/// The same beside whoever asks; what fails is logged.
pub(super) fn later(context: &Arc<Context>, updates: Updates) {
    if updates == Updates::default() {
        return;
    }
    let context = context.clone();
    tokio::spawn(async move {
        if let Err(error) = apply(&context, updates).await {
            tracing::warn!(error = error.chain(), "an update that an NRI plugin asked for failed");
        }
    });
}

/// Makes updates that no event asked about. Returns those that failed.
pub(super) async fn unsolicited(
    context: &Arc<Context>,
    updates: Vec<ContainerUpdate>,
) -> Vec<ContainerUpdate> {
    let mut failed = Vec::new();
    for update in updates {
        if let Err(error) = one(context, &update).await {
            tracing::warn!(
                container = update.container_id,
                error = error.chain(),
                "an update that an NRI plugin asked for failed"
            );
            failed.push(update);
        }
    }
    failed
}

async fn one(context: &Arc<Context>, update: &ContainerUpdate) -> Result<()> {
    let wish = update.linux.as_ref().and_then(|linux| linux.resources.clone()).unwrap_or_default();
    let resources = Arc::new(update_of(&wish, context.cgroups.is_v2())?);
    let (view, record) = context.index.container(&update.container_id)?;
    let (id, origin) = (record.id, Origin::Nri);
    let made = view.pod.ask(|reply| Request::Update { id, resources, origin, reply });
    tokio::time::timeout(UPDATE, made).await.unwrap_or_else(|_| {
        let advice = "another update of it is still at work";
        Err(Error::timed_out(
            "an update that an NRI plugin asked for",
            &format!("container {id}"),
            UPDATE,
            advice,
        ))
    })
}

/// Ends containers without grace, beside whoever asks.
pub(super) fn evict(context: &Arc<Context>, evictions: Vec<ContainerEviction>) {
    for eviction in evictions {
        let context = context.clone();
        tokio::spawn(async move {
            let ContainerEviction { container_id, reason } = eviction;
            tracing::warn!(container = container_id, reason, "an NRI plugin has a container ended");
            let ended = async {
                let (view, record) = context.index.container(&container_id)?;
                let (verb, id, grace) = (Verb::Stop, record.id, Duration::ZERO);
                view.pod.ask(|reply| Request::Act { verb, id, grace, reply }).await
            };
            if let Err(error) = ended.await {
                tracing::warn!(
                    container = container_id,
                    error = error.chain(),
                    "a container that an NRI plugin has ended lives on"
                );
            }
        });
    }
}
