//! Validation of the merged configuration, and what CRI-O adjusts in it by itself.

mod handlers;
mod node;

use std::path::{Path, PathBuf};

use crate::config::Config;
use crate::known;
use crate::problem::{Origin, Problem};
use crate::storage::{StoreOptions, option_problems};
use crate::table::Sink;
use crate::value::{CgroupManager, CheckpointLevel, TlsMinVersion, cpu_list};

/// Smallest size at which a log may be cut.
const MIN_LOG_SIZE: i64 = 8192;
/// Seconds below which stopping and creating containers is hopeless.
const MIN_TIMEOUT: i64 = 30;
/// `sun_path` without its NUL, unix(7).
const MAX_SOCKET_PATH: usize = 107;

/// Checks everything that needs no look at the node and makes CRI-O's adjustments. Problems go to the sink, the
/// result is what works but deserves attention.
pub(crate) fn settle(config: &mut Config, sink: &mut Sink) -> Vec<Problem> {
    let mut check = Check { sink, warnings: Vec::new() };
    check.root(config);
    check.api(config);
    check.runtime(config);
    check.cgroups(config);
    check.handlers(config);
    check.workloads(config);
    check.image(config);
    check.network(config);
    check.metrics(config);
    check.checkpoints(config);
    check.warnings
}

struct Check<'a> {
    sink: &'a mut Sink,
    warnings: Vec<Problem>,
}

impl Check<'_> {
    fn origin(&self, key: &str) -> Origin {
        // A table that a flag made has one origin for all its keys.
        let table = key.rsplit_once('.').map_or("", |(table, _)| table);
        let origins = &self.sink.origins;
        origins.get(key).or_else(|| origins.get(table)).cloned().unwrap_or(Origin::Default)
    }

    fn problem(&mut self, key: &str, message: impl Into<String>) {
        let origin = self.origin(key);
        self.sink.problems.add(origin, key, message);
    }

    fn warn(&mut self, key: &str, message: impl Into<String>) {
        let origin = self.origin(key);
        self.warnings.push(Problem::new(origin, key, message));
    }

    fn absolute<'p>(&mut self, key: &str, paths: impl IntoIterator<Item = &'p PathBuf>) {
        for path in paths {
            if !path.is_absolute() {
                self.problem(key, format!("\"{}\" is not an absolute path", path.display()));
            }
        }
    }

    fn socket(&mut self, key: &str, path: &Path) {
        let len = path.as_os_str().len();
        if len > MAX_SOCKET_PATH {
            self.problem(key, format!("a socket's path has at most {MAX_SOCKET_PATH} bytes, this one {len}"));
        }
    }

    fn cpus(&mut self, key: &str, text: &str) {
        if let Err(message) = cpu_list(text) {
            self.problem(key, message);
        }
    }

    fn root(&mut self, config: &mut Config) {
        let root = &mut config.root;
        self.absolute("crio.root", [&root.root]);
        self.absolute("crio.runroot", [&root.runroot]);
        self.absolute("crio.log_dir", [&root.log_dir]);
        self.absolute("crio.imagestore", &root.imagestore);
        if root.imagestore.as_ref() == Some(&root.root) {
            self.problem("crio.imagestore", "must not be the same directory as crio.root");
        }
        if root.storage_driver == "overlay2" {
            "overlay".clone_into(&mut root.storage_driver);
        }
        if root.storage_driver != "overlay" {
            let message = format!("\"{}\" is not supported, only \"overlay\" is", root.storage_driver);
            self.problem("crio.storage_driver", message);
        } else if let Err(errors) = StoreOptions::parse(&root.storage_option) {
            let origin = self.origin("crio.storage_option");
            self.sink.problems.0.extend(option_problems(&origin, errors));
        }
    }

    fn api(&mut self, config: &mut Config) {
        let api = &mut config.api;
        if api.listen.as_os_str().is_empty() {
            self.problem("crio.api.listen", "must not be empty");
        }
        self.socket("crio.api.listen", &api.listen);
        if api.stream_enable_tls && !self.sink.partial {
            for (key, file) in
                [("stream_tls_cert", &api.stream_tls_cert), ("stream_tls_key", &api.stream_tls_key)]
            {
                if file.is_none() {
                    self.problem(&format!("crio.api.{key}"), "must be set if stream_enable_tls is");
                }
            }
        }
        let idle = &api.stream_idle_timeout;
        if let Some(message) = crate::duration::parse(idle).err().filter(|_| !idle.is_empty()) {
            self.problem("crio.api.stream_idle_timeout", message);
        }
        let port = &api.stream_port;
        let numeric = !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit());
        if numeric && port.parse::<u16>().is_err() {
            self.problem("crio.api.stream_port", format!("{port} is not a port"));
        }
        if api.tls_min_version == TlsMinVersion::Tls13 && !api.tls_cipher_suites.is_empty() {
            self.warn("crio.api.tls_cipher_suites", "is ignored: TLS 1.3 has no choice of suites");
        }
        for size in [&mut api.grpc_max_recv_msg_size, &mut api.grpc_max_send_msg_size] {
            if *size <= 0 {
                *size = 80 << 20;
            }
        }
    }

    fn runtime(&mut self, config: &mut Config) {
        let at = |name: &str| format!("crio.runtime.{name}");
        let r = &mut config.runtime;
        if r.min_injected_gomaxprocs < 0 {
            self.problem(&at("min_injected_gomaxprocs"), "must not be negative");
        }
        self.absolute(&at("additional_artifact_stores"), &r.additional_artifact_stores);
        self.absolute(&at("conmon"), &r.conmon);
        self.absolute(&at("container_exits_dir"), [&r.container_exits_dir]);
        self.absolute(&at("container_attach_socket_dir"), [&r.container_attach_socket_dir]);
        self.absolute(&at("namespaces_dir"), [&r.namespaces_dir]);
        if r.log_size_max >= 0 && r.log_size_max < MIN_LOG_SIZE {
            let message = format!("must be negative or at least {MIN_LOG_SIZE}, not {}", r.log_size_max);
            self.problem(&at("log_size_max"), message);
        }
        if r.ctr_stop_timeout < MIN_TIMEOUT {
            self.warn(&at("ctr_stop_timeout"), format!("{} is raised to {MIN_TIMEOUT}", r.ctr_stop_timeout));
            r.ctr_stop_timeout = MIN_TIMEOUT;
        }
        self.cpus(&at("infra_ctr_cpuset"), &r.infra_ctr_cpuset);
        self.cpus(&at("shared_cpuset"), &r.shared_cpuset);
        for name in &r.default_capabilities {
            if !known::CAPABILITIES.contains(&name.as_str()) {
                let message = format!("\"{name}\" is not a capability such as \"NET_ADMIN\"");
                self.problem(&at("default_capabilities"), message);
            }
        }
        for entry in &r.default_env {
            if !entry.contains('=') || entry.starts_with('=') {
                self.problem(&at("default_env"), format!("\"{entry}\" is not of the form NAME=value"));
            }
        }
        self.time_zone(&at("timezone"), &r.timezone);
        if r.uid_mappings.0.is_empty() != r.gid_mappings.0.is_empty() {
            let key = if r.uid_mappings.0.is_empty() { "gid_mappings" } else { "uid_mappings" };
            self.warn(&at(key), "is ignored: uid_mappings and gid_mappings count only together");
            r.uid_mappings = Default::default();
            r.gid_mappings = Default::default();
        } else if !r.uid_mappings.0.is_empty() {
            self.warn(&at("uid_mappings"), "is deprecated: use pods with hostUsers: false");
        }
    }

    fn time_zone(&mut self, key: &str, name: &str) {
        if name.is_empty() || name.eq_ignore_ascii_case("local") {
            return;
        }
        let plain = |c: char| c.is_ascii_alphanumeric() || "+-_/".contains(c);
        if name.starts_with('/') || !name.chars().all(plain) {
            self.problem(key, format!("\"{name}\" is not a time zone such as \"Europe/Oslo\" or \"local\""));
        }
    }

    /// The old switch turns off what the new one turns on, as in CRI-O.
    fn checkpoints(&mut self, config: &mut Config) {
        let level = &mut config.checkpoint_restore.container_level_enabled;
        if !config.runtime.enable_criu_support && *level != CheckpointLevel::None {
            let message =
                "is deprecated, and sets crio.checkpoint_restore.container_level_enabled to \"none\"";
            self.warn("crio.runtime.enable_criu_support", message);
            *level = CheckpointLevel::None;
        }
    }

    fn cgroups(&mut self, config: &Config) {
        let r = &config.runtime;
        let pull = &r.separate_pull_cgroup;
        if !pull.is_empty() {
            if r.cgroup_manager == CgroupManager::Cgroupfs {
                self.problem("crio.runtime.separate_pull_cgroup", "needs cgroup_manager = \"systemd\"");
            } else if pull != "pod" && !pull.ends_with(".slice") {
                let message = format!("\"{pull}\" is neither \"pod\" nor a slice such as \"pull.slice\"");
                self.problem("crio.runtime.separate_pull_cgroup", message);
            }
        }
        if let Err(message) = monitor_cgroup(r.cgroup_manager, &r.conmon_cgroup) {
            self.problem("crio.runtime.conmon_cgroup", message);
        }
    }

    fn image(&mut self, config: &Config) {
        let image = &config.image;
        if !is_full_reference(&image.pause_image) {
            let message = format!("\"{}\" is not an image with its registry's name", image.pause_image);
            self.problem("crio.image.pause_image", message);
        }
        self.absolute("crio.image.namespaced_auth_dir", [&image.namespaced_auth_dir]);
        self.absolute("crio.image.signature_policy_dir", [&image.signature_policy_dir]);
        if image.default_transport != "docker://" {
            let message = format!("\"{}\": pulls work with \"docker://\" only", image.default_transport);
            self.warn("crio.image.default_transport", message);
        }
        if !image.insecure_registries.is_empty() {
            self.warn("crio.image.insecure_registries", "is ignored: use insecure = true in registries.conf");
        }
    }

    fn network(&mut self, config: &mut Config) {
        let network = &mut config.network;
        if let Some(dir) = network.plugin_dir.take() {
            self.warn("crio.network.plugin_dir", "is deprecated: use plugin_dirs");
            network.plugin_dirs.push(dir);
        }
        self.absolute("crio.network.network_dir", [&network.network_dir]);
        self.absolute("crio.network.plugin_dirs", &network.plugin_dirs);
    }

    fn metrics(&mut self, config: &mut Config) {
        for name in &mut config.metrics.metrics_collectors {
            let short = name.strip_prefix("container_runtime_").unwrap_or(name);
            let short = short.strip_prefix("crio_").unwrap_or(short);
            if !known::METRICS_COLLECTORS.contains(&short) {
                self.problem(
                    "crio.metrics.metrics_collectors",
                    format!("\"{name}\" is not a metric of CRI-O"),
                );
            }
            *name = short.to_owned();
        }
        if let Some(socket) = &config.metrics.metrics_socket {
            self.socket("crio.metrics.metrics_socket", socket);
        }
        let groups = &config.stats.included_pod_metrics;
        let alone = groups.len() == 1 && groups[0] == "all";
        for group in groups.iter().filter(|_| !alone) {
            if !known::POD_METRICS.contains(&group.as_str()) {
                let message = match group.as_str() {
                    "all" => "\"all\" must stand alone".to_owned(),
                    _ => format!("\"{group}\" is not one of {}", known::POD_METRICS.join(", ")),
                };
                self.problem("crio.stats.included_pod_metrics", message);
            }
        }
        if config.stats.collection_period < 0 {
            self.problem("crio.stats.collection_period", "must not be negative");
        }
    }
}

/// The monitor's cgroup with the manager's default, or why it can't be.
pub(crate) fn monitor_cgroup(manager: CgroupManager, cgroup: &str) -> Result<String, String> {
    match (manager, cgroup) {
        (_, "pod") => Ok("pod".to_owned()),
        (CgroupManager::Systemd, "") => Ok("system.slice".to_owned()),
        (CgroupManager::Systemd, slice) if slice.ends_with(".slice") => Ok(slice.to_owned()),
        (CgroupManager::Systemd, _) => Err(format!("\"{cgroup}\" is neither \"pod\" nor a slice")),
        // CRI-O's own default for systemd may stand in a file that is used with cgroupfs.
        (CgroupManager::Cgroupfs, "" | "system.slice") => Ok(String::new()),
        (CgroupManager::Cgroupfs, _) => {
            Err(format!("\"{cgroup}\": with cgroupfs only \"pod\" or nothing is possible"))
        }
    }
}

/// Whether the name has a registry, a path, and no characters that a reference can't have.
fn is_full_reference(name: &str) -> bool {
    let Some((host, rest)) = name.split_once('/') else { return false };
    let domain = host == "localhost" || host.contains('.') || host.contains(':');
    domain
        && !rest.is_empty()
        && rest.chars().all(|c| c.is_ascii_alphanumeric() || "._-/:@+".contains(c))
        && !rest.starts_with('/')
        && !rest.ends_with(['/', ':', '@'])
}
