//! The credentials that CRIU would give to the processes it makes, read from its images before it runs.
//!
//! CRIU restores what its images say: users, capabilities, seccomp. So an archive from elsewhere could make a process
//! that the live request would never have got (hardening K6). An image is a head of two magic numbers and entries of a
//! length (u32, little-endian) and a protobuf message each (criu.org/Images; `criu/include/magic.h`, `images/*.proto`).
//! Only the fields that are needed are declared here; a process whose images don't state its credentials is refused.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use criox_sys::durable::PathError;
use criox_sys::inroot::Root;
use prost::Message;
use rustix::fs::{Dir, Mode, OFlags};

use crate::bpf;
use crate::error::Error;
use crate::metadata;

mod host;
mod namespaces;
mod sockets;

pub use host::Mount;

/// Head of all images but the inventory, since version 1.1 of the format.
const COMMON: u32 = 0x5456_4319;
/// `core-<tid>.img`.
const CORE: u32 = 0x5505_3847;
/// `pstree.img`.
const PSTREE: u32 = 0x5027_3030;
/// `seccomp.img`.
const SECCOMP: u32 = 0x6441_3049;

/// Longest core image: registers and signals of one thread take some ten kilobytes.
const MAX_CORE: u64 = 1 << 20;
/// Longest other image that is read.
const MAX_IMAGE: u64 = 32 << 20;
/// Most threads of all processes together.
const MAX_THREADS: usize = 65_536;

/// What the runtime's own three streams were, by their numbers: it hands each that was a pipe in anew.
const DESCRIPTORS: &str = "descriptors.json";
const MAX_DESCRIPTORS: u64 = 16 << 10;
/// Standard input, output and error.
const STREAMS: usize = 3;

/// Where a container has its cgroups.
pub(crate) const CGROUP_MOUNTS: &str = "/sys/fs/cgroup";

/// The states in which a process runs no more (`criu/include/pstree.h`).
const TASK_DEAD: u32 = 2;
const TASK_ZOMBIE: u32 = 6;

#[derive(Clone, PartialEq, Message)]
struct CoreEntry {
    #[prost(message, optional, tag = "3")]
    task: Option<TaskCoreEntry>,
    #[prost(message, optional, tag = "5")]
    thread: Option<ThreadCoreEntry>,
}

#[derive(Clone, PartialEq, Message)]
struct TaskCoreEntry {
    #[prost(uint32, optional, tag = "1")]
    state: Option<u32>,
    #[prost(message, optional, tag = "8")]
    rlimits: Option<RlimitsEntry>,
    #[prost(uint32, optional, tag = "11")]
    old_seccomp_mode: Option<u32>,
    #[prost(uint32, optional, tag = "12")]
    old_seccomp_filter: Option<u32>,
}

/// In the order of their numbers.
#[derive(Clone, PartialEq, Message)]
struct RlimitsEntry {
    #[prost(message, repeated, tag = "1")]
    rlimits: Vec<RlimitEntry>,
}

#[derive(Clone, PartialEq, Message)]
struct RlimitEntry {
    #[prost(uint64, optional, tag = "2")]
    max: Option<u64>,
}

#[derive(Clone, PartialEq, Message)]
struct ThreadCoreEntry {
    #[prost(sint32, optional, tag = "3")]
    nice: Option<i32>,
    #[prost(uint32, optional, tag = "4")]
    policy: Option<u32>,
    #[prost(message, optional, tag = "10")]
    creds: Option<CredsEntry>,
    #[prost(uint32, optional, tag = "11")]
    seccomp_mode: Option<u32>,
    #[prost(uint32, optional, tag = "12")]
    seccomp_filter: Option<u32>,
}

#[derive(Clone, PartialEq, Message)]
struct CredsEntry {
    #[prost(uint32, optional, tag = "1")]
    uid: Option<u32>,
    #[prost(uint32, optional, tag = "2")]
    gid: Option<u32>,
    #[prost(uint32, optional, tag = "3")]
    euid: Option<u32>,
    #[prost(uint32, optional, tag = "4")]
    egid: Option<u32>,
    #[prost(uint32, optional, tag = "5")]
    suid: Option<u32>,
    #[prost(uint32, optional, tag = "6")]
    sgid: Option<u32>,
    #[prost(uint32, optional, tag = "7")]
    fsuid: Option<u32>,
    #[prost(uint32, optional, tag = "8")]
    fsgid: Option<u32>,
    #[prost(uint32, repeated, packed = "false", tag = "9")]
    inheritable: Vec<u32>,
    #[prost(uint32, repeated, packed = "false", tag = "10")]
    permitted: Vec<u32>,
    #[prost(uint32, repeated, packed = "false", tag = "11")]
    effective: Vec<u32>,
    #[prost(uint32, repeated, packed = "false", tag = "12")]
    bounding: Vec<u32>,
    #[prost(uint32, optional, tag = "13")]
    securebits: Option<u32>,
    #[prost(uint32, repeated, packed = "false", tag = "14")]
    groups: Vec<u32>,
    #[prost(bytes = "vec", optional, tag = "15")]
    lsm_profile: Option<Vec<u8>>,
    #[prost(uint32, optional, tag = "18")]
    no_new_privs: Option<u32>,
    #[prost(uint32, repeated, packed = "false", tag = "19")]
    ambient: Vec<u32>,
}

#[derive(Clone, PartialEq, Message)]
struct PstreeEntry {
    #[prost(uint32, optional, tag = "1")]
    pid: Option<u32>,
    #[prost(uint32, optional, tag = "2")]
    ppid: Option<u32>,
    #[prost(uint32, repeated, packed = "false", tag = "5")]
    threads: Vec<u32>,
}

#[derive(Clone, PartialEq, Message)]
struct SeccompEntry {
    #[prost(message, repeated, tag = "1")]
    filters: Vec<SeccompFilter>,
}

#[derive(Clone, PartialEq, Message)]
struct SeccompFilter {
    #[prost(bytes = "vec", optional, tag = "1")]
    filter: Option<Vec<u8>>,
    #[prost(uint32, optional, tag = "2")]
    prev: Option<u32>,
}

/// All processes of a checkpoint that will run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Processes {
    /// The first one in front.
    pub processes: Vec<Process>,
}

/// A process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    /// Its ID in the container.
    pub pid: u32,
    /// Whether it is the container's first process.
    pub first: bool,
    /// Its threads, the first one in front. Each has credentials of its own.
    pub threads: Vec<Thread>,
}

/// A thread.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Thread {
    /// Its ID in the container.
    pub tid: u32,
    /// What it may do.
    pub credentials: Credentials,
}

/// Credentials as credentials(7), capabilities(7) and seccomp(2) have them. Capabilities are sets of bits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credentials {
    /// Real user.
    pub uid: u32,
    /// Real group.
    pub gid: u32,
    /// Effective user.
    pub euid: u32,
    /// Effective group.
    pub egid: u32,
    /// Saved user.
    pub suid: u32,
    /// Saved group.
    pub sgid: u32,
    /// User for files.
    pub fsuid: u32,
    /// Group for files.
    pub fsgid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// Inheritable capabilities.
    pub inheritable: u64,
    /// Permitted capabilities.
    pub permitted: u64,
    /// Effective capabilities.
    pub effective: u64,
    /// The bounding set.
    pub bounding: u64,
    /// Ambient capabilities; older images don't say (CRIU 4.1 does).
    pub ambient: Option<u64>,
    /// Whether no program may give it more. Absent when it isn't set, and in older images: a restore doesn't set it then.
    pub no_new_privs: Option<bool>,
    /// See capabilities(7), "The securebits flags".
    pub securebits: u32,
    /// The profile or label of a security module.
    pub lsm_profile: Option<String>,
    /// Its system call filter.
    pub seccomp: Seccomp,
}

impl Credentials {
    /// All capabilities that it has or could get without help from a file: of every set but the bounding one.
    pub fn capabilities(&self) -> u64 {
        self.inheritable | self.permitted | self.effective | self.ambient.unwrap_or_default()
    }

    /// Its users: real, effective, saved, for files.
    pub fn users(&self) -> [u32; 4] {
        [self.uid, self.euid, self.suid, self.fsuid]
    }

    /// Its groups, without the supplementary ones.
    pub fn primary_groups(&self) -> [u32; 4] {
        [self.gid, self.egid, self.sgid, self.fsgid]
    }
}

/// Modes of seccomp(2).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Seccomp {
    /// Every call is let through.
    Disabled,
    /// Reading, writing and exiting.
    Strict,
    /// Filters, all of which are asked.
    Filter(Filters),
}

/// A chain of filters as bytes of BPF, the newest first.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filters(Vec<Vec<u8>>);

impl Filters {
    /// The programs.
    pub fn programs(&self) -> &[Vec<u8>] {
        &self.0
    }

    /// Whether the call `number` of the architecture `arch` (`AUDIT_ARCH_…` of `linux/audit.h`) can get past all of them,
    /// with some arguments. When in doubt it can.
    pub fn may_allow(&self, arch: u32, number: u32) -> bool {
        self.0.iter().all(|program| bpf::may_allow(program, arch, number))
    }
}

impl Processes {
    /// Reads the images in `dir`.
    ///
    /// # Errors
    /// [`Error::Refused`] for what is malformed, contradicts itself or doesn't state a thread's credentials; for images
    /// by which CRIU would touch more than the container (as [`mounts`], names in cgroups that lead out, and processes in
    /// the node's mount namespace); and for
    /// what a process would have without the capability for it: a place before others on the processors, packets as
    /// they are.
    pub fn read(dir: &Path) -> Result<Self, Error> {
        let root = Root::open(dir)?;
        let tree = parse_tree(&image(&root, "pstree.img", MAX_IMAGE)?)?;
        check_names(dir, &root, &tree)?;
        mounts(dir)?;
        let cgroups = "cgroup.img";
        if root.open_at(Path::new(cgroups), OFlags::PATH | OFlags::NOFOLLOW, Mode::empty()).is_ok() {
            host::check_cgroups(cgroups, &image(&root, cgroups, MAX_IMAGE)?)?;
        }
        let mut filters = None;
        let mut processes = Vec::new();
        for (at, (pid, tids)) in tree.iter().enumerate() {
            let mut threads = Vec::new();
            let mut task = None;
            for tid in tids {
                let name = format!("core-{tid}.img");
                let core = parse_core(&name, &image(&root, &name, MAX_CORE)?)?;
                if tid == pid {
                    if has_ended(&core) {
                        break;
                    }
                    task.clone_from(&core.task);
                }
                let mode = core.seccomp(task.as_ref());
                if mode.1.is_some() && filters.is_none() {
                    filters = Some(parse_filters(&image(&root, "seccomp.img", MAX_IMAGE)?)?);
                }
                let seccomp = seccomp(&name, mode, filters.as_deref().unwrap_or_default())?;
                let hurries = core.hurries();
                let credentials = core.credentials(&name, seccomp)?;
                if hurries && credentials.bounding & CAP_SYS_NICE == 0 {
                    let why =
                        "its thread would run before others of the node, and has no capability for that";
                    return Err(Error::refused(name, why));
                }
                threads.push(Thread { tid: *tid, credentials });
            }
            if !threads.is_empty() {
                processes.push(Process { pid: *pid, first: at == 0, threads });
            }
        }
        if !processes.first().is_some_and(|process| process.first) {
            return Err(Error::refused("pstree.img", "the first process doesn't run"));
        }
        let processes = Self { processes };
        let names = image_names(dir, &root)?;
        namespaces::shared(&root, &names, processes.processes.iter().map(|process| process.pid))?;
        if names.iter().any(|name| name == DESCRIPTORS) {
            check_descriptors(&image(&root, DESCRIPTORS, MAX_DESCRIPTORS)?)?;
        }
        let can = |capability: u64| processes.threads().any(|t| t.credentials.bounding & capability != 0);
        if !can(CAP_NET_RAW) {
            sockets::check(&root, &names)?;
        }
        Ok(processes)
    }

    /// The kinds of namespaces, by the names of the OCI runtime specification, in which any of them would be with the
    /// node: CRIU makes those that were not its own at the checkpoint, by images in `dir`.
    ///
    /// # Errors
    /// [`Error::Refused`] for images that don't say it.
    pub fn shared_namespaces(&self, dir: &Path) -> Result<BTreeSet<&'static str>, Error> {
        let root = Root::open(dir)?;
        namespaces::shared(&root, &image_names(dir, &root)?, self.processes.iter().map(|process| process.pid))
    }

    /// The container's first process.
    ///
    /// # Panics
    /// Never for one that [`Processes::read`] gave.
    pub fn first(&self) -> &Process {
        &self.processes[0]
    }

    /// All threads of all processes.
    pub fn threads(&self) -> impl Iterator<Item = &Thread> {
        self.processes.iter().flat_map(|process| &process.threads)
    }
}

/// Without it nobody opens a socket of the kinds that [`sockets`] looks for.
const CAP_NET_RAW: u64 = 1 << 13;
/// Without it a thread gets neither realtime nor a nice value below 0 (capabilities(7)).
const CAP_SYS_NICE: u64 = 1 << 23;
/// Policies for which nobody needs it: `SCHED_OTHER`, `SCHED_BATCH`, `SCHED_IDLE` (sched(7)).
const UNHURRIED: [u32; 3] = [0, 3, 5];

/// `RLIMIT_NICE` and `RLIMIT_RTPRIO` (getrlimit(2)): 0 gives nothing.
const HURRY_LIMITS: [usize; 2] = [13, 14];

impl CoreEntry {
    /// Whether the thread would be scheduled in a way that not everybody gets, or might ask for it: CRIU sets these as the
    /// node's root.
    fn hurries(&self) -> bool {
        let thread = self.thread.as_ref();
        let policy = thread.and_then(|thread| thread.policy).unwrap_or(0);
        let limits = self.task.as_ref().and_then(|task| task.rlimits.as_ref());
        let may = |limit: &usize| limits.and_then(|limits| limits.rlimits.get(*limit)?.max).unwrap_or(0) != 0;
        !UNHURRIED.contains(&policy)
            || thread.and_then(|thread| thread.nice).is_some_and(|nice| nice < 0)
            || HURRY_LIMITS.iter().any(may)
    }

    /// Mode and filter of a thread; those of its process in images before CRIU 3.13.
    fn seccomp(&self, task: Option<&TaskCoreEntry>) -> (u32, Option<u32>) {
        let own = self.thread.as_ref().and_then(|thread| Some((thread.seccomp_mode?, thread.seccomp_filter)));
        let old = || task.and_then(|task| Some((task.old_seccomp_mode?, task.old_seccomp_filter)));
        let (mode, filter) = own.or_else(old).unwrap_or((0, None));
        // An index without the mode for it says nothing.
        (mode, if mode == SECCOMP_FILTER { filter } else { None })
    }

    fn credentials(self, name: &str, seccomp: Seccomp) -> Result<Credentials, Error> {
        let missing =
            |field: &str| Error::refused(name, format!("it doesn't state the {field} of its thread"));
        let creds = self.thread.and_then(|thread| thread.creds).ok_or_else(|| missing("credentials"))?;
        let id = |id: Option<u32>, field| id.ok_or_else(|| missing(field));
        let lsm_profile = creds.lsm_profile.map(String::from_utf8).transpose();
        let set = |words: &[u32], field| set(words).ok_or_else(|| missing(field));
        Ok(Credentials {
            uid: id(creds.uid, "user")?,
            gid: id(creds.gid, "group")?,
            euid: id(creds.euid, "effective user")?,
            egid: id(creds.egid, "effective group")?,
            suid: id(creds.suid, "saved user")?,
            sgid: id(creds.sgid, "saved group")?,
            fsuid: id(creds.fsuid, "user for files")?,
            fsgid: id(creds.fsgid, "group for files")?,
            groups: creds.groups,
            inheritable: set(&creds.inheritable, "inheritable capabilities")?,
            permitted: set(&creds.permitted, "permitted capabilities")?,
            effective: set(&creds.effective, "effective capabilities")?,
            bounding: set(&creds.bounding, "bounding set")?,
            ambient: if creds.ambient.is_empty() {
                None
            } else {
                Some(set(&creds.ambient, "ambient capabilities")?)
            },
            no_new_privs: creds.no_new_privs.map(|value| value != 0),
            securebits: id(creds.securebits, "secure bits")?,
            lsm_profile: lsm_profile.map_err(|_| Error::refused(name, "the LSM profile is no text"))?,
            seccomp,
        })
    }
}

/// `SECCOMP_MODE_STRICT` and `SECCOMP_MODE_FILTER`.
const SECCOMP_STRICT: u32 = 1;
const SECCOMP_FILTER: u32 = 2;

/// Most filters of one thread; a runtime brings one, a program may add its own.
const MAX_CHAIN: usize = 16;

fn has_ended(core: &CoreEntry) -> bool {
    let state = core.task.as_ref().and_then(|task| task.state);
    matches!(state, Some(TASK_DEAD | TASK_ZOMBIE))
}

/// A set of capabilities: 32 of them in each of at most two words.
fn set(words: &[u32]) -> Option<u64> {
    match words {
        [low] => Some(u64::from(*low)),
        [low, high] => Some(u64::from(*low) | u64::from(*high) << 32),
        _ => None,
    }
}

fn seccomp(name: &str, mode: (u32, Option<u32>), filters: &[SeccompFilter]) -> Result<Seccomp, Error> {
    match mode {
        (0, _) => Ok(Seccomp::Disabled),
        (SECCOMP_STRICT, _) => Ok(Seccomp::Strict),
        (SECCOMP_FILTER, Some(index)) => {
            let mut chain = Vec::new();
            let mut next = Some(index);
            while let Some(index) = next {
                let filter = usize::try_from(index).ok().and_then(|index| filters.get(index));
                let filter = filter.ok_or_else(|| Error::refused("seccomp.img", "a filter is missing"))?;
                chain.push(filter.filter.clone().unwrap_or_default());
                next = filter.prev;
                if chain.len() > MAX_CHAIN {
                    return Err(Error::refused(
                        "seccomp.img",
                        format!("a process has more than {MAX_CHAIN} filters"),
                    ));
                }
            }
            Ok(Seccomp::Filter(Filters(chain)))
        }
        (SECCOMP_FILTER, None) => Err(Error::refused(name, "its system call filter is missing")),
        (mode, _) => Err(Error::refused(name, format!("unknown seccomp mode {mode}"))),
    }
}

fn image(root: &Root, name: &str, limit: u64) -> Result<Vec<u8>, Error> {
    root.read_file(Path::new(name), limit).map_err(|e| match e.kind() {
        std::io::ErrorKind::NotFound => Error::refused(name, "missing"),
        std::io::ErrorKind::InvalidInput => Error::refused(name, "not a regular file"),
        std::io::ErrorKind::FileTooLarge => Error::refused(name, format!("longer than {limit} bytes")),
        _ => e.into(),
    })
}

/// The entries of an image with this magic number.
fn entries<'a>(name: &str, bytes: &'a [u8], magic: u32) -> Result<Vec<&'a [u8]>, Error> {
    let word = |at: usize| -> Option<u32> {
        Some(u32::from_le_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
    };
    if word(0) != Some(COMMON) || word(4) != Some(magic) {
        return Err(Error::refused(name, "not an image of its kind"));
    }
    let mut entries = Vec::new();
    let mut at = 8;
    while at < bytes.len() {
        let size = word(at).and_then(|size| usize::try_from(size).ok());
        let entry = size.and_then(|size| bytes.get(at + 4..(at + 4).checked_add(size)?));
        let entry = entry.ok_or_else(|| Error::refused(name, "cut off"))?;
        entries.push(entry);
        at += 4 + entry.len();
    }
    Ok(entries)
}

/// crun and runc hand the descriptor of each number in the list to CRIU that is said to have been a pipe: a fourth would be
/// one of theirs, a directory of the node for all they know.
fn check_descriptors(json: &[u8]) -> Result<(), Error> {
    struct Streams;

    impl<'de> serde::Deserialize<'de> for Streams {
        fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
            metadata::list::<D, String, STREAMS>(from).map(|_| Self)
        }
    }

    metadata::parse::<Streams>(DESCRIPTORS, json, MAX_DESCRIPTORS).map(drop)
}

fn decode<T: Message + Default>(name: &str, bytes: &[u8]) -> Result<T, Error> {
    T::decode(bytes).map_err(|e| Error::refused(name, format!("malformed entry: {e}")))
}

fn only<'a>(name: &str, bytes: &'a [u8], magic: u32) -> Result<&'a [u8], Error> {
    match entries(name, bytes, magic)?.as_slice() {
        [entry] => Ok(entry),
        _ => Err(Error::refused(name, "it must have one entry")),
    }
}

fn parse_core(name: &str, bytes: &[u8]) -> Result<CoreEntry, Error> {
    decode(name, only(name, bytes, CORE)?)
}

fn parse_filters(bytes: &[u8]) -> Result<Vec<SeccompFilter>, Error> {
    const NAME: &str = "seccomp.img";
    Ok(decode::<SeccompEntry>(NAME, only(NAME, bytes, SECCOMP)?)?.filters)
}

/// Processes with their threads: the first process in front, and the first thread of each.
fn parse_tree(bytes: &[u8]) -> Result<Vec<(u32, Vec<u32>)>, Error> {
    const NAME: &str = "pstree.img";
    let mut tree = Vec::new();
    let mut seen = BTreeSet::new();
    for entry in entries(NAME, bytes, PSTREE)? {
        let entry: PstreeEntry = decode(NAME, entry)?;
        let (Some(pid), Some(ppid)) = (entry.pid, entry.ppid) else {
            return Err(Error::refused(NAME, "a process without a number"));
        };
        // CRIU takes the entry without a parent for the root of the tree, wherever it stands.
        if (ppid == 0) != tree.is_empty() {
            return Err(Error::refused(NAME, "the first process, and no other, must have no parent"));
        }
        let mut threads = entry.threads;
        threads.retain(|tid| *tid != pid);
        threads.insert(0, pid);
        if !threads.iter().all(|tid| seen.insert(*tid)) || seen.len() > MAX_THREADS {
            return Err(Error::refused(NAME, "a thread is there twice, or there are too many"));
        }
        tree.push((pid, threads));
    }
    if tree.is_empty() { Err(Error::refused(NAME, "no process")) } else { Ok(tree) }
}

/// Images by which CRIU would touch more than the container. For devices, routes and firewall rules it would run `ip`,
/// `iptables-restore` and `nft` with content from the checkpoint, but a pod's network is its own and is never in a dump of
/// one of its containers. Entries of `binfmt_misc` are the node's. A user namespace is mapped as its image says.
const OUTSIDE: [(&str, &str); 14] = [
    ("netdev-", NETWORK),
    ("ifaddr-", NETWORK),
    ("route-", NETWORK),
    ("route6-", NETWORK),
    ("rule-", NETWORK),
    ("iptables-", NETWORK),
    ("ip6tables-", NETWORK),
    ("nftables-", NETWORK),
    ("netns-ct-", NETWORK),
    ("netns-exp-", NETWORK),
    ("binfmt-misc", "the node's"),
    ("autofs-", "the node's"),
    ("rlimit-", "of resource limits, which newer CRIUs keep in core images"),
    ("userns-", "of a user namespace, which can't be made again with other mappings"),
];
const NETWORK: &str = "of a network, and a pod has its own";

/// The names of the images. Core images and the threads of the tree must be the same set, for nothing may be restored that
/// was not looked at.
fn check_names(dir: &Path, root: &Root, tree: &[(u32, Vec<u32>)]) -> Result<(), Error> {
    let known: BTreeSet<String> =
        tree.iter().flat_map(|(_, tids)| tids).map(|tid| format!("core-{tid}.img")).collect();
    for name in image_names(dir, root)? {
        if name.starts_with("core-") && !known.contains(&name) {
            return Err(Error::refused(name, "it belongs to no process of pstree.img"));
        }
        if let Some((_, whose)) = OUTSIDE.iter().find(|(prefix, _)| name.starts_with(prefix)) {
            return Err(Error::refused(name, format!("an image {whose}")));
        }
    }
    Ok(())
}

fn image_names(dir: &Path, root: &Root) -> Result<Vec<String>, Error> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY;
    let fd = root.open_at(Path::new("."), flags, Mode::empty())?;
    let failed = |e| PathError::new("list", dir, e);
    let mut names = Vec::new();
    for entry in Dir::new(fd).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        names.push(OsStr::from_bytes(entry.file_name().to_bytes()).to_string_lossy().into_owned());
    }
    names.sort_unstable();
    Ok(names)
}

/// The mounts that CRIU would make, of all mount namespaces in the images in `dir`.
///
/// # Errors
/// [`Error::Refused`] for one that is neither the root, nor handed in by the runtime, nor a file system of the container's
/// own.
pub fn mounts(dir: &Path) -> Result<Vec<Mount>, Error> {
    let root = Root::open(dir)?;
    let mut mounts = Vec::new();
    for name in image_names(dir, &root)?.iter().filter(|name| name.starts_with("mountpoints-")) {
        mounts.extend(host::mounts(name, &image(&root, name, MAX_IMAGE)?)?);
    }
    Ok(mounts)
}

/// Takes an image apart as [`Processes::read`] would, for fuzzing: its first byte says which.
#[cfg(feature = "fuzzing")]
pub fn fuzz(data: &[u8]) {
    let Some((kind, bytes)) = data.split_first() else { return };
    match kind % 7 {
        6 => namespaces::fuzz(bytes),
        5 => drop(sockets::check_files(bytes)),
        3 => drop(host::mounts("mountpoints-1.img", bytes)),
        4 => drop(host::check_cgroups("cgroup.img", bytes)),
        0 => {
            if let Ok(tree) = parse_tree(bytes) {
                assert!(!tree.is_empty() && tree.iter().all(|(pid, tids)| tids.first() == Some(pid)));
            }
        }
        1 => {
            if let Ok(core) = parse_core("core-1.img", bytes) {
                let mode = core.seccomp(core.task.as_ref());
                if let Ok(seccomp) = seccomp("core-1.img", mode, &[]) {
                    let _ = core.credentials("core-1.img", seccomp);
                }
            }
        }
        _ => {
            if let Ok(filters) = parse_filters(bytes)
                && let Ok(Seccomp::Filter(filters)) =
                    seccomp("core-1.img", (SECCOMP_FILTER, Some(0)), &filters)
            {
                filters.may_allow(0xc000_003e, 165);
            }
        }
    }
}
