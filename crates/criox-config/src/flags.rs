//! Command line flags and environment variables.

use std::collections::BTreeMap;
use std::path::PathBuf;

use toml::Value;

use crate::field::Kind;
use crate::problem::{Origin, Problems};

mod table;

pub use table::FLAGS;

/// A global flag of CRI-O.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flag {
    /// Long name without dashes.
    pub name: &'static str,
    /// Other names; one letter is a short flag.
    pub aliases: &'static [&'static str],
    /// Environment variables that count as the flag, the first that is set wins.
    pub env: &'static [&'static str],
    /// The configuration key that it overrides, as `crio.runtime.log_level`; empty if it is a flag only.
    pub key: &'static str,
    /// The kind of value. A list may be given several times, or once with commas.
    pub kind: Kind,
    /// Not shown in the help.
    pub hidden: bool,
    /// Help of a flag without a key.
    text: &'static str,
}

impl Flag {
    /// The help text: that of the key, in one line.
    pub fn help(&self) -> String {
        if !self.text.is_empty() {
            return self.text.to_owned();
        }
        let doc = crate::load::key(self.key).map_or(&[][..], |key| key.doc);
        doc.iter().map(|line| line.trim()).collect::<Vec<_>>().join(" ")
    }
}

/// The flag of that name.
pub fn find(name: &str) -> Option<&'static Flag> {
    FLAGS.iter().find(|flag| flag.name == name)
}

/// What the environment and the command line set.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Overrides {
    values: BTreeMap<&'static str, (Value, Origin)>,
    problems: Problems,
}

impl Overrides {
    /// Reads CRI-O's environment variables through `lookup` (`|name| std::env::var(name).ok()`). Values of the wrong
    /// kind are reported by [`Config::load`](crate::Config::load), together with all other mistakes.
    pub fn from_env(lookup: impl Fn(&str) -> Option<String>) -> Self {
        let mut overrides = Self::default();
        for flag in FLAGS {
            let Some((name, text)) = flag.env.iter().find_map(|name| Some((name, lookup(name)?))) else {
                continue;
            };
            let origin = Origin::Env((*name).to_owned());
            // An empty variable is an empty text or false; for the other kinds it is as good as none.
            let value = match (flag.kind, text.as_str()) {
                (Kind::Bool, "") => Ok(Value::Boolean(false)),
                (Kind::Int | Kind::Duration | Kind::List | Kind::Map, "") => continue,
                _ => value(flag.kind, std::slice::from_ref(&text)),
            };
            match value {
                Ok(value) => drop(overrides.values.insert(flag.name, (value, origin))),
                Err(message) => overrides.problems.add(origin, flag.key, message),
            }
        }
        overrides
    }

    /// Sets a flag of the command line, over the environment. `values` are its occurrences; a boolean flag without a
    /// value is `["true"]`. Mistakes are reported as for [`Self::from_env`].
    pub fn set(&mut self, name: &str, values: &[String]) {
        let origin = Origin::Flag(name.to_owned());
        let Some(flag) = find(name) else { return self.problems.add(origin, "", "no such flag") };
        match value(flag.kind, values) {
            Ok(value) => drop(self.values.insert(flag.name, (value, origin))),
            Err(message) => self.problems.add(origin, flag.key, message),
        }
    }

    pub(crate) fn problems(&self) -> &Problems {
        &self.problems
    }

    /// Whether the flag or its variable was given.
    pub fn is_set(&self, name: &str) -> bool {
        self.values.contains_key(name)
    }

    /// Every value that is set, with its flag.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&'static Flag, &Value, &Origin)> {
        FLAGS
            .iter()
            .filter_map(|flag| self.values.get(flag.name).map(|(value, origin)| (flag, value, origin)))
    }

    fn text(&self, name: &str) -> Option<&str> {
        self.values.get(name).and_then(|(value, _)| value.as_str())
    }

    fn path(&self, name: &str) -> Option<PathBuf> {
        self.text(name).filter(|text| !text.is_empty()).map(PathBuf::from)
    }

    fn switch(&self, name: &str) -> bool {
        self.values.get(name).and_then(|(value, _)| value.as_bool()).unwrap_or(false)
    }

    /// The path of `--config`; `None` if not given, `Some("")` if switched off.
    pub(crate) fn config(&self) -> Option<&str> {
        self.text("config")
    }

    /// The path of `--config-dir`, likewise.
    pub(crate) fn config_dir(&self) -> Option<&str> {
        self.text("config-dir")
    }

    /// The flags that no configuration key has.
    ///
    /// # Errors
    /// A log format that doesn't exist, a port out of range.
    pub fn process(&self) -> Result<ProcessOptions, Problems> {
        let mut problems = Problems::default();
        let origin = |name: &str| {
            self.values.get(name).map_or(Origin::Flag(name.to_owned()), |(_, origin)| origin.clone())
        };
        let log_json = match self.text("log-format") {
            None | Some("text") => false,
            Some("json") => true,
            Some(other) => {
                let message = format!("\"{other}\" is neither \"text\" nor \"json\"");
                problems.add(origin("log-format"), "", message);
                false
            }
        };
        let port = self.values.get("profile-port").and_then(|(value, _)| value.as_integer()).unwrap_or(6060);
        let profile_port = u16::try_from(port).unwrap_or_else(|_| {
            problems.add(origin("profile-port"), "", format!("{port} is not a port"));
            0
        });
        problems.or(ProcessOptions {
            log: self.path("log"),
            log_json,
            profile: self.switch("profile"),
            profile_port,
            profile_cpu: self.path("profile-cpu"),
            profile_mem: self.path("profile-mem"),
            profile_unix_socket: self.switch("enable-profile-unix-socket"),
            registries_conf: self.path("registries-conf"),
            registries_conf_dir: self.path("registries-conf-dir"),
        })
    }
}

/// What only flags and the environment say, not `crio.conf`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ProcessOptions {
    /// File that takes the log instead of stderr (create, append).
    pub log: Option<PathBuf>,
    /// The log is JSON.
    pub log_json: bool,
    /// Serve profiles on 127.0.0.1. Not in effect yet, nor are the other `profile` flags.
    pub profile: bool,
    /// The port for them.
    pub profile_port: u16,
    /// File for a CPU profile.
    pub profile_cpu: Option<PathBuf>,
    /// File for a memory profile.
    pub profile_mem: Option<PathBuf>,
    /// Serve profiles on the CRI socket.
    pub profile_unix_socket: bool,
    /// Instead of the system's `registries.conf`.
    pub registries_conf: Option<PathBuf>,
    /// Instead of the system's `registries.conf.d`.
    pub registries_conf_dir: Option<PathBuf>,
}

fn value(kind: Kind, values: &[String]) -> Result<Value, String> {
    let last = values.last().map_or("", String::as_str);
    Ok(match kind {
        Kind::String => Value::String(last.to_owned()),
        Kind::Bool => Value::Boolean(match last {
            "1" | "t" | "T" | "true" | "TRUE" | "True" => true,
            "0" | "f" | "F" | "false" | "FALSE" | "False" => false,
            _ => return Err(format!("\"{last}\" is neither true nor false")),
        }),
        Kind::Int => Value::Integer(int(last).ok_or_else(|| format!("\"{last}\" is not a whole number"))?),
        Kind::Duration => {
            crate::duration::parse(last)?;
            Value::String(last.to_owned())
        }
        Kind::List | Kind::Map => Value::Array(match values {
            [one] if one.contains(',') => {
                one.split(',').map(|item| Value::String(item.trim().to_owned())).collect()
            }
            _ => values.iter().map(|item| Value::String(item.clone())).collect(),
        }),
    })
}

/// Go's `strconv.ParseInt` with base 0, without the rarely used octal and binary forms.
fn int(text: &str) -> Option<i64> {
    match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(hex) => i64::from_str_radix(hex, 16).ok(),
        None => text.parse().ok(),
    }
}
