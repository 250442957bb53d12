//! System call filters: which one a container gets, our own default, and profiles from files.

mod default;
mod groups;
mod notifier;
mod profile;

use criox_cri::v1;

use crate::error::{SpecError, Warning, WarningTopic};
use crate::input::SpecInput;
use crate::oci;
use crate::security::{Profile as Requested, profile as requested};

pub use default::default_profile;
pub use notifier::{call_counts, call_name, listen};
pub use profile::{SeccompFile, parse_profile};

/// Machine architectures that criox runs on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arch {
    /// x86_64, with i386 and x32 programs.
    X86_64,
    /// arm64, with 32-bit ARM programs.
    Aarch64,
}

impl Arch {
    /// The architectures of a filter: the native one first, then those whose programs run here too. Without the latter
    /// the filter would kill, or worse not see, what a 32-bit program asks for.
    #[must_use]
    pub fn seccomp_names(self) -> &'static [&'static str] {
        match self {
            Self::X86_64 => &["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
            Self::Aarch64 => &["SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"],
        }
    }

    /// Names in the `arches` conditions of profiles (Go's).
    fn profile_names(self) -> &'static [&'static str] {
        match self {
            Self::X86_64 => &["amd64", "x32", "x86"],
            Self::Aarch64 => &["arm64", "arm"],
        }
    }
}

/// The filter of a container, resolved by the caller.
#[derive(Debug, Clone, Copy)]
pub enum SeccompProfile<'a> {
    /// None.
    Unconfined,
    /// Our own, see [`default_profile`].
    Default,
    /// From a file; `path` is recorded.
    Loaded {
        /// The parsed file.
        profile: &'a SeccompFile,
        /// Its path, or `RuntimeDefault` when the configuration names it as the default.
        path: &'a str,
    },
}

/// The filter that a request asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SeccompRequest {
    /// None, also when nothing is said.
    Unconfined,
    /// None because it is privileged; `privileged_seccomp_profile` replaces it.
    Privileged,
    /// The handler's, the configuration's, or our own.
    RuntimeDefault,
    /// The file at this absolute path.
    Localhost(String),
}

/// What the request says; the older string field counts only without the structured one.
///
/// # Errors
/// An unknown type, or a file that is not an absolute path.
pub fn seccomp_request(container: &v1::ContainerConfig) -> Result<SeccompRequest, SpecError> {
    const FIELD: &str = "linux.security_context.seccomp";
    let Some(context) = container.linux.as_ref().and_then(|linux| linux.security_context.as_ref()) else {
        return Ok(SeccompRequest::Unconfined);
    };
    if context.privileged {
        return Ok(SeccompRequest::Privileged);
    }
    match requested(context.seccomp.as_ref(), older_path(context), FIELD)? {
        Requested::Unset | Requested::Unconfined => Ok(SeccompRequest::Unconfined),
        Requested::RuntimeDefault => Ok(SeccompRequest::RuntimeDefault),
        Requested::Localhost(path) if path.starts_with('/') && !path.contains('\0') => {
            Ok(SeccompRequest::Localhost(path.to_owned()))
        }
        Requested::Localhost(path) => Err(SpecError::invalid(
            format!("{FIELD}.localhost_ref"),
            format!("{path:?} is not an absolute path"),
        )),
    }
}

#[expect(deprecated, reason = "older kubelets send only this field")]
fn older_path(context: &v1::LinuxContainerSecurityContext) -> &str {
    &context.seccomp_profile_path
}

/// The filter for the specification, and the name that is recorded.
pub(crate) fn resolve(
    input: &SpecInput<'_>,
    capabilities: Option<&oci::Capabilities>,
    warnings: &mut Vec<Warning>,
) -> Result<(Option<oci::Seccomp>, String), SpecError> {
    let held: &[String] = capabilities.map_or(&[], |sets| &sets.bounding);
    let (filter, name) = match input.seccomp {
        SeccompProfile::Unconfined => return Ok((None, "Unconfined".to_owned())),
        SeccompProfile::Default => (default_profile(input.node.arch, held), "RuntimeDefault"),
        SeccompProfile::Loaded { profile, path } => {
            (profile.resolve(input.node.arch, input.node.kernel, held)?, path)
        }
    };
    if input.node.seccomp {
        if input.handler.seccomp == Some(false) {
            let reason = format!("{name:?} is asked for, and the runtime handler was built without seccomp");
            return Err(SpecError::unsupported("linux.security_context.seccomp", reason));
        }
        return Ok((Some(filter), name.to_owned()));
    }
    if matches!(input.seccomp, SeccompProfile::Loaded { .. }) && name != "RuntimeDefault" {
        let reason = format!("{name:?} is asked for, and the kernel has no seccomp filters");
        return Err(SpecError::unsupported("linux.security_context.seccomp", reason));
    }
    let message = "the kernel has no seccomp filters: containers run without the default one";
    warnings.push(Warning::new(WarningTopic::Seccomp, message));
    Ok((None, "Unconfined".to_owned()))
}
