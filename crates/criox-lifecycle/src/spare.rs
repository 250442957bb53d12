//! Monitors that run before anybody asks for a pod, each with the ID that the next sandbox will have: entering a cgroup
//! can take a v1 kernel ten milliseconds, which no pod then waits for.
//!
//! A spare is a run directory without a record: a daemon that ends in order removes its spares, and after any other end
//! the next start sweeps them like every run directory without a record.

use std::collections::VecDeque;
use std::fs;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use criox_cri::ids::SandboxId;
use criox_records::SandboxRecord;
use tokio::sync::Notify;

use crate::context::{Context, blocking, new_sandbox_id};
use crate::error::{Error, Result};
use crate::monitor::{self, Launched};
use crate::sandbox::stop::Work;
use crate::sandbox::{remove, run};

/// Spares that are kept: pods mostly come one after the other.
const SPARES: usize = 2;
/// After a spare was taken: the pod that took it comes first.
const PAUSE: Duration = Duration::from_millis(40);
/// After a spare could not be made.
const FAILED: Duration = Duration::from_secs(30);
/// What the disk may take for a run directory.
const DIRECTORY: Duration = Duration::from_secs(30);

/// A monitor without a pod.
#[derive(Debug)]
pub(crate) struct Spare {
    /// The ID that it was launched with.
    pub(crate) id: SandboxId,
    pub(crate) monitor: Launched,
}

/// The spares of the default handler.
#[derive(Debug, Default)]
pub struct Spares {
    ready: Mutex<VecDeque<Spare>>,
    taken: Notify,
    /// Held while one is made; true when no more are wanted.
    closed: tokio::sync::Mutex<bool>,
}

impl Spares {
    fn ready(&self) -> std::sync::MutexGuard<'_, VecDeque<Spare>> {
        self.ready.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One that still lives, if there is any.
pub(crate) fn take(context: &Arc<Context>) -> Option<Spare> {
    let spare = context.spares.ready().pop_front();
    context.spares.taken.notify_one();
    let spare = spare?;
    if spare.monitor.connection.0.is_closed() {
        tokio::spawn(discard(context.clone(), spare));
        return None;
    }
    Some(spare)
}

/// Keeps spares ready for as long as the daemon runs.
pub(crate) async fn keep(context: Arc<Context>) {
    loop {
        let missing = context.spares.ready().len() < SPARES;
        if !missing {
            context.spares.taken.notified().await;
            tokio::time::sleep(PAUSE).await;
            continue;
        }
        let made = {
            let closed = context.spares.closed.lock().await;
            if *closed {
                return;
            }
            make(&context).await.map(|spare| context.spares.ready().push_back(spare))
        };
        if let Err(error) = made {
            tracing::debug!(error = error.chain(), "no spare monitor could be made");
            tokio::time::sleep(FAILED).await;
        }
    }
}

async fn make(context: &Arc<Context>) -> Result<Spare> {
    let record = SandboxRecord::without_request(new_sandbox_id()?, &context.boot_id, "/");
    let id = record.id;
    let run_dir = context.paths.run(id.as_str());
    blocking("run directory", "a spare monitor", DIRECTORY, move || {
        fs::create_dir_all(run_dir.path()).map_err(|error| {
            Error::failed(format!("run directory {}", run_dir.path().display())).because(error)
        })
    })
    .await?;
    match monitor::launch(context, &record).await {
        Ok(monitor) => Ok(Spare { id, monitor }),
        Err(error) => {
            end(context, record, None).await;
            Err(error)
        }
    }
}

/// Whether a sandbox of this handler can use a spare: the default handler's, unless that wants its monitors in the pod.
pub(crate) fn suits(context: &Context, handler: &str) -> bool {
    let default = handler.is_empty() || handler == context.handlers.default_name();
    default && context.handlers.get("").is_ok_and(|handler| handler.config.monitor_cgroup != run::IN_POD)
}

/// Ends all spares: the daemon ends.
pub(crate) async fn end_all(context: &Arc<Context>) {
    *context.spares.closed.lock().await = true;
    let spares: Vec<Spare> = context.spares.ready().drain(..).collect();
    for spare in spares {
        discard(context.clone(), spare).await;
    }
}

async fn discard(context: Arc<Context>, spare: Spare) {
    let record = SandboxRecord {
        monitor: Some(spare.monitor.identity),
        ..SandboxRecord::without_request(spare.id, &context.boot_id, "/")
    };
    end(&context, record, Some(spare.monitor)).await;
}

async fn end(context: &Arc<Context>, record: SandboxRecord, monitor: Option<Launched>) {
    let work = Work {
        context: context.clone(),
        sandbox: Arc::new(record),
        client: monitor.map(|monitor| monitor.connection.0),
        containers: Vec::new(),
    };
    if let Err(error) = remove::remove(work).await {
        tracing::warn!(error = error.chain(), "a spare monitor stays; the next start of criox removes it");
    }
}
