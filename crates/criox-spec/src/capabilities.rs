//! Capabilities: names, sets, and the rules of CRI and CRI-O for adding and dropping.

use criox_cri::v1;

use crate::error::{SpecError, Warning, WarningTopic};
use crate::oci;

/// Names by number, as in `linux/capability.h`.
const NAMES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// A set of capabilities as the kernel prints it in `/proc/<pid>/status` (`CapEff` and its kin).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CapabilitySet(u64);

impl CapabilitySet {
    /// Every capability that has a name.
    pub const ALL: Self = Self((1 << NAMES.len()) - 1);
    /// None.
    pub const EMPTY: Self = Self(0);

    /// From the kernel's bit mask; bits without a name are dropped.
    #[must_use]
    pub fn from_bits(bits: u64) -> Self {
        Self(bits & Self::ALL.0)
    }

    /// From a name with or without `CAP_`, in any case.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        let upper = name.to_ascii_uppercase();
        let bare = upper.strip_prefix("CAP_").unwrap_or(&upper);
        NAMES.iter().position(|known| *known == bare).map(|bit| Self(1 << bit))
    }

    /// Whether all of `other` are in it.
    #[must_use]
    pub fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Whether the capability of that name is in it; an unknown name is not.
    #[must_use]
    pub fn has(self, name: &str) -> bool {
        Self::named(name).is_some_and(|one| self.contains(one))
    }

    /// Both together.
    #[must_use]
    pub fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// What is in both.
    #[must_use]
    pub fn intersection(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// What is not in `other`.
    #[must_use]
    pub fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// OCI names (`CAP_CHOWN`), by number.
    #[must_use]
    pub fn names(self) -> Vec<String> {
        NAMES
            .iter()
            .enumerate()
            .filter(|(bit, _)| self.0 & (1 << bit) != 0)
            .map(|(_, name)| format!("CAP_{name}"))
            .collect()
    }
}

/// The sets of one process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ProcessCapabilities {
    /// Bounding, effective and permitted.
    pub(crate) granted: CapabilitySet,
    pub(crate) inheritable: CapabilitySet,
    pub(crate) ambient: CapabilitySet,
}

impl ProcessCapabilities {
    pub(crate) fn to_oci(self) -> oci::Capabilities {
        let granted = self.granted.names();
        oci::Capabilities {
            bounding: granted.clone(),
            effective: granted.clone(),
            inheritable: self.inheritable.names(),
            permitted: granted,
            ambient: self.ambient.names(),
        }
    }
}

/// What the request, the configuration and the daemon's own powers come to.
pub(crate) struct Wanted<'a> {
    pub(crate) request: Option<&'a v1::Capability>,
    pub(crate) privileged: bool,
    pub(crate) defaults: &'a [String],
    pub(crate) add_inheritable: bool,
    /// The most that a process in the container's user namespace can get.
    pub(crate) ceiling: CapabilitySet,
}

/// Resolves the sets.
///
/// `ALL` in the added or dropped names sets the defaults aside; dropping comes last and wins; inheritable stays empty
/// unless configured, because a non-empty inheritable set gives file capabilities to unprivileged users inside.
pub(crate) fn resolve(
    wanted: &Wanted<'_>,
    warnings: &mut Vec<Warning>,
) -> Result<ProcessCapabilities, SpecError> {
    const FIELD: &str = "linux.security_context.capabilities";
    if wanted.privileged {
        let granted = mask(CapabilitySet::ALL, wanted.ceiling, warnings);
        let inheritable = if wanted.add_inheritable { granted } else { CapabilitySet::EMPTY };
        return Ok(ProcessCapabilities { granted, inheritable, ambient: CapabilitySet::EMPTY });
    }
    let nothing = v1::Capability::default();
    let request = wanted.request.unwrap_or(&nothing);
    let add = Names::parse(&request.add_capabilities, || format!("{FIELD}.add_capabilities"), true)?;
    // A name to drop that this kernel does not know is not there to be dropped.
    let drop = Names::parse(&request.drop_capabilities, || format!("{FIELD}.drop_capabilities"), false)?;
    let ambient = Names::parse(
        &request.add_ambient_capabilities,
        || format!("{FIELD}.add_ambient_capabilities"),
        true,
    )?;

    let mut set = CapabilitySet::EMPTY;
    if !add.all && !drop.all {
        set = Names::parse(wanted.defaults, || "default_capabilities".to_owned(), true)?.set;
    }
    if add.all && !drop.all {
        set = CapabilitySet::ALL;
    }
    let ambient_asked = if ambient.all { CapabilitySet::ALL } else { ambient.set };
    set = set.union(add.set).union(ambient_asked).without(drop.set);
    let granted = mask(set, wanted.ceiling, warnings);
    let ambient = ambient_asked.intersection(granted);
    let inheritable = if wanted.add_inheritable { granted } else { ambient };
    Ok(ProcessCapabilities { granted, inheritable, ambient })
}

fn mask(set: CapabilitySet, ceiling: CapabilitySet, warnings: &mut Vec<Warning>) -> CapabilitySet {
    let missing = set.without(ceiling);
    if !missing.is_empty() {
        warnings.push(Warning::new(
            WarningTopic::Capabilities,
            format!("the daemon does not hold {}: containers don't get them", missing.names().join(", ")),
        ));
    }
    set.intersection(ceiling)
}

#[derive(Default)]
struct Names {
    all: bool,
    set: CapabilitySet,
}

impl Names {
    fn parse(names: &[String], field: impl Fn() -> String, strict: bool) -> Result<Self, SpecError> {
        let mut parsed = Self::default();
        for name in names {
            if name.eq_ignore_ascii_case("ALL") {
                parsed.all = true;
            } else if let Some(one) = CapabilitySet::named(name) {
                parsed.set = parsed.set.union(one);
            } else if strict {
                return Err(SpecError::invalid(field(), format!("unknown capability {name:?}")));
            }
        }
        Ok(parsed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(add: &[&str], drop: &[&str], expected: &[&str]) {
        let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let request = v1::Capability {
            add_capabilities: owned(add),
            drop_capabilities: owned(drop),
            ..Default::default()
        };
        let wanted = Wanted {
            request: Some(&request),
            privileged: false,
            defaults: &owned(&["CHOWN", "KILL"]),
            add_inheritable: false,
            ceiling: CapabilitySet::ALL,
        };
        let sets = resolve(&wanted, &mut Vec::new()).unwrap();
        let expected: Vec<String> = expected.iter().map(|name| format!("CAP_{name}")).collect();
        assert_eq!(sets.granted.names(), expected, "add {add:?} drop {drop:?}");
        assert!(sets.inheritable.is_empty() && sets.ambient.is_empty());
    }

    #[test]
    fn added_and_dropped_names_change_the_defaults() {
        check(&[], &[], &["CHOWN", "KILL"]);
        check(&["NET_ADMIN"], &[], &["CHOWN", "KILL", "NET_ADMIN"]);
        check(&["CAP_NET_ADMIN", "cap_sys_time"], &["kill"], &["CHOWN", "NET_ADMIN", "SYS_TIME"]);
        check(&["NET_ADMIN"], &["NET_ADMIN"], &["CHOWN", "KILL"]);
    }

    #[test]
    fn all_sets_the_defaults_aside() {
        check(&["NET_RAW"], &["ALL"], &["NET_RAW"]);
        check(&["ALL", "NET_RAW"], &["all"], &["NET_RAW"]);
        let most: Vec<&str> = NAMES.iter().copied().filter(|name| *name != "SYS_ADMIN").collect();
        check(&["ALL"], &["SYS_ADMIN"], &most);
    }

    #[test]
    fn an_unknown_name_is_refused_when_added_and_ignored_when_dropped() {
        check(&[], &["CAP_FROM_THE_FUTURE"], &["CHOWN", "KILL"]);
        let request = v1::Capability { add_capabilities: vec!["NOPE".to_owned()], ..Default::default() };
        let wanted = Wanted {
            request: Some(&request),
            privileged: false,
            defaults: &[],
            add_inheritable: false,
            ceiling: CapabilitySet::ALL,
        };
        let error = resolve(&wanted, &mut Vec::new()).unwrap_err();
        assert_eq!(error.field, "linux.security_context.capabilities.add_capabilities");
    }

    #[test]
    fn privileged_gets_what_the_daemon_holds_and_a_warning_for_the_rest() {
        let resource = CapabilitySet::named("SYS_RESOURCE").unwrap();
        let wanted = Wanted {
            request: None,
            privileged: true,
            defaults: &[],
            add_inheritable: false,
            ceiling: CapabilitySet::ALL.without(resource),
        };
        let mut warnings = Vec::new();
        let sets = resolve(&wanted, &mut warnings).unwrap();
        assert_eq!(sets.granted, CapabilitySet::ALL.without(resource));
        assert!(warnings[0].message.contains("CAP_SYS_RESOURCE"), "{warnings:?}");
    }

    #[test]
    fn ambient_names_join_all_five_sets() {
        let request = v1::Capability {
            add_ambient_capabilities: vec!["NET_BIND_SERVICE".to_owned()],
            ..Default::default()
        };
        let wanted = Wanted {
            request: Some(&request),
            privileged: false,
            defaults: &[],
            add_inheritable: false,
            ceiling: CapabilitySet::ALL,
        };
        let sets = resolve(&wanted, &mut Vec::new()).unwrap();
        let bind = CapabilitySet::named("NET_BIND_SERVICE").unwrap();
        assert_eq!((sets.granted, sets.inheritable, sets.ambient), (bind, bind, bind));
    }
}
