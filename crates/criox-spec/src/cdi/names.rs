//! Names of devices: `vendor.com/class=device`.

use std::collections::BTreeSet;
use std::fmt;

use criox_cri::v1;

use crate::error::SpecError;

/// Annotations of a container whose keys begin so name devices, several with commas between.
const ANNOTATION: &str = "cdi.k8s.io/";
/// Longer ones are no names.
const MAX: usize = 1024;

/// A device as a request names it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct CdiName {
    /// `vendor.com/class`.
    pub kind: String,
    /// The device.
    pub device: String,
}

impl CdiName {
    /// Reads `vendor.com/class=device`.
    ///
    /// # Errors
    /// Why it is no such name.
    pub fn parse(text: &str) -> Result<Self, String> {
        let shown: String = text.chars().take(64).collect();
        let bad =
            |reason: &str| Err(format!("{shown:?} is no device of the form vendor/class=name: {reason}"));
        if text.len() > MAX {
            return bad("too long");
        }
        let Some((kind, device)) = text.split_once('=') else { return bad("there is no =") };
        if let Err(reason) = check_kind(kind) {
            return bad(&reason);
        }
        if let Err(reason) = check_device(device) {
            return bad(&reason);
        }
        Ok(Self { kind: kind.to_owned(), device: device.to_owned() })
    }
}

impl fmt::Display for CdiName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.kind, self.device)
    }
}

/// A name's first and last character, and those between.
fn is_name(text: &str, first: fn(&u8) -> bool, between: &[u8]) -> bool {
    let bytes = text.as_bytes();
    bytes.first().is_some_and(first)
        && bytes.last().is_some_and(u8::is_ascii_alphanumeric)
        && bytes.iter().all(|byte| byte.is_ascii_alphanumeric() || between.contains(byte))
}

/// `vendor/class`.
pub(super) fn check_kind(kind: &str) -> Result<(), String> {
    let Some((vendor, class)) = kind.split_once('/') else {
        return Err(format!("{kind:?} has no / between vendor and class"));
    };
    if !is_name(vendor, u8::is_ascii_alphabetic, b"_-.") {
        return Err(format!("{vendor:?} is no name of a vendor"));
    }
    if !is_name(class, u8::is_ascii_alphabetic, b"_-.") {
        return Err(format!("{class:?} is no name of a class"));
    }
    Ok(())
}

pub(super) fn check_device(name: &str) -> Result<(), String> {
    if is_name(name, u8::is_ascii_alphanumeric, b"_-.:") {
        return Ok(());
    }
    Err(format!("{name:?} is no name of a device"))
}

/// The devices that a container asks for, each once: those of the request's own field first, then those of its
/// annotations.
///
/// # Errors
/// Something that is no name, with its field.
pub fn cdi_names(container: &v1::ContainerConfig) -> Result<Vec<CdiName>, SpecError> {
    let mut known = BTreeSet::new();
    let mut names = Vec::new();
    let mut add = |text: &str, field: &dyn Fn() -> String| {
        let name = CdiName::parse(text).map_err(|reason| SpecError::invalid(field(), reason))?;
        if known.insert(name.clone()) {
            names.push(name);
        }
        Ok(())
    };
    for (index, device) in container.cdi_devices.iter().enumerate() {
        add(&device.name, &|| format!("CDI_devices[{index}].name"))?;
    }
    for (key, value) in container.annotations.iter().filter(|(key, _)| key.starts_with(ANNOTATION)) {
        for text in value.split(',') {
            add(text, &|| format!("annotations[{key}]"))?;
        }
    }
    Ok(names)
}
