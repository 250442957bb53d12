//! UpdateContainerResources: what a request leaves out, or says with zero, stays as it is.

use criox_cri::v1;

use crate::error::SpecError;

/// The OOM score that an update asks for. CRI's 0 is "not said": a score of 0 can't be asked for.
///
/// # Errors
/// One that the kernel does not have.
pub fn updated_oom_score(asked: i64) -> Result<Option<i32>, SpecError> {
    match i32::try_from(asked) {
        Ok(0) => Ok(None),
        Ok(score) if (-1000..=1000).contains(&score) => Ok(Some(score)),
        _ => Err(SpecError::invalid("linux.oom_score_adj", format!("{asked} is not within -1000 to 1000"))),
    }
}

/// An update with what it leaves unsaid and needs. Memory and swap are one number in CRI and belong together in the
/// kernel: where one is given, both are.
///
/// # Errors
/// A limit of swap for a container that has none of memory.
pub fn completed_update(
    old: &v1::LinuxContainerResources,
    request: &v1::LinuxContainerResources,
) -> Result<v1::LinuxContainerResources, SpecError> {
    let mut request = request.clone();
    if request.memory_limit_in_bytes == 0 && request.memory_swap_limit_in_bytes != 0 {
        if old.memory_limit_in_bytes <= 0 {
            let reason = "the container has no memory limit, which memory_limit_in_bytes would set";
            return Err(SpecError::invalid("linux.memory_swap_limit_in_bytes", reason));
        }
        request.memory_limit_in_bytes = old.memory_limit_in_bytes;
    }
    let (limit, swap) = (request.memory_limit_in_bytes, old.memory_swap_limit_in_bytes);
    let swaps = swap == -1 || swap > old.memory_limit_in_bytes;
    if limit != 0 && request.memory_swap_limit_in_bytes == 0 && swaps && (swap == -1 || swap >= limit) {
        // It may swap, and goes on doing so.
        request.memory_swap_limit_in_bytes = swap;
    }
    Ok(request)
}

/// The limits after an update: those of the `old` that the `new` ones don't say stay.
pub fn merged_update(
    old: &v1::LinuxContainerResources,
    new: &v1::LinuxContainerResources,
) -> v1::LinuxContainerResources {
    let number = |old: i64, new: i64| if new == 0 { old } else { new };
    let text = |old: &String, new: &String| if new.is_empty() { old.clone() } else { new.clone() };
    let mut merged = v1::LinuxContainerResources {
        cpu_period: number(old.cpu_period, new.cpu_period),
        cpu_quota: number(old.cpu_quota, new.cpu_quota),
        cpu_shares: number(old.cpu_shares, new.cpu_shares),
        memory_limit_in_bytes: number(old.memory_limit_in_bytes, new.memory_limit_in_bytes),
        oom_score_adj: number(old.oom_score_adj, new.oom_score_adj),
        cpuset_cpus: text(&old.cpuset_cpus, &new.cpuset_cpus),
        cpuset_mems: text(&old.cpuset_mems, &new.cpuset_mems),
        hugepage_limits: old.hugepage_limits.clone(),
        unified: old.unified.clone(),
        memory_swap_limit_in_bytes: number(old.memory_swap_limit_in_bytes, new.memory_swap_limit_in_bytes),
    };
    for limit in &new.hugepage_limits {
        merged.hugepage_limits.retain(|old| old.page_size != limit.page_size);
        merged.hugepage_limits.push(limit.clone());
    }
    merged.unified.extend(new.unified.iter().map(|(file, value)| (file.clone(), value.clone())));
    merged
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory(limit: i64, swap: i64) -> v1::LinuxContainerResources {
        v1::LinuxContainerResources {
            memory_limit_in_bytes: limit,
            memory_swap_limit_in_bytes: swap,
            ..Default::default()
        }
    }

    #[test]
    fn zero_leaves_alone_and_the_rest_is_merged() {
        let huge = |size: &str, limit| v1::HugepageLimit { page_size: size.into(), limit };
        let old = v1::LinuxContainerResources {
            cpu_shares: 512,
            cpuset_cpus: "0-1".into(),
            hugepage_limits: vec![huge("2MB", 1), huge("1GB", 2)],
            unified: [("memory.oom.group".to_owned(), "1".to_owned())].into(),
            ..memory(7, 7)
        };
        assert_eq!(merged_update(&old, &v1::LinuxContainerResources::default()), old);
        // The static CPU manager's request.
        let pinned = v1::LinuxContainerResources { cpuset_cpus: "3".into(), ..Default::default() };
        assert_eq!(
            merged_update(&old, &pinned),
            v1::LinuxContainerResources { cpuset_cpus: "3".into(), ..old.clone() }
        );
        let new = v1::LinuxContainerResources {
            hugepage_limits: vec![huge("2MB", 3)],
            unified: [("memory.low".to_owned(), "5".to_owned())].into(),
            ..Default::default()
        };
        let merged = merged_update(&old, &new);
        assert_eq!(merged.hugepage_limits, [huge("1GB", 2), huge("2MB", 3)]);
        assert_eq!(merged.unified.len(), 2);
    }

    #[test]
    fn memory_and_swap_go_together() {
        let swap_of = |old: &_, new: &_| {
            completed_update(old, new).map(|all| (all.memory_limit_in_bytes, all.memory_swap_limit_in_bytes))
        };
        assert_eq!(swap_of(&memory(100, 0), &memory(200, 0)).ok(), Some((200, 0)), "no swap, as before");
        assert_eq!(swap_of(&memory(100, 100), &memory(200, 0)).ok(), Some((200, 0)));
        assert_eq!(swap_of(&memory(100, 300), &memory(200, 0)).ok(), Some((200, 300)), "swap stays allowed");
        assert_eq!(swap_of(&memory(100, 300), &memory(400, 0)).ok(), Some((400, 0)));
        assert_eq!(swap_of(&memory(100, -1), &memory(400, 0)).ok(), Some((400, -1)));
        assert_eq!(swap_of(&memory(100, 0), &memory(0, 300)).ok(), Some((100, 300)));
        assert!(swap_of(&memory(0, 0), &memory(0, 300)).is_err());
    }

    #[test]
    fn scores_are_the_kernels() {
        assert_eq!(updated_oom_score(0).ok(), Some(None));
        assert_eq!(updated_oom_score(-997).ok(), Some(Some(-997)));
        assert!(updated_oom_score(1001).is_err() && updated_oom_score(i64::MIN).is_err());
    }
}
