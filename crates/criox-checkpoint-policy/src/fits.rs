//! Whether a checkpoint is what a request expects, and whether the request allows what CRIU would make of it.
//!
//! The specification of the live request is the measure; what the checkpoint says about its own specification is only
//! ever compared. What processes really get is read from CRIU's images.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use criox_checkpoint::criu::{Credentials, Processes, Seccomp};
use criox_checkpoint::{ConfigDump, Confinement, Intake, SpecDump};
use criox_cri::v1;
use criox_spec::{CapabilitySet, oci};

use crate::error::{Error, Result};

/// How much of a request is held against the checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expected {
    /// What confines it, and what it names itself: CreateContainer, whose kubelet knows little of what goes on.
    Policy,
    /// All that can be seen: RestorePod.
    Everything,
}

/// Runtimes that don't restore each other's checkpoints.
const RUNTIMES: [&str; 2] = ["crun", "runc"];
/// Mounts that a kubelet adds to what is asked for; a container that began without them goes on without them.
const OF_THE_KUBELET: [&str; 3] =
    ["/etc/hosts", "/dev/termination-log", "/var/run/secrets/kubernetes.io/serviceaccount"];
/// Variables that tell a pod apart from another.
const OF_THE_POD: [&str; 1] = ["HOSTNAME"];

/// All of it, before anything of the checkpoint runs.
///
/// # Errors
/// What does not fit, by the field of the request.
pub fn check(
    intake: &Intake,
    runtime: &str,
    config: &v1::ContainerConfig,
    spec: &oci::Spec,
    root: &Path,
    expected: Expected,
) -> Result<()> {
    let metadata = &intake.metadata;
    same_runtime(&metadata.config, runtime)?;
    terminal(config, &metadata.spec)?;
    let archived: Vec<&str> = metadata.bind_mounts.iter().map(|mount| mount.destination.as_str()).collect();
    mounts(config, spec, &metadata.spec, &archived, expected)?;
    process(config, spec, &metadata.spec, expected)?;
    let processes = intake.processes().map_err(|error| unreadable("processes", error))?;
    credentials(&processes, spec)?;
    filtered(&processes, spec)?;
    let shared = processes.shared_namespaces(&intake.images());
    namespaces(&shared.map_err(|error| unreadable("namespaces", error))?, spec)?;
    confined(intake, spec, root)
}

/// What can be seen before anything is made, without the specification.
///
/// # Errors
/// What does not fit, by the field of the request.
pub fn early(config: &v1::ContainerConfig, archived: &SpecDump) -> Result<()> {
    terminal(config, archived)?;
    if !config.command.is_empty() {
        let args: Vec<&String> = config.command.iter().chain(&config.args).collect();
        if !args.iter().copied().eq(&archived.args) {
            return Err(mismatch("config.command", "and config.args are not those of the checkpoint"));
        }
    }
    if !config.working_dir.is_empty() && config.working_dir != archived.cwd {
        return Err(mismatch("config.working_dir", format!("the checkpoint's is {:?}", archived.cwd)));
    }
    Ok(())
}

fn unreadable(part: &str, source: criox_checkpoint::Error) -> Error {
    Error::Checkpoint { what: format!("{part} of the checkpoint"), source }
}

fn mismatch(field: &str, reason: impl std::fmt::Display) -> Error {
    Error::invalid(field, reason)
}

/// Whether a runtime may restore what another has made, by their names: one of ours may have any name in the
/// configuration.
///
/// # Errors
/// It is known that it can't.
pub fn same_runtime(archived: &ConfigDump, runtime: &str) -> Result<()> {
    let made_by = archived.runtime.as_str();
    if made_by == runtime || !RUNTIMES.contains(&made_by) || !RUNTIMES.contains(&runtime) {
        return Ok(());
    }
    let text =
        format!("runtime_handler: the checkpoint was made by {made_by}, which {runtime} can't restore");
    Err(Error::Invalid { message: text, source: None })
}

fn terminal(config: &v1::ContainerConfig, archived: &SpecDump) -> Result<()> {
    if config.tty == archived.terminal {
        return Ok(());
    }
    let reason =
        if archived.terminal { "the checkpoint has a terminal" } else { "the checkpoint has no terminal" };
    Err(mismatch("config.tty", reason))
}

/// Each mount of the checkpoint is one of the request, whose source counts; and none is asked for that would be missing.
fn mounts(
    config: &v1::ContainerConfig,
    spec: &oci::Spec,
    archived: &SpecDump,
    binds: &[&str],
    expected: Expected,
) -> Result<()> {
    let live: BTreeSet<&str> = spec.mounts.iter().map(|mount| mount.destination.as_str()).collect();
    let lists = binds.iter().copied().chain(
        archived.mounts.iter().filter(|mount| mount.is_bind()).map(|mount| mount.destination.as_str()),
    );
    let undeclared: BTreeSet<&str> = lists.filter(|destination| !live.contains(destination)).collect();
    if !undeclared.is_empty() {
        let list = undeclared.into_iter().collect::<Vec<_>>().join(", ");
        let reason = format!(
            "restoring expects following bind mounts defined ({list}): declare each with a source of this pod"
        );
        return Err(mismatch("config.mounts", reason));
    }
    let captured: BTreeSet<&str> = archived.mounts.iter().map(|mount| mount.destination.as_str()).collect();
    for (index, mount) in config.mounts.iter().enumerate() {
        let destination = criox_spec::clean_destination(&mount.container_path).unwrap_or_default();
        let kubelets = OF_THE_KUBELET.contains(&destination.as_str()) && expected == Expected::Policy;
        if !captured.contains(destination.as_str()) && !kubelets {
            let reason =
                format!("the checkpoint has no mount at {destination:?}, and a restore can't add one");
            return Err(mismatch(&format!("config.mounts[{index}].container_path"), reason));
        }
    }
    Ok(())
}

/// No process is with the node where the request keeps it apart.
fn namespaces(shared: &BTreeSet<&str>, spec: &oci::Spec) -> Result<()> {
    let apart = spec.linux.namespaces.iter().map(|namespace| namespace.kind.as_str());
    match apart.into_iter().find(|kind| shared.contains(kind)) {
        Some(kind) => Err(Error::Refused(format!(
            "config.linux.security_context.namespace_options: the checkpoint's processes were in the node's {kind} namespace"
        ))),
        None => Ok(()),
    }
}

/// What CRIU mounts is what the specification has: nothing more, no masked path uncovered, and read-only what is to be.
fn confined(intake: &Intake, spec: &oci::Spec, root: &Path) -> Result<()> {
    let what = |error| unreadable("mounts", error);
    let read_only = |mount: &oci::Mount| mount.options.iter().any(|option| option == "ro" || option == "rro");
    let mounts = spec.mounts.iter().map(|mount| (mount.destination.as_str(), read_only(mount)));
    let confinement = Confinement {
        root: Some(root),
        mounts: mounts.collect(),
        masked: spec.linux.masked_paths.iter().map(String::as_str).collect(),
        read_only: spec.linux.readonly_paths.iter().map(String::as_str).collect(),
    };
    confinement.check(&intake.mounts().map_err(what)?).map_err(what)
}

/// A filter of the checkpoint is put back as it is: it lets nothing through that the profile asked for refuses.
fn filtered(processes: &Processes, spec: &oci::Spec) -> Result<()> {
    let Some(profile) = &spec.linux.seccomp else { return Ok(()) };
    match processes.lets_through(&refused_calls(profile)) {
        Some((thread, (arch, number))) => {
            let name = criox_spec::call_name(arch, i32::try_from(number).unwrap_or(-1));
            let text = format!(
                "config.linux.security_context.seccomp: the filter of thread {thread} of the checkpoint lets {name} through, which the profile asked for refuses"
            );
            Err(Error::Refused(text))
        }
        None => Ok(()),
    }
}

/// Calls, by architecture (`AUDIT_ARCH_…` of linux/audit.h) and number, that no rule of the profile allows.
fn refused_calls(profile: &oci::Seccomp) -> Vec<(u32, u32)> {
    const NUMBERS: i32 = 600;
    const I386: u32 = 0x4000_0003;
    // libseccomp allows these by itself where it allows one of the calls that they stand for.
    const COMBINED: [&str; 2] = ["socketcall", "ipc"];
    let allows = |action: &str| {
        ["SCMP_ACT_ALLOW", "SCMP_ACT_LOG", "SCMP_ACT_TRACE", "SCMP_ACT_NOTIFY"].contains(&action)
    };
    if allows(&profile.default_action) {
        return Vec::new();
    }
    let rules = profile.syscalls.iter().filter(|rule| allows(&rule.action));
    let allowed: BTreeSet<&str> = rules.flat_map(|rule| &rule.names).map(String::as_str).collect();
    let archs: &[u32] = if cfg!(target_arch = "aarch64") { &[0xc000_00b7] } else { &[0xc000_003e, I386] };
    let refused = archs.iter().flat_map(|arch| (0..NUMBERS).map(move |number| (*arch, number)));
    let refused = refused.filter(|(arch, number)| {
        let name = criox_spec::call_name(*arch, *number);
        let combined = *arch == I386 && COMBINED.contains(&name.as_str());
        !name.starts_with("number ") && !combined && !allowed.contains(name.as_str())
    });
    refused.filter_map(|(arch, number)| Some((arch, u32::try_from(number).ok()?))).collect()
}

fn process(
    config: &v1::ContainerConfig,
    spec: &oci::Spec,
    archived: &SpecDump,
    expected: Expected,
) -> Result<()> {
    let process = &spec.process;
    let names_command = !config.command.is_empty() || !config.args.is_empty();
    if (names_command || expected == Expected::Everything) && process.args != archived.args {
        let field = if config.command.is_empty() { "config.args" } else { "config.command" };
        return Err(mismatch(field, format!("the checkpoint runs {}", shown(&archived.args))));
    }
    if spec.root.readonly != archived.readonly_root {
        let reason = if archived.readonly_root { "is read-only" } else { "is not read-only" };
        let field = "config.linux.security_context.readonly_rootfs";
        return Err(mismatch(field, format!("the root file system of the checkpoint {reason}")));
    }
    if expected == Expected::Policy {
        return Ok(());
    }
    if process.cwd != archived.cwd {
        return Err(mismatch("config.working_dir", format!("the checkpoint's is {:?}", archived.cwd)));
    }
    if let Some(name) = differs(&process.env, &archived.env) {
        return Err(mismatch("config.envs", format!("{name:?} is not as in the checkpoint")));
    }
    let user = &process.user;
    if (user.uid, user.gid) != (archived.uid, archived.gid) {
        let reason = format!("the checkpoint was started as {}:{}", archived.uid, archived.gid);
        return Err(mismatch("config.linux.security_context.run_as_user", reason));
    }
    let groups = |list: &[u32]| list.iter().copied().collect::<BTreeSet<u32>>();
    if groups(&user.additional_gids) != groups(&archived.additional_gids) {
        let reason = "the checkpoint was started with other groups";
        return Err(mismatch("config.linux.security_context.supplemental_groups", reason));
    }
    if process.no_new_privileges != archived.no_new_privileges {
        return Err(mismatch("config.linux.security_context.no_new_privs", "is not as in the checkpoint"));
    }
    Ok(())
}

/// The first variable that only one of the two has, or that has another value; never its value, which may be secret.
fn differs(live: &[String], archived: &[String]) -> Option<String> {
    let read = |list: &[String]| {
        let pairs = list.iter().map(|entry| entry.split_once('=').unwrap_or((entry, "")));
        pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect::<BTreeMap<_, _>>()
    };
    let (live, archived) = (read(live), read(archived));
    let names: BTreeSet<&String> = live.keys().chain(archived.keys()).collect();
    let mut names = names.into_iter().filter(|name| !OF_THE_POD.contains(&name.as_str()));
    names.find(|name| live.get(*name) != archived.get(*name)).cloned()
}

fn shown(args: &[String]) -> String {
    const MAX: usize = 200;
    args.join(" ").chars().take(MAX).collect()
}

/// Whether a profile of AppArmor confines anything.
pub fn confines(profile: &str) -> bool {
    !matches!(profile, "" | "unconfined")
}

/// No process gets more than the request would have given it.
fn credentials(processes: &Processes, spec: &oci::Spec) -> Result<()> {
    let allowed = Allowed::by(spec);
    for process in &processes.processes {
        for thread in &process.threads {
            let credentials = &thread.credentials;
            allowed.check(credentials, process.first).map_err(|(field, reason)| {
                let field = format!("config.linux.security_context.{field}");
                let reason = format!("process {} of the checkpoint {reason}", process.pid);
                Error::Refused(format!("{field}: {reason}"))
            })?;
        }
    }
    Ok(())
}

/// What the request allows.
struct Allowed<'a> {
    user: &'a oci::User,
    bounding: CapabilitySet,
    ambient: CapabilitySet,
    no_new_privileges: bool,
    seccomp: bool,
    confined: bool,
}

fn set_of(names: &[String]) -> CapabilitySet {
    let named = names.iter().filter_map(|name| CapabilitySet::named(name));
    named.fold(CapabilitySet::EMPTY, CapabilitySet::union)
}

type Refusal = (&'static str, String);

impl<'a> Allowed<'a> {
    fn by(spec: &'a oci::Spec) -> Self {
        let process = &spec.process;
        // Absent means that the runtime changes nothing: then it is the node's root that says what is allowed.
        let capabilities = process.capabilities.as_ref();
        let bounding = capabilities.map_or(CapabilitySet::ALL, |capabilities| set_of(&capabilities.bounding));
        let apparmor = process.apparmor_profile.as_deref().is_some_and(confines);
        let selinux = process.selinux_label.as_deref().is_some_and(|label| !label.is_empty());
        Self {
            user: &process.user,
            bounding,
            ambient: capabilities.map_or(CapabilitySet::EMPTY, |capabilities| set_of(&capabilities.ambient)),
            no_new_privileges: process.no_new_privileges,
            seccomp: spec.linux.seccomp.is_some(),
            confined: apparmor || selinux,
        }
    }

    fn check(&self, has: &Credentials, first: bool) -> std::result::Result<(), Refusal> {
        for (set, bits) in [("bounding set", has.bounding), ("capabilities", has.capabilities())] {
            let more = CapabilitySet::from_bits(bits).without(self.bounding);
            if !more.is_empty() || bits >> CapabilitySet::ALL.names().len() != 0 {
                let names = more.names().join(", ");
                return Err(("capabilities", format!("has more in its {set} than is allowed: {names}")));
            }
        }
        if self.no_new_privileges && has.no_new_privs != Some(true) {
            return Err(("no_new_privs", "is not kept from new privileges".to_owned()));
        }
        if self.seccomp && !matches!(has.seccomp, Seccomp::Filter(_)) {
            return Err(("seccomp", "has no filter of system calls".to_owned()));
        }
        if self.confined && !has.lsm_profile.as_deref().is_some_and(confines) {
            return Err((
                "apparmor",
                "has no profile that could be replaced by the one asked for".to_owned(),
            ));
        }
        self.check_identity(has, first)
    }

    /// Root may become anybody. Anybody else may become another through a program of the image, if it may get
    /// privileges at all; but the first process is the one that was asked for.
    fn check_identity(&self, has: &Credentials, first: bool) -> std::result::Result<(), Refusal> {
        if self.user.uid == 0 || !(first || self.no_new_privileges) {
            return Ok(());
        }
        if let Some(other) = has.users().into_iter().find(|user| *user != self.user.uid) {
            return Err(("run_as_user", format!("is user {other}, not {}", self.user.uid)));
        }
        let mut groups = has.primary_groups().into_iter().chain(has.groups.iter().copied());
        let known = |group: &u32| *group == self.user.gid || self.user.additional_gids.contains(group);
        if let Some(other) = groups.find(|group| !known(group)) {
            return Err(("run_as_group", format!("is in group {other}, which was not asked for")));
        }
        // Without a program that gives them it has only what is ambient.
        let held = has.permitted | has.effective | has.ambient.unwrap_or_default();
        let more = CapabilitySet::from_bits(held).without(self.ambient);
        if self.no_new_privileges && !more.is_empty() {
            let names = more.names().join(", ");
            return Err(("capabilities", format!("has more than its user may get: {names}")));
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "fits_tests.rs"]
mod tests;
