//! Figures as metrics for Prometheus: a kubelet whose statistics come from CRI serves them at `/metrics/cadvisor`. Names,
//! labels and units are those that cAdvisor gave them; groups and their switch (`included_pod_metrics`) are CRI-O's.
//! Values are whole numbers, for the message that carries them has no others: seconds are cut.
//!
//! Rows are given one by one to who asks, and keep nothing: what a scrape holds in memory is the asker's.

mod container;
mod families;
mod process;

use std::time::Duration;

use criox_sys::cgroup::Cgroups;
use criox_sys::cgroup::stats::{Scratch, Wanted};
use criox_sys::netdev::Interface;

pub use families::{BASE_LABELS, Family, Kind};

use crate::meter::now;
use crate::probe::ContainerProbe;
use crate::walk::Room;
use families::{GROUPS, Group};

/// One value of a metric.
#[derive(Debug, Clone, Copy)]
pub struct Row<'a> {
    /// Of which.
    pub family: &'static Family,
    /// Values of the family's own labels, in their order.
    pub labels: &'a [&'a str],
    /// The value.
    pub value: u64,
}

/// The groups of metrics that are served.
#[derive(Debug)]
pub struct Groups(Vec<Group>);

impl Groups {
    /// Those that are asked for by their names in `included_pod_metrics` (`all`: all), and the one that is always there.
    pub fn asked(names: &[String]) -> Self {
        let is_asked = |group: &Group| match group.key() {
            None => true,
            Some(key) => names.iter().any(|name| name == key || name == "all"),
        };
        Self(GROUPS.iter().map(|(group, _)| *group).filter(is_asked).collect())
    }

    /// The metrics in them.
    pub fn families(&self) -> impl Iterator<Item = &'static Family> {
        let groups = GROUPS.iter().filter(|(group, _)| self.has(*group));
        groups.flat_map(|(_, families)| families.iter().copied())
    }

    /// Whether the interfaces of pods are among them.
    pub fn network(&self) -> bool {
        self.has(Group::Network)
    }

    fn has(&self, group: Group) -> bool {
        self.0.contains(&group)
    }
}

/// Where rows go.
struct Rows<'a>(&'a mut dyn FnMut(Row<'_>));

impl Rows<'_> {
    fn push(&mut self, family: &'static Family, value: u64) {
        self.push_with(family, [], value);
    }

    /// With values for the family's own labels.
    fn push_with<const N: usize>(&mut self, family: &'static Family, labels: [&str; N], value: u64) {
        debug_assert_eq!(labels.len(), family.labels.len(), "{}", family.name);
        (self.0)(Row { family, labels: &labels, value });
    }
}

/// Rows of a pod as a whole, with the interfaces of its network.
pub fn pod(interfaces: &[Interface], take: &mut dyn FnMut(Row<'_>)) {
    let mut rows = Rows(take);
    rows.push(&families::LAST_SEEN, seconds(now()));
    for interface in interfaces {
        network(&mut rows, interface);
    }
}

/// A container that has metrics.
#[derive(Debug)]
pub struct Container<'a> {
    /// Its open files.
    pub probe: &'a ContainerProbe,
    /// The hierarchies that its cgroup is in.
    pub cgroups: &'a Cgroups,
    /// Its cgroup.
    pub cgroup: &'a str,
    /// Its first process.
    pub pid: Option<i32>,
    /// When it started, in nanoseconds since the epoch; 0: not yet.
    pub started_at: i64,
    /// The file system of its writable layer.
    pub room: Option<Room>,
}

impl Container<'_> {
    /// Its rows. Figures may be those that were collected less than `age` ago.
    pub fn rows(&self, groups: &Groups, age: Duration, scratch: &mut Scratch, take: &mut dyn FnMut(Row<'_>)) {
        let mut rows = Rows(take);
        rows.push(&families::LAST_SEEN, seconds(now()));
        let detail = self.cgroups.detail(self.cgroup, wanted(groups), scratch);
        let usage = self.probe.meter().usage(age, scratch).what;
        if let Some(cpu) = usage.cpu.filter(|_| groups.has(Group::Cpu)) {
            container::cpu(&mut rows, &cpu, &detail);
        }
        if groups.has(Group::Disk) {
            container::disk(&mut rows, self.probe.layer().map(|layer| layer.what), self.room);
        }
        if groups.has(Group::DiskIo) {
            container::disk_io(&mut rows, &detail.devices);
        }
        if groups.has(Group::HugePages) {
            container::huge_pages(&mut rows, &detail.huge_pages);
        }
        if let Some(memory) = usage.memory.filter(|_| groups.has(Group::Memory)) {
            container::memory(&mut rows, &memory, &detail);
        }
        if groups.has(Group::Oom) {
            rows.push(&families::OOM_EVENTS, detail.oom_kills);
        }
        if groups.has(Group::Process) {
            let tasks = self.probe.meter().tasks(scratch).unwrap_or(0);
            let processes = process::look(self.cgroups, self.cgroup, self.pid);
            container::processes(&mut rows, &processes, tasks, detail.tasks_max);
        }
        if groups.has(Group::Spec) {
            container::spec(&mut rows, &detail, self.started_at);
        }
        if groups.has(Group::Pressure) {
            container::pressure(&mut rows, &usage);
        }
    }
}

/// The files of a cgroup that the groups need besides the usual ones.
fn wanted(groups: &Groups) -> Wanted {
    Wanted {
        cpu: groups.has(Group::Cpu),
        io: groups.has(Group::DiskIo),
        huge_pages: groups.has(Group::HugePages),
        memory: groups.has(Group::Memory),
        oom: groups.has(Group::Oom),
        spec: groups.has(Group::Spec),
        pids: groups.has(Group::Process),
    }
}

fn network(rows: &mut Rows<'_>, interface: &Interface) {
    let name = interface.name.as_str();
    for (families, counters) in [(&families::RECEIVE, interface.rx), (&families::TRANSMIT, interface.tx)] {
        let [bytes, packets, dropped, errors] = families;
        rows.push_with(bytes, [name], counters.bytes);
        rows.push_with(packets, [name], counters.packets);
        rows.push_with(dropped, [name], counters.dropped);
        rows.push_with(errors, [name], counters.errors);
    }
}

/// Whole seconds of nanoseconds.
fn seconds(nanoseconds: i64) -> u64 {
    u64::try_from(nanoseconds).unwrap_or(0) / 1_000_000_000
}

#[cfg(test)]
mod tests {
    use criox_sys::netdev::Counters;

    use super::*;

    fn asked(keys: &[&str]) -> Groups {
        Groups::asked(&keys.iter().map(|&key| key.to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn groups_are_served_when_they_are_asked_for() {
        assert_eq!(asked(&[]).0, [Group::Always]);
        assert_eq!(asked(&["oom", "diskIO"]).0, [Group::Always, Group::DiskIo, Group::Oom]);
        assert_eq!(asked(&["all"]).0.len(), GROUPS.len());
        assert!(asked(&["all"]).network() && !asked(&["oom"]).network());
    }

    #[test]
    fn only_families_of_the_groups_have_rows_each_with_its_labels() {
        // A cgroup of this process, whatever the machine's hierarchies are.
        let cgroups = Cgroups::detect().expect("hierarchies");
        let probe = ContainerProbe::new(cgroups.gauges("/"), 1);
        let container = Container {
            probe: &probe,
            cgroups: &cgroups,
            cgroup: "/",
            pid: None,
            started_at: 7_900_000_000,
            room: None,
        };
        let names = |groups: &Groups| {
            let mut names = Vec::new();
            let known: Vec<&str> = groups.families().map(|family| family.name).collect();
            container.rows(groups, Duration::ZERO, &mut Scratch::default(), &mut |row| {
                assert!(known.contains(&row.family.name), "{}", row.family.name);
                assert_eq!(row.labels.len(), row.family.labels.len(), "{}", row.family.name);
                if row.family.name == "container_start_time_seconds" {
                    assert_eq!(row.value, 7);
                }
                names.push(row.family.name);
            });
            names
        };
        assert_eq!(names(&asked(&[])), ["container_last_seen"]);
        assert_eq!(names(&asked(&["oom"])), ["container_last_seen", "container_oom_events_total"]);
        assert!(names(&asked(&["all"])).contains(&"container_start_time_seconds"));
    }

    #[test]
    fn each_interface_of_a_pod_has_its_rows() {
        let counters = |bytes| Counters { bytes, ..Counters::default() };
        let interface = Interface { name: "eth0".into(), rx: counters(3), tx: counters(4) };
        let mut rows = Vec::new();
        pod(std::slice::from_ref(&interface), &mut |row| {
            rows.push((row.family.name, row.labels.concat(), row.value));
        });
        assert_eq!(rows.len(), 9);
        assert!(rows.contains(&("container_network_receive_bytes_total", "eth0".to_owned(), 3)));
        assert!(rows.contains(&("container_network_transmit_bytes_total", "eth0".to_owned(), 4)));
    }
}
