//! Edits of a specification.

use super::{CdiError, DeviceNode, Edits, Hook, Mount};
use crate::mounts::clean_destination;
use crate::oci;

/// A node in the host's `/dev`, looked up for a file that leaves it to the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HostNode {
    /// `c`, `b` or `p`.
    pub kind: char,
    /// Major number.
    pub major: u32,
    /// Minor number.
    pub minor: u32,
}

/// What the runtime handler can do with edits that older ones pass over in silence.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CdiFacts {
    /// Moves interfaces (`linux.netDevices`).
    pub net_devices: bool,
    /// Knows classes of cache and bandwidth; none when it does not say.
    pub intel_rdt: Option<bool>,
}

/// Applies the edits, in order, to a specification. `lookup` gives facts about a path of the host.
///
/// A later device replaces a node, mount or variable of the same name, as a later source does everywhere.
///
/// # Errors
/// A device of the host that is not there or is another one than the file says; an edit that the handler can't do.
pub fn inject(
    spec: &mut oci::Spec,
    edits: &[&Edits],
    facts: CdiFacts,
    lookup: &mut dyn FnMut(&str) -> Result<HostNode, CdiError>,
) -> Result<(), CdiError> {
    for edits in edits {
        for pair in &edits.env {
            set_variable(&mut spec.process.env, pair);
        }
        for node in &edits.device_nodes {
            add_node(spec, node, lookup)?;
        }
        for device in &edits.net_devices {
            if !facts.net_devices {
                let reason = format!(
                    "the runtime handler can't move the interface {:?} into a container",
                    device.host_interface_name
                );
                return Err(CdiError(reason));
            }
            let moved = oci::NetDevice { name: device.name.clone() };
            spec.linux.net_devices.insert(device.host_interface_name.clone(), moved);
        }
        for mount in &edits.mounts {
            add_mount(spec, mount)?;
        }
        for hook in &edits.hooks {
            add_hook(spec.hooks.get_or_insert_default(), hook);
        }
        if let Some(rdt) = &edits.intel_rdt {
            if facts.intel_rdt == Some(false) {
                return Err(CdiError("the runtime handler knows no intelRdt".to_owned()));
            }
            spec.linux.intel_rdt = Some(oci::IntelRdt {
                clos_id: rdt.clos_id.clone(),
                schemata: rdt.schemata.clone(),
                l3_cache_schema: rdt.l3_cache_schema.clone(),
                mem_bw_schema: rdt.mem_bw_schema.clone(),
                enable_monitoring: rdt.enable_monitoring,
                enable_cmt: rdt.enable_cmt,
                enable_mbm: rdt.enable_mbm,
            });
        }
        for gid in &edits.additional_gids {
            let gids = &mut spec.process.user.additional_gids;
            // Root's group would be a power that no device needs.
            if *gid != 0 && !gids.contains(gid) {
                gids.push(*gid);
            }
        }
    }
    // Stable: of two mounts at one place the later stays on top, and a parent never covers its children.
    spec.mounts.sort_by_key(|mount| mount.destination.matches('/').count());
    Ok(())
}

fn set_variable(env: &mut Vec<String>, pair: &str) {
    let name = pair.split('=').next().unwrap_or_default();
    let same = |entry: &&mut String| entry.split('=').next() == Some(name);
    match env.iter_mut().find(same) {
        Some(entry) => pair.clone_into(entry),
        None => env.push(pair.to_owned()),
    }
}

fn add_node(
    spec: &mut oci::Spec,
    node: &DeviceNode,
    lookup: &mut dyn FnMut(&str) -> Result<HostNode, CdiError>,
) -> Result<(), CdiError> {
    let path = clean_destination(&node.path).map_err(CdiError)?;
    let HostNode { kind, major, minor } = numbers(node, lookup)?;
    let user = &spec.process.user;
    let own = |id: u32| (id > 0).then_some(id);
    let device = oci::Device {
        path,
        kind: kind.to_string(),
        major: major.into(),
        minor: minor.into(),
        file_mode: node.file_mode,
        uid: node.uid.or_else(|| own(user.uid)),
        gid: node.gid.or_else(|| own(user.gid)),
    };
    spec.linux.devices.retain(|known| known.path != device.path);
    spec.linux.devices.push(device);
    let access = match node.permissions.as_str() {
        "" => "rwm",
        "none" => return Ok(()),
        letters => letters,
    };
    if kind != 'p' {
        spec.linux.resources.get_or_insert_default().devices.push(oci::DeviceRule {
            allow: true,
            kind: Some(kind.to_string()),
            major: Some(major.into()),
            minor: Some(minor.into()),
            access: access.to_owned(),
        });
    }
    Ok(())
}

/// The node's type and numbers: the file's, or those on the host.
fn numbers(
    node: &DeviceNode,
    lookup: &mut dyn FnMut(&str) -> Result<HostNode, CdiError>,
) -> Result<HostNode, CdiError> {
    // "u" is a character device without buffers, which Linux does not tell apart.
    let said = match node.kind.as_str() {
        "u" => Some('c'),
        text => text.chars().next(),
    };
    match said {
        Some('p') => return Ok(HostNode { kind: 'p', major: 0, minor: 0 }),
        Some(kind) if node.major != 0 => return Ok(HostNode { kind, major: node.major, minor: node.minor }),
        _ => {}
    }
    let host = if node.host_path.is_empty() { &node.path } else { &node.host_path };
    let found = lookup(host)?;
    match said {
        Some(kind) if kind != found.kind => Err(CdiError(format!(
            "{host:?} is a device of type {:?} on the node, and the file says {kind:?}",
            found.kind
        ))),
        _ if node.major != 0 => Ok(HostNode { major: node.major, minor: node.minor, ..found }),
        _ => Ok(found),
    }
}

fn add_mount(spec: &mut oci::Spec, mount: &Mount) -> Result<(), CdiError> {
    let destination = clean_destination(&mount.container_path).map_err(CdiError)?;
    spec.mounts.retain(|known| known.destination != destination);
    spec.mounts.push(oci::Mount {
        destination,
        kind: if mount.kind.is_empty() { "bind".to_owned() } else { mount.kind.clone() },
        source: mount.host_path.clone(),
        options: mount.options.clone(),
        ..Default::default()
    });
    Ok(())
}

fn add_hook(hooks: &mut oci::Hooks, hook: &Hook) {
    let list = match hook.hook_name.as_str() {
        "prestart" => &mut hooks.prestart,
        "createRuntime" => &mut hooks.create_runtime,
        "createContainer" => &mut hooks.create_container,
        "startContainer" => &mut hooks.start_container,
        "poststart" => &mut hooks.poststart,
        // No other name passes the check of the file.
        _ => &mut hooks.poststop,
    };
    list.push(oci::Hook {
        path: hook.path.clone(),
        args: hook.args.clone(),
        env: hook.env.clone(),
        timeout: hook.timeout,
    });
}
