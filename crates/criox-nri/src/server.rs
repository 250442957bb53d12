//! Starts what plugins need: the socket to which they connect, and those that we start ourselves.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use criox_sys::process::Pidfd;
use criox_sys::socket;
use futures_util::future::{BoxFuture, join_all};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::task;

use crate::join::{self, Known};
use crate::launch::{self, Program};
use crate::proto::{Container, ContainerEviction, ContainerUpdate, PodSandbox};
use crate::registry::{Marks, Nri, Registry};

/// Plugins that may be connected.
const PLUGINS: usize = 128;
/// Connections that may wait to be accepted.
const BACKLOG: i32 = 16;
/// After an accept that failed.
const PAUSE: Duration = Duration::from_millis(200);
/// How long the end of the plugins that we started may take.
const END: Duration = Duration::from_secs(6);

/// All pods and containers.
pub type Everything = (Vec<PodSandbox>, Vec<Container>);

/// What plugins need of who works on pods.
pub trait Runtime: Send + Sync + 'static {
    /// Everything that there is at the moment of the call, as `marks` correct what is shown: what is being created
    /// and is marked belongs to it, what is being removed and is marked does not. The call itself must not wait; the
    /// future may.
    fn snapshot(&self, marks: &Marks) -> BoxFuture<'static, Everything>;

    /// Changes limits of containers. Returns the updates that failed.
    fn update(&self, updates: Vec<ContainerUpdate>) -> BoxFuture<'_, Vec<ContainerUpdate>>;

    /// Ends containers.
    fn evict(&self, evictions: Vec<ContainerEviction>) -> BoxFuture<'_, ()>;
}

/// Why plugins can't connect.
#[derive(Debug, thiserror::Error)]
#[error("NRI socket {path}")]
pub struct StartError {
    /// The socket.
    pub path: PathBuf,
    /// Why.
    pub source: std::io::Error,
}

impl Nri {
    /// Starts the plugins that lie in the directory, and lets others connect. Returns when each of the former has
    /// joined or has been given up.
    ///
    /// # Errors
    /// The socket can't be made.
    pub async fn start(&self, runtime: Arc<dyn Runtime>) -> Result<(), StartError> {
        let Some(registry) = &self.0 else { return Ok(()) };
        let (plugins, configs) = (registry.options.plugin_dir.clone(), registry.options.config_dir.clone());
        let found = task::spawn_blocking(move || launch::discover(&plugins, &configs)).await;
        let programs = found.unwrap_or_default();
        join_all(programs.into_iter().map(|program| launched(registry, &runtime, program))).await;
        if let Some(path) = registry.options.listen.clone()
            && let Some(listener) = bind(&path).map_err(|source| StartError { path, source })?
        {
            tokio::spawn(accept(registry.clone(), runtime, listener));
        }
        Ok(())
    }

    /// Ends all plugins, and the programs of those that we started.
    pub async fn stop(&self) {
        let Some(registry) = &self.0 else { return };
        registry.stopping.send_replace(true);
        registry.close("criox is ending");
        let mut programs = registry.programs.subscribe();
        if tokio::time::timeout(END, programs.wait_for(|programs| *programs == 0)).await.is_err() {
            tracing::warn!("an NRI plugin that criox started has not ended");
        }
        if let Some(path) = registry.bound() {
            drop(std::fs::remove_file(path));
        }
    }
}

/// None: another runtime serves the path.
fn bind(path: &Path) -> std::io::Result<Option<UnixListener>> {
    use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
    if let Some(directory) = path.parent() {
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    }
    match socket::connect_now(path) {
        Ok(_) => {
            tracing::error!(
                socket = %path.display(),
                "another container runtime serves NRI plugins here: none can connect to criox; set nri_listen"
            );
            return Ok(None);
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        // Left by one that was killed.
        Err(_) => std::fs::remove_file(path)?,
    }
    let listener: OwnedFd = socket::bind_listen(path, BACKLOG)?;
    // Who connects decides what containers are.
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    UnixListener::from_std(listener.into()).map(Some)
}

async fn accept(registry: Arc<Registry>, runtime: Arc<dyn Runtime>, listener: UnixListener) {
    registry.listens();
    let places = Arc::new(Semaphore::new(PLUGINS));
    let mut stopping = registry.stopping.subscribe();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = stopping.wait_for(|stopping| *stopping) => return,
        };
        let socket = match accepted {
            Ok((socket, _)) => socket,
            Err(error) => {
                tracing::warn!(%error, "accept of an NRI plugin");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        let Ok(place) = places.clone().try_acquire_owned() else {
            tracing::error!("more than {PLUGINS} NRI plugins are connected; refused another");
            continue;
        };
        let (registry, runtime) = (registry.clone(), runtime.clone());
        tokio::spawn(async move {
            external(&registry, &runtime, socket).await;
            drop(place);
        });
    }
}

async fn external(registry: &Arc<Registry>, runtime: &Arc<dyn Runtime>, socket: UnixStream) {
    let peer = socket.peer_cred().ok().and_then(|peer| peer.pid());
    match join::join(registry, runtime, socket, None).await {
        Ok(joined) => attend(registry, runtime, joined).await,
        Err(error) => {
            tracing::error!(pid = peer, error = chain(&error), "an NRI plugin that connected did not join");
        }
    }
}

/// Serves a plugin that has joined, until it goes.
async fn attend(registry: &Arc<Registry>, runtime: &Arc<dyn Runtime>, mut joined: join::Joined) {
    let plugin = joined.plugin.clone();
    tracing::info!(plugin = %plugin.name, "an NRI plugin has joined");
    join::serve(runtime, &mut joined).await;
    plugin.close("it has gone");
    registry.leave(&plugin);
    tracing::info!(plugin = %plugin.name, why = plugin.end(), "an NRI plugin has left");
}

/// Starts a program and waits until it has joined; its end is waited for beside that.
async fn launched(registry: &Arc<Registry>, runtime: &Arc<dyn Runtime>, program: Program) {
    let Known { name, .. } = program.known.clone();
    let known = program.known.clone();
    let started = task::spawn_blocking(move || launch::launch(&program)).await;
    let (socket, process) = match started {
        Ok(Ok(started)) => started,
        Ok(Err(error)) => {
            return tracing::error!(plugin = %name, error = chain(&error), "an NRI plugin could not be started");
        }
        Err(error) => {
            return tracing::error!(plugin = %name, %error, "an NRI plugin could not be started");
        }
    };
    registry.programs.send_modify(|programs| *programs += 1);
    match join::join(registry, runtime, socket, Some(known)).await {
        Ok(joined) => {
            let (registry, runtime) = (registry.clone(), runtime.clone());
            tokio::spawn(async move {
                attend(&registry, &runtime, joined).await;
                end(registry, process).await;
            });
        }
        Err(error) => {
            tracing::error!(plugin = %name, error = chain(&error), "an NRI plugin that criox started did not join");
            tokio::spawn(end(registry.clone(), process));
        }
    }
}

async fn end(registry: Arc<Registry>, process: Pidfd) {
    if let Err(error) = task::spawn_blocking(move || launch::end(&process)).await {
        tracing::error!(%error, "the end of an NRI plugin");
    }
    registry.programs.send_modify(|programs| *programs -= 1);
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
