//! Control group limits, the cgroup's path, and the OOM score.

use std::collections::BTreeMap;

use criox_cri::v1;

use crate::error::{SpecError, Warning, WarningTopic};
use crate::input::{HandlerFeatures, NodeFacts, SpecInput};
use crate::oci;

/// Who makes the control groups.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CgroupDriver {
    /// systemd's scopes.
    Systemd,
    /// Directories.
    Cgroupfs,
}

/// The value of `linux.cgroupsPath` for a container below the sandbox's parent.
///
/// With systemd `<slice>:crio:<id>` (only the parent's last component counts, `system.slice` without one), which the
/// runtime makes `crio-<id>.scope`; with cgroupfs `<parent>/crio-<id>`, below `/crio` without a parent.
///
/// # Errors
/// When the parent is of the other driver's form, or not a clean absolute path.
pub fn cgroups_path(driver: CgroupDriver, parent: &str, container_id: &str) -> Result<String, SpecError> {
    const FIELD: &str = "linux.cgroup_parent";
    match driver {
        CgroupDriver::Systemd => {
            let slice = parent.trim_end_matches('/').rsplit('/').next().unwrap_or("");
            let slice = if parent.is_empty() { "system.slice" } else { slice };
            if !slice.ends_with(".slice") || slice.contains([':', '\0']) {
                let reason = format!(
                    "cri-o configured with systemd cgroup manager, but did not receive slice as parent: {parent}"
                );
                return Err(SpecError::invalid(FIELD, reason));
            }
            Ok(format!("{slice}:crio:{container_id}"))
        }
        CgroupDriver::Cgroupfs => {
            let parent = if parent.is_empty() { "/crio" } else { parent };
            if parent.trim_end_matches('/').ends_with(".slice") {
                let reason = format!(
                    "cri-o configured with cgroupfs cgroup manager, but received systemd slice as parent: {parent}"
                );
                return Err(SpecError::invalid(FIELD, reason));
            }
            let absolute = if parent.starts_with('/') { parent.to_owned() } else { format!("/{parent}") };
            let clean = crate::mounts::clean_destination(&absolute)
                .map_err(|reason| SpecError::invalid(FIELD, reason))?;
            Ok(format!("{}/crio-{container_id}", clean.trim_end_matches('/')))
        }
    }
}

/// The document of `runtime update --resources` for UpdateContainerResources: what is given, and nothing else.
///
/// # Errors
/// A value out of range, with its field.
pub fn resources_update(
    request: &v1::LinuxContainerResources,
    node: &NodeFacts,
    handler: &HandlerFeatures,
) -> Result<(oci::Resources, Vec<Warning>), SpecError> {
    let mut warnings = Vec::new();
    let resources = limits(request, node, handler, "linux", &mut warnings)?;
    Ok((resources, warnings))
}

/// The container's limits and device rules.
pub(crate) fn build(
    input: &SpecInput<'_>,
    rules: Vec<oci::DeviceRule>,
    warnings: &mut Vec<Warning>,
) -> Result<oci::Resources, SpecError> {
    let nothing = v1::LinuxContainerResources::default();
    let request =
        input.container.linux.as_ref().and_then(|linux| linux.resources.as_ref()).unwrap_or(&nothing);
    let mut resources = limits(request, input.node, input.handler, "linux.resources", warnings)?;
    resources.devices = rules;
    if input.node.pids_controller {
        resources.pids = Some(oci::Pids { limit: pids_limit(input) });
    }
    Ok(resources)
}

/// The limit, written also when there is none: a systemd scope without one gets the manager's DefaultTasksMax.
fn pids_limit(input: &SpecInput<'_>) -> i64 {
    /// The kernel's PID_MAX_LIMIT: no node can have more tasks.
    const NO_LIMIT_AS_NUMBER: i64 = 4_194_304;
    match input.defaults.pids_limit {
        limit if limit > 0 => limit,
        // crun 1.8, which has no `features`, writes "-1" into pids.max as it is and fails.
        _ if input.handler.oci_version_max.is_empty() => NO_LIMIT_AS_NUMBER,
        _ => -1,
    }
}

fn limits(
    request: &v1::LinuxContainerResources,
    node: &NodeFacts,
    handler: &HandlerFeatures,
    prefix: &str,
    warnings: &mut Vec<Warning>,
) -> Result<oci::Resources, SpecError> {
    let field = |name: &str| format!("{prefix}.{name}");
    Ok(oci::Resources {
        cpu: cpu(request, &field)?,
        memory: memory(request, node, handler, &field)?,
        hugepage_limits: hugepages(request, node, &field, warnings)?,
        unified: unified(request, node, &field)?,
        ..Default::default()
    })
}

type Field<'a> = &'a dyn Fn(&str) -> String;

fn cpu(request: &v1::LinuxContainerResources, field: Field<'_>) -> Result<Option<oci::Cpu>, SpecError> {
    let positive = |name: &str, value: i64| {
        u64::try_from(value)
            .map(|value| (value > 0).then_some(value))
            .map_err(|_| SpecError::invalid(field(name), format!("{value} is negative")))
    };
    let quota = match request.cpu_quota {
        0 => None,
        quota if quota < -1 => {
            return Err(SpecError::invalid(field("cpu_quota"), format!("{quota}: -1 means no limit")));
        }
        quota => Some(quota),
    };
    for (name, list) in [("cpuset_cpus", &request.cpuset_cpus), ("cpuset_mems", &request.cpuset_mems)] {
        if !list.bytes().all(|byte| byte.is_ascii_digit() || byte == b',' || byte == b'-') {
            return Err(SpecError::invalid(field(name), format!("{list:?} is no list such as 0-3,7")));
        }
    }
    let cpu = oci::Cpu {
        shares: positive("cpu_shares", request.cpu_shares)?,
        quota,
        period: positive("cpu_period", request.cpu_period)?,
        cpus: request.cpuset_cpus.clone(),
        mems: request.cpuset_mems.clone(),
        ..Default::default()
    };
    Ok((cpu != oci::Cpu::default()).then_some(cpu))
}

/// Memory, and memory plus swap: without a swap value no swap at all (CRI-O's rule), as the limit alone would let a
/// container swap without bound.
fn memory(
    request: &v1::LinuxContainerResources,
    node: &NodeFacts,
    handler: &HandlerFeatures,
    field: Field<'_>,
) -> Result<Option<oci::Memory>, SpecError> {
    let (limit, swap) = (request.memory_limit_in_bytes, request.memory_swap_limit_in_bytes);
    if limit < -1 {
        return Err(SpecError::invalid(
            field("memory_limit_in_bytes"),
            format!("{limit}: -1 means no limit"),
        ));
    }
    if limit == 0 {
        return Ok(None);
    }
    let minimum = handler.container_min_memory;
    if u64::try_from(limit).is_ok_and(|limit| limit < minimum) {
        let reason = format!("set memory limit {limit} too low; should be at least {minimum} bytes");
        return Err(SpecError::invalid(field("memory_limit_in_bytes"), reason));
    }
    let swap = match swap {
        _ if !node.swap_accounting => None,
        0 => Some(limit),
        -1 => Some(-1),
        swap if swap < limit => {
            let reason = format!("{swap} is less than the memory limit {limit}: it is memory plus swap");
            return Err(SpecError::invalid(field("memory_swap_limit_in_bytes"), reason));
        }
        swap => Some(swap),
    };
    Ok(Some(oci::Memory { limit: Some(limit), swap, ..Default::default() }))
}

fn hugepages(
    request: &v1::LinuxContainerResources,
    node: &NodeFacts,
    field: Field<'_>,
    warnings: &mut Vec<Warning>,
) -> Result<Vec<oci::HugepageLimit>, SpecError> {
    if !node.hugetlb_controller {
        if request.hugepage_limits.iter().any(|limit| limit.limit > 0) {
            let message = "the node has no hugetlb controller: huge page limits are left out";
            warnings.push(Warning::new(WarningTopic::Resources, message));
        }
        return Ok(Vec::new());
    }
    let mut limits = Vec::new();
    for (index, limit) in request.hugepage_limits.iter().enumerate() {
        let field = || field(&format!("hugepage_limits[{index}].page_size"));
        if !is_page_size(&limit.page_size) {
            let reason = format!("{:?} is no size such as 2MB or 1GB", limit.page_size);
            return Err(SpecError::invalid(field(), reason));
        }
        let known = node.hugepage_sizes.is_empty() || node.hugepage_sizes.contains(&limit.page_size);
        if known {
            limits.push(oci::HugepageLimit { page_size: limit.page_size.clone(), limit: limit.limit });
        } else if limit.limit > 0 {
            let reason = format!("the node has no pages of {}", limit.page_size);
            return Err(SpecError::invalid(field(), reason));
        }
    }
    Ok(limits)
}

fn is_page_size(text: &str) -> bool {
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let unit = &text[digits.len()..];
    !digits.is_empty()
        && digits.bytes().all(|byte| byte.is_ascii_digit())
        && ["KB", "MB", "GB"].contains(&unit)
}

/// Files of cgroup v2. They become file names, so only the controllers' own limits are let through: nothing that moves
/// processes or changes the tree.
fn unified(
    request: &v1::LinuxContainerResources,
    node: &NodeFacts,
    field: Field<'_>,
) -> Result<BTreeMap<String, String>, SpecError> {
    const CONTROLLERS: [&str; 8] = ["cpu", "cpuset", "memory", "io", "pids", "hugetlb", "rdma", "misc"];
    if !node.cgroup_v2 {
        return Ok(BTreeMap::new());
    }
    let mut files = BTreeMap::new();
    for (name, value) in &request.unified {
        let well_formed = name.split_once('.').is_some_and(|(controller, file)| {
            CONTROLLERS.contains(&controller)
                && !file.is_empty()
                && file.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
                && !file.contains("..")
        });
        if !well_formed {
            let reason = format!("{name:?} is no file of {}", CONTROLLERS.join(", "));
            return Err(SpecError::invalid(field("unified"), reason));
        }
        if value.contains(['\0', '\n']) {
            return Err(SpecError::invalid(
                field("unified"),
                format!("the value of {name} is more than one line"),
            ));
        }
        files.insert(name.clone(), value.clone());
    }
    Ok(files)
}

/// The OOM score, raised to what the daemon may set: a lower one needs CAP_SYS_RESOURCE on the node.
pub(crate) fn oom_score_adj(input: &SpecInput<'_>, warnings: &mut Vec<Warning>) -> Result<i32, SpecError> {
    const FIELD: &str = "linux.resources.oom_score_adj";
    let resources = input.container.linux.as_ref().and_then(|linux| linux.resources.as_ref());
    // Without a word it is 0: the daemon's own score, often far below, must not be inherited.
    let asked = resources.map_or(0, |resources| resources.oom_score_adj);
    let wanted = i32::try_from(asked)
        .ok()
        .filter(|score| (-1000..=1000).contains(score))
        .ok_or_else(|| SpecError::invalid(FIELD, format!("{asked} is not within -1000 to 1000")))?;
    let floor = input.node.oom_score_adj;
    if wanted < floor && !input.node.capabilities.has("SYS_RESOURCE") {
        let message = format!(
            "the daemon lacks CAP_SYS_RESOURCE: an OOM score of {wanted} is raised to its own, {floor}"
        );
        warnings.push(Warning::new(WarningTopic::OomScoreAdj, message));
        return Ok(floor);
    }
    Ok(wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_path_follows_the_driver() {
        let systemd = |parent| cgroups_path(CgroupDriver::Systemd, parent, "id");
        assert_eq!(systemd("/kubepods.slice/kubepods-podx.slice").unwrap(), "kubepods-podx.slice:crio:id");
        assert_eq!(systemd("").unwrap(), "system.slice:crio:id");
        assert_eq!(systemd("/kubepods/podx").unwrap_err().field, "linux.cgroup_parent");
        let cgroupfs = |parent| cgroups_path(CgroupDriver::Cgroupfs, parent, "id");
        assert_eq!(cgroupfs("/kubepods/podx").unwrap(), "/kubepods/podx/crio-id");
        assert_eq!(cgroupfs("").unwrap(), "/crio/crio-id");
        assert!(cgroupfs("/a.slice").is_err());
        assert!(cgroupfs("/a/../../b").is_err());
    }
}
