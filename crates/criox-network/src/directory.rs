//! The directory of network configurations.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::NetworkConf;
use crate::plugin;

/// A file that was passed over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileProblem {
    /// The file.
    pub path: PathBuf,
    /// Why.
    pub reason: String,
}

/// What a configuration directory holds.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Directory {
    /// The valid networks in the lexical order of their files.
    pub networks: Vec<Arc<NetworkConf>>,
    /// The files that are none.
    pub problems: Vec<FileProblem>,
}

/// More than any configuration in the field has, and little enough to read on each change.
const MAX_FILE: u64 = 1 << 20;

impl Directory {
    /// Reads `*.conflist`, `*.conf` and `*.json` of `dir` in lexical order. A file that is malformed, or that names
    /// a plugin which isn't in `plugin_dirs`, is a problem and hides no other; of two networks with one name the
    /// first counts.
    #[must_use]
    pub fn read(dir: &Path, plugin_dirs: &[PathBuf]) -> Self {
        let mut found = Self::default();
        let mut files: Vec<PathBuf> = match std::fs::read_dir(dir) {
            Ok(entries) => {
                entries.flatten().map(|entry| entry.path()).filter(|path| is_configuration(path)).collect()
            }
            Err(error) => {
                found.problems.push(FileProblem { path: dir.to_owned(), reason: error.to_string() });
                return found;
            }
        };
        files.sort();
        for path in files {
            match load(&path, plugin_dirs) {
                Ok(network) if found.network(&network.name).is_some() => {
                    let reason =
                        format!("an earlier file has a network of the same name, {:?}", network.name);
                    found.problems.push(FileProblem { path, reason });
                }
                Ok(network) => found.networks.push(Arc::new(network)),
                Err(reason) => found.problems.push(FileProblem { path, reason }),
            }
        }
        found
    }

    /// The network of this name.
    #[must_use]
    pub fn network(&self, name: &str) -> Option<&Arc<NetworkConf>> {
        self.networks.iter().find(|network| network.name == name)
    }

    /// The network that pods are attached to: the one that is named, else the first.
    #[must_use]
    pub fn default_network(&self, named: Option<&str>) -> Option<&Arc<NetworkConf>> {
        match named {
            None | Some("") => self.networks.first(),
            Some(name) => self.network(name),
        }
    }
}

fn is_configuration(path: &Path) -> bool {
    path.extension().is_some_and(|ext| ext == "conflist" || ext == "conf" || ext == "json")
}

fn load(path: &Path, plugin_dirs: &[PathBuf]) -> Result<NetworkConf, String> {
    let text = read_text(path)?;
    let file = path.file_name().unwrap_or_default().to_string_lossy();
    let network = if path.extension().is_some_and(|ext| ext == "conflist") {
        NetworkConf::parse_list(&text)?
    } else {
        NetworkConf::parse_single(&text, &file)?
    };
    let network = network.with_dropped_in_plugins(path.parent().unwrap_or(Path::new("/")))?;
    for plugin in &network.plugins {
        plugin::find(&plugin.plugin_type, plugin_dirs).map_err(|e| e.to_string())?;
    }
    Ok(network)
}

/// Reads one file of the directory, or below it.
pub(crate) fn read_text(path: &Path) -> Result<String, String> {
    // Follows symbolic links, which some installers use; a FIFO would block the reader.
    let metadata = std::fs::metadata(path).map_err(|e| e.to_string())?;
    if !metadata.is_file() {
        return Err("is not a regular file".into());
    }
    if metadata.len() > MAX_FILE {
        return Err(format!("is larger than {MAX_FILE} bytes"));
    }
    std::fs::read_to_string(path).map_err(|e| e.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plugin::tests::write_plugin;

    /// Writes `files`, reads the directory, and gives the networks' names and the problems' file names.
    fn check(files: &[(&str, &str)], networks: &[&str], problems: &[&str]) -> Directory {
        let dir = tempfile::tempdir().unwrap();
        let bin = tempfile::tempdir().unwrap();
        write_plugin(bin.path(), "here", "");
        for (name, text) in files {
            let path = dir.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            write(&path, text);
        }
        let found = Directory::read(dir.path(), &[bin.path().to_owned()]);
        let names: Vec<_> = found.networks.iter().map(|n| n.name.as_str()).collect();
        assert_eq!(names, networks);
        let passed: Vec<_> =
            found.problems.iter().map(|p| p.path.file_name().unwrap().to_str().unwrap()).collect();
        assert_eq!(passed, problems, "{:?}", found.problems);
        found
    }

    #[expect(clippy::disallowed_methods, reason = "a fixture")]
    fn write(path: &Path, text: &str) {
        std::fs::write(path, text).unwrap();
    }

    const A: &str = r#"{"cniVersion":"1.0.0","name":"a","plugins":[{"type":"here"}]}"#;
    const B: &str = r#"{"cniVersion":"1.0.0","name":"b","type":"here"}"#;

    #[test]
    fn files_count_in_lexical_order() {
        let found = check(
            &[("20-a.conflist", A), ("10-b.conf", B), ("notes.txt", "{"), ("05-x.conf~", "{")],
            &["b", "a"],
            &[],
        );
        assert_eq!(found.default_network(None).unwrap().name, "b");
        assert_eq!(found.default_network(Some("")).unwrap().name, "b");
        assert_eq!(found.default_network(Some("a")).unwrap().name, "a");
        assert!(found.default_network(Some("c")).is_none());
    }

    #[test]
    fn a_malformed_file_hides_no_other() {
        let missing = r#"{"name":"m","type":"absent"}"#;
        check(
            &[("00.conf", "{"), ("01.json", missing), ("02.conf", B), ("03.conflist", "")],
            &["b"],
            &["00.conf", "01.json", "03.conflist"],
        );
    }

    #[test]
    fn the_first_of_one_name_counts() {
        check(&[("1.conflist", A), ("2.conflist", A)], &["a"], &["2.conflist"]);
    }

    #[test]
    fn plugins_in_files_of_their_own_are_appended() {
        let found = check(&[("1.conflist", A), ("a/9.conf", r#"{"type":"here","x":1}"#)], &["a"], &[]);
        assert_eq!(found.networks[0].plugins.len(), 2);
        assert!(found.networks[0].text.contains("\"x\":1"), "the text that is stored is complete");
    }

    #[test]
    fn a_plugins_own_file_that_would_block_or_fill_the_reader_is_a_problem() {
        let dir = tempfile::tempdir().unwrap();
        write(&dir.path().join("1.conflist"), A);
        let own = dir.path().join("a");
        std::fs::create_dir(&own).unwrap();
        let path = own.join("9.conf");
        let fifo = (rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR);
        rustix::fs::mknodat(rustix::fs::CWD, &path, fifo.0, fifo.1, 0).unwrap();
        let check = |reason: &str| {
            let found = Directory::read(dir.path(), &[]);
            assert!(found.networks.is_empty() && found.problems[0].reason.contains("9.conf"));
            assert!(found.problems[0].reason.contains(reason), "{:?}", found.problems);
        };
        check("regular file");
        std::fs::remove_file(&path).unwrap();
        write(&path, &" ".repeat(usize::try_from(MAX_FILE).unwrap() + 1));
        check("larger than");
    }

    #[test]
    fn a_missing_directory_is_a_problem() {
        let found = Directory::read(Path::new("/nonexistent/net.d"), &[]);
        assert_eq!(found.problems.len(), 1);
    }
}
