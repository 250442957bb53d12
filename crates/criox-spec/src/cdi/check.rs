//! What makes a file sound.

use super::names::{check_device, check_kind};
use super::{CdiError, DeviceNode, Document, Edits, Hook, Mount, Rdt};
use crate::mounts::clean_destination;

/// The newest version that is understood, major and minor: patch versions change no meaning.
const NEWEST: (u32, u32) = (1, 1);
/// Points of a container's life, by their OCI names.
const HOOKS: [&str; 6] =
    ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"];

pub(super) fn check(document: &Document) -> Result<(), CdiError> {
    check_kind(&document.kind).map_err(|reason| CdiError(format!("kind: {reason}")))?;
    if document.devices.is_empty() {
        return Err(CdiError("describes no device".to_owned()));
    }
    edits(&document.container_edits).map_err(|reason| CdiError(format!("containerEdits: {reason}")))?;
    for device in &document.devices {
        let inside = |reason: String| CdiError(format!("device {:?}: {reason}", device.name));
        check_device(&device.name).map_err(CdiError)?;
        if device.container_edits == Edits::default() {
            return Err(inside("has no containerEdits".to_owned()));
        }
        edits(&device.container_edits).map_err(inside)?;
    }
    version(document)
}

/// A file says by its version what it may use; one that says too little was tested with nothing that knows the rest.
fn version(document: &Document) -> Result<(), CdiError> {
    let text = document.cdi_version.trim_start_matches('v');
    let mut parts = text.split('.').map(|part| part.parse::<u32>().ok());
    let said = match (parts.next().flatten(), parts.next().flatten(), parts.next().flatten(), parts.next()) {
        (Some(major), Some(minor), Some(_), None) => (major, minor),
        _ => return Err(CdiError(format!("cdiVersion: {:?} is no version", document.cdi_version))),
    };
    let known = (0, 1) <= said && said <= NEWEST && (said.0 > 0 || said.1 <= 8);
    if !known {
        let (major, minor) = NEWEST;
        let reason =
            format!("cdiVersion: {text} is not known; this version of criox knows up to {major}.{minor}");
        return Err(CdiError(reason));
    }
    let (least, what) = needed(document);
    if said < least {
        let reason =
            format!("cdiVersion: {text} is too old for {what}, which came with {}.{}.0", least.0, least.1);
        return Err(CdiError(reason));
    }
    Ok(())
}

/// The version that the file's content needs, and for what.
fn needed(document: &Document) -> ((u32, u32), &'static str) {
    let all = || {
        let devices = document.devices.iter().map(|device| &device.container_edits);
        devices.chain([&document.container_edits])
    };
    let any = |uses: &dyn Fn(&Edits) -> bool| all().any(uses);
    let class = document.kind.split_once('/').map_or("", |(_, class)| class);
    let annotated =
        !document.annotations.is_empty() || document.devices.iter().any(|d| !d.annotations.is_empty());
    let newer = |rdt: &Rdt| !rdt.schemata.is_empty() || rdt.enable_monitoring;
    let digit = |name: &str| name.starts_with(|first: char| first.is_ascii_digit());
    let rules: [((u32, u32), &str, bool); 9] = [
        ((1, 1), "netDevices", any(&|e| !e.net_devices.is_empty())),
        ((1, 1), "intelRdt.schemata and enableMonitoring", any(&|e| e.intel_rdt.as_ref().is_some_and(newer))),
        ((0, 7), "intelRdt", any(&|e| e.intel_rdt.is_some())),
        ((0, 7), "additionalGids", any(&|e| !e.additional_gids.is_empty())),
        ((0, 6), "annotations", annotated),
        ((0, 6), "a dot in the class", class.contains('.')),
        ((0, 5), "a device name that begins with a digit", document.devices.iter().any(|d| digit(&d.name))),
        (
            (0, 5),
            "hostPath of a device node",
            any(&|e| e.device_nodes.iter().any(|n| !n.host_path.is_empty())),
        ),
        ((0, 4), "type of a mount", any(&|e| e.mounts.iter().any(|mount| !mount.kind.is_empty()))),
    ];
    rules.into_iter().find(|(.., used)| *used).map_or(((0, 1), ""), |(least, what, _)| (least, what))
}

fn edits(edits: &Edits) -> Result<(), String> {
    environment(&edits.env)?;
    edits.device_nodes.iter().try_for_each(device_node)?;
    edits.mounts.iter().try_for_each(mount)?;
    edits.hooks.iter().try_for_each(hook)?;
    if let Some(rdt) = &edits.intel_rdt {
        // It becomes a directory's name; "/" is the class of the root.
        let id = rdt.clos_id.as_str();
        if id != "/" && (id.len() >= 4096 || [".", ".."].contains(&id) || id.contains(['/', '\n', '\0'])) {
            return Err(format!("intelRdt.closID: {id:?} is no name of a class"));
        }
    }
    net_devices(edits)
}

fn environment(env: &[String]) -> Result<(), String> {
    match env.iter().find(|pair| pair.find('=').is_none_or(|at| at == 0) || pair.contains('\0')) {
        Some(pair) => Err(format!("env: {pair:?} is not of the form NAME=value")),
        None => Ok(()),
    }
}

fn device_node(node: &DeviceNode) -> Result<(), String> {
    let path = &node.path;
    inside("deviceNodes", path)?;
    if !node.host_path.is_empty() && !is_plain(&node.host_path) {
        return Err(format!("deviceNodes: hostPath {:?} is not absolute", node.host_path));
    }
    if !["", "b", "c", "u", "p"].contains(&node.kind.as_str()) {
        return Err(format!("deviceNodes: {path:?} has the unknown type {:?}", node.kind));
    }
    let letters = node.permissions.chars().all(|letter| "rwm".contains(letter));
    if !letters && node.permissions != "none" {
        return Err(format!("deviceNodes: {path:?} has the unknown permissions {:?}", node.permissions));
    }
    match node.file_mode {
        Some(mode) if mode > 0o7777 => Err(format!("deviceNodes: {path:?} has the impossible mode {mode:o}")),
        _ => Ok(()),
    }
}

fn mount(mount: &Mount) -> Result<(), String> {
    inside("mounts", &mount.container_path)?;
    if mount.host_path.is_empty() || mount.host_path.contains('\0') {
        return Err(format!("mounts: hostPath {:?} is no path", mount.host_path));
    }
    match mount.options.iter().find(|option| option.is_empty() || option.contains([',', '\0'])) {
        Some(option) => Err(format!("mounts: {option:?} is no option")),
        None => Ok(()),
    }
}

/// A place in the container, which is not the root.
fn inside(list: &str, path: &str) -> Result<(), String> {
    match clean_destination(path) {
        Ok(clean) if clean == "/" => Err(format!("{list}: {path:?} is the root")),
        Ok(_) => Ok(()),
        Err(reason) => Err(format!("{list}: {reason}")),
    }
}

fn is_plain(path: &str) -> bool {
    path.starts_with('/') && !path.contains('\0')
}

fn hook(hook: &Hook) -> Result<(), String> {
    let name = &hook.hook_name;
    if !HOOKS.contains(&name.as_str()) {
        return Err(format!("hooks: {name:?} is none of {}", HOOKS.join(", ")));
    }
    if !is_plain(&hook.path) {
        return Err(format!("hooks: the path {:?} of {name} is not absolute", hook.path));
    }
    if hook.timeout.is_some_and(|seconds| seconds <= 0) {
        return Err(format!("hooks: the timeout of {name} is not above 0"));
    }
    if hook.args.iter().any(|argument| argument.contains('\0')) {
        return Err(format!("hooks: an argument of {name} contains a NUL byte"));
    }
    environment(&hook.env).map_err(|reason| format!("hooks: {reason}"))
}

fn net_devices(edits: &Edits) -> Result<(), String> {
    let is_name = |name: &str| {
        // IFNAMSIZ with the NUL; the kernel's own rules.
        (1..16).contains(&name.len())
            && ![".", ".."].contains(&name)
            && !name.contains(|c: char| c == '/' || c == ':' || c.is_whitespace() || c.is_control())
    };
    for (index, device) in edits.net_devices.iter().enumerate() {
        let (host, name) = (&device.host_interface_name, &device.name);
        if !is_name(host) || !is_name(name) {
            return Err(format!("netDevices: {host:?} as {name:?} are no names of interfaces"));
        }
        let others = &edits.net_devices[..index];
        if others.iter().any(|other| other.host_interface_name == *host || other.name == *name) {
            return Err(format!("netDevices: {host:?} as {name:?} stands there twice"));
        }
    }
    Ok(())
}
