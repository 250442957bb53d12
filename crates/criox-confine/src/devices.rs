//! Device nodes of a container: those of the configuration, then those of the request; a directory stands for the
//! nodes below it.

use std::fs;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use criox_config::value::DeviceMapping;
use criox_cri::v1;
use criox_spec::{DeviceKind, HandlerFeatures, ResolvedDevice, gated_annotation};

use crate::error::{Error, Result};

/// Nodes that one device of a request may stand for.
const MAX: usize = 1024;
/// Directories below directories.
const DEPTH: usize = 8;

/// The pod's annotation that asks for devices, by its new and its old name: `source[:destination][:permissions]`,
/// several with commas between.
const ANNOTATION: [&str; 2] = ["devices.crio.io", "io.kubernetes.cri-o.Devices"];

/// What it is called in errors.
const ANNOTATION_FIELD: &str = "sandbox_config.annotations[devices.crio.io]";

/// The device nodes of a container: `configured` for all of them (`additional_devices`), those that the pod's annotation
/// asks for, of which the node must have `allowed` each source (`allowed_devices`), and those of the request.
///
/// # Errors
/// A device that is not there, is none, or may not be asked for, with its field.
pub fn devices(
    configured: &[DeviceMapping],
    allowed: &[String],
    sandbox: &v1::PodSandboxConfig,
    container: &v1::ContainerConfig,
    features: &HandlerFeatures,
) -> Result<Vec<ResolvedDevice>> {
    let mut found = Vec::new();
    for device in configured {
        let (inside, permissions) = (device.destination.to_string_lossy(), device.permissions.clone());
        collect("additional_devices", &device.source, &inside, &permissions, &mut found)?;
    }
    let asked = gated_annotation(&sandbox.annotations, &features.allowed_annotations, &ANNOTATION);
    for device in annotated(asked.unwrap_or_default(), allowed)? {
        let inside = device.destination.to_string_lossy();
        collect(ANNOTATION_FIELD, &device.source, &inside, &device.permissions, &mut found)?;
    }
    for (index, device) in container.devices.iter().enumerate() {
        let inside =
            if device.container_path.is_empty() { &device.host_path } else { &device.container_path };
        let field = format!("config.devices[{index}].host_path");
        collect(&field, Path::new(&device.host_path), inside, &device.permissions, &mut found)?;
    }
    Ok(found)
}

/// The devices of the annotation, each of which `allowed_devices` must name.
fn annotated(text: &str, allowed: &[String]) -> Result<Vec<DeviceMapping>> {
    let mut devices = Vec::new();
    for entry in text.split(',').map(str::trim).filter(|entry| !entry.is_empty()) {
        let device = DeviceMapping::parse_one(entry)
            .map_err(|reason| Error::invalid(format!("{ANNOTATION_FIELD}: {reason}")))?;
        if !allowed.iter().any(|path| Path::new(path) == device.source) {
            let source = device.source.display();
            return Err(Error::invalid(format!(
                "{ANNOTATION_FIELD}: {source} is not among allowed_devices of this node's configuration"
            )));
        }
        devices.push(device);
    }
    Ok(devices)
}

/// All nodes below the host's `/dev`, for privileged containers; not those of terminals, queues and shared memory,
/// which the container has of its own.
pub fn host_devices() -> Vec<ResolvedDevice> {
    const OWN: [&str; 5] = ["/dev/pts", "/dev/shm", "/dev/mqueue", "/dev/fd", "/dev/console"];
    let mut found = Vec::new();
    let entries = fs::read_dir("/dev").into_iter().flatten().flatten();
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    paths.sort();
    for path in paths.iter().filter(|path| !OWN.iter().any(|own| path == &Path::new(own))) {
        // Links and sockets are no devices, and a node that went away is none any more.
        let is_link = fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_symlink());
        if !is_link {
            drop(collect("/dev", path, &path.to_string_lossy(), "rwm", &mut found));
        }
    }
    found
}

fn collect(
    field: &str,
    host: &Path,
    inside: &str,
    permissions: &str,
    found: &mut Vec<ResolvedDevice>,
) -> Result<()> {
    let mut pending = vec![(host.to_owned(), inside.to_owned(), 0)];
    while let Some((host, inside, depth)) = pending.pop() {
        let metadata = fs::metadata(&host).map_err(|error| {
            Error::invalid_because(format!("{field}: {} can't be had", host.display()), error)
        })?;
        let kind = metadata.file_type();
        if kind.is_dir() {
            if depth == DEPTH {
                return Err(Error::invalid(format!("{field}: {} is nested too deep", host.display())));
            }
            let entries = fs::read_dir(&host).map_err(|error| {
                Error::invalid_because(format!("{field}: {} can't be read", host.display()), error)
            })?;
            for entry in entries.flatten() {
                let name = entry.file_name();
                let special = entry
                    .file_type()
                    .is_ok_and(|kind| kind.is_dir() || kind.is_char_device() || kind.is_block_device());
                if special {
                    pending.push((
                        host.join(&name),
                        format!("{inside}/{}", name.to_string_lossy()),
                        depth + 1,
                    ));
                }
            }
        } else if kind.is_char_device() || kind.is_block_device() {
            if found.len() == MAX {
                return Err(Error::invalid(format!("{field}: stands for more than {MAX} devices")));
            }
            found.push(node(&inside, &metadata, permissions));
        } else if depth == 0 {
            return Err(Error::invalid(format!("{field}: {} is not a device", host.display())));
        }
    }
    Ok(())
}

fn node(inside: &str, metadata: &fs::Metadata, permissions: &str) -> ResolvedDevice {
    let number = metadata.rdev();
    ResolvedDevice {
        path: inside.to_owned(),
        kind: if metadata.file_type().is_block_device() { DeviceKind::Block } else { DeviceKind::Char },
        major: rustix::fs::major(number),
        minor: rustix::fs::minor(number),
        mode: metadata.mode() & 0o7777,
        uid: metadata.uid(),
        gid: metadata.gid(),
        permissions: if permissions.is_empty() { "rwm".into() } else { permissions.to_owned() },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_described_as_it_is_on_the_host() {
        let mut found = Vec::new();
        collect("f", Path::new("/dev/null"), "/dev/nothing", "r", &mut found).expect("there is /dev/null");
        let device = &found[0];
        assert_eq!((device.major, device.minor, device.path.as_str()), (1, 3, "/dev/nothing"));
        assert_eq!((device.kind, device.permissions.as_str()), (DeviceKind::Char, "r"));
    }

    #[test]
    fn a_file_is_no_device() {
        let error =
            collect("config.devices[0].host_path", Path::new("/etc/passwd"), "/dev/x", "", &mut Vec::new())
                .expect_err("a file");
        assert!(error.to_string().contains("config.devices[0].host_path"), "{error}");
    }

    #[test]
    fn an_annotation_gives_only_devices_that_the_node_allows() {
        let allowed = ["/dev/fuse".to_owned(), "/dev/net/tun".to_owned()];
        let ask = |text: &str| annotated(text, &allowed);
        assert!(ask("").expect("none").is_empty());
        let found = ask("/dev/fuse, /dev/net/tun:/dev/tun:rw").expect("both");
        assert_eq!(
            (found[0].destination.as_path(), found[0].permissions.as_str()),
            (Path::new("/dev/fuse"), "rwm")
        );
        assert_eq!(
            (found[1].destination.as_path(), found[1].permissions.as_str()),
            (Path::new("/dev/tun"), "rw")
        );
        for bad in ["/dev/sda", "/dev/fuse/../sda", "/dev/fuse:/etc/x", "fuse", "/dev/fuse:/dev/x:q"] {
            let error = ask(bad).expect_err(bad);
            assert!(error.to_string().contains("devices.crio.io"), "{error}");
        }
    }

    #[test]
    fn the_hosts_devices_are_without_its_terminals() {
        let found = host_devices();
        assert!(found.iter().any(|device| device.path == "/dev/null"));
        assert!(!found.iter().any(|device| device.path.starts_with("/dev/pts/")));
    }
}
