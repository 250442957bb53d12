//! The image configuration (OCI image specification, "Image Configuration"; Docker's is the same with nulls).

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer};

use criox_store::Digest;

/// What an image says about the containers made from it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct ImageConfig {
    /// User and optionally group of the process, by name or number (`user:group`).
    #[serde(rename = "User", deserialize_with = "or_default")]
    pub user: String,
    /// Environment, each `NAME=value`.
    #[serde(rename = "Env", deserialize_with = "or_default")]
    pub env: Vec<String>,
    /// What runs.
    #[serde(rename = "Entrypoint", deserialize_with = "or_default")]
    pub entrypoint: Vec<String>,
    /// Arguments of the entry point, or what runs without one.
    #[serde(rename = "Cmd", deserialize_with = "or_default")]
    pub cmd: Vec<String>,
    /// Working directory; empty for the root.
    #[serde(rename = "WorkingDir", deserialize_with = "or_default")]
    pub working_dir: String,
    /// Paths that are volumes.
    #[serde(rename = "Volumes", deserialize_with = "keys")]
    pub volumes: Vec<String>,
    /// The signal that asks the process to end; empty for SIGTERM.
    #[serde(rename = "StopSignal", deserialize_with = "or_default")]
    pub stop_signal: String,
    /// Labels.
    #[serde(rename = "Labels", deserialize_with = "or_default")]
    pub labels: BTreeMap<String, String>,
}

/// The document whose digest is the image's ID.
#[derive(Debug, Clone, Default, Deserialize)]
pub(crate) struct ConfigFile {
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) config: ImageConfig,
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) rootfs: RootFs,
    /// RFC 3339.
    #[serde(default)]
    pub(crate) created: Option<String>,
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) os: String,
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) architecture: String,
}

#[derive(Debug, Clone, Default, Deserialize)]
pub(crate) struct RootFs {
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) diff_ids: Vec<Digest>,
}

impl ConfigFile {
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, serde_json::Error> {
        serde_json::from_slice(bytes)
    }
}

/// Docker writes `null` for what is unset.
fn or_default<'de, T: Default + Deserialize<'de>, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// A set is an object with empty values in these documents.
fn keys<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    let map: Option<BTreeMap<String, serde::de::IgnoredAny>> = Option::deserialize(deserializer)?;
    Ok(map.unwrap_or_default().into_keys().collect())
}

/// The user of an image as the CRI reports it: a number or a name, never both.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ImageUser {
    /// The image names none: root.
    Unset,
    /// A numeric user.
    Uid(i64),
    /// A name, to be looked up in the image's `/etc/passwd`.
    Name(String),
}

impl ImageConfig {
    /// The user part of [`user`](Self::user), without the group.
    pub fn image_user(&self) -> ImageUser {
        let user = self.user.split(':').next().unwrap_or_default();
        match user.parse::<i64>() {
            _ if user.is_empty() => ImageUser::Unset,
            Ok(uid) => ImageUser::Uid(uid),
            Err(_) => ImageUser::Name(user.to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_docker_configuration_with_nulls_is_read() {
        let file = ConfigFile::parse(
            br#"{"architecture":"amd64","os":"linux","created":"2024-01-02T03:04:05.6Z","history":[{"x":1}],
            "config":{"User":"1000:50","Env":["A=b"],"Entrypoint":null,"Cmd":["sh"],"Volumes":{"/b":{},"/a":{}},
            "WorkingDir":"/w","Labels":null,"StopSignal":"SIGINT","OnBuild":null,"ExposedPorts":{"80/tcp":{}}},
            "rootfs":{"type":"layers","diff_ids":["sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"]}}"#,
        )
        .unwrap();
        assert_eq!(file.config.cmd, ["sh"]);
        assert!(file.config.entrypoint.is_empty());
        assert_eq!(file.config.volumes, ["/a", "/b"]);
        assert_eq!(file.config.stop_signal, "SIGINT");
        assert_eq!(file.config.image_user(), ImageUser::Uid(1000));
        assert_eq!(file.rootfs.diff_ids.len(), 1);
    }

    #[test]
    fn an_empty_or_null_configuration_has_defaults() {
        for text in ["{}", r#"{"config":null,"rootfs":null,"os":null}"#, r#"{"config":{}}"#] {
            assert_eq!(ConfigFile::parse(text.as_bytes()).unwrap().config, ImageConfig::default(), "{text}");
        }
    }

    #[test]
    fn the_user_is_a_number_or_a_name() {
        for (text, user) in [
            ("", ImageUser::Unset),
            (":5", ImageUser::Unset),
            ("0", ImageUser::Uid(0)),
            ("1002:1003", ImageUser::Uid(1002)),
            ("www-data", ImageUser::Name("www-data".into())),
            ("www-data:1004", ImageUser::Name("www-data".into())),
        ] {
            assert_eq!(ImageConfig { user: text.into(), ..Default::default() }.image_user(), user, "{text}");
        }
    }

    #[test]
    fn fields_given_twice_are_refused() {
        assert!(ConfigFile::parse(br#"{"config":{"User":"0","User":"1"}}"#).is_err());
        assert!(ConfigFile::parse(br#"{"rootfs":{"diff_ids":["sha256:../x"]}}"#).is_err());
    }

    proptest! {
        #[test]
        fn parsing_arbitrary_bytes_never_panics(body in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = ConfigFile::parse(&body);
        }
    }
}
