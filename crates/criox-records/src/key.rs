//! The names under which creations are joined, and what makes two requests the same request.
//!
//! A kubelet's retry never equals the first call byte for byte: the environment comes in another order, the
//! termination log lies at another path, and `sandbox_config` is built anew. What it makes anew each time is left out.

use criox_cri::v1;

use crate::error::FieldError;

const NONE: FieldError = FieldError::new("config.metadata", "is missing");

fn not_empty(field: &'static str, value: &str) -> Result<(), FieldError> {
    match value {
        "" => Err(FieldError::new(field, "must not be empty")),
        _ => Ok(()),
    }
}

/// What tells sandboxes apart: (namespace, name, UID, attempt), as a structure, so that no separator can confuse two.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SandboxKey {
    /// The pod's namespace in Kubernetes.
    pub namespace: String,
    /// The pod's name.
    pub name: String,
    /// The pod's UID.
    pub uid: String,
    /// The sandbox's number within the pod.
    pub attempt: u32,
}

impl SandboxKey {
    /// The key of a request.
    ///
    /// # Errors
    /// No metadata, or an empty name, namespace or UID.
    pub fn of(config: &v1::PodSandboxConfig) -> Result<Self, FieldError> {
        let metadata = config.metadata.as_ref().ok_or(NONE)?;
        not_empty("config.metadata.name", &metadata.name)?;
        not_empty("config.metadata.namespace", &metadata.namespace)?;
        not_empty("config.metadata.uid", &metadata.uid)?;
        Ok(Self {
            namespace: metadata.namespace.clone(),
            name: metadata.name.clone(),
            uid: metadata.uid.clone(),
            attempt: metadata.attempt,
        })
    }
}

/// What tells the containers of a sandbox apart.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ContainerKey {
    /// The container's name in the pod.
    pub name: String,
    /// Its number.
    pub attempt: u32,
}

impl ContainerKey {
    /// The key of a request.
    ///
    /// # Errors
    /// No metadata, or an empty name.
    pub fn of(config: &v1::ContainerConfig) -> Result<Self, FieldError> {
        let metadata = config.metadata.as_ref().ok_or(NONE)?;
        not_empty("config.metadata.name", &metadata.name)?;
        Ok(Self { name: metadata.name.clone(), attempt: metadata.attempt })
    }
}

/// The fields in which two requests for one sandbox differ, of those that the kubelet keeps between retries.
pub fn sandbox_differences(old: &v1::PodSandboxConfig, new: &v1::PodSandboxConfig) -> Vec<&'static str> {
    let mut fields = Vec::new();
    let mut compare = |name, same: bool| {
        if !same {
            fields.push(name);
        }
    };
    compare("hostname", old.hostname == new.hostname);
    compare("log_directory", old.log_directory == new.log_directory);
    compare("port_mappings", old.port_mappings == new.port_mappings);
    compare("labels", old.labels == new.labels);
    let (old_linux, new_linux) =
        (old.linux.clone().unwrap_or_default(), new.linux.clone().unwrap_or_default());
    compare("linux.cgroup_parent", old_linux.cgroup_parent == new_linux.cgroup_parent);
    compare("linux.security_context", old_linux.security_context == new_linux.security_context);
    compare("linux.sysctls", old_linux.sysctls == new_linux.sysctls);
    fields
}

/// Whether two requests for one container are the same request.
pub fn same_container(old: &v1::ContainerConfig, new: &v1::ContainerConfig) -> bool {
    without_volatile_fields(old) == without_volatile_fields(new)
}

/// The fields in which two requests for one container differ.
pub fn container_differences(old: &v1::ContainerConfig, new: &v1::ContainerConfig) -> Vec<&'static str> {
    let (old, new) = (without_volatile_fields(old), without_volatile_fields(new));
    let mut fields = Vec::new();
    let mut compare = |name, same: bool| {
        if !same {
            fields.push(name);
        }
    };
    compare("image", old.image == new.image);
    compare("command", old.command == new.command);
    compare("args", old.args == new.args);
    compare("working_dir", old.working_dir == new.working_dir);
    compare("envs", old.envs == new.envs);
    compare("mounts", old.mounts == new.mounts);
    compare("devices", old.devices == new.devices);
    compare("CDI_devices", old.cdi_devices == new.cdi_devices);
    compare("labels", old.labels == new.labels);
    compare("annotations", old.annotations == new.annotations);
    compare("log_path", old.log_path == new.log_path);
    compare("stdin", old.stdin == new.stdin && old.stdin_once == new.stdin_once);
    compare("tty", old.tty == new.tty);
    compare("linux", old.linux == new.linux);
    compare("windows", old.windows == new.windows);
    compare("stop_signal", old.stop_signal == new.stop_signal);
    fields
}

fn without_volatile_fields(config: &v1::ContainerConfig) -> v1::ContainerConfig {
    const TERMINATION_PATH: &str = "io.kubernetes.container.terminationMessagePath";
    let mut config = config.clone();
    config.envs.sort_by(|a, b| (&a.key, &a.value).cmp(&(&b.key, &b.value)));
    let termination =
        config.annotations.get(TERMINATION_PATH).cloned().unwrap_or_else(|| "/dev/termination-log".into());
    for mount in &mut config.mounts {
        if mount.container_path == termination {
            mount.host_path.clear();
        }
    }
    config
}

#[cfg(test)]
mod tests {
    use super::*;

    fn container(envs: &[(&str, &str)], termination_log: &str) -> v1::ContainerConfig {
        v1::ContainerConfig {
            metadata: Some(v1::ContainerMetadata { name: "web".into(), attempt: 0 }),
            envs: envs
                .iter()
                .map(|(key, value)| v1::KeyValue { key: (*key).into(), value: (*value).into() })
                .collect(),
            mounts: vec![v1::Mount {
                container_path: "/dev/termination-log".into(),
                host_path: termination_log.into(),
                ..Default::default()
            }],
            ..Default::default()
        }
    }

    #[test]
    fn a_kubelets_retry_is_the_same_request_as_its_first_call() {
        let first = container(&[("A", "1"), ("B", "2")], "/pods/u/containers/web/1a2b3c4d");
        let retry = container(&[("B", "2"), ("A", "1")], "/pods/u/containers/web/99887766");
        assert!(same_container(&first, &retry));
        assert!(container_differences(&first, &retry).is_empty());
    }

    #[test]
    fn another_value_in_the_environment_is_another_request_and_is_named() {
        let first = container(&[("A", "1")], "/x");
        let other = container(&[("A", "2")], "/x");
        assert!(!same_container(&first, &other));
        assert_eq!(container_differences(&first, &other), ["envs"]);
    }

    #[test]
    fn whatever_makes_two_requests_differ_is_named() {
        let whole = v1::ContainerConfig::default();
        // All fields there are: a new one does not compile until somebody has said how it differs.
        let v1::ContainerConfig {
            metadata: _,
            image: _,
            command: _,
            args: _,
            working_dir: _,
            envs: _,
            mounts: _,
            devices: _,
            labels: _,
            annotations: _,
            log_path: _,
            stdin: _,
            stdin_once: _,
            tty: _,
            linux: _,
            windows: _,
            cdi_devices: _,
            stop_signal: _,
        } = &whole;
        type Change = fn(&mut v1::ContainerConfig);
        let changes: [(&str, Change); 17] = [
            ("image", |config| config.image = Some(v1::ImageSpec::default())),
            ("command", |config| config.command.push("x".into())),
            ("args", |config| config.args.push("x".into())),
            ("working_dir", |config| config.working_dir = "/x".into()),
            ("envs", |config| config.envs.push(v1::KeyValue::default())),
            ("mounts", |config| config.mounts.push(v1::Mount::default())),
            ("devices", |config| config.devices.push(v1::Device::default())),
            ("CDI_devices", |config| config.cdi_devices.push(v1::CdiDevice::default())),
            ("labels", |config| drop(config.labels.insert("x".into(), "y".into()))),
            ("annotations", |config| drop(config.annotations.insert("x".into(), "y".into()))),
            ("log_path", |config| config.log_path = "x".into()),
            ("stdin", |config| config.stdin = true),
            ("stdin", |config| config.stdin_once = true),
            ("tty", |config| config.tty = true),
            ("linux", |config| config.linux = Some(v1::LinuxContainerConfig::default())),
            ("windows", |config| config.windows = Some(v1::WindowsContainerConfig::default())),
            ("stop_signal", |config| config.stop_signal = v1::Signal::Sigusr1.into()),
        ];
        for (field, change) in changes {
            let mut other = whole.clone();
            change(&mut other);
            assert!(!same_container(&whole, &other), "{field}");
            assert_eq!(container_differences(&whole, &other), [field]);
        }
    }

    #[test]
    fn names_that_would_join_to_the_same_text_are_different_keys() {
        let key = |namespace: &str, name: &str| SandboxKey {
            namespace: namespace.into(),
            name: name.into(),
            uid: "u".into(),
            attempt: 0,
        };
        assert_ne!(key("a_b", "c"), key("a", "b_c"));
    }

    #[test]
    fn a_sandbox_without_metadata_is_refused_with_the_field() {
        let error = SandboxKey::of(&v1::PodSandboxConfig::default()).expect_err("no metadata");
        assert_eq!(error.to_string(), "config.metadata: is missing");
    }
}
