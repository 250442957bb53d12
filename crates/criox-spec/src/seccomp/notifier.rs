//! The notifier: calls that a filter refuses are asked of a listener instead, which refuses and counts them.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use crate::oci;

const NOTIFY: &str = "SCMP_ACT_NOTIFY";
/// Actions that refuse. What no rule names stays with the default action, as in CRI-O.
const REFUSALS: [&str; 4] =
    ["SCMP_ACT_ERRNO", "SCMP_ACT_KILL", "SCMP_ACT_KILL_PROCESS", "SCMP_ACT_KILL_THREAD"];
/// A runtime passes its filter's descriptor on by writing: runc takes no filter that asks about this call.
const NEVER: &str = "write";
/// Names in a message for people.
const MAX_NAMES: usize = 32;

/// Lets a listener at `path` decide on what the filter refuses. False: its rules refuse nothing, and it is as before.
///
/// # Errors
/// The filter has a listener of its own.
pub fn listen(filter: &mut oci::Seccomp, path: &str) -> Result<bool, String> {
    if let Some(other) = &filter.listener_path {
        return Err(format!("the profile names a listener of its own, {other:?}"));
    }
    let mut rules = Vec::with_capacity(filter.syscalls.len());
    let mut any = false;
    for mut rule in std::mem::take(&mut filter.syscalls) {
        if REFUSALS.contains(&rule.action.as_str()) {
            let (kept, asked): (Vec<_>, Vec<_>) = rule.names.drain(..).partition(|name| name == NEVER);
            if !kept.is_empty() {
                rules.push(oci::Syscall { names: kept, ..rule.clone() });
            }
            if asked.is_empty() {
                continue;
            }
            any = true;
            (rule.names, rule.errno_ret) = (asked, None);
            NOTIFY.clone_into(&mut rule.action);
        }
        rules.push(rule);
    }
    filter.syscalls = rules;
    if any {
        filter.listener_path = Some(path.to_owned());
    }
    Ok(any)
}

/// The name of a system call, by the `AUDIT_ARCH_…` of linux/audit.h that its number belongs to; the number where there
/// is none.
#[must_use]
pub fn call_name(arch: u32, number: i32) -> String {
    /// Calls of x32 programs; most have the name of the same number.
    const X32: i32 = 0x4000_0000;
    if arch == 0 {
        return "others".to_owned();
    }
    let known =
        usize::try_from(if arch == 0xc000_003e { number & !X32 } else { number }).ok().and_then(|index| {
            match arch {
                0xc000_003e => syscalls::x86_64::Sysno::new(index).map(|call| call.name()),
                0x4000_0003 => syscalls::x86::Sysno::new(index).map(|call| call.name()),
                0xc000_00b7 => syscalls::aarch64::Sysno::new(index).map(|call| call.name()),
                0x4000_0028 => syscalls::arm::Sysno::new(index).map(|call| call.name()),
                _ => None,
            }
        });
    known.map_or_else(|| format!("number {number}"), str::to_owned)
}

/// `a (1x), b (2x)`: calls by architecture and number, with how often each was made.
#[must_use]
pub fn call_counts(calls: impl IntoIterator<Item = (u32, i32, u64)>) -> String {
    let mut counts: BTreeMap<String, u64> = BTreeMap::new();
    for (arch, number, count) in calls {
        let sum = counts.entry(call_name(arch, number)).or_default();
        *sum = sum.saturating_add(count);
    }
    let mut text = String::new();
    for (index, (name, count)) in counts.iter().take(MAX_NAMES).enumerate() {
        let comma = if index == 0 { "" } else { ", " };
        // Into a text: it can't fail.
        let _ = write!(text, "{comma}{name} ({count}x)");
    }
    if counts.len() > MAX_NAMES {
        let _ = write!(text, " and {} more", counts.len() - MAX_NAMES);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seccomp::{Arch, default_profile, parse_profile};

    fn filter(text: &str) -> oci::Seccomp {
        parse_profile(text.as_bytes()).unwrap().resolve(Arch::X86_64, (6, 1), &[]).unwrap()
    }

    #[test]
    fn what_is_refused_is_asked_and_the_rest_stays() {
        let mut asked = filter(
            r#"{"defaultAction":"SCMP_ACT_ERRNO","defaultErrnoRet":38,"syscalls":[
            {"names":["a"],"action":"SCMP_ACT_ALLOW"},
            {"names":["b","write"],"action":"SCMP_ACT_ERRNO","errnoRet":1},
            {"names":["write"],"action":"SCMP_ACT_KILL"},
            {"names":["c"],"action":"SCMP_ACT_KILL_PROCESS","args":[{"index":0,"value":7,"op":"SCMP_CMP_EQ"}]},
            {"names":["d"],"action":"SCMP_ACT_LOG"},{"names":["e"],"action":"SCMP_ACT_KILL_THREAD"}]}"#,
        );
        assert_eq!(listen(&mut asked, "/run/l"), Ok(true));
        assert_eq!((asked.default_action.as_str(), asked.default_errno_ret), ("SCMP_ACT_ERRNO", Some(38)));
        assert_eq!(asked.listener_path.as_deref(), Some("/run/l"));
        let rules: Vec<(String, &str, Option<u32>, usize)> = asked
            .syscalls
            .iter()
            .map(|rule| (rule.names.join(" "), rule.action.as_str(), rule.errno_ret, rule.args.len()))
            .collect();
        let rule = |name: &str, action, errno, args| (name.to_owned(), action, errno, args);
        assert_eq!(
            rules,
            [
                rule("a", "SCMP_ACT_ALLOW", None, 0),
                rule("write", "SCMP_ACT_ERRNO", Some(1), 0),
                rule("b", NOTIFY, None, 0),
                rule("write", "SCMP_ACT_KILL", None, 0),
                rule("c", NOTIFY, None, 1),
                rule("d", "SCMP_ACT_LOG", None, 0),
                rule("e", NOTIFY, None, 0),
            ]
        );
    }

    #[test]
    fn a_filter_that_refuses_nothing_or_has_a_listener_is_left_alone() {
        let mut open = filter(
            r#"{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[{"name":"a","action":"SCMP_ACT_ALLOW"}]}"#,
        );
        let before = open.clone();
        assert_eq!((listen(&mut open, "/l"), &open), (Ok(false), &before));
        let mut own = filter(r#"{"defaultAction":"SCMP_ACT_ALLOW","listenerPath":"/own"}"#);
        assert!(listen(&mut own, "/l").unwrap_err().contains("/own"));
    }

    #[test]
    fn our_own_filter_refuses_by_rules_that_can_be_asked_about() {
        let mut ours = default_profile(Arch::X86_64, &[]);
        assert_eq!(listen(&mut ours, "/l"), Ok(true));
        let asks = |name: &str| {
            ours.syscalls.iter().any(|rule| rule.action == NOTIFY && rule.names.iter().any(|n| n == name))
        };
        assert!(asks("swapoff") && asks("mount") && !asks("read"));
        assert!(ours.syscalls.iter().all(|rule| rule.action != "SCMP_ACT_ERRNO"));
    }

    #[test]
    fn calls_have_the_names_of_their_architecture() {
        for (arch, number, name) in [
            (0xc000_003e, 168, "swapoff"),
            (0xc000_003e, 168 | 0x4000_0000, "swapoff"),
            (0x4000_0003, 115, "swapoff"),
            (0xc000_00b7, 225, "swapoff"),
            (0x4000_0028, 115, "swapoff"),
            (0xc000_003e, -1, "number -1"),
            (0xc000_003e, 100_000, "number 100000"),
            (7, 1, "number 1"),
            (0, 0, "others"),
        ] {
            assert_eq!(call_name(arch, number), name, "{arch:x} {number}");
        }
    }

    #[test]
    fn counts_are_told_by_name_and_not_without_end() {
        let calls = [(0xc000_003e, 168, 2), (0x4000_0003, 115, 1), (0xc000_003e, 165, u64::MAX)];
        assert_eq!(call_counts(calls), format!("mount ({}x), swapoff (3x)", u64::MAX));
        assert_eq!(call_counts([]), "");
        let many = call_counts((1000..2000).map(|number| (0xc000_003e, number, 1)));
        assert!(many.ends_with(" and 968 more") && many.len() < 1000, "{many}");
    }
}
