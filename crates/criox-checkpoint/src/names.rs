//! The files of a checkpoint, by the names that CRI-O, podman and checkpointctl give them.

/// CRIU's statistics of the dump.
pub const STATS_DUMP: &str = "stats-dump";
/// CRIU's log of the dump.
pub const DUMP_LOG: &str = "dump.log";
/// The directory of CRIU's images.
pub const IMAGES: &str = "checkpoint";
/// What was checkpointed ([`crate::ConfigDump`]).
pub const CONFIG_DUMP: &str = "config.dump";
/// The container's OCI specification.
pub const SPEC_DUMP: &str = "spec.dump";
/// The sources of bind mounts, and what they are ([`crate::BindMount`]).
pub const BIND_MOUNTS: &str = "bind.mounts";
/// What the container added to or changed in its root file system.
pub const ROOT_DIFF: &str = "rootfs-diff.tar";
/// What it removed from it: a JSON array of paths.
pub const DELETED_FILES: &str = "deleted.files";
/// The container's log; CRI-O uses an annotation's key as the name.
pub const LOG: &str = "io.kubernetes.cri-o.LogPath";

/// The files of a checkpoint beside [`IMAGES`], those first that a reader wants first.
pub const FILES: [&str; 8] =
    [CONFIG_DUMP, SPEC_DUMP, BIND_MOUNTS, STATS_DUMP, DUMP_LOG, DELETED_FILES, ROOT_DIFF, LOG];

/// What podman, containerd or a restore leave in a checkpoint besides; nothing of it is used or copied.
pub(crate) const FOREIGN_FILES: [&str; 10] = [
    // Beside an intake for CRIU, by whoever restores it.
    "criu.conf",
    "ctr.log",
    "restore.log",
    "stats-restore",
    "network.status",
    "pod.options",
    "pod.dump",
    "devshm-checkpoint.tar",
    "status",
    "status.dump",
];

/// Directories of podman's that are passed over with all that is in them.
pub(crate) const FOREIGN_DIRECTORIES: [&str; 2] = ["volumes", "artifacts"];

/// What a name at the top or in [`IMAGES`] means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// The checkpoint itself.
    Top,
    /// The directory of CRIU's images.
    Images,
    /// A file of ours: one of [`FILES`], or an image.
    File,
    /// Known and not used.
    Foreign,
}

/// Where a name belongs, `None` if nowhere. `parts` are its components.
pub(crate) fn place(parts: &[&str]) -> Option<Place> {
    match parts {
        [] => Some(Place::Top),
        [IMAGES] => Some(Place::Images),
        [name] if FILES.contains(name) => Some(Place::File),
        [name] if FOREIGN_FILES.contains(name) => Some(Place::Foreign),
        [first, ..] if FOREIGN_DIRECTORIES.contains(first) => Some(Place::Foreign),
        [IMAGES, image] if is_image_name(image) => Some(Place::File),
        _ => None,
    }
}

/// Images have plain names: CRIU makes no directories, and no names that start with a dot.
pub(crate) fn is_image_name(name: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
    !name.is_empty() && name.len() <= 255 && !name.starts_with('.') && name.bytes().all(plain)
}
