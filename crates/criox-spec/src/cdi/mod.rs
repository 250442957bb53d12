//! The Container Device Interface: files in which vendors say what a container needs for a device of theirs.
//!
//! Follows the CDI specification up to 1.1.0. Files are the administrator's, but a broken one must cost only its own
//! devices: [`parse_cdi`] takes any bytes. [`cdi_names`] reads what a request asks for, [`inject`] edits the
//! specification; which file describes which device is the caller's.

mod check;
mod inject;
mod names;

use std::collections::BTreeMap;

use serde::Deserialize;

pub use inject::{CdiFacts, HostNode, inject};
pub use names::{CdiName, cdi_names};

/// No vendor's file comes near; NVIDIA's largest have some hundred kilobytes.
const MAX_BYTES: usize = 8 << 20;

/// How a file is written, which its name says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CdiFormat {
    /// `.json`
    Json,
    /// `.yaml`
    Yaml,
}

/// Why a file or an edit is no good: one sentence, for whoever wrote the file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct CdiError(pub(crate) String);

impl CdiError {
    /// For who looks up nodes for [`inject`].
    #[must_use]
    pub fn new(reason: String) -> Self {
        Self(reason)
    }
}

/// A file that has been read and is sound.
#[derive(Debug, Clone, PartialEq)]
pub struct CdiFile {
    kind: String,
    common: Edits,
    devices: BTreeMap<String, Edits>,
}

/// What a container gets. Opaque outside: [`inject`] knows what to do with it.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Edits {
    env: Vec<String>,
    device_nodes: Vec<DeviceNode>,
    net_devices: Vec<NetDevice>,
    hooks: Vec<Hook>,
    mounts: Vec<Mount>,
    intel_rdt: Option<Rdt>,
    #[serde(rename = "additionalGids")]
    additional_gids: Vec<u32>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Document {
    cdi_version: String,
    kind: String,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
    #[serde(default)]
    devices: Vec<Device>,
    #[serde(default)]
    container_edits: Edits,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Device {
    name: String,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
    #[serde(default)]
    container_edits: Edits,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
struct DeviceNode {
    path: String,
    host_path: String,
    #[serde(rename = "type")]
    kind: String,
    major: u32,
    minor: u32,
    file_mode: Option<u32>,
    permissions: String,
    uid: Option<u32>,
    gid: Option<u32>,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
struct NetDevice {
    host_interface_name: String,
    name: String,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
struct Mount {
    host_path: String,
    container_path: String,
    #[serde(rename = "type")]
    kind: String,
    options: Vec<String>,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
struct Hook {
    hook_name: String,
    path: String,
    args: Vec<String>,
    env: Vec<String>,
    timeout: Option<i64>,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
struct Rdt {
    #[serde(rename = "closID")]
    clos_id: String,
    l3_cache_schema: String,
    mem_bw_schema: String,
    schemata: Vec<String>,
    enable_monitoring: bool,
    #[serde(rename = "enableCMT")]
    enable_cmt: bool,
    #[serde(rename = "enableMBM")]
    enable_mbm: bool,
}

/// Reads a file. Unknown fields are refused: they would be edits that a container silently does without.
///
/// # Errors
/// What is wrong with it, in one sentence.
pub fn parse_cdi(bytes: &[u8], format: CdiFormat) -> Result<CdiFile, CdiError> {
    if bytes.len() > MAX_BYTES {
        return Err(CdiError(format!("larger than {} MiB", MAX_BYTES >> 20)));
    }
    let document: Document = match format {
        CdiFormat::Json => serde_json::from_slice(bytes).map_err(|error| CdiError(error.to_string()))?,
        CdiFormat::Yaml => yaml(bytes)?,
    };
    check::check(&document)?;
    let mut devices = BTreeMap::new();
    for device in document.devices {
        if devices.insert(device.name.clone(), device.container_edits).is_some() {
            return Err(CdiError(format!("device {:?} stands in it twice", device.name)));
        }
    }
    Ok(CdiFile { kind: document.kind, common: document.container_edits, devices })
}

/// YAML as Go programs write it: `0660` is octal. References can't make it grow without bound, and keys are unique.
fn yaml(bytes: &[u8]) -> Result<Document, CdiError> {
    let text = std::str::from_utf8(bytes).map_err(|_| CdiError("not UTF-8".to_owned()))?;
    let options = serde_saphyr::options! {
        legacy_octal_numbers: true,
        with_snippet: false,
    };
    serde_saphyr::from_str_with_options(text, options).map_err(|error| CdiError(error.to_string()))
}

impl CdiFile {
    /// `vendor/class`.
    #[must_use]
    pub fn kind(&self) -> &str {
        &self.kind
    }

    /// Names of its devices.
    pub fn devices(&self) -> impl Iterator<Item = &str> {
        self.devices.keys().map(String::as_str)
    }

    /// What a container with any of its devices gets, once.
    #[must_use]
    pub fn common(&self) -> &Edits {
        &self.common
    }

    /// What a container with this device gets.
    #[must_use]
    pub fn device(&self, name: &str) -> Option<&Edits> {
        self.devices.get(name)
    }
}

#[cfg(test)]
mod tests;
