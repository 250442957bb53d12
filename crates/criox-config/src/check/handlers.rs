//! Checks of runtime handlers and workloads.

use std::path::PathBuf;

use super::{Check, MIN_TIMEOUT, monitor_cgroup};
use crate::config::Config;
use crate::handler::{RuntimeHandler, Workload};
use crate::known;
use crate::load::quoted;
use crate::value::{CgroupManager, bytes, cpu_list};

impl Check<'_> {
    pub(super) fn handlers(&mut self, config: &mut Config) {
        let r = &mut config.runtime;
        if r.default_runtime.is_empty() {
            "crun".clone_into(&mut r.default_runtime);
            r.runtimes.entry("crun".to_owned()).or_insert_with(RuntimeHandler::built_in);
        }
        let default = r.runtimes.get(&r.default_runtime).cloned();
        if default.is_none() && !self.sink.partial {
            let known: Vec<&str> = r.runtimes.keys().map(String::as_str).collect();
            let message =
                format!("\"{}\" is not in the runtimes table ({})", r.default_runtime, known.join(", "));
            self.problem("crio.runtime.default_runtime", message);
        }
        let mut ignored = Vec::new();
        for (name, handler) in &mut r.runtimes {
            let at = format!("crio.runtime.runtimes.{}", quoted(name));
            if let Some(default) = default.as_ref().filter(|_| handler.inherit_default_runtime) {
                inherit(handler, default, &r.default_runtime);
            }
            self.monitor(&at, handler, r.cgroup_manager);
            self.timeouts(&at, handler);
            let mistakes = mistakes(handler);
            let is_default = *name == r.default_runtime;
            for (key, message) in &mistakes {
                let key = format!("{at}.{key}");
                if is_default {
                    self.problem(&key, message);
                } else {
                    self.warn(&key, format!("{message}; handler \"{name}\" is ignored"));
                }
            }
            if !mistakes.is_empty() && !is_default {
                ignored.push(name.clone());
            }
        }
        r.runtimes.retain(|name, _| !ignored.contains(name));
    }

    fn monitor(&mut self, at: &str, handler: &mut RuntimeHandler, manager: CgroupManager) {
        self.absolute(&format!("{at}.monitor_path"), &handler.monitor_path);
        match monitor_cgroup(manager, &handler.monitor_cgroup) {
            Ok(cgroup) => handler.monitor_cgroup = cgroup,
            Err(message) => self.problem(&format!("{at}.monitor_cgroup"), message),
        }
        for entry in &handler.monitor_env {
            if !entry.contains('=') || entry.starts_with('=') {
                let message = format!("\"{entry}\" is not of the form NAME=value");
                self.problem(&format!("{at}.monitor_env"), message);
            }
        }
    }

    fn timeouts(&mut self, at: &str, handler: &mut RuntimeHandler) {
        let timeout = &mut handler.container_create_timeout;
        if *timeout == 0 {
            *timeout = 240;
        } else if *timeout < MIN_TIMEOUT {
            let message = format!("{timeout} is raised to {MIN_TIMEOUT}");
            *timeout = MIN_TIMEOUT;
            self.warn(&format!("{at}.container_create_timeout"), message);
        }
        if let Err(message) = bytes(&handler.container_min_memory) {
            self.warn(&format!("{at}.container_min_memory"), format!("{message}; 12MiB is used"));
            "12MiB".clone_into(&mut handler.container_min_memory);
        }
    }

    pub(super) fn workloads(&mut self, config: &Config) {
        if self.sink.partial {
            return;
        }
        for (name, workload) in &config.runtime.workloads {
            let at = format!("crio.runtime.workloads.{}", quoted(name));
            for (key, message) in workload_mistakes(workload) {
                self.problem(&format!("{at}.{key}"), message);
            }
        }
    }
}

fn inherit(handler: &mut RuntimeHandler, default: &RuntimeHandler, name: &str) {
    // An empty path means the program of the handler's name, which must stay the default's.
    handler.runtime_path = default.runtime_path.clone().or_else(|| Some(PathBuf::from(name)));
    handler.runtime_type.clone_from(&default.runtime_type);
    handler.runtime_config_path.clone_from(&default.runtime_config_path);
    handler.runtime_root.clone_from(&default.runtime_root);
}

/// What makes a handler unusable, with the key.
fn mistakes(handler: &RuntimeHandler) -> Vec<(&'static str, String)> {
    let mut found = Vec::new();
    let kind = handler.kind();
    if !["oci", "vm", "pod"].contains(&kind) {
        found.push(("runtime_type", format!("\"{kind}\" is not one of \"oci\", \"vm\", \"pod\"")));
    }
    for name in &handler.allowed_annotations {
        if !known::ANNOTATIONS.contains(&name.as_str()) {
            found.push((
                "allowed_annotations",
                format!("\"{name}\" is not an annotation that can be allowed"),
            ));
        }
    }
    if kind == "vm" {
        found.push((
            "runtime_type",
            "\"vm\" runtimes (containerd's shim v2) are not supported yet".to_owned(),
        ));
        let program = handler.runtime_path.as_ref().and_then(|path| path.file_name()?.to_str());
        if program.is_some_and(|name| !is_shim(name)) {
            found.push(("runtime_path", "a \"vm\" runtime's program is named containerd-shim-…".to_owned()));
        }
    } else if handler.runtime_config_path.is_some() {
        found.push(("runtime_config_path", "only \"vm\" runtimes have one".to_owned()));
    }
    if handler.no_sync_log && kind != "oci" {
        found.push(("no_sync_log", "only \"oci\" runtimes have it".to_owned()));
    }
    if handler.stream_websockets && kind != "pod" {
        found.push(("stream_websockets", "only \"pod\" runtimes have it".to_owned()));
    }
    if !["", "first"].contains(&handler.exec_cpu_affinity.as_str()) {
        let message = format!("\"{}\" is neither empty nor \"first\"", handler.exec_cpu_affinity);
        found.push(("exec_cpu_affinity", message));
    }
    found
}

fn is_shim(name: &str) -> bool {
    name.strip_prefix("containerd-shim-").is_some_and(|rest| {
        !rest.is_empty() && rest.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '+')
    })
}

fn workload_mistakes(workload: &Workload) -> Vec<(&'static str, String)> {
    let mut found = Vec::new();
    let r = &workload.resources;
    if workload.activation_annotation.is_empty() {
        found.push(("activation_annotation", "must be set".to_owned()));
    }
    for name in &workload.allowed_annotations {
        if !known::ANNOTATIONS.contains(&name.as_str()) {
            found.push((
                "allowed_annotations",
                format!("\"{name}\" is not an annotation that can be allowed"),
            ));
        }
    }
    if r.cpushares < 0 {
        found.push(("resources.cpushares", "must not be negative".to_owned()));
    }
    if r.cpuquota != 0 && r.cpuquota < r.cpushares {
        found.push(("resources.cpuquota", "must be at least cpushares".to_owned()));
    }
    if r.cpuperiod != 0 && r.cpuperiod < 1000 {
        found.push(("resources.cpuperiod", "must be at least 1000 microseconds".to_owned()));
    }
    if let Err(message) = cpu_list(&r.cpuset) {
        found.push(("resources.cpuset", message));
    }
    found
}
