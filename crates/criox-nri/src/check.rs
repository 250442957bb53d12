//! Whether what a plugin asks for can be at all: said of the plugin that asked, before it is mixed with others' wishes.

use crate::plugin::PluginError;
use crate::proto::{
    ContainerAdjustment, Hook, Hooks, LinuxContainerAdjustment, LinuxDevice, LinuxResources, LinuxSeccomp,
    Mount, PosixRlimit,
};
use crate::{REMOVAL, removal};

/// Entries that one plugin may ask for in one list. A container with more is no container.
const ENTRIES: usize = 4096;
/// The longest name of a network device (`IFNAMSIZ` less its NUL).
const DEVICE_NAME: usize = 15;

/// Checks everything in an adjustment.
pub(crate) fn adjustment(plugin: &str, adjust: &ContainerAdjustment) -> Result<(), PluginError> {
    let checks = Checks { plugin };
    checks.count("annotations", adjust.annotations.len())?;
    checks.count("mounts", adjust.mounts.len())?;
    checks.count("env", adjust.env.len())?;
    checks.count("args", adjust.args.len())?;
    for (key, value) in &adjust.annotations {
        checks.name("an annotation", removal(key).unwrap_or(key))?;
        checks.text("an annotation", value)?;
    }
    adjust.mounts.iter().try_for_each(|mount| checks.mount(mount))?;
    for variable in &adjust.env {
        let name = removal(&variable.key).unwrap_or(&variable.key);
        checks.name("a variable", name)?;
        if name.contains('=') {
            return Err(checks.refuse(format!("the variable {name:?}, whose name has a \"=\"")));
        }
        checks.text("a variable", &variable.value)?;
    }
    adjust.args.iter().try_for_each(|argument| checks.text("an argument", argument))?;
    adjust.hooks.iter().try_for_each(|hooks| checks.hooks(hooks))?;
    adjust.rlimits.iter().try_for_each(|limit| checks.rlimit(limit))?;
    adjust.cdi_devices.iter().try_for_each(|device| checks.name("a CDI device", &device.name))?;
    adjust.linux.iter().try_for_each(|linux| checks.linux(linux))
}

/// Checks limits.
pub(crate) fn resources(plugin: &str, resources: &LinuxResources) -> Result<(), PluginError> {
    Checks { plugin }.resources(resources)
}

struct Checks<'a> {
    plugin: &'a str,
}

impl Checks<'_> {
    fn refuse(&self, what: String) -> PluginError {
        PluginError::Wish { plugin: self.plugin.to_owned(), what }
    }

    fn count(&self, what: &str, count: usize) -> Result<(), PluginError> {
        match count {
            0..=ENTRIES => Ok(()),
            more => Err(self.refuse(format!("{more} entries of {what}, of which {ENTRIES} may be"))),
        }
    }

    fn text(&self, what: &str, text: &str) -> Result<(), PluginError> {
        match text.contains('\0') {
            true => Err(self.refuse(format!("{what} with a NUL in it"))),
            false => Ok(()),
        }
    }

    fn name(&self, what: &str, name: &str) -> Result<(), PluginError> {
        match name.is_empty() {
            true => Err(self.refuse(format!("{what} without a name"))),
            false => self.text(what, name),
        }
    }

    fn path(&self, what: &str, path: &str) -> Result<(), PluginError> {
        if !path.starts_with('/') || path.split('/').any(|part| part == "..") {
            return Err(self.refuse(format!("{what} {path:?}, which is not an absolute, plain path")));
        }
        self.text(what, path)
    }

    fn mount(&self, mount: &Mount) -> Result<(), PluginError> {
        if let Some(destination) = removal(&mount.destination) {
            return self.path("removal of the mount", destination);
        }
        self.path("a mount at", &mount.destination)?;
        self.count("options of a mount", mount.options.len())?;
        self.text("a mount", &mount.source)?;
        self.text("a mount", &mount.r#type)?;
        let bind = mount.options.iter().any(|option| option == "bind" || option == "rbind")
            || mount.r#type == "bind";
        if bind {
            self.path(&format!("a bind mount at {} of", mount.destination), &mount.source)?;
        }
        mount.options.iter().try_for_each(|option| self.name("a mount option", option))
    }

    fn hooks(&self, hooks: &Hooks) -> Result<(), PluginError> {
        let lists = [
            &hooks.prestart,
            &hooks.create_runtime,
            &hooks.create_container,
            &hooks.start_container,
            &hooks.poststart,
            &hooks.poststop,
        ];
        lists.iter().try_for_each(|list| {
            self.count("hooks", list.len())?;
            list.iter().try_for_each(|hook| self.hook(hook))
        })
    }

    fn hook(&self, hook: &Hook) -> Result<(), PluginError> {
        self.path("the OCI hook", &hook.path)?;
        hook.args.iter().chain(&hook.env).try_for_each(|text| self.text("an OCI hook", text))?;
        match hook.timeout {
            Some(timeout) if timeout.value <= 0 => {
                Err(self.refuse(format!("the OCI hook {} with a timeout of {}", hook.path, timeout.value)))
            }
            _ => Ok(()),
        }
    }

    fn rlimit(&self, limit: &PosixRlimit) -> Result<(), PluginError> {
        if !limit.r#type.starts_with("RLIMIT_") {
            return Err(self.refuse(format!("the resource limit {:?}, which there is not", limit.r#type)));
        }
        match limit.soft > limit.hard {
            true => Err(self.refuse(format!("a soft {} above the hard one", limit.r#type))),
            false => Ok(()),
        }
    }

    fn linux(&self, linux: &LinuxContainerAdjustment) -> Result<(), PluginError> {
        self.count("devices", linux.devices.len())?;
        linux.devices.iter().try_for_each(|device| self.device(device))?;
        linux.resources.iter().try_for_each(|resources| self.resources(resources))?;
        self.text("a cgroup path", &linux.cgroups_path)?;
        if let Some(score) = linux.oom_score_adj
            && !(-1000..=1000).contains(&score.value)
        {
            return Err(self.refuse(format!("the oom_score_adj {}", score.value)));
        }
        if let Some(priority) = linux.io_priority
            && !(0..=7).contains(&priority.priority)
        {
            return Err(self.refuse(format!("the I/O priority {}", priority.priority)));
        }
        for namespace in &linux.namespaces {
            let kind = removal(&namespace.r#type).unwrap_or(&namespace.r#type);
            if !["pid", "network", "ipc", "uts", "mount", "user", "cgroup", "time"].contains(&kind) {
                return Err(self.refuse(format!("the namespace {kind:?}, which there is not")));
            }
            if !namespace.path.is_empty() {
                self.path("a namespace at", &namespace.path)?;
            }
        }
        for (key, value) in &linux.sysctl {
            let key = removal(key).unwrap_or(key);
            self.name("a sysctl", key)?;
            self.text("a sysctl", value)?;
            if key.split(['.', '/']).any(|part| part.is_empty() || part == "..") {
                return Err(self.refuse(format!("the sysctl {key:?}, which is no name of one")));
            }
        }
        for (key, device) in &linux.net_devices {
            let inside = if removal(key).is_some() { "" } else { device.name.as_str() };
            for name in [removal(key).unwrap_or(key), inside] {
                if name.len() > DEVICE_NAME
                    || name.contains(['/', '\0'])
                    || name.contains(char::is_whitespace)
                {
                    return Err(self.refuse(format!("the network device {name:?}, which is no name of one")));
                }
            }
            self.name("a network device", removal(key).unwrap_or(key))?;
        }
        linux.seccomp_policy.iter().try_for_each(|policy| self.seccomp(policy))
    }

    fn device(&self, device: &LinuxDevice) -> Result<(), PluginError> {
        if let Some(path) = removal(&device.path) {
            return self.path("removal of the device", path);
        }
        self.path("the device", &device.path)?;
        match device.r#type.as_str() {
            "c" | "b" | "u" | "p" if device.major >= 0 && device.minor >= 0 => Ok(()),
            kind => Err(self.refuse(format!(
                "the device {} of type {kind:?}, {}:{}",
                device.path, device.major, device.minor
            ))),
        }
    }

    fn resources(&self, resources: &LinuxResources) -> Result<(), PluginError> {
        for limit in &resources.hugepage_limits {
            self.name("a limit of huge pages", &limit.page_size)?;
        }
        for (key, value) in &resources.unified {
            self.name("a file of cgroup v2", key)?;
            self.text("a file of cgroup v2", value)?;
            if key.contains('/') || key.starts_with(REMOVAL) {
                return Err(self.refuse(format!("the file of cgroup v2 {key:?}, which is no name of one")));
            }
        }
        let Some(cpu) = &resources.cpu else { return Ok(()) };
        for list in [&cpu.cpus, &cpu.mems] {
            if !list.chars().all(|c| c.is_ascii_digit() || c == ',' || c == '-') {
                return Err(self.refuse(format!("the CPU or node list {list:?}")));
            }
        }
        Ok(())
    }

    fn seccomp(&self, policy: &LinuxSeccomp) -> Result<(), PluginError> {
        let actions = policy.syscalls.iter().map(|call| &call.action).chain([&policy.default_action]);
        for action in actions {
            if !action.starts_with("SCMP_ACT_") {
                return Err(self.refuse(format!("the seccomp action {action:?}, which there is not")));
            }
        }
        self.text("a seccomp listener", &policy.listener_path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::{CdiDevice, KeyValue, LinuxNamespace, OptionalInt};

    #[track_caller]
    fn check(adjust: ContainerAdjustment, part: &str) {
        let error = adjustment("10-a", &adjust).unwrap_err().to_string();
        assert!(error.contains("10-a") && error.contains(part), "{error}");
    }

    fn linux(linux: LinuxContainerAdjustment) -> ContainerAdjustment {
        ContainerAdjustment { linux: Some(linux), ..Default::default() }
    }

    #[test]
    fn what_can_not_be_is_refused_with_the_plugin_and_the_thing() {
        let mount = |destination: &str, source: &str| ContainerAdjustment {
            mounts: vec![Mount {
                destination: destination.into(),
                r#type: "bind".into(),
                source: source.into(),
                options: Vec::new(),
            }],
            ..Default::default()
        };
        check(mount("relative", "/a"), "relative");
        check(mount("/a/../b", "/a"), "/a/../b");
        check(mount("/a", "b"), "\"b\"");
        let variable = KeyValue { key: "A=B".into(), value: String::new() };
        check(ContainerAdjustment { env: vec![variable], ..Default::default() }, "A=B");
        let limit = PosixRlimit { r#type: "RLIMIT_NOFILE".into(), hard: 1, soft: 2 };
        check(ContainerAdjustment { rlimits: vec![limit], ..Default::default() }, "RLIMIT_NOFILE");
        let nameless = CdiDevice::default();
        check(ContainerAdjustment { cdi_devices: vec![nameless], ..Default::default() }, "CDI");
        let score = Some(OptionalInt { value: 5000 });
        check(linux(LinuxContainerAdjustment { oom_score_adj: score, ..Default::default() }), "5000");
        let namespace = LinuxNamespace { r#type: "moon".into(), path: String::new() };
        check(linux(LinuxContainerAdjustment { namespaces: vec![namespace], ..Default::default() }), "moon");
        let device = LinuxDevice { path: "/dev/x".into(), r#type: "q".into(), ..Default::default() };
        check(linux(LinuxContainerAdjustment { devices: vec![device], ..Default::default() }), "/dev/x");
    }

    #[test]
    fn an_empty_wish_is_fine() {
        adjustment("10-a", &ContainerAdjustment::default()).unwrap();
    }
}
