//! The pods' monitors: launched, found again, ended. Everything else is asked of them through
//! [`criox_monitor_api::client`].

use std::os::fd::AsFd as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use criox_cri::ids::ContainerId;
use criox_monitor_api::client::{CallError, Client, ConnectError};
use criox_monitor_api::exit_record;
use criox_monitor_api::proto::{
    self, Event, ExitFacts, ListReply, container_state, event, failure, reply, request,
};
use criox_records::{ProcessIdentity, RunDir, SandboxRecord};
use criox_sys::cgroup::Driver;
use criox_sys::process::{Pidfd, SpawnSpec};
use criox_sys::socket;
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::context::{Context, blocking};
use crate::descriptors;
use crate::error::{Error, Kind, Result};
use crate::sandbox::run::IN_POD;
use crate::units;

/// A monitor that does not answer within this time counts as silent; stop and remove then act without it.
pub(crate) const ANSWER: Duration = Duration::from_secs(5);
/// From the start of the process to its hello.
const LAUNCH: Duration = Duration::from_secs(10);
/// How long a monitor that was asked to end may take.
const PATIENCE: Duration = Duration::from_millis(500);
const SIGKILL: i32 = 9;
/// Its memory matters more than that of the pods it serves, and less than the daemon's.
const OOM_SCORE_ADJ: i32 = -998;

/// A connection and the events that come over it.
pub(crate) type Connection = (Client, mpsc::Receiver<Event>);

/// The cgroup in which a pod's monitor is born: outside of the daemon's service, so that restarting that with
/// `KillMode=control-group` ends no monitor, and outside of the pod unless `monitor_cgroup` is `pod`.
pub(crate) fn cgroup(context: &Context, sandbox: &SandboxRecord) -> Result<String> {
    // A handler may have gone from the configuration, and its pods must end all the same.
    let handler = context.handlers.get(&sandbox.runtime_handler);
    let setting = handler.map(|handler| handler.config.monitor_cgroup.clone()).unwrap_or_default();
    let name = format!("crio-conmon-{}", sandbox.id);
    let failed =
        |error| Error::failed(format!("cgroup of the monitor of pod sandbox {}", sandbox.id)).because(error);
    match (context.driver(), setting.as_str()) {
        (Driver::Cgroupfs, IN_POD) => Ok(format!("{}/{name}", sandbox.cgroup_parent)),
        (Driver::Cgroupfs, _) => Ok(format!("/crio/{name}")),
        (Driver::Systemd, IN_POD) => {
            let slice = sandbox.cgroup_parent.rsplit('/').next().unwrap_or_default();
            Ok(format!("{}/{name}.scope", criox_sys::cgroup::slice_path(slice).map_err(failed)?))
        }
        (Driver::Systemd, slice) => {
            let slice = if slice.is_empty() { "system.slice" } else { slice };
            Ok(format!("{}/{name}.scope", criox_sys::cgroup::slice_path(slice).map_err(failed)?))
        }
    }
}

/// A monitor that runs and answers.
#[derive(Debug)]
pub(crate) struct Launched {
    pub(crate) connection: Connection,
    pub(crate) identity: ProcessIdentity,
}

/// Starts the monitor of a pod, whose run directory exists, and connects to it.
pub(crate) async fn launch(context: &Arc<Context>, sandbox: &SandboxRecord) -> Result<Launched> {
    let run = context.paths.run(sandbox.id.as_str());
    let group = cgroup(context, sandbox)?;
    let object = format!("pod sandbox {}", sandbox.id);
    let env = context.handlers.get(&sandbox.runtime_handler)?.config.monitor_env.clone();
    let identity = {
        let (context, run, id, group) = (context.clone(), run.clone(), sandbox.id, group.clone());
        let given_up = Arc::new(AtomicBool::new(false));
        let seen = given_up.clone();
        let work = move || {
            let (identity, monitor) = spawn(&context, &run, &group, id.as_str(), &env)?;
            // Nobody waits for it any more, and what would undo it has run already.
            if seen.load(Ordering::Acquire) && monitor.send_signal(SIGKILL).is_ok() {
                drop(monitor.wait_ended(ANSWER).and_then(|_| monitor.try_reap()));
            }
            Ok(identity)
        };
        let launched = blocking("launch of the monitor", &object, LAUNCH, work).await;
        given_up.store(launched.is_err(), Ordering::Release);
        launched?
    };
    units::adopt_monitor(context, sandbox, group, identity);
    match connect(&run).await {
        Ok(connection) => Ok(Launched { connection, identity }),
        Err(error) => {
            // Nobody knows its number yet but we.
            if let Err(error) = end(None, Some(identity), &object).await {
                tracing::warn!(error = error.chain(), "a monitor that does not answer lives on");
            }
            Err(Error::failed(format!("monitor of {object}")).because(error))
        }
    }
}

fn spawn(
    context: &Context,
    run: &RunDir,
    group: &str,
    id: &str,
    env: &[String],
) -> Result<(ProcessIdentity, Pidfd)> {
    let failed = |what: &str| Error::failed(format!("launch of the monitor of pod sandbox {id}: {what}"));
    let cgroup = context
        .cgroups
        .create(group, &["memory", "name=systemd"])
        .and_then(|()| context.cgroups.enter_handle(group))
        .map_err(|error| failed("its cgroup").because(error))?;
    let started = || -> std::io::Result<_> {
        let listener = socket::bind_listen(&run.monitor_socket(), 16)?;
        let log = std::fs::OpenOptions::new().append(true).create(true).open(run.monitor_log())?;
        let mut spec = SpawnSpec::new(&context.monitor_program)?;
        spec.arg("--sandbox-id")?.arg(id)?.arg("--run-dir")?.arg(run.path())?;
        for pair in env {
            spec.env(pair)?;
        }
        spec.fd(listener.as_fd(), 0)
            .fd(log.as_fd(), 2)
            .cgroup(&cgroup)
            .new_session()
            .oom_score_adj(OOM_SCORE_ADJ);
        Ok(spec.spawn())
    };
    let monitor = started()
        .map_err(|error| failed("its socket and log").because(error))?
        .map_err(|error| failed("criox-monitor must lie beside criox and be executable").because(error))?;
    let pid = monitor.pid();
    descriptors::give_back(pid);
    let start_time =
        criox_sys::process::start_time(pid).map_err(|error| failed("its start time").because(error))?;
    Ok((ProcessIdentity { pid, start_time }, monitor))
}

/// Connects to the monitor of a run directory and follows its events from now on.
pub(crate) async fn connect(run: &RunDir) -> std::result::Result<Connection, ConnectError> {
    let path = run.monitor_socket();
    let (client, _, events) = Client::connect(&path, ANSWER).await?;
    let subscribe = request::Verb::Subscribe(proto::Subscribe { after: 0 });
    client.done(subscribe, ANSWER).await.map_err(|source| ConnectError::Hello { path, source })?;
    Ok((client, events))
}

/// What the monitor knows.
pub(crate) async fn list(client: &Client) -> std::result::Result<ListReply, CallError> {
    match client.call(request::Verb::List(proto::List {}), ANSWER).await? {
        reply::Result::List(list) => Ok(list),
        _ => Err(CallError::Unexpected),
    }
}

/// Waits for the answer to a verb that may take long, as long as the monitor answers at all: one that does not within
/// [`ANSWER`] is silent, however long the verb may take.
pub(crate) async fn attended<T>(
    client: &Client,
    answer: impl Future<Output = std::result::Result<T, CallError>>,
) -> std::result::Result<T, CallError> {
    tokio::pin!(answer);
    loop {
        if let Ok(answer) = timeout(ANSWER, answer.as_mut()).await {
            return answer;
        }
        tokio::select! {
            answer = answer.as_mut() => return answer,
            alive = list(client) => if let Err(error @ (CallError::Silent(_) | CallError::Gone)) = alive {
                return Err(error);
            },
        }
    }
}

/// Asks for a list as often as it takes. The events of the meantime are read, for the answer comes behind them.
async fn list_beside(client: &Client, events: &mut mpsc::Receiver<Event>) -> Option<(ListReply, Vec<Event>)> {
    let mut behind = Vec::new();
    loop {
        let listed = list(client);
        tokio::pin!(listed);
        let listed = loop {
            tokio::select! {
                listed = &mut listed => break listed,
                event = events.recv() => match event? {
                    // Only told in the log, and there may be many.
                    Event { kind: Some(event::Kind::OomKilled(_)), .. } => {}
                    event => behind.push(event),
                },
            }
        };
        match listed {
            Ok(list) => return Some((list, behind)),
            Err(CallError::Gone) => return None,
            Err(error) => tracing::warn!(%error, "a monitor does not say what runs; asking again"),
        }
    }
}

/// Puts the exits and forbidden calls that a list knows before the events that follow, for a client that has lost some.
pub(crate) async fn relist(client: Client, mut events: mpsc::Receiver<Event>, to: mpsc::Sender<Event>) {
    let listed = list_beside(&client, &mut events).await;
    if let Some((list, behind)) = listed {
        for container in list.containers {
            if container.forbidden.is_some() {
                let (container_id, forbidden) = (container.container_id.clone(), container.forbidden.clone());
                let told = event::Kind::SeccompNotified(proto::SeccompNotified { container_id, forbidden });
                if to.send(Event { number: 0, kind: Some(told) }).await.is_err() {
                    return;
                }
            }
            if container.phase() != container_state::Phase::Exited {
                continue;
            }
            let exited = proto::Exited { container_id: container.container_id, exit: container.exit };
            let event = Event { number: 0, kind: Some(event::Kind::Exited(exited)) };
            if to.send(event).await.is_err() {
                return;
            }
        }
        for event in behind {
            if to.send(event).await.is_err() {
                return;
            }
        }
    }
    drop(client);
    while let Some(event) = events.recv().await {
        if to.send(event).await.is_err() {
            return;
        }
    }
}

/// The exit record that the monitor left on disk, if it wrote one.
pub(crate) async fn recorded_exit(run: &RunDir, container: &ContainerId) -> Option<ExitFacts> {
    let path = run.exit_record(container.as_str());
    tokio::task::spawn_blocking(move || recorded_exit_now(&path)).await.ok().flatten()
}

/// As [`recorded_exit`], for callers that may block.
pub(crate) fn recorded_exit_now(path: &Path) -> Option<ExitFacts> {
    exit_record::parse(&std::fs::read(path).ok()?)
}

/// Ends a monitor: asks it to, then kills it; waits until it is gone and reaps it where it is ours.
///
/// # Errors
/// It lives on after SIGKILL.
pub(crate) async fn end(
    client: Option<&Client>,
    identity: Option<ProcessIdentity>,
    object: &str,
) -> Result<()> {
    if let Some(client) = client {
        // Nothing is lost by killing one that is too slow for this.
        let asked = client.done(request::Verb::Shutdown(proto::Shutdown {}), PATIENCE * 2).await;
        if let Err(error) = asked {
            tracing::debug!(object, %error, "the monitor did not end when asked");
        }
    }
    let Some(identity) = identity else { return Ok(()) };
    let object = object.to_owned();
    blocking("end of the monitor", &object.clone(), ANSWER * 2, move || kill(identity, PATIENCE, &object))
        .await
}

fn kill(identity: ProcessIdentity, patience: Duration, object: &str) -> Result<()> {
    let failed = |error| Error::failed(format!("end of the monitor of {object}")).because(error);
    let monitor = match Pidfd::open(identity.pid) {
        Ok(monitor) => monitor,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed(error)),
    };
    // Looked at after it is held: another process may have the number now. A dead one waits for us with its time.
    if criox_sys::process::start_time(identity.pid).ok() != Some(identity.start_time) {
        return Ok(());
    }
    if !monitor.wait_ended(patience).map_err(failed)? {
        match monitor.send_signal(9) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(failed(error)),
            _ => {}
        }
        if !monitor.wait_ended(ANSWER).map_err(failed)? {
            return Err(Error::timed_out(
                "end of the monitor",
                object,
                ANSWER,
                "it does not die of SIGKILL: it waits in the kernel",
            ));
        }
    }
    // Another process's child is reaped by that.
    drop(monitor.try_reap());
    Ok(())
}

/// The monitor's refusal as an error of the operation.
pub(crate) fn refused(operation: &str, object: &str, error: CallError) -> Error {
    let kind = match (&error, error.refusal()) {
        (_, Some(failure::Kind::NotFound)) => Kind::NotFound,
        (_, Some(failure::Kind::WrongState | failure::Kind::RuntimeMissing | failure::Kind::Unsupported)) => {
            Kind::FailedPrecondition
        }
        (CallError::Silent(_), _) | (_, Some(failure::Kind::RuntimeTimeout)) => Kind::DeadlineExceeded,
        _ => Kind::Failed,
    };
    Error::new(kind, format!("{operation} of {object}")).because(error)
}
