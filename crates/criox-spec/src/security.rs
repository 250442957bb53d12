//! Masked and read-only paths, AppArmor and SELinux.

use std::collections::BTreeSet;

use criox_cri::v1;

use crate::error::{SpecError, Warning, WarningTopic};
use crate::input::{NamespaceSource, SpecInput};
use crate::mounts::clean_destination;

/// Why the fields of another system are refused: dropping them would start something else than was asked for.
pub(crate) const NOT_WINDOWS: &str = "this is a Linux node";
/// What a container that is not privileged has no business to read: firmware, keys and timing of the node.
const MASKED: [&str; 13] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/dev/block",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];
/// What it may read but not write: parameters of the node.
const READONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

pub(crate) struct Paths {
    pub(crate) masked: Vec<String>,
    pub(crate) readonly: Vec<String>,
}

/// Masked and read-only paths.
///
/// Without a security context the defaults; an empty list is `procMount: Unmasked` and stays empty; a non-empty list
/// of masked paths is joined with ours, as the kubelet's own is shorter than what is known to leak.
pub(crate) fn paths(
    input: &SpecInput<'_>,
    context: Option<&v1::LinuxContainerSecurityContext>,
) -> Result<Paths, SpecError> {
    let ours =
        || MASKED.iter().map(|path| (*path).to_owned()).chain(input.node.extra_masked_paths.iter().cloned());
    let Some(context) = context else {
        return Ok(Paths {
            masked: sorted(ours()),
            readonly: sorted(READONLY.map(str::to_owned).into_iter()),
        });
    };
    if context.privileged {
        return Ok(Paths { masked: Vec::new(), readonly: Vec::new() });
    }
    let masked = clean_all(&context.masked_paths, "masked_paths")?;
    let readonly = clean_all(&context.readonly_paths, "readonly_paths")?;
    let masked = if masked.is_empty() { masked } else { sorted(masked.into_iter().chain(ours())) };
    Ok(Paths { masked, readonly })
}

fn sorted(paths: impl Iterator<Item = String>) -> Vec<String> {
    paths.collect::<BTreeSet<_>>().into_iter().collect()
}

fn clean_all(paths: &[String], name: &str) -> Result<Vec<String>, SpecError> {
    let clean = |(index, path): (usize, &String)| {
        clean_destination(path)
            .map_err(|reason| SpecError::invalid(format!("linux.security_context.{name}[{index}]"), reason))
    };
    paths.iter().enumerate().map(clean).collect()
}

/// A security profile as requested, from the structured field or the older string.
pub(crate) enum Profile<'a> {
    Unset,
    RuntimeDefault,
    Unconfined,
    Localhost(&'a str),
}

pub(crate) fn profile<'a>(
    structured: Option<&'a v1::SecurityProfile>,
    text: &'a str,
    field: &str,
) -> Result<Profile<'a>, SpecError> {
    use v1::security_profile::ProfileType;
    let Some(profile) = structured else {
        return match text {
            "" => Ok(Profile::Unset),
            "runtime/default" | "docker/default" => Ok(Profile::RuntimeDefault),
            "unconfined" => Ok(Profile::Unconfined),
            text => match text.strip_prefix("localhost/") {
                Some(name) if !name.is_empty() => Ok(Profile::Localhost(name)),
                _ => Err(SpecError::invalid(field, format!("unknown profile {text:?}"))),
            },
        };
    };
    let kind = ProfileType::try_from(profile.profile_type).map_err(|_| {
        SpecError::invalid(format!("{field}.profile_type"), format!("unknown type {}", profile.profile_type))
    })?;
    match kind {
        ProfileType::Localhost if profile.localhost_ref.is_empty() => {
            Err(SpecError::invalid(format!("{field}.localhost_ref"), "empty: Localhost needs a profile"))
        }
        ProfileType::Localhost => Ok(Profile::Localhost(&profile.localhost_ref)),
        ProfileType::RuntimeDefault => Ok(Profile::RuntimeDefault),
        ProfileType::Unconfined => Ok(Profile::Unconfined),
    }
}

/// The refusals that RunPodSandbox owes about security: profiles that can't be, and a path that is none. There is no
/// process of the sandbox to confine by them, so nothing else is done with them.
///
/// # Errors
/// The field, below `linux.security_context`.
pub fn sandbox_security_check(sandbox: &v1::PodSandboxConfig) -> Result<(), SpecError> {
    if sandbox.windows.is_some() {
        return Err(SpecError::invalid("windows", NOT_WINDOWS));
    }
    let Some(context) = sandbox.linux.as_ref().and_then(|linux| linux.security_context.as_ref()) else {
        return Ok(());
    };
    const SECCOMP: &str = "linux.security_context.seccomp";
    let path = sandbox_seccomp_path(context);
    if let Profile::Localhost(path) = profile(context.seccomp.as_ref(), path, SECCOMP)?
        && !path.starts_with('/')
    {
        let reason = format!("{path:?} is not an absolute path");
        return Err(SpecError::invalid(format!("{SECCOMP}.localhost_ref"), reason));
    }
    profile(context.apparmor.as_ref(), "", "linux.security_context.apparmor")?;
    if let Some(options) = &context.selinux_options {
        crate::selinux::check(options, "linux.security_context.selinux_options")?;
    }
    Ok(())
}

#[expect(deprecated, reason = "older kubelets send only this field")]
fn sandbox_seccomp_path(context: &v1::LinuxSandboxSecurityContext) -> &str {
    &context.seccomp_profile_path
}

/// The AppArmor profile's name, none for unconfined. That it is loaded is the caller's to see to.
pub(crate) fn apparmor(
    input: &SpecInput<'_>,
    context: &v1::LinuxContainerSecurityContext,
    warnings: &mut Vec<Warning>,
) -> Result<Option<String>, SpecError> {
    const FIELD: &str = "linux.security_context.apparmor";
    if context.privileged {
        return Ok(None);
    }
    let wanted = match profile(context.apparmor.as_ref(), apparmor_text(context), FIELD)? {
        // Clients write the old form into the new field, too; the runtimes before us take it.
        Profile::Localhost(name) => Profile::Localhost(name.strip_prefix("localhost/").unwrap_or(name)),
        other => other,
    };
    if !input.node.apparmor {
        return match wanted {
            Profile::Localhost(name) => {
                let reason = format!("profile {name:?} is asked for, and the node has no AppArmor");
                Err(SpecError::unsupported(FIELD, reason))
            }
            _ => Ok(None),
        };
    }
    let defaults = input.defaults;
    let (name, is_default) = match wanted {
        Profile::Unconfined => return Ok(None),
        Profile::Unset | Profile::RuntimeDefault => (defaults.apparmor_profile.as_str(), true),
        Profile::Localhost(name) => (name, false),
    };
    if name.is_empty() || name == "unconfined" {
        return Ok(None);
    }
    if is_default && !defaults.apparmor_missing.is_empty() {
        // Who asks for confinement gets it or an error; who says nothing gets what the node can give.
        if matches!(wanted, Profile::RuntimeDefault) {
            return Err(SpecError::unsupported(FIELD, defaults.apparmor_missing.clone()));
        }
        let message = format!(
            "{}: containers that name no AppArmor profile run without one",
            defaults.apparmor_missing
        );
        warnings.push(Warning::new(WarningTopic::AppArmor, message));
        return Ok(None);
    }
    if input.handler.apparmor == Some(false) {
        let reason = format!("profile {name:?} can't be had: the runtime handler was built without AppArmor");
        return Err(SpecError::unsupported(FIELD, reason));
    }
    if name.chars().any(|c| c.is_whitespace() || c.is_control()) {
        return Err(SpecError::invalid(FIELD, format!("{name:?} is no profile name")));
    }
    Ok(Some(name.to_owned()))
}

/// The field of kubelets before 1.30; it counts only when the structured one is absent.
#[expect(deprecated, reason = "older kubelets send only this field")]
fn apparmor_text(context: &v1::LinuxContainerSecurityContext) -> &str {
    &context.apparmor_profile
}

/// The process's and the mounts' SELinux labels.
///
/// No process label for privileged containers and where the node's processes or queues are shared; with the node's
/// network only if so configured.
pub(crate) fn selinux(input: &SpecInput<'_>, privileged: bool, init: bool) -> (Option<String>, String) {
    let Some(labels) = input.selinux else { return (None, String::new()) };
    let host = |source: &NamespaceSource| *source == NamespaceSource::Host;
    if host(&input.namespaces.pid) || host(&input.namespaces.ipc) {
        return (None, String::new());
    }
    let network = host(&input.namespaces.network) && input.defaults.hostnetwork_disable_selinux;
    let process = (!privileged && !network && !labels.process.is_empty()).then(|| match init {
        true => crate::selinux::init_label(&labels.process),
        false => labels.process.clone(),
    });
    (process, labels.mount.clone())
}
