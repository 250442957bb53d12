//! Profiles from files: the format of containers/common and Docker, of which the OCI's own is a subset.

use serde::Deserialize;

use super::Arch;
use crate::error::SpecError;
use crate::oci::{Seccomp, Syscall, SyscallArg};

const FIELD: &str = "linux.security_context.seccomp";
/// A hand-written profile has a few thousand bytes.
const MAX_BYTES: usize = 1024 * 1024;

/// A parsed profile, to be fitted to a container by its architecture, kernel and capabilities.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SeccompFile {
    default_action: String,
    default_errno_ret: Option<u32>,
    default_errno: String,
    architectures: Vec<String>,
    arch_map: Vec<ArchMap>,
    flags: Vec<String>,
    listener_path: Option<String>,
    listener_metadata: Option<String>,
    syscalls: Vec<Rule>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ArchMap {
    architecture: String,
    sub_architectures: Option<Vec<String>>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Rule {
    name: String,
    names: Vec<String>,
    action: String,
    errno_ret: Option<u32>,
    errno: String,
    args: Option<Vec<Arg>>,
    includes: Option<Filter>,
    excludes: Option<Filter>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Arg {
    index: u32,
    value: u64,
    value_two: u64,
    op: String,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Filter {
    caps: Option<Vec<String>>,
    arches: Option<Vec<String>>,
    min_kernel: String,
}

/// Reads a profile.
///
/// # Errors
/// When the bytes are not such a document, or name an unknown action, comparison or error number.
pub fn parse_profile(bytes: &[u8]) -> Result<SeccompFile, SpecError> {
    if bytes.len() > MAX_BYTES {
        return Err(SpecError::invalid(FIELD, format!("the profile is larger than {MAX_BYTES} bytes")));
    }
    let profile: SeccompFile = serde_json::from_slice(bytes)
        .map_err(|error| SpecError::invalid(FIELD, format!("the profile is not valid: {error}")))?;
    profile.check()?;
    Ok(profile)
}

impl SeccompFile {
    fn check(&self) -> Result<(), SpecError> {
        let invalid =
            |reason: String| SpecError::invalid(FIELD, format!("the profile is not valid: {reason}"));
        check_action(&self.default_action).map_err(invalid)?;
        errno(&self.default_errno, self.default_errno_ret).map_err(invalid)?;
        if !self.architectures.is_empty() && !self.arch_map.is_empty() {
            return Err(invalid("architectures and archMap exclude each other".to_owned()));
        }
        for (index, rule) in self.syscalls.iter().enumerate() {
            let invalid = |reason: String| invalid(format!("syscalls[{index}]: {reason}"));
            check_action(&rule.action).map_err(invalid)?;
            errno(&rule.errno, rule.errno_ret).map_err(invalid)?;
            if rule.name.is_empty() == rule.names.is_empty() {
                return Err(invalid("exactly one of name and names is needed".to_owned()));
            }
            for filter in [&rule.includes, &rule.excludes].into_iter().flatten() {
                filter.min_kernel().map_err(invalid)?;
            }
            for arg in rule.args.iter().flatten() {
                if arg.index > 5 || !is_comparison(&arg.op) {
                    return Err(invalid(format!("argument {} with {:?}", arg.index, arg.op)));
                }
            }
        }
        Ok(())
    }

    /// Whether a process of the node is asked about calls.
    #[must_use]
    pub fn asks_listener(&self) -> bool {
        let mut actions = self.syscalls.iter().map(|rule| &rule.action).chain([&self.default_action]);
        self.listener_path.is_some()
            || self.listener_metadata.is_some()
            || actions.any(|action| action == "SCMP_ACT_NOTIFY")
    }

    /// The filter for one container.
    pub(crate) fn resolve(
        &self,
        arch: Arch,
        kernel: (u32, u32),
        capabilities: &[String],
    ) -> Result<Seccomp, SpecError> {
        let invalid = |reason: String| SpecError::invalid(FIELD, reason);
        let mut syscalls = Vec::with_capacity(self.syscalls.len());
        for rule in &self.syscalls {
            let included =
                rule.includes.as_ref().is_none_or(|filter| filter.holds_all(arch, kernel, capabilities));
            let excluded =
                rule.excludes.as_ref().is_some_and(|filter| filter.holds_any(arch, kernel, capabilities));
            if included && !excluded {
                syscalls.push(rule.to_oci().map_err(invalid)?);
            }
        }
        Ok(Seccomp {
            default_action: self.default_action.clone(),
            default_errno_ret: errno(&self.default_errno, self.default_errno_ret).map_err(invalid)?,
            architectures: self.architectures(arch),
            flags: self.flags.clone(),
            listener_path: self.listener_path.clone(),
            listener_metadata: self.listener_metadata.clone(),
            syscalls,
        })
    }

    /// The list as given, or the map's entry for this machine.
    fn architectures(&self, arch: Arch) -> Vec<String> {
        if !self.architectures.is_empty() {
            return self.architectures.clone();
        }
        let native = arch.seccomp_names()[0];
        let Some(entry) = self.arch_map.iter().find(|entry| entry.architecture == native) else {
            return Vec::new();
        };
        let mut list = vec![entry.architecture.clone()];
        list.extend(entry.sub_architectures.iter().flatten().cloned());
        list
    }
}

impl Rule {
    fn to_oci(&self) -> Result<Syscall, String> {
        let convert = |arg: &Arg| SyscallArg {
            index: arg.index,
            value: arg.value,
            value_two: arg.value_two,
            op: arg.op.clone(),
        };
        Ok(Syscall {
            names: if self.name.is_empty() { self.names.clone() } else { vec![self.name.clone()] },
            action: self.action.clone(),
            errno_ret: errno(&self.errno, self.errno_ret)?,
            args: self.args.iter().flatten().map(convert).collect(),
        })
    }
}

impl Filter {
    fn min_kernel(&self) -> Result<Option<(u32, u32)>, String> {
        if self.min_kernel.is_empty() {
            return Ok(None);
        }
        let parsed = self.min_kernel.split_once('.').and_then(|(major, minor)| {
            let minor = minor.split('.').next()?;
            Some((major.parse().ok()?, minor.parse().ok()?))
        });
        parsed.map(Some).ok_or_else(|| format!("minKernel {:?} is no version", self.min_kernel))
    }

    fn matches_arch(&self, arch: Arch) -> Option<bool> {
        let wanted = self.arches.as_ref().filter(|list| !list.is_empty())?;
        // The architecture of programs is meant, and the native one decides.
        Some(wanted.iter().any(|name| arch.profile_names()[0] == name))
    }

    fn matches_kernel(&self, kernel: (u32, u32)) -> Option<bool> {
        self.min_kernel().ok().flatten().map(|least| kernel >= least)
    }

    fn caps<'a>(&'a self, held: &'a [String]) -> impl Iterator<Item = bool> + 'a {
        self.caps.iter().flatten().map(|name| held.contains(name))
    }

    /// A condition for inclusion: everything that is named holds.
    fn holds_all(&self, arch: Arch, kernel: (u32, u32), held: &[String]) -> bool {
        self.matches_arch(arch).unwrap_or(true)
            && self.matches_kernel(kernel).unwrap_or(true)
            && self.caps(held).all(|holds| holds)
    }

    /// A condition for exclusion: anything that is named holds.
    fn holds_any(&self, arch: Arch, kernel: (u32, u32), held: &[String]) -> bool {
        self.matches_arch(arch).unwrap_or(false)
            || self.matches_kernel(kernel).unwrap_or(false)
            || self.caps(held).any(|holds| holds)
    }
}

fn check_action(action: &str) -> Result<(), String> {
    const ACTIONS: [&str; 9] = [
        "SCMP_ACT_ALLOW",
        "SCMP_ACT_ERRNO",
        "SCMP_ACT_KILL",
        "SCMP_ACT_KILL_PROCESS",
        "SCMP_ACT_KILL_THREAD",
        "SCMP_ACT_LOG",
        "SCMP_ACT_NOTIFY",
        "SCMP_ACT_TRACE",
        "SCMP_ACT_TRAP",
    ];
    if ACTIONS.contains(&action) { Ok(()) } else { Err(format!("unknown action {action:?}")) }
}

fn is_comparison(op: &str) -> bool {
    const OPS: [&str; 7] = ["NE", "LT", "LE", "EQ", "GE", "GT", "MASKED_EQ"];
    op.strip_prefix("SCMP_CMP_").is_some_and(|bare| OPS.contains(&bare))
}

/// The error number, by name or by number. Not by both unless they agree.
fn errno(name: &str, number: Option<u32>) -> Result<Option<u32>, String> {
    /// asm-generic/errno-base.h and errno.h: those that a filter can sensibly give.
    const NAMES: [(&str, u32); 26] = [
        ("EPERM", 1),
        ("ENOENT", 2),
        ("ESRCH", 3),
        ("EINTR", 4),
        ("EIO", 5),
        ("ENXIO", 6),
        ("E2BIG", 7),
        ("EBADF", 9),
        ("EAGAIN", 11),
        ("ENOMEM", 12),
        ("EACCES", 13),
        ("EFAULT", 14),
        ("EBUSY", 16),
        ("EEXIST", 17),
        ("ENODEV", 19),
        ("ENOTDIR", 20),
        ("EINVAL", 22),
        ("ENOTTY", 25),
        ("ENOSPC", 28),
        ("EROFS", 30),
        ("EPIPE", 32),
        ("ENOSYS", 38),
        ("EPROTONOSUPPORT", 93),
        ("EOPNOTSUPP", 95),
        ("EAFNOSUPPORT", 97),
        ("ECONNREFUSED", 111),
    ];
    if name.is_empty() {
        return Ok(number);
    }
    let by_name = NAMES
        .iter()
        .find(|(known, _)| *known == name)
        .map(|(_, number)| *number)
        .or_else(|| name.parse().ok())
        .ok_or_else(|| format!("unknown error {name:?}"))?;
    match number {
        Some(number) if number != by_name => Err(format!("error {name} is not number {number}")),
        _ => Ok(Some(by_name)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(rule: &str, capabilities: &[&str], applies: bool) {
        let text = format!(r#"{{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[{rule}]}}"#);
        let held: Vec<String> = capabilities.iter().map(|name| (*name).to_owned()).collect();
        let filter = parse_profile(text.as_bytes()).unwrap().resolve(Arch::X86_64, (5, 14), &held).unwrap();
        assert_eq!(!filter.syscalls.is_empty(), applies, "{rule} with {capabilities:?}");
    }

    #[test]
    fn rules_apply_by_capabilities_architecture_and_kernel() {
        let rule = |rest: &str| format!(r#"{{"names":["x"],"action":"SCMP_ACT_ALLOW"{rest}}}"#);
        check(&rule(""), &[], true);
        check(&rule(r#","args":null,"includes":null"#), &[], true);
        check(&rule(r#","includes":{"caps":["CAP_SYS_ADMIN"]}"#), &[], false);
        check(&rule(r#","includes":{"caps":["CAP_SYS_ADMIN"]}"#), &["CAP_SYS_ADMIN"], true);
        check(&rule(r#","excludes":{"caps":["CAP_SYS_ADMIN"]}"#), &["CAP_SYS_ADMIN"], false);
        check(&rule(r#","includes":{"arches":["s390","s390x"]}"#), &[], false);
        check(&rule(r#","includes":{"arches":["amd64"]}"#), &[], true);
        check(&rule(r#","excludes":{"arches":["amd64"]}"#), &[], false);
        check(&rule(r#","includes":{"minKernel":"4.8"}"#), &[], true);
        check(&rule(r#","includes":{"minKernel":"6.1"}"#), &[], false);
    }

    #[test]
    fn the_map_gives_this_machines_architectures() {
        let text = br#"{"defaultAction":"SCMP_ACT_KILL","archMap":[
            {"architecture":"SCMP_ARCH_AARCH64","subArchitectures":["SCMP_ARCH_ARM"]},
            {"architecture":"SCMP_ARCH_X86_64","subArchitectures":["SCMP_ARCH_X86"]}]}"#;
        let filter = parse_profile(text).unwrap().resolve(Arch::X86_64, (6, 1), &[]).unwrap();
        assert_eq!(filter.architectures, ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"]);
    }

    #[test]
    fn an_error_is_given_by_name_or_number() {
        let text = br#"{"defaultAction":"SCMP_ACT_ERRNO","defaultErrno":"ENOSYS","syscalls":[
            {"name":"a","action":"SCMP_ACT_ERRNO","errno":"EPERM","errnoRet":1}]}"#;
        let filter = parse_profile(text).unwrap().resolve(Arch::X86_64, (6, 1), &[]).unwrap();
        assert_eq!((filter.default_errno_ret, filter.syscalls[0].errno_ret), (Some(38), Some(1)));
    }

    #[test]
    fn what_is_no_profile_is_refused() {
        for text in [
            "",
            "[]",
            "{}",
            r#"{"defaultAction":"SCMP_ACT_NOPE"}"#,
            r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"action":"SCMP_ACT_ALLOW"}]}"#,
            r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["a"],"action":"x"}]}"#,
            r#"{"defaultAction":"SCMP_ACT_ERRNO","defaultErrno":"ENOSYS","defaultErrnoRet":1}"#,
            r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["a"],"action":"SCMP_ACT_ALLOW","args":[{"index":6,"op":"SCMP_CMP_EQ"}]}]}"#,
        ] {
            assert!(parse_profile(text.as_bytes()).is_err(), "{text}");
        }
    }
}
