//! The daemon: configuration, parts, recovery, socket, signals.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use criox_config::{Config, LoadOptions, Loaded, Overrides, Problems};
use criox_lifecycle::{
    AppArmor, Cdi, Checkpoints, Clamps, Clock, Context, Events, Handlers, Index, Lifecycle, Names, Paths,
    Plugins, SeccompDefaults, Selinux, Spares, Systemd,
};
use criox_network::Network;
use criox_store::{OpenReport, Store};
use criox_sys::cgroup::Cgroups;
use criox_sys::lock::HeldLock;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::rpc::{RUNTIME_VERSION, Services};
use crate::{logging, node, notify, server, streaming, upkeep, wiring};

/// How long a killed predecessor may still hold what is its own.
const PREDECESSOR: Duration = Duration::from_secs(3);

/// Why the daemon does not start.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StartError {
    /// Mistakes in the configuration, one a line.
    #[error("the configuration has mistakes")]
    Configuration(#[from] Problems),
    /// One of its parts.
    #[error("{part}")]
    Part {
        /// Which.
        part: String,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

fn part<E: std::error::Error + Send + Sync + 'static>(
    name: impl Into<String>,
) -> impl FnOnce(E) -> StartError {
    let part = name.into();
    move |error| StartError::Part { part, source: Box::new(error) }
}

/// Runs until SIGTERM or SIGINT. Containers go on running.
///
/// # Errors
/// The configuration has mistakes, or a part can't be had.
pub(crate) async fn run(overrides: Overrides) -> Result<(), StartError> {
    let begun = Instant::now();
    let options = LoadOptions::system(overrides);
    let mut loaded = Config::load(&options)?;
    let configured: Vec<String> = loaded.config.runtime.runtimes.keys().cloned().collect();
    loaded.check_node(&std::env::var("PATH").unwrap_or_default())?;
    logging::start(&loaded.config, &loaded.process).map_err(part("log file"))?;
    report(&loaded);
    let signals = Signals::new().map_err(part("signals"))?;
    let listen = loaded.config.api.listen.clone();
    let _alone = alone(&loaded.config.root.runroot)?;
    let context = Arc::new(context(&loaded, configured)?);
    let watching = context.network.start();
    let lifecycle = Lifecycle::new(context.clone());
    // Bound after recovery, so that the first answer is a true one; taken before, so that two daemons never recover one
    // store at once.
    let listener = server::bind(&listen).map_err(part(format!("socket {}", listen.display())))?;
    let streaming = streaming::bind(&loaded.config, &lifecycle).await.map_err(part("streaming server"))?;
    let recovered = lifecycle.recover().await;
    lifecycle.start_plugins().await.map_err(part("NRI"))?;
    for reason in &recovered.left_alone {
        tracing::warn!("left alone: {reason}");
    }
    let services = Services { lifecycle: lifecycle.clone(), streaming: streaming.clone() };
    let serving = tokio::spawn(server::serve(listener, services));
    tracing::info!(streams = streaming.base(), "serving exec, attach and port-forward");
    let streaming = streaming::serve(streaming);
    let upkeep = tokio::spawn(upkeep::run(context.clone()));
    notify::ready(&format!("serving {}", listen.display()));
    tracing::info!(
        version = RUNTIME_VERSION,
        socket = %listen.display(),
        pods = recovered.pods,
        undone = recovered.undone,
        silent_monitors = recovered.silent,
        milliseconds = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX),
        "criox is ready"
    );
    signals.wait_for_end(&context, &options, &listen).await;
    notify::stopping();
    serving.abort();
    streaming.end().await;
    upkeep.abort();
    drop(watching);
    lifecycle.stop_plugins().await;
    lifecycle.close().await;
    if let Err(error) = context.store.close() {
        tracing::warn!(error = criox_lifecycle::chain(&error), "the store's home stays mounted");
    }
    Ok(())
}

/// The lock that lets one daemon at a time recover and serve the pods of a run root; it ends with the process. A daemon
/// that was killed a moment ago may still hold it.
fn alone(run_root: &Path) -> Result<HeldLock, StartError> {
    let directory = run_root.join("criox");
    let path = directory.join("daemon.lock");
    let name = format!("lock {}", path.display());
    std::fs::create_dir_all(&directory).map_err(part(&name))?;
    let until = Instant::now() + PREDECESSOR;
    loop {
        match HeldLock::try_new(&path).map_err(part(&name))? {
            Some(lock) => return Ok(lock),
            None if Instant::now() < until => std::thread::sleep(PREDECESSOR / 30),
            None => {
                let message = "another criox runs with this run root; stop it first";
                return Err(part(&name)(std::io::Error::new(std::io::ErrorKind::AddrInUse, message)));
            }
        }
    }
}

/// The signals that are heeded. Made before anything can be ended in disorder; one that comes earlier than it is waited
/// for is kept.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    /// SIGHUP reads the configuration of images and registries again; SIGTERM and SIGINT end the daemon. systemd's
    /// watchdog is petted here and nowhere else: a loop that hangs is a daemon that hangs.
    async fn wait_for_end(mut self, context: &Context, options: &LoadOptions, listen: &Path) {
        let mut watchdog = notify::Watchdog::new();
        loop {
            tokio::select! {
                () = watchdog.pet() => {}
                _ = self.terminate.recv() => return tracing::info!("ending: SIGTERM; containers go on running"),
                _ = self.interrupt.recv() => return tracing::info!("ending: SIGINT; containers go on running"),
                _ = self.hangup.recv() => {
                    notify::reloading();
                    reload(context, options);
                    notify::ready(&format!("serving {}", listen.display()));
                }
            }
        }
    }
}

fn reload(context: &Context, options: &LoadOptions) {
    let reloaded = Config::load(options).and_then(|loaded| wiring::image_options(&loaded));
    match reloaded {
        Ok(images) => {
            context.images.reload(images);
            context.network.reload();
            tracing::info!(
                "SIGHUP: read registries, pinned images and networks again; other changes need a restart"
            );
        }
        Err(problems) => {
            tracing::error!("SIGHUP: nothing changes, for the configuration has mistakes:\n{problems}")
        }
    }
}

/// What the configuration says that has no effect, once.
fn report(loaded: &Loaded) {
    for warning in &loaded.warnings {
        tracing::warn!("{warning}");
    }
    for key in &loaded.unknown {
        tracing::warn!("{key} is not a key of CRI-O; it has no effect");
    }
    for key in &loaded.not_yet_in_effect {
        tracing::warn!("{key} is not yet in effect in this version of criox");
    }
    for key in &loaded.without_meaning {
        tracing::info!("{key} has no meaning in criox");
    }
}

/// What opening the store found and put right, or couldn't.
fn tell_of_sweep(opened: &OpenReport) {
    for layer in &opened.incomplete_layers {
        tracing::info!(layer, "removed a layer whose making was cut short");
    }
    for directory in &opened.orphan_directories {
        tracing::info!(directory, "removed a directory of the store that no record knew");
    }
    for container in &opened.lost_containers {
        tracing::warn!(container, "removed the record of a container whose root file system is gone");
    }
    for file in &opened.torn_files {
        tracing::warn!(file = %file.display(), "moved aside a list that a power cut tore");
    }
    for problem in &opened.problems {
        tracing::warn!(problem, "the image store has something that couldn't be put right");
    }
}

fn context(loaded: &Loaded, configured: Vec<String>) -> Result<Context, StartError> {
    let config = Arc::new(loaded.config.clone());
    let store_options = wiring::store_options(&config)?;
    let (store, opened) =
        Store::open(store_options).map_err(part(format!("image store {}", config.root.root.display())))?;
    tell_of_sweep(&opened);
    let cgroups = Cgroups::detect().map_err(part("cgroups"))?;
    let node = node::facts(&cgroups, &store, wiring::systemd(&config));
    if !node.capabilities.has("SYS_RESOURCE") {
        tracing::warn!(
            "criox has no CAP_SYS_RESOURCE: oom_score_adj is not set below {}, resource limits are not raised, and \"all\" capabilities are those that criox has",
            node.oom_score_adj
        );
    }
    let mut defaults = wiring::spec_defaults(&config);
    let apparmor = AppArmor::new(&defaults.apparmor_profile, &config.root.runroot);
    if let Err(error) = apparmor.prepare() {
        let error = criox_lifecycle::chain(&error);
        tracing::warn!(error, "containers that name no AppArmor profile run without one");
        defaults.apparmor_missing = error;
    }
    let seccomp = SeccompDefaults::load(
        config.runtime.seccomp_profile.as_deref(),
        config.runtime.privileged_seccomp_profile.as_deref(),
    )
    .map_err(part("seccomp profile"))?;
    let boot_id = criox_sys::process::boot_id().map_err(part("boot ID"))?;
    let checkpoints = Checkpoints::new(
        config.checkpoint_restore.container_level_enabled,
        &std::env::var("PATH").unwrap_or_default(),
    );
    let images = criox_image::Images::new(store.clone(), wiring::image_options(loaded)?);
    let network = Network::new(wiring::network_options(&config)).map_err(part("pod network"))?;
    Ok(Context {
        paths: Paths::new(&config.root.root, &config.root.runroot, &config.runtime.namespaces_dir),
        boot_id,
        store,
        images,
        network,
        handlers: Handlers::new(
            &config.runtime.runtimes,
            &config.runtime.default_runtime,
            config.runtime.no_pivot,
            wiring::systemd(&config),
        )
        .without(configured)
        .searching(checkpoints.criu()),
        cgroups,
        systemd: Systemd::default(),
        defaults,
        node,
        seccomp,
        apparmor,
        selinux: Selinux::new(config.runtime.selinux),
        cdi: Cdi::new(config.runtime.cdi_spec_dirs.clone()),
        monitor_program: monitor_program()?,
        index: Index::default(),
        events: Events::default(),
        clamps: Clamps::default(),
        clock: Clock::default(),
        names: Names::default(),
        nri: Plugins::new(&config, RUNTIME_VERSION),
        spares: Spares::default(),
        checkpoints,
        config,
    })
}

/// `criox-monitor`, beside the daemon's own program.
fn monitor_program() -> Result<PathBuf, StartError> {
    let own = std::env::current_exe().map_err(part("path of criox itself"))?;
    // An upgrade has replaced the file meanwhile.
    let own = own.to_string_lossy().trim_end_matches(" (deleted)").to_owned();
    let beside = Path::new(&own).with_file_name("criox-monitor");
    match std::fs::metadata(&beside) {
        Ok(_) => Ok(beside),
        Err(error) => Err(part(format!("{} must lie beside criox", beside.display()))(error)),
    }
}
