//! Values with a syntax of their own: limits, devices, sysctls, ID mappings, CPU lists, sizes.

use std::fmt;
use std::path::PathBuf;

use crate::field::{Field, Kind, Text, choice};

choice! {
    /// Who makes cgroups (`cgroup_manager`).
    CgroupManager {
        /// Transient scopes and slices over D-Bus.
        Systemd = "systemd",
        /// Directories in the cgroup file system.
        Cgroupfs = "cgroupfs",
    }
}

choice! {
    /// What an image's `VOLUME` becomes (`image_volumes`).
    ImageVolumes {
        /// A directory in the container's root file system.
        Mkdir = "mkdir",
        /// A directory of the pod's, bind-mounted.
        Bind = "bind",
        /// Nothing.
        Ignore = "ignore",
    }
}

choice! {
    /// What a name without a registry means (`short_name_mode`).
    ShortNameMode {
        /// Only an unambiguous name is accepted.
        Enforcing = "enforcing" | "",
        /// All search registries are tried.
        Disabled = "disabled",
    }
}

choice! {
    /// `log_level`.
    LogLevel {
        /// Only what ends the daemon.
        Fatal = "fatal",
        /// As `fatal`.
        Panic = "panic",
        /// Failures.
        Error = "error",
        /// What deserves attention.
        Warn = "warn" | "warning",
        /// What happens.
        Info = "info",
        /// For those who look for a fault.
        Debug = "debug",
        /// Everything.
        Trace = "trace",
    }
}

choice! {
    /// Which checkpoint RPCs are served (`crio.checkpoint_restore.container_level_enabled`).
    CheckpointLevel {
        /// None.
        None = "none",
        /// Checkpoint, no restore.
        CheckpointOnly = "checkpoint_only",
        /// Both.
        CheckpointRestore = "checkpoint_restore",
    }
}

choice! {
    /// Lowest TLS version of the streaming and metrics servers.
    TlsMinVersion {
        /// TLS 1.2.
        Tls12 = "VersionTLS12",
        /// TLS 1.3.
        Tls13 = "VersionTLS13",
    }
}

/// A resource limit, `name=soft[:hard]` (`default_ulimits`, setrlimit(2)).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ulimit {
    /// Lower case and without `RLIMIT_`, as `nofile`.
    pub name: String,
    /// -1 is unlimited.
    pub soft: i64,
    /// -1 is unlimited.
    pub hard: i64,
}

const ULIMITS: [&str; 15] = [
    "core",
    "cpu",
    "data",
    "fsize",
    "locks",
    "memlock",
    "msgqueue",
    "nice",
    "nofile",
    "nproc",
    "rss",
    "rtprio",
    "rttime",
    "sigpending",
    "stack",
];

impl Ulimit {
    /// The name in the OCI runtime spec, as `RLIMIT_NOFILE`.
    pub fn spec_name(&self) -> String {
        format!("RLIMIT_{}", self.name.to_ascii_uppercase())
    }
}

impl Text for Ulimit {
    fn parse(text: &str) -> Result<Option<Self>, String> {
        let bad = || format!("\"{text}\" is not of the form name=soft[:hard]");
        let (name, limits) = text.split_once('=').ok_or_else(bad)?;
        if !ULIMITS.contains(&name) {
            return Err(format!("\"{name}\" is not a resource limit (one of {})", ULIMITS.join(", ")));
        }
        let number = |s: &str| s.parse::<i64>().ok().filter(|n| *n >= -1).ok_or_else(bad);
        let (soft, hard) = match limits.split_once(':') {
            Some((soft, hard)) => (number(soft)?, number(hard)?),
            None => (number(limits)?, number(limits)?),
        };
        if hard != -1 && (soft == -1 || soft > hard) {
            return Err(format!("\"{text}\": the soft limit is above the hard limit"));
        }
        Ok(Some(Self { name: name.to_owned(), soft, hard }))
    }
    fn text(&self) -> String {
        format!("{}={}:{}", self.name, self.soft, self.hard)
    }
}

/// A host device given to containers, `source[:destination][:permissions]` (`additional_devices`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceMapping {
    /// Path on the host.
    pub source: PathBuf,
    /// Path in the container, below `/dev/`.
    pub destination: PathBuf,
    /// Letters of `rwm`.
    pub permissions: String,
}

impl DeviceMapping {
    /// Parses the form that the key and the devices annotation share.
    pub fn parse_one(text: &str) -> Result<Self, String> {
        let mut parts: Vec<&str> = text.split(':').collect();
        let bad = || format!("\"{text}\" is not of the form source[:destination][:permissions]");
        let mode = |s: &str| {
            !s.is_empty()
                && s.chars().all(|c| "rwm".contains(c))
                && s.chars().enumerate().all(|(i, c)| !s[..i].contains(c))
        };
        let permissions = match parts.len() {
            2 if mode(parts[1]) => parts.pop(),
            3 if mode(parts[2]) => parts.pop(),
            3 => {
                return Err(format!(
                    "\"{text}\": permissions are letters of rwm, each once, not \"{}\"",
                    parts[2]
                ));
            }
            _ => None,
        };
        if parts.is_empty() || parts.len() > 2 || parts[0].is_empty() {
            return Err(bad());
        }
        let destination = parts.get(1).copied().unwrap_or(parts[0]);
        if !parts[0].starts_with('/') || text.contains('\0') {
            return Err(bad());
        }
        if !destination.starts_with("/dev/") || destination.split('/').any(|part| part == "..") {
            return Err(format!("\"{text}\": the path in the container must be below /dev/"));
        }
        Ok(Self {
            source: parts[0].into(),
            destination: destination.into(),
            permissions: permissions.unwrap_or("rwm").to_owned(),
        })
    }
}

impl Text for DeviceMapping {
    fn parse(text: &str) -> Result<Option<Self>, String> {
        Self::parse_one(text).map(Some)
    }
    fn text(&self) -> String {
        format!("{}:{}:{}", self.source.display(), self.destination.display(), self.permissions)
    }
}

/// `key=value` (`default_sysctls`). Whether a pod may have it is checked per pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sysctl {
    /// Dotted name.
    pub key: String,
    /// Value as written.
    pub value: String,
}

impl Text for Sysctl {
    fn parse(text: &str) -> Result<Option<Self>, String> {
        if text.is_empty() {
            return Ok(None);
        }
        match text.split_once('=') {
            Some((key, value)) if !key.is_empty() && !value.is_empty() => {
                if key.trim() != key || value.trim() != value {
                    return Err(format!("\"{text}\" must not have spaces around the equals sign"));
                }
                Ok(Some(Self { key: key.to_owned(), value: value.to_owned() }))
            }
            _ => Err(format!("\"{text}\" is not of the form key=value")),
        }
    }
    fn text(&self) -> String {
        format!("{}={}", self.key, self.value)
    }
}

/// One range of an ID mapping, user_namespaces(7).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IdMapping {
    /// First ID in the container.
    pub container: u32,
    /// First ID on the host.
    pub host: u32,
    /// Number of IDs.
    pub size: u32,
}

/// `container:host:size,…` (`uid_mappings`, `gid_mappings`); empty is no mapping.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct IdMappings(pub Vec<IdMapping>);

impl Field for IdMappings {
    const KIND: Kind = Kind::String;
    fn read(value: &toml::Value) -> Result<Self, String> {
        let text = String::read(value)?;
        let mut ranges = Vec::new();
        for part in text.split(',').filter(|part| !part.is_empty()) {
            let bad = || format!("\"{part}\" is not of the form container:host:size");
            let numbers: Vec<u32> =
                part.split(':').map(str::parse).collect::<Result<_, _>>().map_err(|_| bad())?;
            let [container, host, size] = numbers[..] else { return Err(bad()) };
            if size == 0 || container.checked_add(size).is_none() || host.checked_add(size).is_none() {
                return Err(format!("\"{part}\" is an empty range or leaves the 32 bits of an ID"));
            }
            ranges.push(IdMapping { container, host, size });
        }
        Ok(Self(ranges))
    }
    fn write(&self) -> toml::Value {
        toml::Value::String(self.to_string())
    }
}

impl fmt::Display for IdMappings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, m) in self.0.iter().enumerate() {
            let comma = if i == 0 { "" } else { "," };
            write!(f, "{comma}{}:{}:{}", m.container, m.host, m.size)?;
        }
        Ok(())
    }
}

/// Highest CPU number that a list may name: the kernel's largest `NR_CPUS`.
const MAX_CPU: u32 = 8191;

/// Parses the kernel's list of CPUs, `0-3,8,10-11` (cpuset(7)), into inclusive ranges; empty is no CPU.
pub fn cpu_list(text: &str) -> Result<Vec<(u32, u32)>, String> {
    let mut ranges = Vec::new();
    for part in text.trim().split(',').filter(|_| !text.trim().is_empty()) {
        let bad = || format!("\"{text}\" is not a list of CPUs such as \"0-3,8\"");
        let number = |s: &str| s.trim().parse::<u32>().ok().filter(|n| *n <= MAX_CPU).ok_or_else(bad);
        let (first, last) = match part.split_once('-') {
            Some((first, last)) => (number(first)?, number(last)?),
            None => (number(part)?, number(part)?),
        };
        if first > last {
            return Err(bad());
        }
        ranges.push((first, last));
    }
    Ok(ranges)
}

/// Parses a size with binary units, `12MiB`, `500k`, `1024` (as docker's `RAMInBytes`).
pub fn bytes(text: &str) -> Result<u64, String> {
    let bad = || format!("\"{text}\" is not a size such as \"12MiB\"");
    let text_trimmed = text.trim();
    let end = text_trimmed.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text_trimmed.len());
    let (number, unit) = text_trimmed.split_at(end);
    let number: f64 = number.parse().map_err(|_| bad())?;
    let unit = unit.trim().to_ascii_lowercase();
    let unit = unit.strip_suffix("ib").or_else(|| unit.strip_suffix('b')).unwrap_or(&unit);
    let shift = match unit {
        "" => 0,
        "k" => 10,
        "m" => 20,
        "g" => 30,
        "t" => 40,
        "p" => 50,
        _ => return Err(bad()),
    };
    let value = number * (1u64 << shift) as f64;
    if !value.is_finite() || value >= i64::MAX as f64 {
        return Err(bad());
    }
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "in range: checked above")]
    Ok(value as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check<T: Text + fmt::Debug>(text: &str, want: Result<&str, &str>) {
        match (T::parse(text), want) {
            (Ok(Some(got)), Ok(want)) => assert_eq!(got.text(), want, "{text}"),
            (Err(got), Err(want)) => assert!(got.contains(want), "{text}: {got}"),
            (got, want) => panic!("{text}: {got:?}, wanted {want:?}"),
        }
    }

    #[test]
    fn ulimits_follow_dockers_syntax() {
        check::<Ulimit>("nofile=1024:4096", Ok("nofile=1024:4096"));
        check::<Ulimit>("nofile=1024", Ok("nofile=1024:1024"));
        check::<Ulimit>("memlock=-1:-1", Ok("memlock=-1:-1"));
        check::<Ulimit>("core=0:-1", Ok("core=0:-1"));
        check::<Ulimit>("nofile=2:1", Err("above the hard limit"));
        check::<Ulimit>("nofile=-1:1", Err("above the hard limit"));
        check::<Ulimit>("nofiles=1", Err("not a resource limit"));
        check::<Ulimit>("nofile", Err("name=soft[:hard]"));
        check::<Ulimit>("nofile=1:2:3", Err("name=soft[:hard]"));
    }

    #[test]
    fn devices_have_source_destination_and_permissions() {
        check::<DeviceMapping>("/dev/fuse", Ok("/dev/fuse:/dev/fuse:rwm"));
        check::<DeviceMapping>("/dev/sda:r", Ok("/dev/sda:/dev/sda:r"));
        check::<DeviceMapping>("/dev/sda:/dev/xvdc", Ok("/dev/sda:/dev/xvdc:rwm"));
        check::<DeviceMapping>("/dev/sda:/dev/xvdc:rw", Ok("/dev/sda:/dev/xvdc:rw"));
        check::<DeviceMapping>("/dev/sda:/dev/xvdc:rr", Err("each once"));
        check::<DeviceMapping>("/dev/sda:/etc/x", Err("below /dev/"));
        check::<DeviceMapping>("/dev/sda:/dev/../etc/x", Err("below /dev/"));
        check::<DeviceMapping>("sda:/dev/sda", Err("source[:destination]"));
        check::<DeviceMapping>("a:b:c:d", Err("source[:destination]"));
        check::<DeviceMapping>("", Err("source[:destination]"));
    }

    #[test]
    fn sysctls_have_no_spaces_around_the_sign() {
        check::<Sysctl>("net.ipv4.ping_group_range=0 0", Ok("net.ipv4.ping_group_range=0 0"));
        check::<Sysctl>("a = b", Err("spaces"));
        check::<Sysctl>("a", Err("key=value"));
        assert_eq!(Sysctl::parse(""), Ok(None));
    }

    #[test]
    fn cpu_lists_and_sizes() {
        assert_eq!(cpu_list("0-3,8"), Ok(vec![(0, 3), (8, 8)]));
        assert_eq!(cpu_list(""), Ok(vec![]));
        for bad in ["3-1", "a", "1,,2", "0-", "99999", "-1"] {
            assert!(cpu_list(bad).is_err(), "{bad}");
        }
        assert_eq!(bytes("12MiB"), Ok(12 << 20));
        assert_eq!(bytes("500KiB"), Ok(500 << 10));
        assert_eq!(bytes("1.5k"), Ok(1536));
        assert_eq!(bytes("7"), Ok(7));
        for bad in ["", "MiB", "1 apple", "99999999999P", "-1"] {
            assert!(bytes(bad).is_err(), "{bad}");
        }
    }
}
