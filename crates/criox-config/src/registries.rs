//! `registries.conf`, version 2 (containers-registries.conf(5)): mirrors, rewriting, blocking, short names.

mod entry;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use thiserror::Error;
use toml::de::DeTable;

use crate::document::{Document, find, read};
use crate::field::choice;
use crate::problem::{KeyRef, Origin, Problems};
use crate::table::{Sink, apply, section, subtable};
use crate::value::ShortNameMode;

choice! {
    /// For which references a mirror is asked.
    PullFromMirror {
        /// All.
        All = "all" | "",
        /// Those with a digest.
        DigestOnly = "digest-only",
        /// Those without.
        TagOnly = "tag-only",
    }
}

section! {
    /// The top level of the file.
    Top = "registries.conf" {
        /// Registries in which names without one are searched.
        Now unqualified_search_registries: Vec<String> = Vec::new();
        /// Where credentials are looked up.
        Now credential_helpers: Vec<String> = Vec::new();
        /// What a name without a registry means, for tools other than CRI-O.
        Now short_name_mode: String = String::new();
        /// A program for read-only layer stores.
        Now additional_layer_store_auth_helper: String = String::new();
    }
}

section! {
    /// `[[registry]]`: where names with a prefix are really found.
    Registry = "registry" {
        /// Beginning of the names that this is about, or `*.` and a domain; empty in the file is the location.
        Now prefix: String = String::new();
        /// What the prefix is replaced with.
        Now location: String = String::new();
        /// Don't verify TLS, and fall back to plain HTTP.
        Now insecure: bool = false;
        /// Refuse such names.
        Now blocked: bool = false;
        /// Ask mirrors for digests only.
        Now mirror_by_digest_only: bool = false;
    }
    tables {
        /// `[[registry.mirror]]`, tried in this order before the location.
        mirrors: Vec<Mirror> = Vec::new();
    }
}

section! {
    /// `[[registry.mirror]]`.
    Mirror = "registry.mirror" {
        /// What the prefix is replaced with.
        Now location: String = String::new();
        /// Don't verify TLS, and fall back to plain HTTP.
        Now insecure: bool = false;
        /// For which references it is asked.
        Now pull_from_mirror: PullFromMirror = PullFromMirror::All;
    }
}

/// Which files to read.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RegistriesPaths {
    /// The main file.
    pub main: Option<PathBuf>,
    /// The main file must exist (it was given explicitly).
    pub required: bool,
    /// Directories of `*.conf` files, read in order.
    pub drop_in_dirs: Vec<PathBuf>,
    /// The file of aliases that tools have recorded.
    pub recorded_aliases: Option<PathBuf>,
}

impl RegistriesPaths {
    /// The system's places; `main` and `drop_in_dir` replace them (CRI-O's hidden flags). If the user whose `home`
    /// this is has an own main file, it counts instead of the system's and its drop-ins.
    pub fn system(home: Option<&Path>, main: Option<PathBuf>, drop_in_dir: Option<PathBuf>) -> Self {
        let own = home.filter(|home| home.is_absolute()).map(|home| home.join(".config/containers"));
        let own_main = own.as_ref().map(|dir| dir.join("registries.conf")).filter(|path| path.exists());
        let system_dir = PathBuf::from("/etc/containers/registries.conf.d");
        let own_dir = own.map(|dir| dir.join("registries.conf.d"));
        let drop_in_dirs = match (drop_in_dir, &own_main) {
            (Some(dir), _) => vec![dir],
            (None, Some(_)) => own_dir.into_iter().collect(),
            (None, None) => std::iter::once(system_dir).chain(own_dir).collect(),
        };
        Self {
            required: main.is_some(),
            main: main.or(own_main).or_else(|| Some("/etc/containers/registries.conf".into())),
            drop_in_dirs,
            recorded_aliases: Some("/var/cache/containers/short-name-aliases.conf".into()),
        }
    }
}

/// The merged `registries.conf`.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Registries {
    /// Registries in which short names are searched, in order.
    pub unqualified_search: Vec<String>,
    /// `credential-helpers`, empty if not set.
    pub credential_helpers: Vec<String>,
    /// `short-name-mode`, empty if not set; CRI-O uses its own `short_name_mode`.
    pub short_name_mode: String,
    /// Full names by short name.
    pub aliases: BTreeMap<String, String>,
    /// Sorted by prefix, which is never empty.
    pub registries: Vec<Registry>,
    /// Keys that nobody knows; they are ignored.
    pub unknown: Vec<KeyRef>,
}

/// One place to pull from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// `host[:port]`; certificates and credentials go by this name.
    pub host: String,
    /// The repository there.
    pub repository: String,
    /// Don't verify TLS, and fall back to plain HTTP.
    pub insecure: bool,
    /// It is a mirror: credentials of the request are not for it unless its host is the reference's own.
    pub mirror: bool,
}

/// Why a name leads nowhere.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ResolveError {
    /// Its registry is blocked.
    #[error("registry {prefix} is blocked in registries.conf: {name} must not be pulled")]
    Blocked {
        /// The name.
        name: String,
        /// The entry that blocks it.
        prefix: String,
    },
    /// Rewriting gave something that is not a name.
    #[error("registries.conf rewrites {name} to {rewritten}, which is not a registry and a repository")]
    Rewrite {
        /// The name.
        name: String,
        /// What it became.
        rewritten: String,
    },
    /// A short name for which more than one registry would have to be searched.
    #[error(
        "short name mode is enforcing, but image name {name} returns ambiguous list: use its full name or an alias"
    )]
    Ambiguous {
        /// The short name.
        name: String,
    },
    /// A short name, and no registry to search.
    #[error(
        "image name {name} has no registry, and registries.conf has neither an alias nor unqualified-search-registries for it"
    )]
    NoRegistry {
        /// The short name.
        name: String,
    },
}

impl Registries {
    /// Reads and merges the files that exist.
    ///
    /// # Errors
    /// Every mistake in every file.
    pub fn load(paths: &RegistriesPaths) -> Result<Self, Problems> {
        let mut this = Self::default();
        let mut sink = Sink::default();
        let mut files: Vec<(PathBuf, bool)> =
            paths.main.iter().map(|path| (path.clone(), paths.required)).collect();
        for dir in &paths.drop_in_dirs {
            match conf_files(dir) {
                Ok(found) => files.extend(found.into_iter().map(|path| (path, false))),
                Err(problems) => sink.problems.0.extend(problems.0),
            }
        }
        // What tools have recorded goes before the files' aliases, so it is merged last.
        let recorded = paths.recorded_aliases.iter().map(|path| (path.clone(), false));
        for (path, required) in files.into_iter().chain(recorded) {
            match read(&path) {
                Ok(Some(bytes)) => this.apply(&path, &bytes, &mut sink),
                Ok(None) if required => sink.problems.0.extend(missing(&path).0),
                Ok(None) => {}
                Err(problems) => sink.problems.0.extend(problems.0),
            }
        }
        this.finish(sink)
    }

    /// Reads one file's bytes; `path` is for messages.
    ///
    /// # Errors
    /// Every mistake in it.
    pub fn parse(path: &Path, bytes: &[u8]) -> Result<Self, Problems> {
        let mut this = Self::default();
        let mut sink = Sink::default();
        this.apply(path, bytes, &mut sink);
        this.finish(sink)
    }

    fn finish(mut self, sink: Sink) -> Result<Self, Problems> {
        self.registries.sort_by(|a, b| a.prefix.cmp(&b.prefix));
        self.unknown = sink.unknown;
        sink.problems.or(self)
    }

    fn apply(&mut self, path: &Path, bytes: &[u8], sink: &mut Sink) {
        let doc = match Document::new(path, bytes) {
            Ok(doc) => doc,
            Err(problems) => return sink.problems.0.extend(problems.0),
        };
        let table = match doc.parse() {
            Ok(table) => table,
            Err(problems) => return sink.problems.0.extend(problems.0),
        };
        if let Some((key, _)) = find(&table, "registries") {
            let message = "is version 1 of the format, which is no longer read: use unqualified-search-registries and [[registry]]";
            sink.problems.add(doc.origin(key), "registries", message);
        }
        self.apply_top(&doc, &table, sink);
        if let Some(aliases) = subtable(&doc, &table, "", "aliases", sink) {
            self.apply_aliases(&doc, aliases, sink);
        }
        let mut parsed: Vec<Registry> = Vec::new();
        for (origin, table) in entry::list(&doc, &table, "registry", sink) {
            let Some(entry) = entry::registry(&doc, &origin, table, sink) else { continue };
            // Two descriptions of one place must agree on how it may be reached.
            let same = |other: &&Registry| other.location == entry.location && !entry.location.is_empty();
            if let Some(other) = parsed.iter().find(same)
                && (other.insecure, other.blocked) != (entry.insecure, entry.blocked)
            {
                let message =
                    format!("\"{}\" is described twice, with different insecure or blocked", entry.location);
                sink.problems.add(origin, "registry.location", message);
                continue;
            }
            parsed.push(entry);
        }
        self.merge(parsed);
    }

    fn apply_top(&mut self, doc: &Document<'_>, table: &DeTable<'_>, sink: &mut Sink) {
        let mut top = Top {
            unqualified_search_registries: std::mem::take(&mut self.unqualified_search),
            credential_helpers: std::mem::take(&mut self.credential_helpers),
            ..Top::default()
        };
        apply(&mut top, "", doc, table, &["registries", "registry", "aliases"], sink);
        let origin = |key: &str, sink: &Sink| sink.origins.get(key).cloned().unwrap_or(Origin::Default);
        for host in &top.unqualified_search_registries {
            if !is_host(host) {
                let at = origin(".unqualified_search_registries", sink);
                let message = format!("\"{host}\" is not a registry's host[:port]");
                sink.problems.add(at, "unqualified-search-registries", message);
            }
        }
        if !["", "enforcing", "permissive", "disabled"].contains(&top.short_name_mode.as_str()) {
            let message = format!(
                "\"{}\" is not one of \"enforcing\", \"permissive\", \"disabled\"",
                top.short_name_mode
            );
            sink.problems.add(origin(".short_name_mode", sink), "short-name-mode", message);
        }
        self.unqualified_search = top.unqualified_search_registries;
        self.credential_helpers = top.credential_helpers;
        if !top.short_name_mode.is_empty() {
            self.short_name_mode = top.short_name_mode;
        }
        sink.origins.clear();
    }

    fn apply_aliases(&mut self, doc: &Document<'_>, aliases: &DeTable<'_>, sink: &mut Sink) {
        for (key, value) in aliases {
            let (name, origin) = (key.get_ref(), doc.origin(key));
            let at = format!("aliases.{name}");
            let Some(full) = value.get_ref().as_str() else {
                sink.problems.add(origin, at, "must be text in quotes");
                continue;
            };
            if name.is_empty() || name.contains([':', '@']) || !is_short(name) {
                sink.problems.add(origin, at, "is not a short name without tag and digest");
            } else if full.is_empty() {
                self.aliases.remove(name.as_ref());
            } else if is_short(full) || tagged(full) {
                let message = format!("\"{full}\" must have a registry, but no tag or digest");
                sink.problems.add(origin, at, message);
            } else {
                self.aliases.insert(name.to_string(), full.to_owned());
            }
        }
    }

    /// Entries replace those of the same prefix in earlier files; within one file the first counts.
    fn merge(&mut self, entries: Vec<Registry>) {
        let mut new: Vec<Registry> = Vec::new();
        for entry in entries {
            if !new.iter().any(|other| other.prefix == entry.prefix) {
                new.push(entry);
            }
        }
        self.registries.retain(|old| !new.iter().any(|entry| entry.prefix == old.prefix));
        self.registries.extend(new);
    }

    /// The entry for a name `host[:port]/path`: the one with the longest prefix that matches.
    pub fn find(&self, name: &str) -> Option<&Registry> {
        self.registries
            .iter()
            .filter(|entry| matched(&entry.prefix, name).is_some())
            .max_by_key(|entry| entry.prefix.len())
    }

    /// Where to pull `host/repository` from, in order; `is_digest` says that the reference has a digest.
    /// Names of Docker Hub come in their full form, `docker.io` and `library/name`.
    ///
    /// # Errors
    /// The name is blocked, or rewritten to nonsense.
    pub fn resolve(
        &self,
        host: &str,
        repository: &str,
        is_digest: bool,
    ) -> Result<Vec<Endpoint>, ResolveError> {
        let name = format!("{host}/{repository}");
        let Some(entry) = self.find(&name) else {
            return Ok(vec![Endpoint {
                host: host.to_owned(),
                repository: repository.to_owned(),
                insecure: false,
                mirror: false,
            }]);
        };
        if entry.blocked {
            return Err(ResolveError::Blocked { name, prefix: entry.prefix.clone() });
        }
        let wanted = |mirror: &&Mirror| match mirror.pull_from_mirror {
            _ if entry.mirror_by_digest_only => is_digest,
            PullFromMirror::All => true,
            PullFromMirror::DigestOnly => is_digest,
            PullFromMirror::TagOnly => !is_digest,
        };
        let mirrors = entry.mirrors.iter().filter(wanted).map(|m| (m.location.as_str(), m.insecure, true));
        let places = mirrors.chain([(entry.location.as_str(), entry.insecure, false)]);
        let mut endpoints = Vec::new();
        for (location, insecure, mirror) in places {
            let rewritten = rewrite(&entry.prefix, location, &name);
            // The place itself may be blocked although the name that leads there isn't.
            if let Some(blocked) = self.find(&rewritten).filter(|entry| entry.blocked) {
                if !mirror && endpoints.is_empty() {
                    return Err(ResolveError::Blocked { name: rewritten, prefix: blocked.prefix.clone() });
                }
                continue;
            }
            match rewritten.split_once('/') {
                Some((host, repository)) if is_host(host) && !repository.is_empty() => {
                    let (host, repository) = (host.to_owned(), repository.to_owned());
                    endpoints.push(Endpoint { host, repository, insecure, mirror });
                }
                _ => return Err(ResolveError::Rewrite { name, rewritten }),
            }
        }
        Ok(endpoints)
    }

    /// The full names, without tag or digest, that a short name (without them, too) may stand for, in order.
    ///
    /// # Errors
    /// There is none, or more than one while the mode is enforcing.
    pub fn resolve_short_name(&self, name: &str, mode: ShortNameMode) -> Result<Vec<String>, ResolveError> {
        if let Some(full) = self.aliases.get(name) {
            return Ok(vec![full.clone()]);
        }
        match (&self.unqualified_search[..], mode) {
            ([], _) => Err(ResolveError::NoRegistry { name: name.to_owned() }),
            ([_, _, ..], ShortNameMode::Enforcing) => Err(ResolveError::Ambiguous { name: name.to_owned() }),
            (hosts, _) => Ok(hosts.iter().map(|host| qualified(host, name)).collect()),
        }
    }
}

/// Whether a name has no registry: its first part has no dot or colon and is not `localhost`.
pub fn is_short(name: &str) -> bool {
    match name.split_once('/') {
        Some((first, _)) => !first.contains(['.', ':']) && first != "localhost",
        None => true,
    }
}

fn qualified(host: &str, name: &str) -> String {
    let library = if host == "docker.io" && !name.contains('/') { "library/" } else { "" };
    format!("{host}/{library}{name}")
}

fn tagged(name: &str) -> bool {
    name.contains('@') || name.rsplit('/').next().is_some_and(|last| last.contains(':'))
}

/// How many bytes of the name the prefix stands for, if it matches.
fn matched(prefix: &str, name: &str) -> Option<usize> {
    let ends = |at: usize| matches!(name.as_bytes().get(at), None | Some(b':' | b'/' | b'@'));
    match prefix.strip_prefix('*') {
        Some(domain) => {
            let at = name.find(domain)?;
            let end = at + domain.len();
            (!name[..at].contains('/') && ends(end)).then_some(end)
        }
        None => (name.starts_with(prefix) && ends(prefix.len())).then_some(prefix.len()),
    }
}

fn rewrite(prefix: &str, location: &str, name: &str) -> String {
    match matched(prefix, name) {
        Some(len) if !location.is_empty() => format!("{location}{}", &name[len..]),
        _ => name.to_owned(),
    }
}

/// `host[:port]` as in references: letters, digits, dots and dashes, or an IPv6 address in brackets.
fn is_host(text: &str) -> bool {
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => (host, Some(port)),
        _ => (text, None),
    };
    let good_port = port
        .is_none_or(|port| !port.is_empty() && port.len() <= 5 && port.bytes().all(|b| b.is_ascii_digit()));
    let bracketed = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let good_host = match bracketed {
        Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
        None => host.split('.').all(|label| {
            !label.is_empty()
                && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
                && !label.starts_with('-')
                && !label.ends_with('-')
        }),
    };
    good_host && good_port
}

/// A file that had to be there isn't.
pub(crate) fn missing(path: &Path) -> Problems {
    Problems::one(Origin::whole(path), "", "does not exist")
}

/// The `*.conf` files of a directory by name, not recursively; none if it doesn't exist.
pub(crate) fn conf_files(dir: &Path) -> Result<Vec<PathBuf>, Problems> {
    let entries = match std::fs::read_dir(dir).and_then(Iterator::collect::<Result<Vec<_>, _>>) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(Problems::one(Origin::whole(dir), "", format!("can't be listed: {e}"))),
    };
    let mut files: Vec<PathBuf> = entries
        .into_iter()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|ext| ext == "conf") && !path.is_dir())
        .collect();
    files.sort();
    Ok(files)
}

#[cfg(test)]
mod tests;
