//! Figures as the statistics of CRI. Each block carries the time at which it was read.

use criox_cri::v1;
use criox_records::ContainerRecord;
use criox_stats::{Figure, Taken, now};
use criox_sys::cgroup::stats::{Psi, PsiLine, Usage};
use criox_sys::netdev::Interface;

use crate::status::container_attributes;

/// The interface that CNI calls the pod's first one.
const FIRST_INTERFACE: &str = "eth0";

/// The statistics of a container: what its cgroup uses, its `rate` of the CPU in nanocores, and what its writable layer
/// held when it was counted last, on the file system that ImageFsInfo calls `mountpoint`.
pub fn container(
    record: &ContainerRecord,
    taken: &Taken<Usage>,
    rate: Option<u64>,
    layer: Option<Taken<Figure>>,
    mountpoint: &str,
) -> v1::ContainerStats {
    v1::ContainerStats {
        attributes: Some(container_attributes(record)),
        cpu: cpu(taken, rate),
        memory: memory(taken),
        writable_layer: layer.map(|layer| v1::FilesystemUsage {
            timestamp: layer.at,
            fs_id: Some(v1::FilesystemIdentifier { mountpoint: mountpoint.to_owned() }),
            used_bytes: value(layer.what.bytes),
            inodes_used: value(layer.what.inodes),
        }),
        swap: swap(taken),
        io: io(taken),
    }
}

/// What the cgroup of a pod uses, without its containers, processes and network.
pub fn pod(taken: &Taken<Usage>, rate: Option<u64>) -> v1::LinuxPodSandboxStats {
    v1::LinuxPodSandboxStats {
        cpu: cpu(taken, rate),
        memory: memory(taken),
        io: io(taken),
        ..Default::default()
    }
}

/// How many processes and threads a pod has now.
pub fn processes(count: u64) -> v1::ProcessUsage {
    v1::ProcessUsage { timestamp: now(), process_count: value(count) }
}

/// A pod that shares its cgroup with others is what its containers are, and were:
/// `past` is what ended ones have used of the CPU, in nanoseconds.
pub fn sum(containers: &[v1::ContainerStats], past: u64) -> v1::LinuxPodSandboxStats {
    let number = |value: &Option<v1::UInt64Value>| value.map_or(0, |value| value.value);
    let cpus = || containers.iter().filter_map(|container| container.cpu.as_ref());
    let memories = || containers.iter().filter_map(|container| container.memory.as_ref());
    let of_cpus =
        |field: fn(&v1::CpuUsage) -> &Option<v1::UInt64Value>| cpus().map(|cpu| number(field(cpu))).sum();
    let of_memories = |field: fn(&v1::MemoryUsage) -> &Option<v1::UInt64Value>| {
        value(memories().map(|memory| number(field(memory))).sum())
    };
    let used: u64 = of_cpus(|cpu| &cpu.usage_core_nano_seconds);
    v1::LinuxPodSandboxStats {
        cpu: Some(v1::CpuUsage {
            timestamp: now(),
            usage_core_nano_seconds: value(used.saturating_add(past)),
            usage_nano_cores: value(of_cpus(|cpu| &cpu.usage_nano_cores)),
            psi: None,
        }),
        memory: Some(v1::MemoryUsage {
            timestamp: now(),
            working_set_bytes: of_memories(|memory| &memory.working_set_bytes),
            available_bytes: None,
            usage_bytes: of_memories(|memory| &memory.usage_bytes),
            rss_bytes: of_memories(|memory| &memory.rss_bytes),
            page_faults: of_memories(|memory| &memory.page_faults),
            major_page_faults: of_memories(|memory| &memory.major_page_faults),
            psi: None,
        }),
        ..Default::default()
    }
}

#[expect(clippy::unnecessary_wraps, reason = "what the message's fields take")]
fn value(value: u64) -> Option<v1::UInt64Value> {
    Some(v1::UInt64Value { value })
}

fn cpu(taken: &Taken<Usage>, rate: Option<u64>) -> Option<v1::CpuUsage> {
    let cpu = taken.what.cpu?;
    Some(v1::CpuUsage {
        timestamp: taken.at,
        usage_core_nano_seconds: value(cpu.usage_ns),
        usage_nano_cores: rate.and_then(value),
        psi: cpu.psi.map(psi),
    })
}

fn memory(taken: &Taken<Usage>) -> Option<v1::MemoryUsage> {
    let memory = taken.what.memory?;
    Some(v1::MemoryUsage {
        timestamp: taken.at,
        working_set_bytes: value(memory.working_set()),
        available_bytes: memory.available().and_then(value),
        usage_bytes: value(memory.usage),
        rss_bytes: value(memory.rss),
        page_faults: memory.page_faults.and_then(value),
        major_page_faults: memory.major_page_faults.and_then(value),
        psi: memory.psi.map(psi),
    })
}

fn swap(taken: &Taken<Usage>) -> Option<v1::SwapUsage> {
    let memory = taken.what.memory?;
    Some(v1::SwapUsage {
        timestamp: taken.at,
        swap_available_bytes: memory.swap_available().and_then(value),
        swap_usage_bytes: value(memory.swap?),
    })
}

fn io(taken: &Taken<Usage>) -> Option<v1::IoUsage> {
    Some(v1::IoUsage { timestamp: taken.at, psi: Some(psi(taken.what.io?)) })
}

fn psi(read: Psi) -> v1::PsiStats {
    let line = |line: PsiLine| v1::PsiData {
        // The kernel counts microseconds.
        total: line.total_us.saturating_mul(1000),
        avg10: line.avg10,
        avg60: line.avg60,
        avg300: line.avg300,
    };
    v1::PsiStats { full: Some(line(read.full)), some: Some(line(read.some)) }
}

/// The interfaces of a pod, the first one as the default.
pub fn network(interfaces: Vec<Interface>) -> v1::NetworkUsage {
    let mut usages: Vec<v1::NetworkInterfaceUsage> = interfaces
        .into_iter()
        .map(|interface| v1::NetworkInterfaceUsage {
            name: interface.name,
            rx_bytes: value(interface.rx.bytes),
            rx_errors: value(interface.rx.errors),
            tx_bytes: value(interface.tx.bytes),
            tx_errors: value(interface.tx.errors),
        })
        .collect();
    let first = usages.iter().position(|usage| usage.name == FIRST_INTERFACE).unwrap_or(0);
    let default_interface = (first < usages.len()).then(|| usages.remove(first));
    v1::NetworkUsage { timestamp: now(), default_interface, interfaces: usages }
}

#[cfg(test)]
mod tests {
    use criox_sys::cgroup::stats::{Cpu, Limits, Memory};
    use criox_sys::netdev::Counters;

    use super::*;

    fn interface(name: &str, bytes: u64) -> Interface {
        let counters = Counters { bytes, ..Counters::default() };
        Interface { name: name.into(), rx: counters, tx: counters }
    }

    #[test]
    fn the_pods_first_interface_is_the_default_one() {
        let names = |usage: &v1::NetworkUsage| -> Vec<String> {
            let default = usage.default_interface.iter();
            default.chain(&usage.interfaces).map(|interface| interface.name.clone()).collect()
        };
        let usage = network(vec![interface("net1", 1), interface("eth0", 2)]);
        assert_eq!(names(&usage), ["eth0", "net1"]);
        assert!(usage.timestamp > 0);
        // Another name than CNI's usual one.
        assert_eq!(names(&network(vec![interface("ens3", 1)])), ["ens3"]);
        assert_eq!(network(Vec::new()).default_interface, None);
    }

    #[test]
    fn blocks_that_were_not_read_are_absent() {
        let taken = Taken::now(Usage::default());
        assert!(cpu(&taken, None).is_none() && memory(&taken).is_none());
        assert!(swap(&taken).is_none() && io(&taken).is_none());
    }

    #[test]
    fn a_container_without_a_limit_has_no_available_memory() {
        let limits = Limits { memory: Some(100), swap: None };
        let read = Memory { usage: 50, inactive_file: 20, limits, ..Memory::default() };
        let taken = |memory| Taken::now(Usage { memory: Some(memory), ..Usage::default() });
        let message = memory(&taken(read)).expect("memory");
        assert_eq!((message.working_set_bytes, message.available_bytes), (value(30), value(70)));
        let unlimited = Memory { limits: Limits::default(), ..read };
        assert_eq!(memory(&taken(unlimited)).expect("memory").available_bytes, None);
    }

    #[test]
    fn pressure_is_in_nanoseconds() {
        let line = PsiLine { total_us: 3, avg10: 1.0, ..PsiLine::default() };
        let read = Psi { some: line, full: PsiLine::default() };
        let usage = Usage { cpu: Some(Cpu { usage_ns: 1, psi: Some(read) }), ..Usage::default() };
        let message = cpu(&Taken::now(usage), Some(7)).expect("a CPU");
        let some = message.psi.and_then(|psi| psi.some).expect("pressure");
        assert_eq!((some.total, message.usage_nano_cores), (3000, value(7)));
    }
}
