//! A network configuration: a list of plugins with a name and a version (CNI specification, section 1).

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::{CniVersion, directory};

/// One plugin of a list.
#[derive(Debug, Clone, PartialEq)]
pub struct PluginConf {
    /// `type`: the name of its executable.
    pub plugin_type: String,
    /// The capabilities it declares as `true`.
    pub capabilities: BTreeSet<String>,
    /// The whole object.
    pub(crate) raw: Map<String, Value>,
}

/// A network: what pods are attached to.
#[derive(Debug, Clone, PartialEq)]
pub struct NetworkConf {
    /// Its name.
    pub name: String,
    /// The version to be spoken: the newest of `cniVersion` and `cniVersions` that is known here.
    pub version: CniVersion,
    /// `disableCheck`.
    pub disable_check: bool,
    /// `disableGC`.
    pub disable_gc: bool,
    /// The chain, never empty.
    pub plugins: Vec<PluginConf>,
    /// The list as JSON text, complete: parsing it again gives the same network.
    pub text: String,
}

impl NetworkConf {
    /// Parses a list (`*.conflist`).
    ///
    /// # Errors
    /// What is wrong, for a message that names the file.
    pub fn parse_list(text: &str) -> Result<Self, String> {
        let list = object(text)?;
        let name = match list.get("name") {
            Some(Value::String(name)) => name.clone(),
            None => return Err("\"name\" is missing".into()),
            Some(_) => return Err("\"name\" is not a string".into()),
        };
        let Some(Value::Array(plugins)) = list.get("plugins") else {
            return Err(
                "\"plugins\" is missing or not an array; a single plugin belongs in a *.conf file".into()
            );
        };
        let plugins = plugins
            .iter()
            .enumerate()
            .map(|(index, plugin)| match plugin {
                Value::Object(raw) => {
                    PluginConf::new(raw.clone()).map_err(|e| format!("plugins[{index}]: {e}"))
                }
                _ => Err(format!("plugins[{index}] is not an object")),
            })
            .collect::<Result<Vec<_>, _>>()?;
        Self::checked(&list, name, plugins, text.to_owned())
    }

    /// Parses a single plugin's configuration (`*.conf`, `*.json`) as a list of one. One without a name is named
    /// `fallback`, its file's name, as CRI-O does.
    ///
    /// # Errors
    /// As [`Self::parse_list`].
    pub fn parse_single(text: &str, fallback: &str) -> Result<Self, String> {
        let mut plugin = object(text)?;
        let name = match plugin.get("name") {
            Some(Value::String(name)) if !name.is_empty() => name.clone(),
            None | Some(Value::String(_)) => fallback.to_owned(),
            Some(_) => return Err("\"name\" is not a string".into()),
        };
        if plugin.contains_key("plugins") && !plugin.contains_key("type") {
            return Err("a list of plugins belongs in a *.conflist file".into());
        }
        plugin.insert("name".into(), name.clone().into());
        let mut list = Map::new();
        list.insert("name".into(), name.into());
        if let Some(version) = plugin.get("cniVersion") {
            list.insert("cniVersion".into(), version.clone());
        }
        list.insert("plugins".into(), Value::Array(vec![Value::Object(plugin)]));
        Self::parse_list(&Value::Object(list).to_string())
    }

    /// Appends the plugins that lie as files of their own in `<dir>/<name>/*.conf`, unless the list forbids it with
    /// `loadOnlyInlinedPlugins` (specification 1.1). The text then holds them too.
    ///
    /// # Errors
    /// As [`Self::parse_list`], with the file's name.
    pub(crate) fn with_dropped_in_plugins(self, dir: &Path) -> Result<Self, String> {
        let dir = dir.join(&self.name);
        let Ok(entries) = std::fs::read_dir(&dir) else { return Ok(self) };
        let mut files: Vec<_> = entries
            .flatten()
            .map(|entry| entry.path())
            .filter(|path| path.extension().is_some_and(|ext| ext == "conf"))
            .collect();
        if files.is_empty() {
            return Ok(self);
        }
        files.sort();
        let mut texts = Vec::new();
        for file in files {
            let text = directory::read_text(&file).map_err(|e| format!("{}: {e}", file.display()))?;
            texts.push((file, text));
        }
        self.with_plugins(&texts)
    }

    /// Appends plugins, each with the file that it comes from.
    ///
    /// # Errors
    /// As [`Self::parse_list`], with the file's name.
    pub(crate) fn with_plugins(self, files: &[(PathBuf, String)]) -> Result<Self, String> {
        let mut list = object(&self.text)?;
        if list.get("loadOnlyInlinedPlugins") == Some(&Value::Bool(true)) {
            return Ok(self);
        }
        let Some(Value::Array(plugins)) = list.get_mut("plugins") else { return Ok(self) };
        for (file, text) in files {
            plugins.push(Value::Object(object(text).map_err(|e| format!("{}: {e}", file.display()))?));
        }
        list.insert("loadOnlyInlinedPlugins".into(), true.into());
        Self::parse_list(&Value::Object(list).to_string())
    }

    /// Whether a plugin of the chain takes this capability.
    #[must_use]
    pub fn has_capability(&self, name: &str) -> bool {
        self.plugins.iter().any(|plugin| plugin.capabilities.contains(name))
    }

    fn checked(
        list: &Map<String, Value>,
        name: String,
        plugins: Vec<PluginConf>,
        text: String,
    ) -> Result<Self, String> {
        if !is_identifier(&name) {
            return Err(format!(
                "name {name:?} is not allowed: letters, digits, '_', '.' and '-' after a letter or digit, at most 200"
            ));
        }
        if plugins.is_empty() {
            return Err("\"plugins\" is empty".into());
        }
        Ok(Self {
            name,
            version: version_of(list)?,
            disable_check: flag(list, "disableCheck")?,
            disable_gc: flag(list, "disableGC")?,
            plugins,
            text,
        })
    }
}

impl PluginConf {
    fn new(raw: Map<String, Value>) -> Result<Self, String> {
        let plugin_type = match raw.get("type") {
            Some(Value::String(kind)) if !kind.is_empty() => kind.clone(),
            None | Some(Value::String(_)) => return Err("\"type\" is missing".into()),
            Some(_) => return Err("\"type\" is not a string".into()),
        };
        // CVE-2021-20206: a type is the name of a file in a plugin directory and never a way out of it.
        if plugin_type.contains(['/', '\0']) || plugin_type == "." || plugin_type == ".." {
            return Err(format!("type {plugin_type:?} is not a plain file name"));
        }
        let capabilities = match raw.get("capabilities") {
            None | Some(Value::Null) => BTreeSet::new(),
            Some(Value::Object(map)) => {
                map.iter().filter(|(_, on)| **on == Value::Bool(true)).map(|(name, _)| name.clone()).collect()
            }
            Some(_) => return Err("\"capabilities\" is not an object".into()),
        };
        Ok(Self { plugin_type, capabilities, raw })
    }
}

/// What the specification allows in names of networks and in container IDs; the length is ours, for file names.
pub(crate) fn is_identifier(text: &str) -> bool {
    text.len() <= 200
        && text.as_bytes().first().is_some_and(u8::is_ascii_alphanumeric)
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b))
}

fn object(text: &str) -> Result<Map<String, Value>, String> {
    match serde_json::from_str(text) {
        Ok(Value::Object(map)) => Ok(map),
        Ok(_) => Err("is not a JSON object".into()),
        Err(error) => Err(format!("is not JSON: {error}")),
    }
}

fn version_of(list: &Map<String, Value>) -> Result<CniVersion, String> {
    let parse = |value: &Value| {
        value
            .as_str()
            .and_then(CniVersion::parse)
            .ok_or_else(|| format!("cniVersion {value} is not a version such as \"1.0.0\""))
    };
    let mut named = match list.get("cniVersion") {
        None => Vec::new(),
        Some(Value::String(text)) if text.is_empty() => Vec::new(),
        Some(value) => vec![parse(value)?],
    };
    match list.get("cniVersions") {
        None => {}
        Some(Value::Array(values)) => {
            for value in values {
                named.push(parse(value)?);
            }
        }
        Some(_) => return Err("\"cniVersions\" is not an array".into()),
    }
    if named.is_empty() {
        return Ok(CniVersion::V0_1_0);
    }
    named.iter().copied().filter(|version| version.is_known()).max().ok_or_else(|| {
        let named = named.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        format!("cniVersion {named} is not known; the newest that is known is {}", CniVersion::V1_1_0)
    })
}

/// A flag, which files in the field also write as a string.
fn flag(list: &Map<String, Value>, key: &str) -> Result<bool, String> {
    match list.get(key) {
        None => Ok(false),
        Some(Value::Bool(on)) => Ok(*on),
        Some(Value::String(text)) if text.eq_ignore_ascii_case("true") => Ok(true),
        Some(Value::String(text)) if text.eq_ignore_ascii_case("false") => Ok(false),
        Some(other) => Err(format!("{key} {other} is neither true nor false")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_bad(text: &str, want: &str) {
        let error = NetworkConf::parse_list(text).unwrap_err();
        assert!(error.contains(want), "{error:?} should have {want:?}");
    }

    #[test]
    fn a_list_is_parsed() {
        let list = NetworkConf::parse_list(
            r#"{"cniVersion":"0.4.0","name":"pods","disableCheck":true,"plugins":[
                {"type":"bridge","ipam":{"type":"host-local"}},
                {"type":"portmap","capabilities":{"portMappings":true,"bandwidth":false}}]}"#,
        )
        .unwrap();
        assert_eq!((list.name.as_str(), list.version), ("pods", CniVersion::V0_4_0));
        assert!(list.disable_check && !list.disable_gc);
        assert!(list.has_capability("portMappings") && !list.has_capability("bandwidth"));
        assert_eq!(NetworkConf::parse_list(&list.text).unwrap(), list);
    }

    #[test]
    fn a_single_plugin_is_a_list_of_one() {
        let list = NetworkConf::parse_single(r#"{"type":"ptp"}"#, "10-x.conf").unwrap();
        assert_eq!((list.name.as_str(), list.version), ("10-x.conf", CniVersion::V0_1_0));
        assert_eq!(NetworkConf::parse_list(&list.text).unwrap(), list);
        let named =
            NetworkConf::parse_single(r#"{"cniVersion":"0.2.0","name":"old","type":"ptp"}"#, "f").unwrap();
        assert_eq!((named.name.as_str(), named.version), ("old", CniVersion::V0_2_0));
    }

    #[test]
    fn the_newest_known_version_is_chosen() {
        let version = |versions: &str| {
            NetworkConf::parse_list(&format!(r#"{{{versions}"name":"n","plugins":[{{"type":"t"}}]}}"#))
                .map(|list| list.version.to_string())
        };
        assert_eq!(version("").unwrap(), "0.1.0");
        assert_eq!(version(r#""cniVersion":"0.3.1","#).unwrap(), "0.3.1");
        assert_eq!(
            version(r#""cniVersion":"0.4.0","cniVersions":["1.0.0","1.1.0","9.0.0"],"#).unwrap(),
            "1.1.0"
        );
        assert_eq!(version(r#""cniVersions":["0.4.0","0.3.1"],"#).unwrap(), "0.4.0");
        assert!(version(r#""cniVersion":"2.0.0","#).unwrap_err().contains("not known"));
        assert!(version(r#""cniVersion":1,"#).is_err());
    }

    #[test]
    fn malformed_lists_are_refused_with_the_reason() {
        check_bad("{", "is not JSON");
        check_bad("[]", "not a JSON object");
        check_bad(r#"{"plugins":[]}"#, "\"name\" is missing");
        check_bad(r#"{"name":"../x","plugins":[{"type":"t"}]}"#, "is not allowed");
        check_bad(r#"{"name":"n"}"#, "*.conf file");
        check_bad(r#"{"name":"n","plugins":[]}"#, "is empty");
        check_bad(r#"{"name":"n","plugins":[{}]}"#, "plugins[0]: \"type\" is missing");
        check_bad(r#"{"name":"n","plugins":[{"type":"a"},{"type":"../../bin/x"}]}"#, "plugins[1]: type");
        check_bad(r#"{"name":"n","plugins":[{"type":".."}]}"#, "plain file name");
        check_bad(r#"{"name":"n","disableGC":"maybe","plugins":[{"type":"t"}]}"#, "disableGC");
    }

    proptest::proptest! {
        #[test]
        fn no_text_makes_it_panic(text in ".{0,200}") {
            let _any = (NetworkConf::parse_list(&text), NetworkConf::parse_single(&text, "f"));
        }
    }
}
