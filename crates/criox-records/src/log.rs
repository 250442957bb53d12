//! Where a container's log lies. The kubelet decides the next attempt by the numbers of the files it finds.

use std::path::{Component, Path, PathBuf};

use criox_cri::ids::ContainerId;
use criox_cri::v1;

use crate::error::FieldError;

/// The absolute path of a log: the sandbox's directory and the container's path below it. Where the request names none
/// it is `<default>/<container>.log`, as with CRI-O; `default` is the pod's directory below `log_dir`.
///
/// # Errors
/// A path that leaves the directory (hardening: CVE-2025-0750), or a directory that is not absolute.
pub fn log_path(
    sandbox: &v1::PodSandboxConfig,
    container: &v1::ContainerConfig,
    default: &Path,
    id: &ContainerId,
) -> Result<PathBuf, FieldError> {
    let name = format!("{id}.log");
    let log_path = if container.log_path.is_empty() { &name } else { &container.log_path };
    let directory =
        if sandbox.log_directory.is_empty() { default } else { Path::new(&sandbox.log_directory) };
    if !directory.is_absolute() || sandbox.log_directory.contains('\0') {
        return Err(FieldError::new("sandbox_config.log_directory", "must be an absolute path"));
    }
    let relative = Path::new(log_path);
    let plain = relative.components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
    if !plain || log_path.contains('\0') {
        return Err(FieldError::about(
            "config.log_path",
            format!("{log_path:?} must be relative to the pod's log directory and stay in it"),
        ));
    }
    Ok(directory.join(relative))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(directory: &str, below: &str) -> Result<PathBuf, FieldError> {
        let sandbox = v1::PodSandboxConfig { log_directory: directory.into(), ..Default::default() };
        let container = v1::ContainerConfig { log_path: below.into(), ..Default::default() };
        let id = ContainerId::parse(&"c".repeat(64)).expect("an ID");
        log_path(&sandbox, &container, Path::new("/var/log/crio/pods/s"), &id)
    }

    #[test]
    fn a_log_lies_below_the_pods_directory() {
        let found = check("/var/log/pods/ns_p_u", "web/0.log").expect("a plain path");
        assert_eq!(found, Path::new("/var/log/pods/ns_p_u/web/0.log"));
        assert_eq!(check("", "0.log").expect("no directory"), Path::new("/var/log/crio/pods/s/0.log"));
        let unnamed = check("/var/log/pods/ns_p_u", "").expect("no name");
        assert!(unnamed.to_string_lossy().ends_with("ccc.log"), "{unnamed:?}");
    }

    #[test]
    fn a_log_path_that_leaves_the_directory_is_refused() {
        for bad in ["../../etc/cron.d/x", "/etc/passwd", "a/../../b", "a\0b"] {
            assert!(check("/var/log/pods/p", bad).is_err(), "{bad:?}");
        }
        assert!(check("relative", "web/0.log").is_err());
    }
}
