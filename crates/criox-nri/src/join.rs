//! How a plugin becomes one that is asked: it registers, is configured, and is told of everything that exists.

use std::sync::Arc;
use std::time::Duration;

use prost::Message;
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};

use crate::connection::{CallError, Connection, Incoming, code};
use crate::plugin::{Name, NameError, Plugin};
use crate::proto::{
    ConfigureRequest, ConfigureResponse, Container, ContainerUpdate, Empty, PodSandbox,
    RegisterPluginRequest, SynchronizeRequest, SynchronizeResponse, UpdateContainersRequest,
    UpdateContainersResponse,
};
use crate::registry::Registry;
use crate::server::Runtime;
use crate::wire::MAX_MESSAGE;
use crate::{VERSION, ttrpc};

/// The objects of one piece of a synchronization, in bytes: with what surrounds them it stays below a message.
const PIECE: usize = MAX_MESSAGE - (64 << 10);

/// Why a plugin did not join.
#[derive(Debug, thiserror::Error)]
pub(crate) enum JoinError {
    #[error("it did not register within {} s", .0.as_secs_f64())]
    Unregistered(Duration),
    #[error("it went before it had registered")]
    Gone,
    #[error("it registered by a name that is none")]
    Name(#[from] NameError),
    #[error("its first call is {0:?}, not RegisterPlugin")]
    NotRegistering(String),
    #[error("{0} failed")]
    Call(&'static str, #[source] CallError),
    #[error("it wants events that there are not: {0:#x}")]
    Events(i32),
    #[error("it does not take a synchronization in pieces")]
    Pieces,
}

/// What is known of a plugin that was started by us.
#[derive(Debug, Clone)]
pub(crate) struct Known {
    pub(crate) name: Name,
    pub(crate) config: String,
}

/// A plugin that is asked from now on, and the calls that it makes itself.
pub(crate) struct Joined {
    pub(crate) plugin: Arc<Plugin>,
    pub(crate) calls: mpsc::Receiver<Incoming>,
}

/// Brings a connected plugin so far that it is asked.
pub(crate) async fn join(
    registry: &Arc<Registry>,
    runtime: &Arc<dyn Runtime>,
    socket: UnixStream,
    known: Option<Known>,
) -> Result<Joined, JoinError> {
    let (connection, mut calls) = Connection::new(socket);
    let result = admit(registry, runtime, &connection, &mut calls, known).await;
    match result {
        Ok(plugin) => Ok(Joined { plugin, calls }),
        Err(error) => {
            connection.close();
            Err(error)
        }
    }
}

async fn admit(
    registry: &Arc<Registry>,
    runtime: &Arc<dyn Runtime>,
    connection: &Connection,
    calls: &mut mpsc::Receiver<Incoming>,
    known: Option<Known>,
) -> Result<Arc<Plugin>, JoinError> {
    let options = &registry.options;
    let patience = options.registration_timeout;
    let Known { name, config } = timeout(patience, registration(calls, known))
        .await
        .unwrap_or(Err(JoinError::Unregistered(patience)))?;
    let configure = ConfigureRequest {
        config,
        runtime_name: options.runtime_name.clone(),
        runtime_version: options.runtime_version.clone(),
        registration_timeout: milliseconds(patience),
        request_timeout: milliseconds(options.request_timeout),
        nri_version: VERSION.into(),
    };
    let configured: ConfigureResponse = connection
        .call("Configure", &configure, options.request_timeout)
        .await
        .map_err(|error| JoinError::Call("Configure", error))?;
    let policy = configured.failure_policy.unwrap_or_default();
    let limit = options.request_timeout;
    let plugin = Plugin::new(name, connection.clone(), configured.events, policy, limit)
        .map(Arc::new)
        .ok_or(JoinError::Events(configured.events))?;
    // From here on it is in every round, which waits for the end of its synchronization.
    let snapshot = registry.join(plugin.clone(), |marks| runtime.snapshot(marks));
    let (pods, containers) = snapshot.await;
    // The end of the registration: a plugin may have much to do with all that it is told.
    match synchronize(connection, limit.max(patience), pods, containers).await {
        Ok(updates) => {
            plugin.ready();
            // Beside the rest: updates may take long, and the daemon does not serve before the plugins that it starts have joined.
            let (runtime, wishing) = (runtime.clone(), plugin.clone());
            tokio::spawn(async move { apply(&runtime, &wishing, updates).await });
            Ok(plugin)
        }
        Err(error) => {
            plugin.close(&error.to_string());
            registry.leave(&plugin);
            Err(error)
        }
    }
}

fn milliseconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

/// Waits for RegisterPlugin. One that we started has the name of its file, whatever it says.
async fn registration(
    calls: &mut mpsc::Receiver<Incoming>,
    known: Option<Known>,
) -> Result<Known, JoinError> {
    let call = calls.recv().await.ok_or(JoinError::Gone)?;
    if call.method != "RegisterPlugin" {
        let method = crate::connection::shown(&call.method).to_owned();
        call.answer(Err(status(code::FAILED_PRECONDITION, "register first"))).await;
        return Err(JoinError::NotRegistering(method));
    }
    let Ok(request) = RegisterPluginRequest::decode(call.payload.as_slice()) else {
        call.answer(Err(status(code::INVALID_ARGUMENT, "not a RegisterPluginRequest"))).await;
        return Err(JoinError::NotRegistering("nonsense".into()));
    };
    let known = match known {
        Some(known) => known,
        None => match Name::new(&request.plugin_idx, &request.plugin_name) {
            Ok(name) => Known { name, config: String::new() },
            Err(error) => {
                call.answer(Err(status(code::INVALID_ARGUMENT, &error.to_string()))).await;
                return Err(error.into());
            }
        },
    };
    tracing::info!(plugin = %known.name, version = request.nri_version, "an NRI plugin registers");
    call.answer(Ok(Empty {}.encode_to_vec())).await;
    Ok(known)
}

fn status(code: i32, message: &str) -> ttrpc::Status {
    ttrpc::Status { code, message: message.to_owned() }
}

/// Tells the plugin of everything, in pieces that fit into messages; all within one limit.
async fn synchronize(
    connection: &Connection,
    limit: Duration,
    pods: Vec<PodSandbox>,
    containers: Vec<Container>,
) -> Result<Vec<ContainerUpdate>, JoinError> {
    let until = Instant::now() + limit;
    let mut pieces = pieces(pods, containers).into_iter().peekable();
    while let Some(mut piece) = pieces.next() {
        piece.more = pieces.peek().is_some();
        let left = until.saturating_duration_since(Instant::now());
        let answer: SynchronizeResponse = connection
            .call("Synchronize", &piece, left)
            .await
            .map_err(|error| JoinError::Call("Synchronize", error))?;
        if !piece.more {
            return Ok(answer.update);
        }
        // An old plugin took the piece for all there is.
        if !answer.more || !answer.update.is_empty() {
            return Err(JoinError::Pieces);
        }
    }
    Ok(Vec::new())
}

/// At least one request, each below the longest message.
fn pieces(pods: Vec<PodSandbox>, containers: Vec<Container>) -> Vec<SynchronizeRequest> {
    let mut pieces = vec![SynchronizeRequest::default()];
    let mut size = 0;
    let mut place = |pieces: &mut Vec<SynchronizeRequest>, id: &str, length: usize| {
        if length > PIECE {
            tracing::error!(
                id,
                length,
                "too large to be told to an NRI plugin, which does not learn of it: shorten its annotations"
            );
            return None;
        }
        if size + length > PIECE {
            size = 0;
            pieces.push(SynchronizeRequest::default());
        }
        size += length;
        pieces.len().checked_sub(1)
    };
    // The tag and the length of an entry come before it.
    const PREFIX: usize = 8;
    for pod in pods {
        if let Some(at) = place(&mut pieces, &pod.id, pod.encoded_len() + PREFIX) {
            pieces[at].pods.push(pod);
        }
    }
    for container in containers {
        if let Some(at) = place(&mut pieces, &container.id, container.encoded_len() + PREFIX) {
            pieces[at].containers.push(container);
        }
    }
    pieces
}

async fn apply(runtime: &Arc<dyn Runtime>, plugin: &Plugin, updates: Vec<ContainerUpdate>) {
    if updates.is_empty() {
        return;
    }
    for failed in runtime.update(updates).await {
        if !failed.ignore_failure {
            tracing::warn!(plugin = %plugin.name, container = failed.container_id, "an update that an NRI plugin asked for at its synchronization failed");
        }
    }
}

/// Answers the plugin's own calls until it goes.
pub(crate) async fn serve(runtime: &Arc<dyn Runtime>, joined: &mut Joined) {
    let Joined { plugin, calls } = joined;
    loop {
        let call = tokio::select! {
            call = calls.recv() => call,
            () = plugin.connection.ended() => None,
        };
        let Some(call) = call else { return };
        let result = match call.method.as_str() {
            "UpdateContainers" => update(runtime, plugin, &call.payload).await,
            "RegisterPlugin" => Err(status(code::FAILED_PRECONDITION, "it is registered")),
            method => {
                let message = format!("there is no method {:?}", crate::connection::shown(method));
                Err(status(code::UNIMPLEMENTED, &message))
            }
        };
        call.answer(result).await;
    }
}

async fn update(
    runtime: &Arc<dyn Runtime>,
    plugin: &Plugin,
    payload: &[u8],
) -> Result<Vec<u8>, ttrpc::Status> {
    let wrong = |message: String| status(code::INVALID_ARGUMENT, &message);
    let request = UpdateContainersRequest::decode(payload)
        .map_err(|_| wrong("not an UpdateContainersRequest".into()))?;
    let name = plugin.name.to_string();
    for update in &request.update {
        if let Some(wish) = update.linux.as_ref().and_then(|linux| linux.resources.as_ref()) {
            crate::check::resources(&name, wish).map_err(|error| wrong(error.to_string()))?;
        }
    }
    let failed = runtime.update(request.update).await;
    runtime.evict(request.evict).await;
    Ok(UpdateContainersResponse { failed }.encode_to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(id: usize, size: usize) -> PodSandbox {
        PodSandbox { id: id.to_string(), name: "n".repeat(size), ..Default::default() }
    }

    #[test]
    fn pieces_are_short_enough_and_hold_everything_once() {
        let pods: Vec<_> = (0..30).map(|id| pod(id, 700_000)).collect();
        let containers: Vec<_> =
            (0..2000).map(|id| Container { id: id.to_string(), ..Default::default() }).collect();
        let pieces = pieces(pods, containers);
        assert!(pieces.len() > 4, "{}", pieces.len());
        for piece in &pieces {
            assert!(piece.encoded_len() <= PIECE + 64, "{}", piece.encoded_len());
        }
        let told: Vec<_> = pieces.iter().flat_map(|piece| &piece.pods).map(|pod| pod.id.clone()).collect();
        assert_eq!(told, (0..30).map(|id| id.to_string()).collect::<Vec<_>>());
        assert_eq!(pieces.iter().map(|piece| piece.containers.len()).sum::<usize>(), 2000);
    }

    #[test]
    fn there_is_a_piece_when_there_is_nothing() {
        assert_eq!(pieces(Vec::new(), Vec::new()).len(), 1);
    }

    #[test]
    fn what_no_message_can_hold_does_not_keep_the_rest_back() {
        let pieces = pieces(vec![pod(1, MAX_MESSAGE), pod(2, 1)], Vec::new());
        assert_eq!(pieces.iter().flat_map(|piece| &piece.pods).count(), 1);
    }
}
