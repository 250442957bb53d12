//! Whether what CRIU would make is confined as the live request asks: its mounts and its filters of system calls.
//!
//! The caller says what is asked for, in the words of the OCI runtime specification; the images say what would be.

use std::path::Path;

use criox_sys::inroot::Root;

use crate::changes::real_path;
use crate::criu::{CGROUP_MOUNTS, Filters, Mount, Processes, Seccomp};
use crate::error::Error;

/// Runtimes mount this by themselves, if the container has a terminal.
const CONSOLE: &str = "/dev/console";

/// What a container may see, as its live specification has it.
#[derive(Debug, Clone, Default)]
pub struct Confinement<'a> {
    /// The container's root file system with the checkpoint's changes, mounted: a destination behind a link in it
    /// (`/var/run`) is mounted at where the link leads. Without it destinations are taken as they are.
    pub root: Option<&'a Path>,
    /// The destinations of all mounts, and whether each is read-only.
    pub mounts: Vec<(&'a str, bool)>,
    /// `linux.maskedPaths`.
    pub masked: Vec<&'a str>,
    /// `linux.readonlyPaths`.
    pub read_only: Vec<&'a str>,
}

impl Confinement<'_> {
    /// Holds the mounts of a checkpoint ([`crate::Intake::mounts`]) against it: none may be more than is asked for, and no
    /// mask may be missing that the node would have put there.
    ///
    /// # Errors
    /// [`Error::Refused`], with the place.
    pub fn check(&self, mounts: &[Mount]) -> Result<(), Error> {
        // What is masked lies in proc and sysfs, and those are the same on the node.
        self.check_where(mounts, |path| Path::new(path).symlink_metadata().is_ok())
    }

    fn check_where(&self, mounts: &[Mount], on_node: impl Fn(&str) -> bool) -> Result<(), Error> {
        let destinations = self.destinations()?;
        if mounts.is_empty() {
            return self.check_covered(mounts, on_node);
        }
        // Each mount namespace by itself: a mask in one is none in another.
        for mounts in mounts.chunk_by(|one, next| one.namespace == next.namespace) {
            self.check_asked(mounts, &destinations)?;
            self.check_covered(mounts, &on_node)?;
        }
        Ok(())
    }

    /// No mount is more than is asked for.
    fn check_asked(&self, mounts: &[Mount], destinations: &[(String, bool)]) -> Result<(), Error> {
        let read_only =
            |place: &str| destinations.iter().any(|(point, read_only)| point == place && *read_only);
        for mount in mounts {
            let point = mount.point.as_str();
            // On a v1 node crun makes the directory of the hierarchies a tmpfs that can be written to.
            let in_cgroups = Path::new(point).starts_with(CGROUP_MOUNTS);
            let cgroups_dir = point == CGROUP_MOUNTS && !mount.of_kernel && mount.external.is_none();
            let of_runtime = point == CONSOLE || in_cgroups;
            let named = self.masked.contains(&point) || self.read_only.contains(&point);
            let asked = destinations.iter().any(|(destination, _)| destination == point);
            // What the runtime hands in along with a volume: mounts inside it.
            let inside = mount.external.is_some()
                && destinations.iter().any(|(destination, _)| Path::new(point).starts_with(destination));
            // The name under which a runtime hands a volume in is its destination: it is read-only wherever it is put.
            let handed_in = |destination: &str| mount.external.as_deref() == Some(destination);
            if !mount.read_only && self.mounts.iter().any(|(place, read_only)| *read_only && handed_in(place))
            {
                return refused(point, "it is of a volume that the request has read-only");
            }
            if point != "/" && !of_runtime && !named && !asked && !inside {
                return refused(point, "the request has none there");
            }
            let must_be = read_only(point) || (in_cgroups && read_only(CGROUP_MOUNTS));
            if must_be && !mount.read_only && !cgroups_dir {
                return refused(point, "the request has it read-only, and the checkpoint has not");
            }
        }
        Ok(())
    }

    /// What is masked or read-only of proc and sysfs is covered by a mount that does it.
    fn check_covered(&self, mounts: &[Mount], on_node: impl Fn(&str) -> bool) -> Result<(), Error> {
        let in_kernel =
            |path: &&&str| (path.starts_with("/proc/") || path.starts_with("/sys/")) && on_node(path);
        for masked in self.masked.iter().filter(in_kernel) {
            let top = uppermost(mounts, masked)?;
            // A bind of proc over itself covers nothing.
            if top.is_none_or(|top| top.point != **masked || top.of_kernel) {
                return refused(masked, "the request masks this path, and the checkpoint shows it");
            }
        }
        for path in self.read_only.iter().filter(in_kernel) {
            if uppermost(mounts, path)?.is_none_or(|top| top.point != **path || !top.read_only) {
                return refused(path, "the request has this path read-only, and the checkpoint has not");
            }
        }
        Ok(())
    }
}

fn refused<T>(place: &str, why: &str) -> Result<T, Error> {
    Err(Error::refused(format!("mount at {place}"), why))
}

/// The mount that is seen at a place of one namespace: from the root each lies on the one before. One that is at the place
/// or above it and is not met on the way could come to lie over the others, so there may be none.
fn uppermost<'a>(mounts: &'a [Mount], place: &str) -> Result<Option<&'a Mount>, Error> {
    let mut above: Vec<&Mount> =
        mounts.iter().filter(|mount| Path::new(place).starts_with(&mount.point)).collect();
    let Some(root) = above.iter().position(|mount| mount.point == "/") else { return Ok(None) };
    let mut top = above.swap_remove(root);
    while !above.is_empty() {
        let upon = |mount: &Mount| mount.parent == top.id && mount.point.len() >= top.point.len();
        let nearest = above.iter().filter(|mount| upon(mount)).map(|mount| mount.point.len()).min();
        let mut next =
            above.iter().enumerate().filter(|(_, mount)| upon(mount) && Some(mount.point.len()) == nearest);
        let (Some((at, _)), None) = (next.next(), next.next()) else {
            return refused(place, "mounts of the checkpoint lie over each other there");
        };
        top = above.swap_remove(at);
    }
    Ok(Some(top))
}

impl Confinement<'_> {
    /// Where the mounts are in the end.
    fn destinations(&self) -> Result<Vec<(String, bool)>, Error> {
        let root = self.root.map(Root::open).transpose()?;
        let real = |destination: &str| match &root {
            Some(root) => format!("/{}", real_path(root, Path::new(destination)).display()),
            None => destination.to_owned(),
        };
        Ok(self.mounts.iter().map(|(destination, read_only)| (real(destination), *read_only)).collect())
    }
}

/// Different filters whose ways are followed.
const MAX_FILTERS: usize = 8;

impl Processes {
    /// The first call of `refused` that the filters of any thread can let through, and the thread: calls are architecture
    /// (`AUDIT_ARCH_…`) and number. A thread without a filter lets everything through.
    pub fn lets_through(&self, refused: &[(u32, u32)]) -> Option<(u32, (u32, u32))> {
        // Nearly all threads have the same filters.
        let mut known: Vec<&Filters> = Vec::new();
        for thread in self.threads() {
            let found = match &thread.credentials.seccomp {
                Seccomp::Strict => None,
                Seccomp::Disabled => refused.first(),
                Seccomp::Filter(filters) if known.contains(&filters) => None,
                // More than any container has: following them all would take minutes, so nothing is said in their favour.
                Seccomp::Filter(_) if known.len() >= MAX_FILTERS => refused.first(),
                Seccomp::Filter(filters) => {
                    known.push(filters);
                    refused.iter().find(|(arch, number)| filters.may_allow(*arch, *number))
                }
            };
            if let Some(call) = found {
                return Some((thread.tid, *call));
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const X86_64: u32 = 0xc000_003e;

    fn images() -> std::path::PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/images/criu-4.2")
    }

    /// The specification that the real dump's container had.
    fn asked() -> Confinement<'static> {
        Confinement {
            root: None,
            mounts: vec![
                ("/proc", false),
                ("/dev", false),
                ("/dev/pts", false),
                ("/dev/shm", false),
                ("/dev/mqueue", false),
                ("/sys", true),
                ("/sys/fs/cgroup", true),
            ],
            masked: vec!["/proc/acpi", "/proc/keys", "/proc/timer_list", "/proc/scsi", "/sys/firmware"],
            read_only: vec!["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys"],
        }
    }

    /// One more, upon another that is there.
    fn laid(mounts: &[Mount], id: u32, upon: &str, point: &str) -> Mount {
        let upon = mounts.iter().rfind(|mount| mount.point == upon).unwrap();
        Mount {
            namespace: upon.namespace.clone(),
            id,
            parent: upon.id,
            point: point.into(),
            ..Mount::default()
        }
    }

    fn on_node(path: &str) -> bool {
        path != "/proc/scsi"
    }

    #[track_caller]
    fn check_refused(asked: &Confinement<'_>, mounts: &[Mount], place: &str) {
        let error = asked.check_where(mounts, on_node).unwrap_err().to_string();
        assert!(error.contains(&format!("mount at {place}:")), "{error}");
    }

    #[test]
    fn a_real_dump_is_confined_as_its_container_was() {
        let mounts = crate::criu::mounts(&images()).unwrap();
        asked().check_where(&mounts, on_node).unwrap();
        // One that asks for more masks, or for more that is read-only.
        let mut more = asked();
        more.masked.push("/proc/kcore");
        check_refused(&more, &mounts, "/proc/kcore");
        let mut more = asked();
        more.read_only.push("/proc/sysrq-trigger");
        check_refused(&more, &mounts, "/proc/sysrq-trigger");
        let mut more = asked();
        more.mounts[3].1 = true;
        check_refused(&more, &mounts, "/dev/shm");
        // A privileged container's dump has no masks.
        let bare: Vec<Mount> = mounts.iter().filter(|mount| mount.point != "/proc/keys").cloned().collect();
        check_refused(&asked(), &bare, "/proc/keys");
        let mut writable = mounts.clone();
        writable
            .iter_mut()
            .filter(|mount| mount.point == "/proc/sys")
            .for_each(|mount| mount.read_only = false);
        check_refused(&asked(), &writable, "/proc/sys");
    }

    #[test]
    fn a_mount_that_nobody_asked_for_is_refused() {
        let mounts = crate::criu::mounts(&images()).unwrap();
        let with = |point: &str, external: Option<&str>| {
            let external = external.map(str::to_owned);
            let mount = Mount { external, ..laid(&mounts, 500, "/", point) };
            [&mounts[..], &[mount]].concat()
        };
        let mut asked = asked();
        asked.mounts.push(("/data", false));
        check_refused(&asked, &with("/host", Some("/host")), "/host");
        // Another proc, in which nothing is masked, also inside a volume.
        check_refused(&asked, &with("/data/proc", None), "/data/proc");
        check_refused(&asked, &with("/database", Some("x")), "/database");
        asked.check_where(&with("/data/inner", Some("/data/inner")), on_node).unwrap();
        asked.check_where(&with("/dev/console", None), on_node).unwrap();
        // A read-only volume once more, inside another.
        asked.mounts.push(("/safe", true));
        check_refused(&asked, &with("/data/inner", Some("/safe")), "/data/inner");
    }

    #[test]
    fn a_destination_behind_a_link_is_where_the_link_leads() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(root.path().join("run/secrets")).unwrap();
        std::fs::create_dir(root.path().join("var")).unwrap();
        std::os::unix::fs::symlink("/run", root.path().join("var/run")).unwrap();
        let mut mounts = crate::criu::mounts(&images()).unwrap();
        let external = Some("/var/run/secrets".to_owned());
        mounts.push(Mount { external, read_only: true, ..laid(&mounts, 500, "/", "/run/secrets") });
        let mut asked = asked();
        asked.mounts.push(("/var/run/secrets", true));
        check_refused(&asked, &mounts, "/run/secrets");
        asked.root = Some(root.path());
        asked.check_where(&mounts, on_node).unwrap();
    }

    #[test]
    fn a_mount_over_the_masks_is_refused() {
        let mounts = crate::criu::mounts(&images()).unwrap();
        let with = |more: Mount| [&mounts[..], &[more]].concat();
        let proc = Mount { of_kernel: true, ..laid(&mounts, 500, "/proc", "/proc") };
        check_refused(&asked(), &with(proc.clone()), "/proc/acpi");
        // The same two, told the other way round.
        let mut below = with(Mount { parent: proc.parent, ..proc.clone() });
        let under = proc.parent;
        below.iter_mut().filter(|mount| mount.id == under).for_each(|mount| mount.parent = 500);
        check_refused(&asked(), &below, "/proc/acpi");
        // Both upon the root: nobody says which comes first.
        let root = laid(&mounts, 500, "/", "/proc");
        check_refused(&asked(), &with(Mount { of_kernel: true, ..root }), "/proc/acpi");
        let sys = laid(&mounts, 500, "/proc/sys", "/proc/sys");
        check_refused(&asked(), &with(Mount { of_kernel: true, ..sys.clone() }), "/proc/sys");
        asked().check_where(&with(Mount { of_kernel: true, read_only: true, ..sys }), on_node).unwrap();
        // A mask that lies upon the root, and so below the mount of proc.
        let mut hidden = mounts.clone();
        let root = hidden.iter().find(|mount| mount.point == "/").unwrap().id;
        hidden.iter_mut().filter(|mount| mount.point == "/proc/keys").for_each(|mount| mount.parent = root);
        check_refused(&asked(), &hidden, "/proc/keys");
    }

    #[test]
    fn a_mask_that_shows_what_it_should_cover_is_refused() {
        let mut mounts = crate::criu::mounts(&images()).unwrap();
        for mount in mounts.iter_mut().filter(|mount| mount.point == "/proc/keys") {
            (mount.external, mount.of_kernel) = (None, true);
        }
        check_refused(&asked(), &mounts, "/proc/keys");
        // runc masks directories with a tmpfs of the container's own.
        mounts
            .iter_mut()
            .filter(|mount| mount.point == "/proc/keys")
            .for_each(|mount| mount.of_kernel = false);
        asked().check_where(&mounts, on_node).unwrap();
    }

    #[test]
    fn each_mount_namespace_has_all_the_masks() {
        let mounts = crate::criu::mounts(&images()).unwrap();
        let second = |mount: &Mount| Mount { namespace: "mountpoints-14.img".into(), ..mount.clone() };
        let all: Vec<Mount> = mounts.iter().map(second).collect();
        asked().check_where(&[&mounts[..], &all].concat(), on_node).unwrap();
        let bare: Vec<Mount> = all.iter().filter(|mount| mount.point != "/proc/keys").cloned().collect();
        check_refused(&asked(), &[&mounts[..], &bare].concat(), "/proc/keys");
        check_refused(&asked(), &[], "/proc/acpi");
    }

    #[test]
    fn cgroups_that_are_asked_for_read_only_are_read_only() {
        let mounts = crate::criu::mounts(&images()).unwrap();
        let change = |point: &str, of_kernel: bool| {
            let mut mounts = mounts.clone();
            for mount in mounts.iter_mut().filter(|mount| mount.point == point) {
                (mount.read_only, mount.of_kernel) = (false, of_kernel);
            }
            mounts
        };
        // The tmpfs of a v1 node can be written to, the one hierarchy of a v2 node not, nor any of v1.
        asked().check_where(&change("/sys/fs/cgroup", false), on_node).unwrap();
        check_refused(&asked(), &change("/sys/fs/cgroup", true), "/sys/fs/cgroup");
        check_refused(&asked(), &change("/sys/fs/cgroup/memory", false), "/sys/fs/cgroup/memory");
        let mut privileged = asked();
        privileged.mounts.iter_mut().for_each(|mount| mount.1 = false);
        privileged.check_where(&change("/sys/fs/cgroup", true), on_node).unwrap();
    }

    #[test]
    fn what_only_begins_as_a_place_of_the_runtimes_is_refused() {
        let mounts = crate::criu::mounts(&images()).unwrap();
        for point in ["/dev/console-x", "/dev/console/x", "/sys/fs/cgroups"] {
            check_refused(&asked(), &[&mounts[..], &[laid(&mounts, 500, "/dev", point)]].concat(), point);
        }
    }

    #[test]
    fn the_first_call_that_gets_through_is_told() {
        let mut processes = Processes::read(&images()).unwrap();
        assert_eq!(processes.lets_through(&[(X86_64, 167), (X86_64, 169)]), None);
        assert_eq!(processes.lets_through(&[(X86_64, 167), (X86_64, 165)]), Some((1, (X86_64, 165))));
        processes.processes[1].threads[0].credentials.seccomp = Seccomp::Disabled;
        assert_eq!(processes.lets_through(&[(X86_64, 167)]), Some((2, (X86_64, 167))));
        assert_eq!(processes.lets_through(&[]), None);
    }
}
