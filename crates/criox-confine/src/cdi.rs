//! The files of the Container Device Interface on this node: found, read again when they change, and asked for devices.
//!
//! Vendors' programs write them at any time, so the directories are looked through for each container that asks for a
//! device; only files that changed are read. A broken file costs its own devices and nothing else.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use criox_spec::{
    CdiEdits, CdiError, CdiFacts, CdiFile, CdiFormat, CdiName, HandlerFeatures, HostNode, inject_cdi, oci,
    parse_cdi,
};

use crate::error::{Error, Result};

/// The most that is read of a file; what is larger, the parser refuses.
const FILE_MAX: u64 = (8 << 20) + 1;
/// Files of one directory that are looked at.
const FILES_MAX: usize = 1000;

/// The node's devices.
#[derive(Debug)]
pub struct Cdi {
    /// `cdi_spec_dirs`; later ones win.
    directories: Vec<PathBuf>,
    known: Mutex<HashMap<PathBuf, Known>>,
}

/// What a file holds, or why it is of no use.
type Content = Arc<std::result::Result<CdiFile, String>>;

/// A file as it was read.
#[derive(Debug, Clone)]
struct Known {
    stamp: Stamp,
    content: Content,
}

/// What changes when a file does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

/// One look at the directories.
struct View {
    /// Sound files by directory, lowest priority first.
    levels: Vec<Vec<(PathBuf, Content)>>,
    /// What could not be read, with the reason.
    broken: Vec<String>,
}

impl Cdi {
    /// Over the directories of the configuration. Nothing is read before a container asks.
    pub fn new(directories: Vec<PathBuf>) -> Self {
        Self { directories, known: Mutex::default() }
    }

    /// Gives a container the devices that it asks for, in that order. `field` is what asks, for errors. Blocks on the
    /// file system.
    ///
    /// # Errors
    /// A device that no file describes, or two files of one directory; one whose node is not there; one that the
    /// handler can't do.
    pub fn inject(
        &self,
        spec: &mut oci::Spec,
        names: &[CdiName],
        features: &HandlerFeatures,
        field: &str,
    ) -> Result<()> {
        if names.is_empty() {
            return Ok(());
        }
        let refused = |reason: String| Error::node(format!("{field}: {reason}"));
        let view = self.look();
        let mut files = BTreeSet::new();
        let mut edits: Vec<&CdiEdits> = Vec::new();
        for name in names {
            let (path, file) = view.find(name).map_err(refused)?;
            // What a file has for all of its devices is wanted once.
            if files.insert(path) {
                edits.push(file.common());
            }
            edits.extend(file.device(&name.device));
        }
        let facts = CdiFacts { net_devices: features.net_devices, intel_rdt: features.intel_rdt };
        inject_cdi(spec, &edits, facts, &mut host_node).map_err(|error| {
            let names: Vec<String> = names.iter().map(ToString::to_string).collect();
            refused(format!("{}: {error}", names.join(", ")))
        })
    }

    /// The directories as they are now.
    fn look(&self) -> View {
        let before = self.known.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut now = HashMap::new();
        let mut view = View { levels: Vec::new(), broken: Vec::new() };
        for directory in &self.directories {
            let mut level = Vec::new();
            for path in files(directory) {
                let Ok(known) = read_if_changed(&path, before.get(&path)) else { continue };
                match known.content.as_ref() {
                    Ok(_) => level.push((path.clone(), known.content.clone())),
                    Err(reason) => view.broken.push(format!("{}: {reason}", path.display())),
                }
                now.insert(path, known);
            }
            view.levels.push(level);
        }
        *self.known.lock().unwrap_or_else(PoisonError::into_inner) = now;
        view
    }
}

impl View {
    /// The file that describes a device: of the last directory in which one does.
    fn find(&self, name: &CdiName) -> std::result::Result<(&Path, &CdiFile), String> {
        for level in self.levels.iter().rev() {
            let mut found = level.iter().filter_map(|(path, content)| {
                let file = content.as_ref().as_ref().ok()?;
                (file.kind() == name.kind && file.device(&name.device).is_some())
                    .then_some((path.as_path(), file))
            });
            match (found.next(), found.next()) {
                (Some(only), None) => return Ok(only),
                (Some((first, _)), Some((second, _))) => {
                    return Err(format!(
                        "CDI device {name} is described twice, in {} and {}; remove one",
                        first.display(),
                        second.display()
                    ));
                }
                (None, _) => {}
            }
        }
        Err(self.unknown(name))
    }

    fn unknown(&self, name: &CdiName) -> String {
        let mut of_kind = BTreeMap::new();
        for (_, content) in self.levels.iter().flatten() {
            if let Ok(file) = content.as_ref()
                && file.kind() == name.kind
            {
                of_kind.extend(file.devices().map(|device| (device.to_owned(), ())));
            }
        }
        let mut text = format!("unresolvable CDI device {name}: no file in cdi_spec_dirs describes it");
        if !of_kind.is_empty() {
            let list: Vec<&str> = of_kind.keys().map(String::as_str).take(16).collect();
            text += &format!(" (of {} there are: {})", name.kind, list.join(", "));
        }
        if !self.broken.is_empty() {
            text += &format!("; not readable: {}", self.broken.join("; "));
        }
        text
    }
}

/// What a directory holds, by name; nothing if it isn't there.
fn files(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let mut paths: Vec<PathBuf> =
        entries.map(|entry| entry.path()).filter(|path| format_of(path).is_some()).collect();
    paths.sort();
    if paths.len() > FILES_MAX {
        let directory = directory.display();
        tracing::warn!(%directory, "more than {FILES_MAX} CDI files; the rest is not looked at");
        paths.truncate(FILES_MAX);
    }
    paths
}

fn format_of(path: &Path) -> Option<CdiFormat> {
    match path.extension()?.to_str()? {
        "json" => Some(CdiFormat::Json),
        "yaml" => Some(CdiFormat::Yaml),
        _ => None,
    }
}

/// # Errors
/// The file has gone meanwhile.
fn read_if_changed(path: &Path, known: Option<&Known>) -> io::Result<Known> {
    // Not blocking on a pipe that somebody put there.
    let nonblocking = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
    let mut file = fs::OpenOptions::new().read(true).custom_flags(nonblocking).open(path)?;
    let metadata = file.metadata()?;
    let stamp = Stamp {
        inode: metadata.ino(),
        size: metadata.size(),
        modified: (metadata.mtime(), metadata.mtime_nsec()),
        changed: (metadata.ctime(), metadata.ctime_nsec()),
    };
    if let Some(known) = known.filter(|known| known.stamp == stamp) {
        return Ok(known.clone());
    }
    let content = if metadata.is_file() {
        let mut bytes = Vec::new();
        Read::by_ref(&mut file).take(FILE_MAX).read_to_end(&mut bytes)?;
        let format = format_of(path).unwrap_or(CdiFormat::Json);
        parse_cdi(&bytes, format).map_err(|error| error.to_string())
    } else {
        Err("not a regular file".to_owned())
    };
    if let Err(reason) = &content {
        tracing::warn!(file = %path.display(), reason, "a CDI file is of no use; its devices can't be had");
    }
    Ok(Known { stamp, content: Arc::new(content) })
}

/// A node of the host, not through a link: what a link says may change between the look and the container.
fn host_node(path: &str) -> std::result::Result<HostNode, CdiError> {
    let metadata = fs::symlink_metadata(path)
        .map_err(|error| CdiError::new(format!("{path:?} can't be had: {error}")))?;
    let kind = metadata.file_type();
    let kind = match (kind.is_char_device(), kind.is_block_device(), kind.is_fifo()) {
        (true, ..) => 'c',
        (_, true, _) => 'b',
        (.., true) => 'p',
        _ => return Err(CdiError::new(format!("{path:?} is not a device node"))),
    };
    let number = metadata.rdev();
    Ok(HostNode { kind, major: rustix::fs::major(number), minor: rustix::fs::minor(number) })
}

#[cfg(test)]
mod tests {
    use criox_sys::durable;

    use super::*;

    struct Node {
        root: tempfile::TempDir,
        cdi: Cdi,
    }

    impl Node {
        fn new() -> Self {
            let root = tempfile::tempdir().expect("a directory");
            let cdi = Cdi::new(vec![root.path().join("etc"), root.path().join("run")]);
            Self { root, cdi }
        }

        fn put(&self, path: &str, device: &str, variable: &str) {
            let text = format!(
                r#"{{"cdiVersion":"0.3.0","kind":"v.com/c","containerEdits":{{"env":["FILE={path}"]}},
                "devices":[{{"name":"{device}","containerEdits":{{"env":["{variable}"]}}}}]}}"#
            );
            self.write(path, &text);
        }

        fn write(&self, path: &str, text: &str) {
            let path = self.root.path().join(path);
            fs::create_dir_all(path.parent().expect("a parent")).expect("directories");
            durable::write_atomic(&path, text.as_bytes(), 0o644).expect("a file");
        }

        fn env(&self, names: &[&str]) -> std::result::Result<Vec<String>, String> {
            let names: Vec<CdiName> =
                names.iter().map(|name| CdiName::parse(name).expect("a name")).collect();
            let mut spec = oci::Spec::default();
            let features = HandlerFeatures::default();
            let result = self.cdi.inject(&mut spec, &names, &features, "config.CDI_devices");
            result.map(|()| spec.process.env).map_err(|error| error.to_string())
        }

        #[track_caller]
        fn refuses(&self, name: &str, words: &[&str]) {
            let error = self.env(&[name]).expect_err(name);
            assert!(words.iter().all(|word| error.contains(word)), "{error}");
        }
    }

    #[test]
    fn a_change_of_the_files_is_seen_by_the_next_container() {
        let node = Node::new();
        node.refuses("v.com/c=a", &["config.CDI_devices", "v.com/c=a"]);
        node.put("etc/v.json", "a", "X=1");
        assert_eq!(node.env(&["v.com/c=a"]).expect("there"), ["FILE=etc/v.json", "X=1"]);
        node.put("etc/v.json", "a", "X=2");
        assert_eq!(node.env(&["v.com/c=a"]).expect("there")[1], "X=2");
        fs::remove_file(node.root.path().join("etc/v.json")).expect("gone");
        node.refuses("v.com/c=a", &["v.com/c=a"]);
    }

    #[test]
    fn the_later_directory_wins_and_two_files_of_one_conflict() {
        let node = Node::new();
        node.put("etc/v.json", "a", "FROM=etc");
        node.put("run/v.json", "a", "FROM=run");
        assert_eq!(node.env(&["v.com/c=a"]).expect("there")[1], "FROM=run");
        node.put("run/w.json", "a", "FROM=other");
        node.refuses("v.com/c=a", &["twice", "v.json", "w.json"]);
    }

    #[test]
    fn what_a_file_has_for_all_its_devices_is_given_once() {
        let node = Node::new();
        let device = |name: &str| format!(r#"{{"name":"{name}","containerEdits":{{"env":["{name}=1"]}}}}"#);
        node.write(
            "etc/v.json",
            &format!(
                r#"{{"cdiVersion":"0.3.0","kind":"v.com/c","devices":[{},{}],"containerEdits":{{"hooks":
                [{{"hookName":"poststop","path":"/bin/true"}}]}}}}"#,
                device("a"),
                device("b")
            ),
        );
        let names = ["v.com/c=a", "v.com/c=b"].map(|name| CdiName::parse(name).expect("a name"));
        let mut spec = oci::Spec::default();
        node.cdi.inject(&mut spec, &names, &HandlerFeatures::default(), "f").expect("there");
        assert_eq!(spec.hooks.expect("hooks").poststop.len(), 1);
        assert_eq!(spec.process.env, ["a=1", "b=1"]);
    }

    #[test]
    fn a_broken_file_costs_its_own_devices_and_is_named() {
        let node = Node::new();
        node.put("etc/good.json", "a", "X=1");
        node.write("etc/bad.yaml", "cdiVersion: [");
        node.write("etc/ignored.txt", "not looked at");
        fs::create_dir(node.root.path().join("etc/directory.json")).expect("a directory");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            node.root.path().join("etc/pipe.json"),
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::RWXU,
            0,
        )
        .expect("a pipe");
        assert_eq!(node.env(&["v.com/c=a"]).expect("there")[1], "X=1");
        node.refuses("v.com/c=b", &["v.com/c=b", "there are: a", "bad.yaml", "pipe.json"]);
    }

    #[test]
    fn a_node_of_the_host_is_looked_up_and_must_be_there() {
        let node = Node::new();
        let file = |path: &str| {
            format!(
                r#"{{"cdiVersion":"0.5.0","kind":"v.com/c","devices":[{{"name":"a","containerEdits":{{"deviceNodes":
                [{{"path":"/dev/x","hostPath":"{path}"}}]}}}}]}}"#
            )
        };
        node.write("etc/v.json", &file("/dev/null"));
        let names = [CdiName::parse("v.com/c=a").expect("a name")];
        let mut spec = oci::Spec::default();
        node.cdi.inject(&mut spec, &names, &HandlerFeatures::default(), "f").expect("there");
        assert_eq!((spec.linux.devices[0].major, spec.linux.devices[0].minor), (1, 3));
        node.write("etc/v.json", &file("/dev/no-such-node"));
        node.refuses("v.com/c=a", &["v.com/c=a", "/dev/no-such-node"]);
        node.write("etc/v.json", &file("/etc/passwd"));
        node.refuses("v.com/c=a", &["not a device"]);
    }
}
