//! Parts of the runtime specification that only adjustments by NRI plugins bring in.

use serde::{Deserialize, Serialize};

/// `process.ioPriority`, see ioprio_set(2).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct IoPriority {
    /// `IOPRIO_CLASS_RT`, `IOPRIO_CLASS_BE` or `IOPRIO_CLASS_IDLE`.
    pub class: String,
    /// 0 (first) to 7.
    pub priority: i32,
}

/// `process.scheduler`, see sched_setattr(2).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Scheduler {
    /// Such as `SCHED_BATCH`.
    pub policy: String,
    /// Of `SCHED_OTHER` and `SCHED_BATCH`.
    #[serde(skip_serializing_if = "is_zero_i32")]
    pub nice: i32,
    /// Of `SCHED_FIFO` and `SCHED_RR`.
    #[serde(skip_serializing_if = "is_zero_i32")]
    pub priority: i32,
    /// Such as `SCHED_FLAG_RESET_ON_FORK`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub flags: Vec<String>,
    /// Nanoseconds, of `SCHED_DEADLINE`.
    #[serde(skip_serializing_if = "is_zero_u64")]
    pub runtime: u64,
    /// Nanoseconds, of `SCHED_DEADLINE`.
    #[serde(skip_serializing_if = "is_zero_u64")]
    pub deadline: u64,
    /// Nanoseconds, of `SCHED_DEADLINE`.
    #[serde(skip_serializing_if = "is_zero_u64")]
    pub period: u64,
}

/// `linux.memoryPolicy`, see set_mempolicy(2).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct MemoryPolicy {
    /// Such as `MPOL_BIND`.
    pub mode: String,
    /// NUMA node list.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub nodes: String,
    /// Such as `MPOL_F_STATIC_NODES`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub flags: Vec<String>,
}

fn is_zero_i32(value: &i32) -> bool {
    *value == 0
}

fn is_zero_u64(value: &u64) -> bool {
    *value == 0
}
