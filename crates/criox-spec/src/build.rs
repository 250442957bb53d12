//! The whole document, put together.

use criox_cri::v1;

use crate::capabilities::{self, CapabilitySet};
use crate::error::SpecError;
use crate::input::{Built, NamespaceSource, SpecInput};
use crate::{annotations, devices, mounts, namespaces, oci, process, resources, rlimits, seccomp, security};
use crate::{selinux, stop_signal, user};

/// The version for runtimes that don't tell what they know: crun before 1.9 refuses others.
const OCI_VERSION: &str = "1.0.2";
/// The newest that we write.
const OCI_VERSION_MAX: (u32, u32) = (1, 2);

/// Builds the specification of a container.
///
/// # Errors
/// A refusal with the CRI field that it is about. Nothing is left to undo.
pub fn build(input: &SpecInput<'_>) -> Result<Built, SpecError> {
    let context = input.container.linux.as_ref().and_then(|linux| linux.security_context.as_ref());
    let nothing = v1::LinuxContainerSecurityContext::default();
    let security = context.unwrap_or(&nothing);
    if security.privileged && !input.identity.sandbox_privileged {
        let reason = "no privileged container allowed in sandbox";
        return Err(SpecError::invalid("linux.security_context.privileged", reason));
    }
    if input.container.windows.is_some() {
        return Err(SpecError::invalid("windows", security::NOT_WINDOWS));
    }
    if let Some(options) = &security.selinux_options {
        selinux::check(options, "linux.security_context.selinux_options")?;
    }
    if !input.rootfs.starts_with('/') {
        return Err(SpecError::invalid("rootfs", format!("{:?} is not an absolute path", input.rootfs)));
    }
    let signal = input.container.stop_signal;
    if v1::Signal::try_from(signal).is_err() {
        return Err(SpecError::invalid("stop_signal", format!("unknown value {signal}")));
    }
    let mut warnings = Vec::new();
    let stop_signal =
        stop_signal::resolve(input.container.stop_signal, &input.image.stop_signal, &mut warnings);

    let who = user::resolve(input)?;
    namespaces::check_identity(input, &who.effective)?;
    let process = first_process(input, security, &who, &mut warnings)?;

    let passwd = input.provided.passwd.as_ref().and_then(|_| {
        let home = process::variable(&process.env, "HOME").unwrap_or(&process.cwd);
        user::passwd_with_entry(input.passwd, &who, home)
    });
    let group = input.provided.group.as_ref().and_then(|_| user::group_with_entry(input.group, &who));
    let readonly_rootfs = security.readonly_rootfs || input.defaults.read_only;
    let around = mounts::Surroundings {
        privileged: security.privileged,
        systemd: process::is_systemd(&process.args),
        readonly_rootfs,
        writable_cgroup: input.node.cgroup_v2
            && annotations::gated(
                input,
                "cgroup2-mount-hierarchy-rw.crio.io",
                "io.kubernetes.cri-o.cgroup2-mount-hierarchy-rw",
            ) == Some("true"),
        passwd: passwd.is_some(),
        group: group.is_some(),
    };
    let mounts = mounts::build(input, &around, &mut warnings)?;
    let image_volumes = mounts::image_volumes(&input.image.volumes, &mounts.list, &mut warnings);
    let (filter, filter_name) = seccomp::resolve(input, process.capabilities.as_ref(), &mut warnings)?;
    let annotations = annotations::build(input, stop_signal, &filter_name, &mut warnings)?;
    let linux = linux(input, context, &who, filter, &mounts.rootfs_propagation, &mut warnings)?;
    // A joined UTS namespace has its name already, and setting it again may not be allowed.
    let private_uts = input.namespaces.uts == NamespaceSource::Private;
    let hostname =
        (private_uts && !input.identity.hostname.is_empty()).then(|| input.identity.hostname.clone());
    let spec = oci::Spec {
        oci_version: oci_version(&input.handler.oci_version_max),
        process,
        root: oci::Root { path: input.rootfs.to_owned(), readonly: readonly_rootfs },
        hostname,
        mounts: mounts.list,
        annotations,
        linux,
        hooks: None,
    };
    Ok(Built { spec, user: who.effective, stop_signal, image_volumes, passwd, group, warnings })
}

/// The newest version that both sides know.
fn oci_version(handler_max: &str) -> String {
    let mut parts = handler_max.split(['.', '-', '+']).map(|part| part.parse::<u32>().ok());
    match (parts.next().flatten(), parts.next().flatten()) {
        (Some(major), Some(minor)) if (major, minor) >= OCI_VERSION_MAX => {
            format!("{}.{}.0", OCI_VERSION_MAX.0, OCI_VERSION_MAX.1)
        }
        (Some(1), Some(1)) => "1.1.0".to_owned(),
        _ => OCI_VERSION.to_owned(),
    }
}

fn first_process(
    input: &SpecInput<'_>,
    security: &v1::LinuxContainerSecurityContext,
    who: &user::ResolvedUser<'_>,
    warnings: &mut Vec<crate::Warning>,
) -> Result<oci::Process, SpecError> {
    let args = process::args(input)?;
    let env = process::env(input, process::is_systemd(&args), warnings)?;
    // A process has all capabilities in its own user namespace, whatever the daemon holds.
    let own_users = input.namespaces.user != NamespaceSource::Host;
    let wanted = capabilities::Wanted {
        request: security.capabilities.as_ref(),
        privileged: security.privileged,
        defaults: &input.defaults.capabilities,
        add_inheritable: input.defaults.add_inheritable_capabilities,
        ceiling: if own_users { CapabilitySet::ALL } else { input.node.capabilities },
    };
    let sets = capabilities::resolve(&wanted, warnings)?;
    let (selinux_label, _) = security::selinux(input, security.privileged, process::is_systemd(&args));
    if let (Some(label), Some(false)) = (&selinux_label, input.handler.selinux) {
        let reason = format!("label {label:?} can't be had: the runtime handler was built without SELinux");
        return Err(SpecError::unsupported("linux.security_context.selinux_options", reason));
    }
    Ok(oci::Process {
        terminal: input.container.tty,
        console_size: None,
        user: oci::User {
            uid: who.effective.uid,
            gid: who.effective.gid,
            umask: annotations::umask(input)?,
            additional_gids: who.effective.supplemental_groups.clone(),
        },
        args,
        env,
        cwd: process::cwd(input)?,
        capabilities: Some(sets.to_oci()),
        rlimits: rlimits::resolve(&input.defaults.ulimits, input.node, warnings)?,
        no_new_privileges: security.no_new_privs,
        apparmor_profile: security::apparmor(input, security, warnings)?,
        oom_score_adj: Some(resources::oom_score_adj(input, warnings)?),
        selinux_label,
        io_priority: None,
        scheduler: None,
    })
}

fn linux(
    input: &SpecInput<'_>,
    context: Option<&v1::LinuxContainerSecurityContext>,
    who: &user::ResolvedUser<'_>,
    seccomp: Option<oci::Seccomp>,
    rootfs_propagation: &str,
    warnings: &mut Vec<crate::Warning>,
) -> Result<oci::Linux, SpecError> {
    let nothing = v1::LinuxContainerSecurityContext::default();
    let security = context.unwrap_or(&nothing);
    let devices = devices::build(input, security, &who.effective)?;
    let paths = security::paths(input, context)?;
    let (_, mount_label) = security::selinux(input, security.privileged, false);
    let own_users = input.namespaces.user != NamespaceSource::Host;
    let mappings = |list: &[oci::IdMapping]| if own_users { list.to_vec() } else { Vec::new() };
    Ok(oci::Linux {
        uid_mappings: mappings(&input.namespaces.uid_mappings),
        gid_mappings: mappings(&input.namespaces.gid_mappings),
        sysctl: std::collections::BTreeMap::new(),
        resources: Some(resources::build(input, devices.rules, warnings)?),
        cgroups_path: input.cgroups_path.to_owned(),
        namespaces: namespaces::build(input, security.privileged)?,
        devices: devices.nodes,
        seccomp,
        rootfs_propagation: rootfs_propagation.to_owned(),
        masked_paths: paths.masked,
        readonly_paths: paths.readonly,
        mount_label,
        intel_rdt: None,
        net_devices: std::collections::BTreeMap::new(),
        memory_policy: None,
    })
}
