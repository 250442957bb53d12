//! The network and its operations on pods.

mod chain;
mod gc;
mod locks;
mod readiness;

use std::collections::HashSet;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use criox_sys::netns::{self, NetnsError, NetnsId};
use serde_json::{Map, Value};
use tokio::sync::{Notify, RwLock, watch};

use crate::cache::Cache;
use crate::conf::is_identifier;
use crate::hostports::HostPorts;
use crate::record::{AttachIntent, AttachRequest, Attachment, AttachmentRef, NetnsRef, RECORD_VERSION};
use crate::result;
use crate::watch::Watching;
use crate::{NetworkConf, NetworkError, NetworkStatus, PluginFailure, Verb};

use locks::Turns;
use readiness::Readiness;

/// The interface that every pod has.
const IFNAME: &str = "eth0";

/// How long things may take.
#[derive(Debug, Clone, Copy)]
pub struct Deadlines {
    /// ADD, for each plugin.
    pub add: Duration,
    /// DEL, for each plugin.
    pub del: Duration,
    /// CHECK, for each plugin.
    pub check: Duration,
    /// GC, for the whole chain; ADDs wait for it.
    pub gc: Duration,
    /// STATUS, for each plugin.
    pub status: Duration,
    /// Waiting for earlier operations on the same pod, or for one of the [`NetworkOptions::parallel`] places.
    pub turn: Duration,
}

impl Default for Deadlines {
    fn default() -> Self {
        Self {
            add: Duration::from_secs(60),
            del: Duration::from_secs(30),
            check: Duration::from_secs(30),
            gc: Duration::from_secs(10),
            status: Duration::from_secs(5),
            turn: Duration::from_secs(120),
        }
    }
}

/// What a [`Network`] works with.
#[derive(Debug, Clone)]
pub struct NetworkOptions {
    /// `network_dir`.
    pub conf_dir: PathBuf,
    /// `plugin_dirs`, searched in order.
    pub plugin_dirs: Vec<PathBuf>,
    /// libcni's cache, normally `/var/lib/cni`; results lie in `results` below it.
    pub cache_dir: PathBuf,
    /// `cni_default_network`; `None` or empty takes the first file.
    pub default_network: Option<String>,
    /// Deadlines.
    pub deadlines: Deadlines,
    /// `disable_hostport_mapping`.
    pub disable_hostport_mapping: bool,
    /// `cni_status_grace_period`: how long STATUS may fail before the network counts as not ready.
    pub status_grace_period: Duration,
    /// How many pods are attached or detached at once.
    pub parallel: usize,
}

impl Default for NetworkOptions {
    fn default() -> Self {
        Self {
            conf_dir: "/etc/cni/net.d".into(),
            plugin_dirs: vec!["/opt/cni/bin".into()],
            cache_dir: "/var/lib/cni".into(),
            default_network: None,
            deadlines: Deadlines::default(),
            disable_hostport_mapping: false,
            status_grace_period: Duration::ZERO,
            parallel: 16,
        }
    }
}

/// The node's pod network. Cheap to clone; all clones are one.
#[derive(Debug, Clone)]
pub struct Network {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    options: NetworkOptions,
    cache: Cache,
    host_ports: HostPorts,
    turns: Turns,
    /// Held for reading by ADD and for writing by GC, which would take the address of a pod that it isn't told of.
    gc_gate: RwLock<()>,
    /// Sandboxes of attachments made or restored by this process: valid at GC even if its caller hasn't heard yet.
    known: Mutex<HashSet<String>>,
    readiness: Mutex<Readiness>,
    status: watch::Sender<Arc<NetworkStatus>>,
    ask_soon: Notify,
}

impl Network {
    /// Makes the directories and reads the configuration. Executes nothing, and a missing or bad configuration is
    /// no error but a status.
    ///
    /// # Errors
    /// [`NetworkError::Io`] when `network_dir` or a plugin directory can't be made or isn't a directory.
    pub fn new(options: NetworkOptions) -> Result<Self, NetworkError> {
        for dir in std::iter::once(&options.conf_dir).chain(&options.plugin_dirs) {
            make_dir(dir)?;
        }
        let unread =
            NetworkStatus::not_ready("the CNI configuration has not been read yet".into(), None, vec![]);
        let shared = Shared {
            cache: Cache::new(&options.cache_dir),
            host_ports: HostPorts::default(),
            turns: Turns::new(options.parallel, options.deadlines.turn),
            gc_gate: RwLock::new(()),
            known: Mutex::default(),
            readiness: Mutex::new(Readiness::new(&options)),
            status: watch::Sender::new(Arc::new(unread)),
            ask_soon: Notify::new(),
            options,
        };
        let network = Self { shared: Arc::new(shared) };
        network.reload();
        Ok(network)
    }

    /// Starts the tasks that watch the directories and ask STATUS; they end when the value is dropped. Needs a
    /// tokio runtime.
    pub fn start(&self) -> Watching {
        let options = &self.shared.options;
        let dirs = std::iter::once(&options.conf_dir).chain(&options.plugin_dirs).cloned().collect();
        Watching::start(self, dirs)
    }

    /// The present condition; never waits.
    #[must_use]
    pub fn status(&self) -> Arc<NetworkStatus> {
        self.shared.status.borrow().clone()
    }

    /// Follows the condition, to wait for readiness or to send it on.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<Arc<NetworkStatus>> {
        self.shared.status.subscribe()
    }

    /// Waits until the network is ready, at most for `patience`, as RunPodSandbox of CRI-O does.
    ///
    /// # Errors
    /// [`NetworkError::NotReady`] with the last message.
    pub async fn ready_within(&self, patience: Duration) -> Result<(), NetworkError> {
        let mut status = self.subscribe();
        let waiting = status.wait_for(|now| now.ready);
        match tokio::time::timeout(patience, waiting).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) | Err(_) => Err(NetworkError::NotReady { message: self.status().message.clone() }),
        }
    }

    /// Plans an attachment to the default network. Store the intent durably, then call [`Self::add`].
    ///
    /// # Errors
    /// [`NetworkError::NotReady`], [`NetworkError::InvalidRequest`]; [`NetworkError::Netns`] when the namespace isn't
    /// there, isn't one, or is the host's own.
    pub fn prepare(&self, request: &AttachRequest) -> Result<AttachIntent, NetworkError> {
        let status = self.status();
        let default = self.readiness().default_network();
        let Some(conf) = default.filter(|_| status.ready) else {
            return Err(NetworkError::NotReady { message: status.message.clone() });
        };
        if !is_identifier(&request.sandbox_id) {
            return Err(invalid(
                "sandbox_id",
                format!("{:?} can't be a CNI container ID", request.sandbox_id),
            ));
        }
        let netns = open_netns(&request.sandbox_id, &request.netns)?;
        let id = netns_id(&request.sandbox_id, &netns)?;
        if netns::current().and_then(|host| identity(&host)).is_ok_and(|host| host == id) {
            let (path, found) = (request.netns.clone(), "the host's own network namespace");
            let source = NetnsError::NotANetns { path, found };
            return Err(NetworkError::Netns { sandbox: request.sandbox_id.clone(), source });
        }
        let plugin_maps = conf.has_capability("portMappings");
        let own_ports = !plugin_maps && !self.shared.options.disable_hostport_mapping;
        Ok(AttachIntent {
            version: RECORD_VERSION,
            sandbox_id: request.sandbox_id.clone(),
            network: conf.name.clone(),
            ifname: IFNAME.into(),
            netns: NetnsRef {
                path: request.netns.clone(),
                dev: id.dev,
                ino: id.ino,
                cookie: netns_cookie(&request.sandbox_id, &netns)?,
            },
            config: conf.text.clone(),
            args: cni_args(request)?,
            capability_args: capability_args(request, &conf),
            host_ports: if own_ports { request.host_ports.clone() } else { Vec::new() },
        })
    }

    /// Attaches the pod. When it fails, DEL has been called on the whole chain; should that have failed too, it is
    /// in the log, and [`Self::del`] with the intent tries again. If the future is dropped, the running plugin is
    /// killed and DEL is owed.
    ///
    /// # Errors
    /// [`NetworkError::Plugin`], [`NetworkError::Netns`], [`NetworkError::NetnsReplaced`],
    /// [`NetworkError::HostPortTaken`], [`NetworkError::HostPorts`], [`NetworkError::Waited`].
    pub async fn add(&self, intent: &AttachIntent) -> Result<Attachment, NetworkError> {
        let conf = conf_of(intent)?;
        let _turn = self.shared.turns.take(&intent.sandbox_id).await?;
        let _gate = self.shared.gc_gate.read().await;
        if !matches_recorded(intent)? {
            let (sandbox, path) = (intent.sandbox_id.clone(), intent.netns.path.clone());
            return Err(NetworkError::NetnsReplaced { sandbox, path });
        }
        // Also those that a plugin maps: of two pods it would map one port twice, and traffic would go to either.
        let mut ports = intent.host_ports.clone();
        ports.extend(intent.plugin_ports());
        if !ports.is_empty() {
            self.shared.host_ports.reserve(&intent.sandbox_id, &ports).await?;
        }
        self.known().insert(intent.sandbox_id.clone());
        let mut result = None;
        let attached = self.attach(&conf, intent, &mut result).await;
        if attached.is_err() {
            self.roll_back(&conf, intent, result.as_ref()).await;
        }
        attached
    }

    async fn attach(
        &self,
        conf: &NetworkConf,
        intent: &AttachIntent,
        result: &mut Option<Value>,
    ) -> Result<Attachment, NetworkError> {
        let failed = |source| NetworkError::Plugin {
            sandbox: intent.sandbox_id.clone(),
            network: conf.name.clone(),
            verb: Verb::Add,
            source: Box::new(source),
        };
        self.chain(conf, intent).add(result).await.map_err(failed)?;
        let value = result.clone().unwrap_or_default();
        let read = result::read(&value).and_then(|(interfaces, ips)| {
            // The kubelet would make a pod without an address anew for ever.
            if ips.is_empty() {
                Err("it has no IP address for the pod".into())
            } else {
                Ok((interfaces, ips))
            }
        });
        let (interfaces, ips) = read.map_err(|reason| {
            let plugin = conf.plugins.last().map(|plugin| plugin.plugin_type.clone()).unwrap_or_default();
            failed(PluginFailure::BadResult { plugin, verb: Verb::Add, reason })
        })?;
        if let Err(error) = self.shared.cache.store(intent, &value) {
            tracing::warn!(sandbox = %intent.sandbox_id, %error, "the CNI result is not cached for other runtimes");
        }
        let attachment = Attachment { intent: intent.clone(), result: value, interfaces, ips };
        if !intent.host_ports.is_empty() {
            self.shared.host_ports.map(&attachment).await?;
        }
        Ok(attachment)
    }

    async fn roll_back(&self, conf: &NetworkConf, intent: &AttachIntent, result: Option<&Value>) {
        if let Err(error) = self.detach(conf, AttachmentRef { intent, result }).await {
            tracing::warn!(sandbox = %intent.sandbox_id, %error, "a failed ADD was not undone completely");
        }
    }

    /// Verifies an attachment with CHECK. Does nothing where the configuration is older than 0.4.0 or has
    /// `disableCheck`.
    ///
    /// # Errors
    /// [`NetworkError::Plugin`], [`NetworkError::Netns`], [`NetworkError::NetnsReplaced`], [`NetworkError::Waited`].
    pub async fn check(&self, attachment: &Attachment) -> Result<(), NetworkError> {
        let intent = &attachment.intent;
        let conf = conf_of(intent)?;
        if !conf.version.has_check() || conf.disable_check {
            return Ok(());
        }
        let _turn = self.shared.turns.take(&intent.sandbox_id).await?;
        if !matches_recorded(intent)? {
            let (sandbox, path) = (intent.sandbox_id.clone(), intent.netns.path.clone());
            return Err(NetworkError::NetnsReplaced { sandbox, path });
        }
        self.chain(&conf, intent).check(&attachment.result).await.map_err(|source| NetworkError::Plugin {
            sandbox: intent.sandbox_id.clone(),
            network: conf.name.clone(),
            verb: Verb::Check,
            source: Box::new(source),
        })
    }

    /// Detaches the pod, from an [`Attachment`] or, after a crash in the middle of ADD, from its [`AttachIntent`].
    /// Works when the namespace is gone, and repeating it is harmless: plugins must take a DEL of what isn't there.
    ///
    /// # Errors
    /// [`NetworkError::Incomplete`] when a plugin failed (the others were called all the same),
    /// [`NetworkError::HostPorts`], [`NetworkError::RecordVersion`], [`NetworkError::RecordConfig`],
    /// [`NetworkError::Waited`].
    pub async fn del<'a>(&self, record: impl Into<AttachmentRef<'a>>) -> Result<(), NetworkError> {
        let record = record.into();
        let conf = conf_of(record.intent)?;
        let _turn = self.shared.turns.take(&record.intent.sandbox_id).await?;
        self.detach(&conf, record).await
    }

    async fn detach(&self, conf: &NetworkConf, record: AttachmentRef<'_>) -> Result<(), NetworkError> {
        let intent = record.intent;
        // Before its address can be another pod's.
        let mapped_here = !intent.host_ports.is_empty();
        let unmapped = match mapped_here {
            true => self.shared.host_ports.unmap(&intent.sandbox_id).await,
            false => Ok(()),
        };
        let cached = if record.result.is_none() { self.shared.cache.result(intent) } else { None };
        let result = record.result.or(cached.as_ref());
        // A namespace that can't be looked at is treated as gone too: at worst the plugins clean up less, and the
        // kernel does the rest when it ends.
        let inside = matches_recorded(intent).unwrap_or(false);
        let failures = self.chain(conf, intent).del(inside, result).await;
        if !failures.is_empty() {
            return Err(NetworkError::Incomplete { network: conf.name.clone(), verb: Verb::Del, failures });
        }
        unmapped?;
        if !mapped_here {
            // No sooner: until then the plugin's rules may be there.
            self.shared.host_ports.unmap(&intent.sandbox_id).await?;
        }
        self.shared.cache.remove(&intent.network, &intent.sandbox_id, &intent.ifname)?;
        self.known().remove(&intent.sandbox_id);
        Ok(())
    }

    /// Gives up on an attachment whose DEL keeps failing: removes what is ours, the cache file and host ports. What
    /// the plugins hold is left to GC.
    ///
    /// # Errors
    /// [`NetworkError::HostPorts`], [`NetworkError::Io`].
    pub async fn forget(&self, intent: &AttachIntent) -> Result<(), NetworkError> {
        self.known().remove(&intent.sandbox_id);
        let unmapped = self.shared.host_ports.unmap(&intent.sandbox_id).await;
        self.shared.cache.remove(&intent.network, &intent.sandbox_id, &intent.ifname)?;
        unmapped
    }

    /// Notes whose the host ports are that plugins have mapped, from every intent that is recorded: also those of pods
    /// that are gone and whose DEL is owed, for the plugins' rules are there until it succeeds. Call it before the first
    /// [`Self::del`] after a restart, which frees what it gives back.
    pub async fn claim(&self, intents: impl IntoIterator<Item = &AttachIntent>) {
        self.shared.host_ports.claim(intents).await;
    }

    /// Takes over the attachments that were recorded before a restart: their host ports are mapped again, and rules
    /// of pods that are gone disappear. Call it once, with all that live, before the first [`Self::add`].
    ///
    /// # Errors
    /// [`NetworkError::HostPorts`].
    pub async fn restore(&self, attachments: &[Attachment]) -> Result<(), NetworkError> {
        self.known().extend(attachments.iter().map(|attachment| attachment.intent.sandbox_id.clone()));
        if self.shared.options.disable_hostport_mapping {
            self.claim(attachments.iter().map(|attachment| &attachment.intent)).await;
            return Ok(());
        }
        self.shared.host_ports.restore(attachments.iter()).await
    }

    fn known(&self) -> std::sync::MutexGuard<'_, HashSet<String>> {
        self.shared.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn readiness(&self) -> std::sync::MutexGuard<'_, Readiness> {
        self.shared.readiness.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn make_dir(dir: &Path) -> Result<(), NetworkError> {
    use std::os::unix::fs::DirBuilderExt;
    let failed = |source| NetworkError::Io { stage: "make the directory", path: dir.to_owned(), source };
    std::fs::DirBuilder::new().recursive(true).mode(0o755).create(dir).map_err(failed)
}

fn invalid(field: &'static str, reason: String) -> NetworkError {
    NetworkError::InvalidRequest { field, reason }
}

/// The configuration inside a record.
fn conf_of(intent: &AttachIntent) -> Result<NetworkConf, NetworkError> {
    if intent.version > RECORD_VERSION {
        return Err(NetworkError::RecordVersion { found: intent.version, known: RECORD_VERSION });
    }
    NetworkConf::parse_list(&intent.config)
        .map_err(|reason| NetworkError::RecordConfig { sandbox: intent.sandbox_id.clone(), reason })
}

fn open_netns(sandbox: &str, path: &Path) -> Result<OwnedFd, NetworkError> {
    netns::open(path).map_err(|source| NetworkError::Netns { sandbox: sandbox.to_owned(), source })
}

fn identity(ns: &OwnedFd) -> Result<NetnsId, NetnsError> {
    netns::identity(ns).map_err(|source| NetnsError::Io { stage: "identify it", source })
}

fn netns_id(sandbox: &str, ns: &OwnedFd) -> Result<NetnsId, NetworkError> {
    identity(ns).map_err(|source| NetworkError::Netns { sandbox: sandbox.to_owned(), source })
}

fn netns_cookie(sandbox: &str, ns: &OwnedFd) -> Result<Option<u64>, NetworkError> {
    let failed = |source| NetworkError::Netns { sandbox: sandbox.to_owned(), source };
    netns::cookie(ns.as_fd()).map_err(failed)
}

/// Whether the recorded namespace, and no other, is at the recorded path.
fn matches_recorded(intent: &AttachIntent) -> Result<bool, NetworkError> {
    let recorded = &intent.netns;
    let ns = open_netns(&intent.sandbox_id, &recorded.path)?;
    let id = netns_id(&intent.sandbox_id, &ns)?;
    if (id.dev, id.ino) != (recorded.dev, recorded.ino) {
        return Ok(false);
    }
    // The number of one that has gone is soon another's.
    let cookies = recorded.cookie.zip(netns_cookie(&intent.sandbox_id, &ns)?);
    Ok(cookies.is_none_or(|(recorded, found)| recorded == found))
}

/// `CNI_ARGS`, with the names that Kubernetes' plugins know.
fn cni_args(request: &AttachRequest) -> Result<Vec<(String, String)>, NetworkError> {
    let args = [
        ("IgnoreUnknown", "IgnoreUnknown", "1"),
        ("K8S_POD_NAMESPACE", "metadata.namespace", request.namespace.as_str()),
        ("K8S_POD_NAME", "metadata.name", request.name.as_str()),
        ("K8S_POD_INFRA_CONTAINER_ID", "sandbox_id", request.sandbox_id.as_str()),
        ("K8S_POD_UID", "metadata.uid", request.uid.as_str()),
    ];
    let checked = args.map(|(arg, field, value)| {
        // They are separated by ';' with no way to quote it.
        if value.contains([';', '=']) || value.chars().any(char::is_control) {
            return Err(invalid(field, format!("{value:?} can't be handed to CNI plugins")));
        }
        Ok((arg.to_owned(), value.to_owned()))
    });
    checked.into_iter().collect()
}

/// The capability arguments that some plugin of the chain takes.
fn capability_args(request: &AttachRequest, conf: &NetworkConf) -> Map<String, Value> {
    let mut args = Map::new();
    let mut offer = |name: &str, value: Option<Value>| {
        if let Some(value) = value
            && conf.has_capability(name)
        {
            args.insert(name.to_owned(), value);
        }
    };
    let json = |value: Result<Value, serde_json::Error>| value.ok();
    let some = !request.host_ports.is_empty();
    offer("portMappings", some.then(|| json(serde_json::to_value(&request.host_ports))).flatten());
    offer("bandwidth", request.bandwidth.map(crate::Bandwidth::capability));
    offer("dns", request.dns.as_ref().and_then(|dns| json(serde_json::to_value(dns))));
    offer("ips", (!request.ips.is_empty()).then(|| request.ips.clone().into()));
    offer("mac", request.mac.clone().map(Value::String));
    offer("cgroupPath", request.cgroup_path.clone().map(Value::String));
    let some = !request.annotations.is_empty();
    let annotations = some.then(|| json(serde_json::to_value(&request.annotations))).flatten();
    offer("io.kubernetes.cri.pod-annotations", annotations);
    args
}

#[cfg(test)]
mod tests;
