//! Linux security modules: what the kernel has, and what is asked of it by its files.
//!
//! Everything here reads pseudo file systems of the kernel, which answer at once.

use std::io;
use std::path::{Path, PathBuf};

/// Where securityfs is mounted.
const SECURITYFS: &str = "/sys/kernel/security";

/// AppArmor, as the kernel shows it.
#[derive(Debug, Clone)]
pub struct AppArmorFiles {
    enabled: PathBuf,
    profiles: PathBuf,
}

impl Default for AppArmorFiles {
    fn default() -> Self {
        Self {
            enabled: "/sys/module/apparmor/parameters/enabled".into(),
            profiles: Path::new(SECURITYFS).join("apparmor/profiles"),
        }
    }
}

impl AppArmorFiles {
    /// The same files below another root, for tests.
    #[must_use]
    pub fn below(root: &Path) -> Self {
        let inside = |path: &Path| root.join(path.strip_prefix("/").unwrap_or(path));
        let real = Self::default();
        Self { enabled: inside(&real.enabled), profiles: inside(&real.profiles) }
    }

    /// Whether the kernel confines by AppArmor.
    #[must_use]
    pub fn is_enabled(&self) -> bool {
        std::fs::read(&self.enabled).is_ok_and(|text| text.first() == Some(&b'Y'))
    }

    /// Whether a profile of that name is loaded, in whatever mode.
    ///
    /// # Errors
    /// The list can't be read: securityfs is not mounted, or we are not root.
    pub fn is_loaded(&self, name: &str) -> io::Result<bool> {
        Ok(has_profile(&std::fs::read_to_string(&self.profiles)?, name))
    }

    /// The list of loaded profiles, for messages.
    #[must_use]
    pub fn list(&self) -> &Path {
        &self.profiles
    }
}

/// Lines are `name (mode)`; a name may hold blanks and brackets itself.
fn has_profile(list: &str, name: &str) -> bool {
    list.lines().any(|line| line.rsplit_once(" (").is_some_and(|(profile, _)| profile == name))
}

/// Whether the kernel confines by SELinux: its file system is mounted, as libselinux asks.
#[must_use]
pub fn selinux_is_enabled() -> bool {
    Path::new("/sys/fs/selinux/enforce").exists()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(name: &str, expected: bool) {
        let list = "crio-default (enforce)\n/usr/bin/man (enforce)\nodd (name) (complain)\nunprivileged_userns (unconfined)\n";
        assert_eq!(has_profile(list, name), expected, "{name}");
    }

    #[test]
    fn a_profile_is_found_by_its_whole_name() {
        check("crio-default", true);
        check("odd (name)", true);
        check("/usr/bin/man", true);
        check("crio", false);
        check("crio-default (enforce)", false);
        check("", false);
    }

    #[test]
    fn without_the_kernels_files_nothing_is_enabled_and_nothing_known() {
        let empty = tempfile::tempdir().unwrap();
        let files = AppArmorFiles::below(empty.path());
        assert!(!files.is_enabled());
        assert!(files.is_loaded("x").is_err());
    }
}
