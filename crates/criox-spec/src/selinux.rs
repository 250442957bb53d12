//! SELinux labels: what a request asks for, filled up from the policy's defaults and the pod's own level.
//!
//! Pods are kept apart by their level (MCS categories): two of the same level could read each other's files. The caller
//! allots a level that no other pod has; see [`mcs_level`].

use criox_cri::v1;

use crate::error::SpecError;
use crate::input::SelinuxLabels;

/// Categories of the usual policies: c0 to c1023.
const CATEGORIES: u32 = 1024;
/// Type of a container whose program is an init system, where others have the policy's usual one.
const INIT_TYPE: &str = "container_init_t";
/// The type that it stands in for.
const USUAL_TYPE: &str = "container_t";
/// Longer ones no policy has.
const MAX: usize = 4096;

/// A label, `user:role:type:level`; the level holds colons itself.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Label<'a> {
    user: &'a str,
    role: &'a str,
    kind: &'a str,
    level: &'a str,
}

impl<'a> Label<'a> {
    fn parse(text: &'a str) -> Self {
        let mut parts = text.splitn(4, ':');
        let mut next = || parts.next().unwrap_or_default();
        Self { user: next(), role: next(), kind: next(), level: next() }
    }

    fn text(&self) -> String {
        let Self { user, role, kind, level } = self;
        match level.is_empty() {
            true => format!("{user}:{role}:{kind}"),
            false => format!("{user}:{role}:{kind}:{level}"),
        }
    }
}

/// That the options of a request are parts of a label. They end up in mount options, which commas and quotes separate;
/// the level alone may hold commas (`s0:c1,c2`), and is written in quotes.
///
/// # Errors
/// The field.
pub(crate) fn check(options: &v1::SeLinuxOption, field: &str) -> Result<(), SpecError> {
    let parts = [
        ("user", &options.user, false),
        ("role", &options.role, false),
        ("type", &options.r#type, false),
        ("level", &options.level, true),
    ];
    for (name, part, is_level) in parts {
        let good = |c: char| c.is_ascii_alphanumeric() || "_-.".contains(c) || (is_level && ":,".contains(c));
        if part.len() > MAX || !part.chars().all(good) {
            let shown: String = part.chars().take(64).collect();
            let reason = format!("{shown:?} is no {name} of an SELinux label");
            return Err(SpecError::invalid(format!("{field}.{name}"), reason));
        }
    }
    Ok(())
}

/// The level with two different categories for each number below [`MCS_LEVELS`], all of them different.
#[must_use]
pub fn mcs_level(number: u32) -> String {
    let mut number = number % MCS_LEVELS;
    let mut first = 0;
    // The pairs (first, second) with first < second, one after another.
    loop {
        let row = CATEGORIES - 1 - first;
        if number < row {
            return format!("s0:c{first},c{}", first + 1 + number);
        }
        number -= row;
        first += 1;
    }
}

/// How many different levels [`mcs_level`] gives.
pub const MCS_LEVELS: u32 = CATEGORIES * (CATEGORIES - 1) / 2;

/// The labels of a pod: the policy's defaults, with what the request names and a level of the pod's own.
///
/// # Errors
/// The field, below `linux.security_context.selinux_options`.
pub fn pod_labels(
    sandbox: &v1::PodSandboxConfig,
    defaults: &SelinuxLabels,
    level: &str,
) -> Result<SelinuxLabels, SpecError> {
    let options = sandbox
        .linux
        .as_ref()
        .and_then(|linux| linux.security_context.as_ref())
        .and_then(|context| context.selinux_options.as_ref());
    let with_level = |text: &str| Label { level, ..Label::parse(text) }.text();
    let own = SelinuxLabels { process: with_level(&defaults.process), mount: with_level(&defaults.mount) };
    apply(&own, options)
}

/// The labels of a container: the pod's, with what the container's own request names.
///
/// # Errors
/// The field, below `linux.security_context.selinux_options`.
pub fn container_labels(
    container: &v1::ContainerConfig,
    pod: &SelinuxLabels,
) -> Result<SelinuxLabels, SpecError> {
    let options = container
        .linux
        .as_ref()
        .and_then(|linux| linux.security_context.as_ref())
        .and_then(|context| context.selinux_options.as_ref());
    apply(pod, options)
}

/// A file has the process's user and level, and never its role or type.
fn apply(base: &SelinuxLabels, options: Option<&v1::SeLinuxOption>) -> Result<SelinuxLabels, SpecError> {
    let Some(options) = options else { return Ok(base.clone()) };
    check(options, "linux.security_context.selinux_options")?;
    fn or<'a>(given: &'a str, known: &'a str) -> &'a str {
        if given.is_empty() { known } else { given }
    }
    let process = Label::parse(&base.process);
    let mount = Label::parse(&base.mount);
    let process = Label {
        user: or(&options.user, process.user),
        role: or(&options.role, process.role),
        kind: or(&options.r#type, process.kind),
        level: or(&options.level, process.level),
    };
    let mount =
        Label { user: or(&options.user, mount.user), level: or(&options.level, mount.level), ..mount };
    Ok(SelinuxLabels { process: process.text(), mount: mount.text() })
}

/// The process label of a program that is an init system: policies let it manage its own cgroup.
pub(crate) fn init_label(process: &str) -> String {
    match Label::parse(process) {
        label if label.kind == USUAL_TYPE => Label { kind: INIT_TYPE, ..label }.text(),
        label => label.text(),
    }
}

/// The values of `process` and `file` in the policy's `contexts/lxc_contexts`.
#[must_use]
pub fn parse_lxc_contexts(text: &str) -> SelinuxLabels {
    let value = |wanted: &str| {
        text.lines().find_map(|line| {
            let (name, value) = line.split_once('=')?;
            (name.trim() == wanted).then(|| value.trim().trim_matches('"').to_owned())
        })
    };
    SelinuxLabels { process: value("process").unwrap_or_default(), mount: value("file").unwrap_or_default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn defaults() -> SelinuxLabels {
        parse_lxc_contexts(
            "# comment\nprocess = \"system_u:system_r:container_t:s0\"\ncontent = \"x\"\nfile = \"system_u:object_r:container_file_t:s0\"\n",
        )
    }

    fn option(user: &str, role: &str, kind: &str, level: &str) -> v1::SeLinuxOption {
        v1::SeLinuxOption {
            user: user.to_owned(),
            role: role.to_owned(),
            r#type: kind.to_owned(),
            level: level.to_owned(),
        }
    }

    fn pod(options: Option<v1::SeLinuxOption>) -> v1::PodSandboxConfig {
        v1::PodSandboxConfig {
            linux: Some(v1::LinuxPodSandboxConfig {
                security_context: Some(v1::LinuxSandboxSecurityContext {
                    selinux_options: options,
                    ..Default::default()
                }),
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    fn container(options: Option<v1::SeLinuxOption>) -> v1::ContainerConfig {
        v1::ContainerConfig {
            linux: Some(v1::LinuxContainerConfig {
                security_context: Some(v1::LinuxContainerSecurityContext {
                    selinux_options: options,
                    ..Default::default()
                }),
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    #[track_caller]
    fn check_labels(labels: &SelinuxLabels, process: &str, mount: &str) {
        assert_eq!((labels.process.as_str(), labels.mount.as_str()), (process, mount));
    }

    #[test]
    fn a_pod_that_names_nothing_has_the_policys_labels_and_its_own_level() {
        let labels = pod_labels(&pod(None), &defaults(), "s0:c1,c2").unwrap();
        check_labels(
            &labels,
            "system_u:system_r:container_t:s0:c1,c2",
            "system_u:object_r:container_file_t:s0:c1,c2",
        );
    }

    #[test]
    fn what_a_pod_names_replaces_its_part_and_files_keep_role_and_type() {
        let options = option("u", "r", "t", "s0:c7,c9");
        let labels = pod_labels(&pod(Some(options)), &defaults(), "s0:c1,c2").unwrap();
        check_labels(&labels, "u:r:t:s0:c7,c9", "u:object_r:container_file_t:s0:c7,c9");
    }

    #[test]
    fn a_container_keeps_its_pods_level_unless_it_names_one() {
        let pod = pod_labels(&pod(None), &defaults(), "s0:c1,c2").unwrap();
        let labels = container_labels(&container(Some(option("", "", "spc_t", ""))), &pod).unwrap();
        check_labels(&labels, "system_u:system_r:spc_t:s0:c1,c2", &pod.mount);
        let labels = container_labels(&container(Some(option("", "", "", "s0"))), &pod).unwrap();
        check_labels(&labels, "system_u:system_r:container_t:s0", "system_u:object_r:container_file_t:s0");
        check_labels(&container_labels(&container(None), &pod).unwrap(), &pod.process, &pod.mount);
    }

    #[test]
    fn what_would_leave_a_mount_option_is_refused() {
        let refused = |options: v1::SeLinuxOption, field: &str| {
            let error = container_labels(&container(Some(options.clone())), &defaults()).unwrap_err();
            assert_eq!(error.field, format!("linux.security_context.selinux_options.{field}"));
            assert!(pod_labels(&pod(Some(options.clone())), &defaults(), "s0").is_err());
            assert!(crate::sandbox_security_check(&pod(Some(options))).is_err());
        };
        refused(option("", "", "t,dev=x", ""), "type");
        refused(option("u:r:t", "", "", ""), "user");
        refused(option("", "r\"", "", ""), "role");
        refused(option("", "", "", "s0\",x"), "level");
        refused(option("", "", "", "s0\n"), "level");
    }

    #[test]
    fn levels_have_two_categories_and_differ() {
        assert_eq!(mcs_level(0), "s0:c0,c1");
        assert_eq!(mcs_level(1022), "s0:c0,c1023");
        assert_eq!(mcs_level(1023), "s0:c1,c2");
        assert_eq!(mcs_level(MCS_LEVELS - 1), "s0:c1022,c1023");
        let all: std::collections::BTreeSet<String> = (0..5000).map(mcs_level).collect();
        assert_eq!(all.len(), 5000);
    }

    #[test]
    fn an_init_system_has_its_own_type_where_others_have_the_usual_one() {
        assert_eq!(init_label("u:r:container_t:s0:c1,c2"), "u:r:container_init_t:s0:c1,c2");
        assert_eq!(init_label("u:r:mine_t:s0"), "u:r:mine_t:s0");
    }
}
