//! The JSON files of a checkpoint: what was checkpointed, its specification, its bind mounts.
//!
//! Read from elsewhere they are hostile: sizes, counts and types are bounded, and only facts are taken that say what to
//! expect. Annotations, hooks, profiles, limits and devices of the specification are not even parsed, for policy comes
//! from the live request alone (hardening K2, K6).

use std::fmt;
use std::io::Write as _;
use std::marker::PhantomData;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Component, Path};

use criox_store::Timestamp;
use criox_sys::durable::{self, PathError};
use serde::de::value::MapAccessDeserializer;
use serde::de::{DeserializeOwned, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::error::Error;
use crate::names;

/// Longest `config.dump`, in bytes.
pub(crate) const MAX_CONFIG: u64 = 1 << 20;
/// Longest `spec.dump` and `bind.mounts`, in bytes. A pod's manifest is bounded by etcd, at 1.5 MiB.
pub(crate) const MAX_SPEC: u64 = 8 << 20;
/// Longest text of `config.dump`: names of images have at most 4 KiB with every peer.
const MAX_TEXT: usize = 4096;
/// Most entries of any list.
const MAX_LIST: usize = 100_000;

/// `config.dump`: what was checkpointed, in the form of checkpointctl's library.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfigDump {
    /// The container's ID.
    #[serde(default)]
    pub id: String,
    /// Its name (CRI-O: `k8s_<container>_<pod>_<namespace>_<uid>_<attempt>`).
    #[serde(default)]
    pub name: String,
    /// The image as the user asked for it.
    #[serde(default, rename = "rootfsImage", skip_serializing_if = "String::is_empty")]
    pub rootfs_image: String,
    /// The image's ID.
    #[serde(default, rename = "rootfsImageRef", skip_serializing_if = "String::is_empty")]
    pub rootfs_image_ref: String,
    /// A name of the image, with registry.
    #[serde(default, rename = "rootfsImageName", skip_serializing_if = "String::is_empty")]
    pub rootfs_image_name: String,
    /// The runtime handler.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub runtime: String,
    /// When the container was created.
    #[serde(default = "zero", rename = "createdTime", with = "rfc3339")]
    pub created: Timestamp,
    /// When it was checkpointed.
    #[serde(default = "zero", rename = "checkpointedTime", with = "rfc3339")]
    pub checkpointed: Timestamp,
    /// When it had been restored before that; year 1 if never.
    #[serde(default = "zero", rename = "restoredTime", with = "rfc3339")]
    pub restored_at: Timestamp,
    /// Whether it had been restored before.
    #[serde(default)]
    pub restored: bool,
}

impl Default for ConfigDump {
    fn default() -> Self {
        Self {
            id: String::new(),
            name: String::new(),
            rootfs_image: String::new(),
            rootfs_image_ref: String::new(),
            rootfs_image_name: String::new(),
            runtime: String::new(),
            created: Timestamp::ZERO,
            checkpointed: Timestamp::ZERO,
            restored_at: Timestamp::ZERO,
            restored: false,
        }
    }
}

impl ConfigDump {
    /// Takes the file apart.
    ///
    /// # Errors
    /// [`Error::Refused`].
    pub fn parse(json: &[u8]) -> Result<Self, Error> {
        let Object(config): Object<Self> = parse(names::CONFIG_DUMP, json, MAX_CONFIG)?;
        let texts = [
            ("id", &config.id),
            ("name", &config.name),
            ("rootfsImage", &config.rootfs_image),
            ("rootfsImageRef", &config.rootfs_image_ref),
            ("rootfsImageName", &config.rootfs_image_name),
            ("runtime", &config.runtime),
        ];
        for (key, text) in texts {
            if text.len() > MAX_TEXT || text.contains(|c: char| c.is_control()) {
                return Err(Error::refused(
                    names::CONFIG_DUMP,
                    format!("{key} is longer than {MAX_TEXT} bytes or has control characters in it"),
                ));
            }
        }
        Ok(config)
    }
}

/// What `spec.dump`, an OCI runtime specification, says about what to expect. Nothing of it is policy.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SpecDump {
    /// Whether the first process has a terminal.
    pub terminal: bool,
    /// Its arguments.
    pub args: Vec<String>,
    /// Its environment at the start, `KEY=value`.
    pub env: Vec<String>,
    /// Its working directory.
    pub cwd: String,
    /// Its user.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
    /// Its further groups.
    pub additional_gids: Vec<u32>,
    /// Whether it had to run with `no_new_privs`.
    pub no_new_privileges: bool,
    /// The container's host name.
    pub hostname: String,
    /// Whether the root file system was read-only.
    pub readonly_root: bool,
    /// All mounts.
    pub mounts: Vec<SpecMount>,
    /// The kinds of its namespaces (`network`, `pid`, `user`, …).
    pub namespaces: Vec<String>,
}

/// A mount of the specification.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub struct SpecMount {
    /// Where, in the container.
    #[serde(default)]
    pub destination: String,
    /// The type, as mount(2) has it, or `bind`.
    #[serde(default, rename = "type", deserialize_with = "or_empty")]
    pub kind: String,
    /// What is mounted.
    #[serde(default, deserialize_with = "or_empty")]
    pub source: String,
    /// Its options.
    #[serde(default, deserialize_with = "short_list")]
    pub options: Vec<String>,
}

impl SpecMount {
    /// Whether it is a bind mount.
    pub fn is_bind(&self) -> bool {
        self.kind == "bind" || self.options.iter().any(|option| option == "bind" || option == "rbind")
    }
}

impl SpecDump {
    /// Takes the file apart.
    ///
    /// # Errors
    /// [`Error::Refused`].
    pub fn parse(json: &[u8]) -> Result<Self, Error> {
        let Object(raw): Object<RawSpec> = parse(names::SPEC_DUMP, json, MAX_SPEC)?;
        let Object(process) = raw.process.unwrap_or_default();
        let Object(user) = process.user.unwrap_or_default();
        let mounts: Vec<SpecMount> = raw.mounts.into_iter().map(|Object(mount)| mount).collect();
        for mount in &mounts {
            check_path(names::SPEC_DUMP, "destination of a mount", &mount.destination)?;
        }
        Ok(Self {
            terminal: process.terminal,
            args: process.args,
            env: process.env,
            cwd: process.cwd,
            uid: user.uid,
            gid: user.gid,
            additional_gids: user.additional_gids,
            no_new_privileges: process.no_new_privileges,
            hostname: raw.hostname,
            readonly_root: raw.root.unwrap_or_default().0.readonly,
            mounts,
            namespaces: raw
                .linux
                .unwrap_or_default()
                .0
                .namespaces
                .into_iter()
                .map(|Object(namespace)| namespace.kind)
                .collect(),
        })
    }
}

/// The specification as far as it is read; Go writes `null` for empty lists.
#[derive(Debug, Default, Deserialize)]
struct RawSpec {
    #[serde(default)]
    process: Option<Object<RawProcess>>,
    #[serde(default)]
    root: Option<Object<RawRoot>>,
    #[serde(default, deserialize_with = "or_empty")]
    hostname: String,
    #[serde(default, deserialize_with = "short_list")]
    mounts: Vec<Object<SpecMount>>,
    #[serde(default)]
    linux: Option<Object<RawLinux>>,
}

#[derive(Debug, Default, Deserialize)]
struct RawProcess {
    #[serde(default)]
    terminal: bool,
    #[serde(default)]
    user: Option<Object<RawUser>>,
    #[serde(default, deserialize_with = "short_list")]
    args: Vec<String>,
    #[serde(default, deserialize_with = "short_list")]
    env: Vec<String>,
    #[serde(default, deserialize_with = "or_empty")]
    cwd: String,
    #[serde(default, rename = "noNewPrivileges")]
    no_new_privileges: bool,
}

#[derive(Debug, Default, Deserialize)]
struct RawUser {
    #[serde(default)]
    uid: u32,
    #[serde(default)]
    gid: u32,
    #[serde(default, rename = "additionalGids", deserialize_with = "short_list")]
    additional_gids: Vec<u32>,
}

#[derive(Debug, Default, Deserialize)]
struct RawRoot {
    #[serde(default)]
    readonly: bool,
}

#[derive(Debug, Default, Deserialize)]
struct RawLinux {
    #[serde(default, deserialize_with = "short_list")]
    namespaces: Vec<Object<RawNamespace>>,
}

#[derive(Debug, Deserialize)]
struct RawNamespace {
    #[serde(rename = "type")]
    kind: String,
}

/// Something that is an object in JSON: serde takes a list for its fields in order as well.
#[derive(Debug, Default)]
pub(crate) struct Object<T>(pub(crate) T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Fields<T>(PhantomData<T>);

        impl<'de, T: Deserialize<'de>> Visitor<'de> for Fields<T> {
            type Value = Object<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, from: A) -> Result<Object<T>, A::Error> {
                T::deserialize(MapAccessDeserializer::new(from)).map(Object)
            }
        }

        from.deserialize_map(Fields(PhantomData))
    }
}

/// A list, or `null`, of at most `MAX` entries: a long list of small things takes many times the memory of its JSON.
pub(crate) fn list<'de, D: Deserializer<'de>, T: Deserialize<'de>, const MAX: usize>(
    from: D,
) -> Result<Vec<T>, D::Error> {
    struct Bounded<T, const MAX: usize>(PhantomData<T>);

    impl<'de, T: Deserialize<'de>, const MAX: usize> Visitor<'de> for Bounded<T, MAX> {
        type Value = Vec<T>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "a list of at most {MAX} entries")
        }

        fn visit_unit<E: serde::de::Error>(self) -> Result<Vec<T>, E> {
            Ok(Vec::new())
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut from: A) -> Result<Vec<T>, A::Error> {
            let mut list = Vec::new();
            while let Some(entry) = from.next_element()? {
                if list.len() == MAX {
                    return Err(serde::de::Error::invalid_length(MAX + 1, &self));
                }
                list.push(entry);
            }
            Ok(list)
        }
    }

    from.deserialize_any(Bounded::<T, MAX>(PhantomData))
}

fn short_list<'de, D: Deserializer<'de>, T: Deserialize<'de>>(from: D) -> Result<Vec<T>, D::Error> {
    list::<D, T, MAX_LIST>(from)
}

fn or_empty<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(from: D) -> Result<T, D::Error> {
    Ok(Option::<T>::deserialize(from)?.unwrap_or_default())
}

/// An entry of `bind.mounts`: whether a source is a file or a directory, so that one that is missing where the container
/// is restored can be made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BindMount {
    /// The path on the node.
    pub source: String,
    /// The path in the container.
    pub destination: String,
    /// What it is.
    pub file_type: FileType,
    /// Its permission bits.
    pub permissions: u32,
}

/// What the source of a bind mount is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FileType {
    /// A directory.
    Directory,
    /// Anything else: devices and sockets, too.
    File,
}

impl BindMount {
    /// Looks at `source`, following links as mount(2) does.
    ///
    /// # Errors
    /// What looking answered.
    pub fn of(source: &Path, destination: &str) -> Result<Self, Error> {
        let meta = std::fs::metadata(source).map_err(|e| PathError::new("look at", source, e))?;
        let file_type = if meta.is_dir() { FileType::Directory } else { FileType::File };
        Ok(Self {
            source: source.to_string_lossy().into_owned(),
            destination: destination.to_owned(),
            file_type,
            permissions: meta.mode() & 0o777,
        })
    }

    /// Takes `bind.mounts` apart.
    ///
    /// # Errors
    /// [`Error::Refused`].
    pub fn parse_all(json: &[u8]) -> Result<Vec<Self>, Error> {
        #[derive(Deserialize)]
        #[serde(transparent)]
        struct List(#[serde(deserialize_with = "short_list")] Vec<Object<BindMount>>);

        let List(list) = parse(names::BIND_MOUNTS, json, MAX_SPEC)?;
        let list: Vec<Self> = list.into_iter().map(|Object(mount)| mount).collect();
        for mount in &list {
            check_path(names::BIND_MOUNTS, "source", &mount.source)?;
            check_path(names::BIND_MOUNTS, "destination", &mount.destination)?;
            if mount.permissions > 0o7777 {
                return Err(Error::refused(names::BIND_MOUNTS, "permissions are out of range"));
            }
        }
        Ok(list)
    }
}

/// What the JSON files of a checkpoint say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Metadata {
    /// `config.dump`.
    pub config: ConfigDump,
    /// `spec.dump`.
    pub spec: SpecDump,
    /// `bind.mounts`, empty when there is none.
    pub bind_mounts: Vec<BindMount>,
}

impl Metadata {
    /// Writes the three files into the capture `dir`; `spec` is the container's `config.json` as it is. Without bind
    /// mounts there is no `bind.mounts`, as with CRI-O.
    ///
    /// # Errors
    /// What writing answered.
    pub fn write(
        dir: &Path,
        config: &ConfigDump,
        spec: &[u8],
        bind_mounts: &[BindMount],
    ) -> Result<(), Error> {
        write_json(dir, names::CONFIG_DUMP, config)?;
        durable::write_atomic(&dir.join(names::SPEC_DUMP), spec, 0o600)?;
        if !bind_mounts.is_empty() {
            write_json(dir, names::BIND_MOUNTS, &bind_mounts)?;
        }
        Ok(())
    }
}

pub(crate) fn write_json(dir: &Path, name: &str, value: &impl Serialize) -> Result<(), Error> {
    let path = dir.join(name);
    Ok(durable::replace(&path, 0o600, false, |file| {
        let mut text = serde_json::to_vec_pretty(value)?;
        text.push(b'\n');
        file.write_all(&text)
    })?)
}

pub(crate) fn parse<T: DeserializeOwned>(what: &'static str, json: &[u8], limit: u64) -> Result<T, Error> {
    if json.len() as u64 > limit {
        return Err(Error::refused(what, format!("longer than {limit} bytes")));
    }
    // The parser's own words may repeat the text it stopped at; where it stopped is enough.
    serde_json::from_slice(json).map_err(|e| {
        let kind = match e.classify() {
            serde_json::error::Category::Data => "a value of a wrong type, or one that is missing or twice",
            _ => "no JSON",
        };
        Error::refused(what, format!("{kind}, at line {} column {}", e.line(), e.column()))
    })
}

/// A path of a mount must be absolute and plain, so that comparing it with the request's means something.
fn check_path(file: &'static str, what: &str, path: &str) -> Result<(), Error> {
    let plain =
        Path::new(path).components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
    if path.len() > MAX_TEXT || !path.starts_with('/') || !plain || path.contains(|c: char| c.is_control()) {
        return Err(Error::refused(file, format!("a {what} is no plain absolute path")));
    }
    Ok(())
}

fn zero() -> Timestamp {
    Timestamp::ZERO
}

/// Times as Go writes them.
pub(crate) mod rfc3339 {
    use super::{Deserialize as _, Deserializer, Serializer, Timestamp};

    pub(crate) fn serialize<S: Serializer>(time: &Timestamp, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(time)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Timestamp, D::Error> {
        let text = String::deserialize(from)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}
