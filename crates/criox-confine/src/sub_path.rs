//! A part of an image that is to be a mount: where it really is, and nowhere else than in the image.

use std::fs;
use std::io;
use std::os::fd::AsRawFd as _;
use std::path::{Component, Path, PathBuf};

use criox_sys::inroot::Root;
use rustix::fs::{FileType, Mode, OFlags};

/// A path below an image's root, without a leading slash; empty for all of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SubPath(PathBuf);

impl SubPath {
    /// Of a request.
    ///
    /// # Errors
    /// The path is absolute, or leads out.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut clean = PathBuf::new();
        for part in Path::new(text).components() {
            match part {
                Component::Normal(name) => clean.push(name),
                Component::CurDir => {}
                _ => return Err(format!("{text:?} is not a relative path without \"..\"")),
            }
        }
        Ok(Self(clean))
    }

    /// Where it really is below `root`, with links in the image leading to what is in the image, and whether it is a
    /// directory. The tree must be read-only: then it stays there.
    ///
    /// # Errors
    /// It is not there, or neither a directory nor a file.
    pub fn look_up(&self, root: &Path) -> io::Result<(PathBuf, bool)> {
        let inside = Root::open(root).map_err(io::Error::other)?;
        let found = inside.open_at(&self.0, OFlags::PATH, Mode::empty()).map_err(io::Error::other)?;
        let kind = FileType::from_raw_mode(rustix::fs::fstat(&found)?.st_mode);
        if !matches!(kind, FileType::Directory | FileType::RegularFile) {
            return Err(io::Error::other("it is neither a directory nor a file"));
        }
        let path = fs::read_link(format!("/proc/self/fd/{}", found.as_raw_fd()))?;
        Ok((path, kind == FileType::Directory))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sub_path_stays_in_the_image() {
        for (path, expected) in [("", ""), (".", ""), ("etc", "etc"), ("a/./b/", "a/b"), ("a//b", "a/b")] {
            let sub_path = SubPath::parse(path);
            assert_eq!(sub_path, Ok(SubPath(expected.into())), "{path:?}");
        }
        for path in ["/etc", "..", "a/../b", "../a"] {
            assert!(SubPath::parse(path).is_err(), "{path:?}");
        }
    }

    #[test]
    fn a_link_in_the_image_leads_to_what_is_in_the_image() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let root = fs::canonicalize(dir.path()).expect("it is there");
        fs::create_dir(root.join("etc")).expect("it is new");
        for (target, link) in [("/etc", "link"), ("../../../../etc", "out"), ("/nowhere", "dangling")] {
            std::os::unix::fs::symlink(target, root.join(link)).expect("it is new");
        }
        for path in ["link", "out", "etc"] {
            let (found, is_dir) = SubPath(path.into()).look_up(&root).expect(path);
            assert_eq!((found.as_path(), is_dir), (root.join("etc").as_path(), true), "{path}");
        }
        assert_eq!(SubPath::default().look_up(&root).expect("all of it").0, root);
        assert!(SubPath("dangling".into()).look_up(&root).is_err());
    }
}
