//! One task owns a sandbox and its containers. Requests and the monitor's events come through bounded queues; long
//! work runs beside the task and reports back, so that no work of a pod blocks another request for it.

mod checkpoint;
mod forbidden;
mod settle;
mod task;
mod update;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use criox_cri::ids::{ContainerId, SandboxId};
use criox_cri::v1;
use criox_monitor_api::client::Client;
use criox_records::UpdatedSandbox;
use tokio::sync::{mpsc, oneshot};

pub(crate) use checkpoint::Grant;
pub(crate) use settle::exit_of;
pub(crate) use task::{Start, Task};

use crate::admit::Verb;
use crate::checkpoint::source::Source;
use crate::error::{Error, Kind, Result};

/// Requests that may wait for a pod's task; a kubelet has a handful.
const QUEUE: usize = 64;

pub(crate) type Reply<T> = oneshot::Sender<Result<T>>;

/// What the task of a pod is asked.
#[derive(Debug)]
pub(crate) enum Request {
    /// RunPodSandbox with this pod's key: answers when the sandbox is ready, or gone.
    Run { config: Arc<v1::PodSandboxConfig>, handler: String, reply: Reply<Run> },
    /// A live call is about to be given the ID: of a container, or of the sandbox.
    Claim { container: Option<ContainerId>, reply: oneshot::Sender<()> },
    /// CreateContainer; with a source it goes on from a checkpoint.
    Create { config: Arc<v1::ContainerConfig>, source: Option<Arc<Source>>, reply: Reply<ContainerId> },
    /// A verb for a container; the grace is StopContainer's.
    Act { verb: Verb, id: ContainerId, grace: Duration, reply: Reply<()> },
    /// UpdateContainerResources.
    Update { id: ContainerId, resources: Arc<v1::LinuxContainerResources>, origin: Origin, reply: Reply<()> },
    /// UpdatePodSandboxResources.
    UpdateSandbox { updated: UpdatedSandbox, reply: Reply<()> },
    /// To capture these running containers.
    Checkpoint { ids: Vec<ContainerId>, reply: Reply<Grant> },
    /// They were captured at this time, in nanoseconds since the epoch.
    Checkpointed { ids: Vec<ContainerId>, at: i64, reply: Reply<()> },
    /// RestorePod has made the pod and all its containers.
    Restored { reply: Reply<()> },
    /// StopPodSandbox.
    Stop { reply: Reply<()> },
    /// RemovePodSandbox.
    Remove { reply: Reply<()> },
}

impl Request {
    /// Whether whoever asked has gone.
    pub(crate) fn abandoned(&self) -> bool {
        match self {
            Self::Run { reply, .. } => reply.is_closed(),
            Self::Claim { reply, .. } => reply.is_closed(),
            Self::Create { reply, .. } => reply.is_closed(),
            Self::Checkpoint { reply, .. } => reply.is_closed(),
            Self::Act { reply, .. }
            | Self::Update { reply, .. }
            | Self::UpdateSandbox { reply, .. }
            | Self::Checkpointed { reply, .. }
            | Self::Restored { reply }
            | Self::Stop { reply }
            | Self::Remove { reply } => reply.is_closed(),
        }
    }
}

/// Who wants a container's limits changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Origin {
    /// The kubelet: plugins may have a say.
    Cri,
    /// A plugin.
    Nri,
}

/// The answer to [`Request::Run`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Run {
    /// This sandbox is the answer.
    Ready,
    /// An unclaimed sandbox of the key, made for another request, has been undone: make a new one.
    Gone,
}

/// Where to reach a pod: cheap to clone.
#[derive(Debug, Clone)]
pub struct Pod {
    pub(crate) id: SandboxId,
    queue: mpsc::Sender<Request>,
    monitor: Arc<Mutex<Option<Client>>>,
    /// The task has ended because the pod is gone, and not in a panic.
    ended: Arc<AtomicBool>,
    /// A list or a status has shown the sandbox.
    shown: Arc<AtomicBool>,
}

impl Pod {
    pub(crate) fn new(id: SandboxId) -> (Self, mpsc::Receiver<Request>) {
        let (queue, requests) = mpsc::channel(QUEUE);
        let (ended, shown) = (Arc::default(), Arc::default());
        (Self { id, queue, monitor: Arc::default(), ended, shown }, requests)
    }

    /// Notes that a list or a status shows the sandbox: a kubelet adopts one that is READY.
    pub(crate) fn show(&self) {
        self.shown.store(true, Ordering::Relaxed);
    }

    pub(crate) fn was_shown(&self) -> bool {
        self.shown.load(Ordering::Relaxed)
    }

    /// The connection to the pod's monitor, while there is one.
    pub(crate) fn monitor(&self) -> Option<Client> {
        self.monitor.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn set_monitor(&self, client: Option<Client>) {
        *self.monitor.lock().unwrap_or_else(PoisonError::into_inner) = client;
    }

    /// Sends a request and waits for its answer. The operation goes on when the caller does not wait for it.
    pub(crate) async fn ask<T>(&self, request: impl FnOnce(Reply<T>) -> Request) -> Result<T> {
        // A task that panicked has not stopped anything: success by "not found" would be a lie.
        let gone = || match self.ended.load(Ordering::Acquire) {
            true => Error::no_sandbox(self.id.as_str()),
            false => Error::failed(format!(
                "internal error in pod sandbox {}; restart criox, its containers go on running",
                self.id
            )),
        };
        let (reply, answer) = oneshot::channel();
        self.queue.send(request(reply)).await.map_err(|_| gone())?;
        answer.await.unwrap_or_else(|_| {
            Err(Error::new(Kind::Cancelled, format!("pod sandbox {} was removed meanwhile", self.id)))
        })
    }

    /// The pod is gone: whoever asks is told so.
    pub(crate) fn end(&self) {
        self.ended.store(true, Ordering::Release);
    }

    /// Says that a live call gets the ID. Nothing is wrong when the object has gone meanwhile.
    pub(crate) async fn claim(&self, container: Option<ContainerId>) {
        let (reply, done) = oneshot::channel();
        if self.queue.send(Request::Claim { container, reply }).await.is_ok() {
            // The task answers, or ends: both end the wait.
            drop(done.await);
        }
    }
}
