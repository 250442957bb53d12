//! Mounts: the runtime's own, those of the request, their order and propagation.

use criox_cri::v1;

use crate::error::{SpecError, Warning, WarningTopic};
use crate::input::{NamespaceSource, ResolvedMount, SpecInput};
use crate::{namespaces, oci};

/// More than any manifest needs; each is a system call and a line of mountinfo for the life of the container.
const MAX_MOUNTS: usize = 4096;

/// Options of a request's `mount_options`, all of them flags of mount_setattr(2) or their opposites.
const ALLOWED_OPTIONS: [&str; 16] = [
    "noexec",
    "exec",
    "nosuid",
    "suid",
    "nodev",
    "dev",
    "noatime",
    "atime",
    "nodiratime",
    "diratime",
    "relatime",
    "norelatime",
    "strictatime",
    "nostrictatime",
    "nosymfollow",
    "symfollow",
];

/// An absolute path without `.`, empty components or a trailing slash.
///
/// # Errors
/// The reason: relative, with `..`, or with a NUL byte. `..` is refused and not resolved, because what it means depends
/// on symbolic links of the image.
pub fn clean_destination(path: &str) -> Result<String, String> {
    if !path.starts_with('/') {
        return Err(format!("{path:?} is not an absolute path"));
    }
    if path.contains('\0') {
        return Err(format!("{path:?} contains a NUL byte"));
    }
    let mut clean = String::with_capacity(path.len());
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => return Err(format!("{path:?} contains \"..\"")),
            part => {
                clean.push('/');
                clean.push_str(part);
            }
        }
    }
    if clean.is_empty() {
        clean.push('/');
    }
    Ok(clean)
}

fn depth(path: &str) -> usize {
    if path == "/" { 0 } else { path.matches('/').count() }
}

/// Whether `path` is `parent` or lies below it.
fn is_at_or_below(path: &str, parent: &str) -> bool {
    path == parent || path.strip_prefix(parent).is_some_and(|rest| rest.starts_with('/'))
}

fn mount(destination: &str, kind: &str, source: &str, options: &[&str]) -> oci::Mount {
    oci::Mount {
        destination: destination.to_owned(),
        kind: kind.to_owned(),
        source: source.to_owned(),
        options: options.iter().map(|option| (*option).to_owned()).collect(),
        ..Default::default()
    }
}

/// All mounts in order, and the propagation of the root mount that they need.
pub(crate) struct Mounts {
    pub(crate) list: Vec<oci::Mount>,
    pub(crate) rootfs_propagation: String,
}

/// What decides about the runtime's own mounts.
pub(crate) struct Surroundings {
    pub(crate) privileged: bool,
    pub(crate) systemd: bool,
    pub(crate) readonly_rootfs: bool,
    /// `cgroup2-mount-hierarchy-rw`.
    pub(crate) writable_cgroup: bool,
    pub(crate) passwd: bool,
    pub(crate) group: bool,
}

pub(crate) fn build(
    input: &SpecInput<'_>,
    around: &Surroundings,
    warnings: &mut Vec<Warning>,
) -> Result<Mounts, SpecError> {
    let requested = requested(input, warnings)?;
    let mut list = defaults(input, around);
    list.retain(|own| {
        !requested.list.iter().any(|theirs| {
            let theirs = theirs.destination.as_str();
            let covers_tree = theirs == "/dev" || theirs == "/sys";
            own.destination == theirs || (covers_tree && is_at_or_below(&own.destination, theirs))
        })
    });
    list.extend(requested.list);
    // Stable: of two mounts at one place the later stays on top, and a parent never covers its children.
    list.sort_by_key(|mount| depth(&mount.destination));
    Ok(Mounts { list, rootfs_propagation: requested.rootfs_propagation })
}

/// The image's volumes that are left to make. The image's author wrote them: what is no path inside, or lies in a file
/// system of the kernel, is ignored.
pub(crate) fn image_volumes(
    volumes: &[String],
    mounts: &[oci::Mount],
    warnings: &mut Vec<Warning>,
) -> Vec<String> {
    /// No image has a use for more.
    const MAX_VOLUMES: usize = 128;
    let mut kept = std::collections::BTreeSet::new();
    for volume in volumes {
        let clean = clean_destination(volume).ok().filter(|path| {
            path != "/" && !["/proc", "/sys", "/dev"].iter().any(|kernel| is_at_or_below(path, kernel))
        });
        match clean {
            Some(path) if mounts.iter().any(|mount| mount.destination == path) => {}
            Some(path) if kept.len() < MAX_VOLUMES => drop(kept.insert(path)),
            _ => Warning::add_image(warnings, || format!("the image's volume {volume:?} is ignored")),
        }
    }
    kept.into_iter().collect()
}

/// The file systems that every container has, and the runtime's own files.
fn defaults(input: &SpecInput<'_>, around: &Surroundings) -> Vec<oci::Mount> {
    let writable = if around.privileged { "rw" } else { "ro" };
    let mut list = vec![
        proc(input),
        mount("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        mount(
            "/dev/pts",
            "devpts",
            "devpts",
            &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        ),
    ];
    list.extend(kernel_mounts(input, writable));
    let cgroup = if around.writable_cgroup || around.systemd { "rw" } else { writable };
    list.push(mount(
        "/sys/fs/cgroup",
        "cgroup",
        "cgroup",
        &["nosuid", "noexec", "nodev", "relatime", cgroup],
    ));
    let provided = input.provided;
    if let Some(shm) = &provided.shm {
        list.push(mount("/dev/shm", "bind", shm, &["rw", "bind"]));
    }
    // These files are the pod's: a container whose root is read-only may not write them either.
    let access = if around.readonly_rootfs { "ro" } else { "rw" };
    let files = [
        ("/etc/resolv.conf", &provided.resolv_conf, true),
        ("/etc/hostname", &provided.hostname, true),
        ("/etc/hosts", &provided.hosts, true),
        ("/run/.containerenv", &provided.containerenv, true),
        ("/etc/localtime", &provided.localtime, true),
        ("/etc/passwd", &provided.passwd, around.passwd),
        ("/etc/group", &provided.group, around.group),
    ];
    for (destination, source, given) in files {
        if let (true, Some(source)) = (given, source) {
            list.push(mount(destination, "bind", source, &[access, "bind", "nodev", "nosuid", "noexec"]));
        }
    }
    list.extend(scratch(input, around));
    list
}

/// `/proc`. That of a PID namespace that the user namespace does not own can't be mounted anew, so the node's is bound.
fn proc(input: &SpecInput<'_>) -> oci::Mount {
    if input.namespaces.user != NamespaceSource::Host && input.namespaces.pid == NamespaceSource::Host {
        return mount("/proc", "bind", "/proc", &["rbind", "nosuid", "noexec", "nodev"]);
    }
    mount("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"])
}

/// `/sys` and `/dev/mqueue`. In a user namespace a file system of a namespace that is not its own can't be mounted anew,
/// so the node's is bound; a node may have no `/dev/mqueue`.
fn kernel_mounts(input: &SpecInput<'_>, writable: &str) -> Vec<oci::Mount> {
    let in_user_namespace = input.namespaces.user != NamespaceSource::Host;
    let sys = if in_user_namespace && input.namespaces.network == NamespaceSource::Host {
        let readonly =
            if input.handler.recursive_read_only && input.node.recursive_read_only { "rro" } else { "ro" };
        mount("/sys", "bind", "/sys", &["nosuid", "noexec", "nodev", "rbind", readonly])
    } else {
        mount("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", writable])
    };
    let mut list = vec![sys];
    if in_user_namespace && input.namespaces.ipc == NamespaceSource::Host {
        let nodes = input.provided.mqueue.iter();
        list.extend(
            nodes.map(|source| mount("/dev/mqueue", "bind", source, &["rbind", "nosuid", "noexec", "nodev"])),
        );
    } else {
        list.push(mount("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"]));
    }
    list
}

/// Memory-backed directories: those of a read-only node default, and those that systemd expects.
fn scratch(input: &SpecInput<'_>, around: &Surroundings) -> Vec<oci::Mount> {
    let tmpfs = |destination: &str, mode: &str| {
        mount(destination, "tmpfs", "tmpfs", &["rw", "noexec", "nosuid", "nodev", "tmpcopyup", mode])
    };
    let mut list = Vec::new();
    if input.defaults.read_only {
        list.push(tmpfs("/run", "mode=0755"));
        list.push(tmpfs("/tmp", "mode=1777"));
        list.push(tmpfs("/var/tmp", "mode=1777"));
    }
    if around.systemd {
        let plain = |destination: &str, mode: &str| {
            mount(destination, "tmpfs", "tmpfs", &["rw", "nosuid", "nodev", "tmpcopyup", mode])
        };
        for (destination, mode) in [
            ("/run", "mode=755"),
            ("/run/lock", "mode=1777"),
            ("/tmp", "mode=1777"),
            ("/var/log/journal", "mode=755"),
        ] {
            if !list.iter().any(|own: &oci::Mount| own.destination == destination) {
                list.push(plain(destination, mode));
            }
        }
    }
    list
}

fn requested(input: &SpecInput<'_>, warnings: &mut Vec<Warning>) -> Result<Mounts, SpecError> {
    let mounts = &input.container.mounts;
    if mounts.len() > MAX_MOUNTS {
        return Err(SpecError::invalid("mounts", format!("{} entries: at most {MAX_MOUNTS}", mounts.len())));
    }
    if mounts.len() != input.mounts.len() {
        return Err(SpecError::invalid("mounts", "the resolved mounts are not those of the request"));
    }
    let mut all = Mounts { list: Vec::with_capacity(mounts.len()), rootfs_propagation: String::new() };
    for (index, (wanted, resolved)) in mounts.iter().zip(input.mounts).enumerate() {
        let one = Requested { index, wanted, resolved };
        let (mount, propagation) = one.to_oci(input, warnings)?;
        match propagation {
            "rshared" => all.rootfs_propagation = "rshared".to_owned(),
            "rslave" if all.rootfs_propagation.is_empty() => all.rootfs_propagation = "rslave".to_owned(),
            _ => {}
        }
        all.list.push(mount);
    }
    Ok(all)
}

struct Requested<'a> {
    index: usize,
    wanted: &'a v1::Mount,
    resolved: &'a ResolvedMount,
}

impl Requested<'_> {
    fn field(&self, name: &str) -> String {
        format!("mounts[{}].{name}", self.index)
    }

    fn to_oci(
        &self,
        input: &SpecInput<'_>,
        warnings: &mut Vec<Warning>,
    ) -> Result<(oci::Mount, &'static str), SpecError> {
        let destination = self.destination()?;
        self.check_source()?;
        let is_image = self.wanted.image.is_some();
        let readonly = self.wanted.readonly;
        if is_image && !readonly {
            return Err(SpecError::invalid(
                self.field("readonly"),
                "an image is mounted read-only, or not at all",
            ));
        }
        let propagation = self.propagation(input, warnings)?;
        let access = self.access(input, readonly, propagation)?;
        // It is other people's content: nothing in it may gain privileges by being mounted. Programs in it run, though.
        let mut options: Vec<String> = vec!["rbind".to_owned(), propagation.to_owned(), access.to_owned()];
        if is_image {
            options.extend(["nosuid", "nodev"].map(str::to_owned));
        }
        self.add_options(&mut options)?;
        let mut mount = oci::Mount {
            destination,
            kind: "bind".to_owned(),
            source: self.resolved.source.clone(),
            options,
            ..Default::default()
        };
        self.add_mappings(input, &mut mount)?;
        Ok((mount, propagation))
    }

    fn destination(&self) -> Result<String, SpecError> {
        let field = || self.field("container_path");
        let clean = clean_destination(&self.wanted.container_path)
            .map_err(|reason| SpecError::invalid(field(), reason))?;
        if clean == "/" {
            return Err(SpecError::invalid(field(), "the root file system can't be mounted over"));
        }
        let process = clean.strip_prefix("/proc/").and_then(|rest| rest.split('/').next());
        if process.is_some_and(|name| {
            name == "self" || name == "thread-self" || name.bytes().all(|byte| byte.is_ascii_digit())
        }) {
            let reason = format!("{clean:?} lies in a process's directory of /proc");
            return Err(SpecError::invalid(field(), reason));
        }
        Ok(clean)
    }

    fn check_source(&self) -> Result<(), SpecError> {
        let wanted = self.wanted;
        if wanted.image.is_some() && !wanted.host_path.is_empty() {
            return Err(SpecError::invalid(self.field("host_path"), "excludes image: give one of them"));
        }
        if wanted.image.is_none() && wanted.host_path.is_empty() {
            return Err(SpecError::invalid(self.field("host_path"), "empty, and no image is given either"));
        }
        if wanted.image.is_none() && !wanted.image_sub_path.is_empty() {
            return Err(SpecError::invalid(self.field("image_sub_path"), "needs image beside it"));
        }
        if !self.resolved.source.starts_with('/') {
            let reason = format!("{:?} does not resolve to an absolute path", wanted.host_path);
            return Err(SpecError::invalid(self.field("host_path"), reason));
        }
        Ok(())
    }

    fn propagation(
        &self,
        input: &SpecInput<'_>,
        warnings: &mut Vec<Warning>,
    ) -> Result<&'static str, SpecError> {
        let field = || self.field("propagation");
        let kind = v1::MountPropagation::try_from(self.wanted.propagation)
            .map_err(|_| SpecError::invalid(field(), format!("unknown value {}", self.wanted.propagation)))?;
        let source = &self.resolved.source;
        match kind {
            v1::MountPropagation::PropagationPrivate if self.resolved.contains_graph_root => {
                // A private copy would keep every other container's root file system busy for this one's life.
                warnings.push(Warning::new(
                    WarningTopic::Mount,
                    format!("{source:?} contains the graph root: mounted with propagation from the host"),
                ));
                Ok("rslave")
            }
            v1::MountPropagation::PropagationPrivate => Ok("rprivate"),
            v1::MountPropagation::PropagationHostToContainer => {
                if !self.resolved.shared && !self.resolved.slave {
                    let reason = format!("{source:?} is on neither a shared nor a slave mount of the node");
                    return Err(SpecError::invalid(field(), reason));
                }
                Ok("rslave")
            }
            v1::MountPropagation::PropagationBidirectional => {
                if !self.resolved.shared {
                    let reason = format!("{source:?} is not on a shared mount of the node");
                    return Err(SpecError::invalid(field(), reason));
                }
                if input.namespaces.user != NamespaceSource::Host {
                    let reason = "not possible in a user namespace: mounts of it never reach the node";
                    return Err(SpecError::invalid(field(), reason));
                }
                Ok("rshared")
            }
        }
    }

    /// `rw`, `ro` or `rro`.
    fn access(
        &self,
        input: &SpecInput<'_>,
        readonly: bool,
        propagation: &str,
    ) -> Result<&'static str, SpecError> {
        if !self.wanted.recursive_read_only {
            return Ok(if readonly { "ro" } else { "rw" });
        }
        let field = || self.field("recursive_read_only");
        if !readonly {
            return Err(SpecError::invalid(field(), "needs readonly beside it"));
        }
        if propagation != "rprivate" {
            return Err(SpecError::invalid(field(), "needs private propagation"));
        }
        if !input.node.recursive_read_only || !input.handler.recursive_read_only {
            let who = if input.node.recursive_read_only { "the runtime handler" } else { "the kernel" };
            return Err(SpecError::unsupported(field(), format!("RROUnsupported: {who} can't do it")));
        }
        Ok("rro")
    }

    /// The request's own options, after ours so that they win.
    fn add_options(&self, options: &mut Vec<String>) -> Result<(), SpecError> {
        for (index, option) in self.wanted.mount_options.iter().enumerate() {
            if !ALLOWED_OPTIONS.contains(&option.as_str()) {
                let reason = format!("{option:?} is not among {}", ALLOWED_OPTIONS.join(", "));
                return Err(SpecError::invalid(self.field(&format!("mount_options[{index}]")), reason));
            }
            options.push(option.clone());
        }
        Ok(())
    }

    /// The mappings of an idmapped mount. An image's tree is mapped as a whole, in the store, for an overlay can't be.
    fn add_mappings(&self, input: &SpecInput<'_>, mount: &mut oci::Mount) -> Result<(), SpecError> {
        let (uids, gids) = (&self.wanted.uid_mappings, &self.wanted.gid_mappings);
        if uids.is_empty() && gids.is_empty() {
            return Ok(());
        }
        if uids.is_empty() || gids.is_empty() {
            return Err(SpecError::invalid(
                self.field("uidMappings"),
                "needs mappings of both users and groups",
            ));
        }
        let uids = namespaces::id_ranges(uids, &self.field("uidMappings"))?;
        let gids = namespaces::id_ranges(gids, &self.field("gidMappings"))?;
        if self.wanted.image.is_some() {
            let pod = input.namespaces;
            if (&uids, &gids) != (&pod.uid_mappings, &pod.gid_mappings) {
                let reason = "an image volume has the mappings of its pod, and no others";
                return Err(SpecError::invalid(self.field("uidMappings"), reason));
            }
            return Ok(());
        }
        let refusal = if !input.node.idmapped_mounts {
            Some("the kernel")
        } else if !input.handler.idmapped_mounts {
            Some("the runtime handler")
        } else if !self.resolved.idmappable {
            Some("the volume's file system")
        } else {
            None
        };
        if let Some(who) = refusal {
            let reason =
                format!("{:?} needs an idmapped mount, and {who} can't do it", self.wanted.host_path);
            return Err(SpecError::unsupported(self.field("uidMappings"), reason));
        }
        mount.uid_mappings = uids;
        mount.gid_mappings = gids;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn destinations_are_cleaned_or_refused() {
        for (path, clean) in
            [("/", "/"), ("/a/b", "/a/b"), ("//a//b/", "/a/b"), ("/./a/.", "/a"), ("/..a/...", "/..a/...")]
        {
            assert_eq!(clean_destination(path).as_deref(), Ok(clean), "{path}");
        }
        for path in ["", "a", "../a", "/a/../b", "/..", "/a\0b"] {
            assert!(clean_destination(path).is_err(), "{path:?}");
        }
    }

    #[test]
    fn a_sibling_with_the_same_beginning_is_not_below() {
        assert!(is_at_or_below("/dev/shm", "/dev"));
        assert!(is_at_or_below("/dev", "/dev"));
        assert!(!is_at_or_below("/devices", "/dev"));
    }
}
