//! Device nodes and the rules of the device controller.

use criox_cri::v1;

use crate::error::SpecError;
use crate::input::{DeviceKind, EffectiveUser, ResolvedDevice, SpecInput};
use crate::mounts::clean_destination;
use crate::oci;

/// A directory of devices is expanded by the caller; no node has so many that a container needs.
const MAX_DEVICES: usize = 1024;
/// With the host's own nodes in a privileged container.
const MAX_HOST_DEVICES: usize = 65536;

/// Nodes that the runtime makes itself, or that are mounts inside a container.
const RUNTIME_OWNED: [&str; 11] = [
    "/dev/null",
    "/dev/zero",
    "/dev/full",
    "/dev/random",
    "/dev/urandom",
    "/dev/tty",
    "/dev/console",
    "/dev/ptmx",
    "/dev/pts",
    "/dev/shm",
    "/dev/mqueue",
];

pub(crate) struct Devices {
    pub(crate) nodes: Vec<oci::Device>,
    pub(crate) rules: Vec<oci::DeviceRule>,
}

pub(crate) fn build(
    input: &SpecInput<'_>,
    context: &v1::LinuxContainerSecurityContext,
    user: &EffectiveUser,
) -> Result<Devices, SpecError> {
    if input.devices.len() > MAX_DEVICES {
        let reason = format!("{} device nodes: at most {MAX_DEVICES}", input.devices.len());
        return Err(SpecError::invalid("devices", reason));
    }
    check_requested(&input.container.devices)?;
    let with_host = context.privileged && !input.handler.privileged_without_host_devices;
    let mut nodes: Vec<oci::Device> = Vec::new();
    if with_host {
        for device in input.node.host_devices.iter().take(MAX_HOST_DEVICES) {
            if !RUNTIME_OWNED.iter().any(|owned| {
                device.path == *owned
                    || device.path.strip_prefix(owned).is_some_and(|rest| rest.starts_with('/'))
            }) {
                nodes.push(node(device, None));
            }
        }
    }
    let owner = input.defaults.device_ownership_from_security_context.then(|| owner(context, user));
    let mut rules =
        vec![oci::DeviceRule { allow: with_host, access: "rwm".to_owned(), ..Default::default() }];
    for (index, device) in input.devices.iter().enumerate() {
        let node = node(device, owner);
        check_node(index, &node)?;
        if let Some(existing) = nodes.iter_mut().find(|existing| existing.path == node.path) {
            // A later source of the same path replaces the earlier one; for a host node of another device this
            // would quietly give another disk than the one that was asked for.
            let same =
                (existing.major, existing.minor, &existing.kind) == (node.major, node.minor, &node.kind);
            if with_host && !same {
                let reason = format!("{} is another device on the node", node.path);
                return Err(SpecError::invalid("devices", reason));
            }
            *existing = node;
        } else {
            nodes.push(node);
        }
        if !with_host {
            rules.push(rule(index, device)?);
        }
    }
    Ok(Devices { nodes, rules })
}

fn node(device: &ResolvedDevice, owner: Option<(Option<u32>, Option<u32>)>) -> oci::Device {
    let (uid, gid) = owner.unwrap_or((None, None));
    oci::Device {
        path: device.path.clone(),
        kind: letter(device.kind).to_owned(),
        major: i64::from(device.major),
        minor: i64::from(device.minor),
        file_mode: Some(device.mode & 0o7777),
        uid: Some(uid.unwrap_or(device.uid)),
        gid: Some(gid.unwrap_or(device.gid)),
    }
}

fn letter(kind: DeviceKind) -> &'static str {
    match kind {
        DeviceKind::Char => "c",
        DeviceKind::Block => "b",
    }
}

/// `device_ownership_from_security_context`: only what the request names, and never root.
fn owner(context: &v1::LinuxContainerSecurityContext, user: &EffectiveUser) -> (Option<u32>, Option<u32>) {
    let uid = (context.run_as_user.is_some() && user.uid > 0).then_some(user.uid);
    let gid = (context.run_as_group.is_some() && user.gid > 0).then_some(user.gid);
    (uid, gid)
}

fn rule(index: usize, device: &ResolvedDevice) -> Result<oci::DeviceRule, SpecError> {
    let access = permissions(&device.permissions).ok_or_else(|| {
        SpecError::invalid(format!("devices[{index}].permissions"), bad(&device.permissions))
    })?;
    Ok(oci::DeviceRule {
        allow: true,
        kind: Some(letter(device.kind).to_owned()),
        major: Some(i64::from(device.major)),
        minor: Some(i64::from(device.minor)),
        access,
    })
}

fn bad(text: &str) -> String {
    format!("{text:?} is not made of the letters r, w and m, each at most once")
}

/// Letters in the order of the kernel's files; an empty request is all of them.
fn permissions(text: &str) -> Option<String> {
    if text.is_empty() {
        return Some("rwm".to_owned());
    }
    let once = |letter: char| text.chars().filter(|other| *other == letter).count() <= 1;
    let valid = text.chars().all(|letter| "rwm".contains(letter) && once(letter));
    valid.then(|| "rwm".chars().filter(|letter| text.contains(*letter)).collect())
}

fn check_requested(devices: &[v1::Device]) -> Result<(), SpecError> {
    for (index, device) in devices.iter().enumerate() {
        if !device.host_path.starts_with('/') {
            let reason = format!("{:?} is not an absolute path", device.host_path);
            return Err(SpecError::invalid(format!("devices[{index}].host_path"), reason));
        }
        if permissions(&device.permissions).is_none() {
            return Err(SpecError::invalid(
                format!("devices[{index}].permissions"),
                bad(&device.permissions),
            ));
        }
    }
    Ok(())
}

fn check_node(index: usize, node: &oci::Device) -> Result<(), SpecError> {
    let field = format!("devices[{index}].container_path");
    let clean = clean_destination(&node.path).map_err(|reason| SpecError::invalid(field.clone(), reason))?;
    // Block volumes are asked for anywhere in the container, so below /dev is no rule; the root is.
    if clean != node.path || clean == "/" {
        return Err(SpecError::invalid(field, format!("{:?} is no path for a device node", node.path)));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn permissions_are_letters_of_rwm_each_once() {
        for (text, expected) in [
            ("", Some("rwm")),
            ("mrw", Some("rwm")),
            ("r", Some("r")),
            ("rr", None),
            ("x", None),
            ("rw ", None),
        ] {
            assert_eq!(permissions(text).as_deref(), expected, "{text:?}");
        }
    }
}
