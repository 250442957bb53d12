//! Our own default filter: an allow-list by groups.
//!
//! A call in no list gets ENOSYS, so that a program on a newer C library falls back as on an older kernel. A call that
//! is known and refused gets EPERM, as from a kernel that asks for a capability. A group that stands for a capability is
//! allowed to those who have it: there the kernel's own check would only refuse what was just granted.

use super::Arch;
use super::groups::{ALLOWED, BY_CAPABILITY, REFUSED};
use crate::oci::{Seccomp, Syscall, SyscallArg};

const ALLOW: &str = "SCMP_ACT_ALLOW";
const ERRNO: &str = "SCMP_ACT_ERRNO";
const EPERM: u32 = 1;
const ENOSYS: u32 = 38;
const EAFNOSUPPORT: u32 = 97;
const EINVAL: u32 = 22;

/// Flags of clone(2) that make a namespace. A user namespace opens most of the kernel to whoever is inside.
const CLONE_NAMESPACES: [u64; 7] =
    [0x0002_0000, 0x0200_0000, 0x0400_0000, 0x0800_0000, 0x1000_0000, 0x2000_0000, 0x4000_0000];

/// Execution domains that change nothing but names and address limits: PER_LINUX, PER_LINUX32, UNAME26, both, "tell me".
const PERSONALITIES: [u64; 5] = [0x0, 0x8, 0x2_0000, 0x2_0008, 0xffff_ffff];

/// The kernel's cryptography for programs: unused by them, and a row of holes.
const AF_ALG: u64 = 38;
/// Talks to the hypervisor, past every network policy.
const AF_VSOCK: u64 = 40;
/// The audit protocol of AF_NETLINK.
const NETLINK_AUDIT: u64 = 9;

/// The filter for a container that holds `capabilities` (OCI names of its bounding set).
#[must_use]
pub fn default_profile(arch: Arch, capabilities: &[String]) -> Seccomp {
    let holds = |name: &str| {
        capabilities.iter().any(|held| held.strip_prefix("CAP_").is_some_and(|bare| bare == name))
    };
    let mut allowed: Vec<&str> = ALLOWED.iter().flat_map(|group| group.calls).copied().collect();
    let mut refused: Vec<&str> = REFUSED.iter().flat_map(|group| group.calls).copied().collect();
    for group in BY_CAPABILITY {
        let list =
            if group.capabilities.iter().any(|name| holds(name)) { &mut allowed } else { &mut refused };
        list.extend(group.calls);
    }
    // One call may stand in the groups of several capabilities: any of them is enough.
    allowed.sort_unstable();
    allowed.dedup();
    refused.retain(|call| allowed.binary_search(call).is_err());
    refused.sort_unstable();
    refused.dedup();

    let mut syscalls = vec![rule(&allowed, ALLOW, None, vec![]), rule(&refused, ERRNO, Some(EPERM), vec![])];
    if holds("SYS_ADMIN") {
        syscalls.push(rule(&["clone", "clone3"], ALLOW, None, vec![]));
    } else {
        // clone3 keeps its flags in memory, where no filter can look: the default's ENOSYS makes every C library
        // use clone instead.
        let all = CLONE_NAMESPACES.iter().sum();
        syscalls.push(rule(&["clone"], ALLOW, None, vec![arg(0, "SCMP_CMP_MASKED_EQ", all, 0)]));
        for flag in CLONE_NAMESPACES {
            let with_flag = vec![arg(0, "SCMP_CMP_MASKED_EQ", flag, flag)];
            syscalls.push(rule(&["clone"], ERRNO, Some(EPERM), with_flag));
        }
    }
    for domain in PERSONALITIES {
        syscalls.push(rule(&["personality"], ALLOW, None, vec![arg(0, "SCMP_CMP_EQ", domain, 0)]));
    }
    syscalls.extend(socket_rules(holds("AUDIT_WRITE")));
    Seccomp {
        default_action: ERRNO.to_owned(),
        default_errno_ret: Some(ENOSYS),
        architectures: arch.seccomp_names().iter().map(|name| (*name).to_owned()).collect(),
        syscalls,
        ..Default::default()
    }
}

/// Families and protocols of sockets.
///
/// One comparison per argument and rule is what libseccomp can, so "neither of both families" is three ranges. The i386
/// call socketcall can't be looked into and stays open, for 32-bit programs know no other way.
fn socket_rules(audit: bool) -> Vec<Syscall> {
    // NETLINK_AUDIT is the node's. With EINVAL libaudit takes the kernel for one without auditing, and logins go on;
    // a send that fails would end them. No other family has a protocol of that number that programs use.
    let with_protocol = |mut args: Vec<SyscallArg>| {
        if !audit {
            args.push(arg(2, "SCMP_CMP_NE", NETLINK_AUDIT, 0));
        }
        args
    };
    let mut rules = Vec::new();
    for (op, family) in [("SCMP_CMP_LT", AF_ALG), ("SCMP_CMP_EQ", AF_ALG + 1), ("SCMP_CMP_GT", AF_VSOCK)] {
        rules.push(rule(&["socket"], ALLOW, None, with_protocol(vec![arg(0, op, family, 0)])));
    }
    for family in [AF_ALG, AF_VSOCK] {
        let one = with_protocol(vec![arg(0, "SCMP_CMP_EQ", family, 0)]);
        rules.push(rule(&["socket"], ERRNO, Some(EAFNOSUPPORT), one));
    }
    if !audit {
        let one = vec![arg(2, "SCMP_CMP_EQ", NETLINK_AUDIT, 0)];
        rules.push(rule(&["socket"], ERRNO, Some(EINVAL), one));
    }
    rules
}

fn rule(names: &[&str], action: &str, errno: Option<u32>, args: Vec<SyscallArg>) -> Syscall {
    Syscall {
        names: names.iter().map(|name| (*name).to_owned()).collect(),
        action: action.to_owned(),
        errno_ret: errno,
        args,
    }
}

fn arg(index: u32, op: &str, value: u64, value_two: u64) -> SyscallArg {
    SyscallArg { index, value, value_two, op: op.to_owned() }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn check(capabilities: &[&str], call: &str, action: &str) {
        let held: Vec<String> = capabilities.iter().map(|name| format!("CAP_{name}")).collect();
        let profile = default_profile(Arch::X86_64, &held);
        let found: Vec<&Syscall> =
            profile.syscalls.iter().filter(|rule| rule.names.iter().any(|name| name == call)).collect();
        assert_eq!(found.len(), 1, "{call} has {} rules", found.len());
        assert_eq!(found[0].action, action, "{call} with {capabilities:?}");
    }

    #[test]
    fn calls_follow_the_capabilities_that_the_container_holds() {
        check(&[], "read", ALLOW);
        check(&[], "mount", ERRNO);
        check(&["SYS_ADMIN"], "mount", ALLOW);
        check(&[], "bpf", ERRNO);
        check(&["BPF"], "bpf", ALLOW);
        check(&["SYS_ADMIN"], "bpf", ALLOW);
        check(&[], "unshare", ERRNO);
        check(&["SYS_ADMIN"], "clone3", ALLOW);
        check(&["SYS_ADMIN"], "io_uring_setup", ERRNO);
        check(&[], "chroot", ERRNO);
        check(&["SYS_CHROOT"], "chroot", ALLOW);
    }

    #[test]
    fn clone3_is_unknown_without_sys_admin_so_that_programs_use_clone() {
        let profile = default_profile(Arch::X86_64, &[]);
        assert_eq!(profile.default_errno_ret, Some(ENOSYS));
        assert!(!profile.syscalls.iter().any(|rule| rule.names.iter().any(|name| name == "clone3")));
        let clone: Vec<_> = profile.syscalls.iter().filter(|rule| rule.names == ["clone"]).collect();
        assert_eq!(clone.len(), 8);
        assert!(clone.iter().all(|rule| rule.args.len() == 1));
    }

    #[test]
    fn a_call_is_in_one_group_only_and_groups_have_no_doubles() {
        let mut seen = BTreeSet::new();
        for group in ALLOWED.iter().chain(REFUSED) {
            for call in group.calls {
                assert!(seen.insert(*call), "{call} is in two groups");
            }
        }
        for group in BY_CAPABILITY {
            for call in group.calls {
                assert!(!seen.contains(call), "{call} is in a group without conditions too");
            }
        }
        for call in ["clone", "clone3", "personality", "socket"] {
            assert!(!seen.contains(call), "{call} is decided by its arguments");
        }
    }

    #[test]
    fn the_architectures_whose_programs_run_here_are_filtered_too() {
        assert_eq!(default_profile(Arch::X86_64, &[]).architectures.len(), 3);
        assert_eq!(default_profile(Arch::Aarch64, &[]).architectures, ["SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"]);
    }
}
