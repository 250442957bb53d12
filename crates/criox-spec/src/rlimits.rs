//! `default_ulimits`, within what the daemon may set.

use crate::error::{SpecError, Warning, WarningTopic};
use crate::input::{NodeFacts, Ulimit};
use crate::oci;

/// Limits of getrlimit(2), without prefix.
const NAMES: [&str; 16] = [
    "AS",
    "CORE",
    "CPU",
    "DATA",
    "FSIZE",
    "LOCKS",
    "MEMLOCK",
    "MSGQUEUE",
    "NICE",
    "NOFILE",
    "NPROC",
    "RSS",
    "RTPRIO",
    "RTTIME",
    "SIGPENDING",
    "STACK",
];

/// None configured means that the container inherits the daemon's.
pub(crate) fn resolve(
    ulimits: &[Ulimit],
    node: &NodeFacts,
    warnings: &mut Vec<Warning>,
) -> Result<Vec<oci::Rlimit>, SpecError> {
    let mut rlimits: Vec<oci::Rlimit> = Vec::new();
    for ulimit in ulimits {
        let name = ulimit.name.to_ascii_uppercase();
        if !NAMES.contains(&name.as_str()) {
            return Err(SpecError::invalid("default_ulimits", format!("unknown limit {:?}", ulimit.name)));
        }
        if ulimit.soft > ulimit.hard {
            let reason =
                format!("{}: soft limit {} above hard limit {}", ulimit.name, ulimit.soft, ulimit.hard);
            return Err(SpecError::invalid("default_ulimits", reason));
        }
        let mut limit = oci::Rlimit { kind: format!("RLIMIT_{name}"), hard: ulimit.hard, soft: ulimit.soft };
        clamp(&mut limit, node, warnings);
        rlimits.retain(|earlier| earlier.kind != limit.kind);
        rlimits.push(limit);
    }
    Ok(rlimits)
}

fn clamp(limit: &mut oci::Rlimit, node: &NodeFacts, warnings: &mut Vec<Warning>) {
    if node.capabilities.has("SYS_RESOURCE") {
        return;
    }
    let Some(most) = node.hard_rlimits.get(&limit.kind).copied().filter(|most| limit.hard > *most) else {
        return;
    };
    let message =
        format!("the daemon lacks CAP_SYS_RESOURCE: {} {} is cut to {most}", limit.kind, limit.hard);
    warnings.push(Warning::new(WarningTopic::Rlimits, message));
    limit.hard = most;
    limit.soft = limit.soft.min(most);
}
