//! The effective configuration as TOML.

use std::fmt::Write;

use toml::Value;

use crate::config::Config;
use crate::load::Loaded;
use crate::table::Effect;

/// How to print.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Style {
    /// Keys at their defaults are commented out.
    Template,
    /// No key is commented out.
    Full,
}

impl Config {
    /// As `criox config` prints it: every key with its meaning, those at their defaults commented out, so that the
    /// output can be used as a configuration file.
    pub fn render(&self) -> String {
        self.print(Style::Template)
    }

    /// As `criox config --default` prints it: every key with its meaning and its value.
    pub fn render_full(&self) -> String {
        self.print(Style::Full)
    }

    fn print(&self, style: Style) -> String {
        let mut built_in = Self::default();
        for handler in built_in.runtime.runtimes.values_mut() {
            handler.monitor_cgroup =
                crate::check::monitor_cgroup(self.runtime.cgroup_manager, "").unwrap_or_default();
        }
        let built_in = built_in.sections();
        let mut out = String::new();
        for table in self.sections() {
            // A table by name that is also built in is compared with that one; a declared one with what a table
            // without keys would be, since a table replaces the built-in one as a whole.
            let by_name = table.at.starts_with("crio.runtime.runtimes.") || table.at.contains(".workloads.");
            let same = built_in.iter().find(|other| other.at == table.at);
            let unchanged = same.is_some_and(|other| {
                table.keys.iter().all(|key| (table.get)(key.name) == (other.get)(key.name))
            });
            let hide_table = by_name && unchanged && style == Style::Template;
            let header = if hide_table { "# " } else { "" };
            let _ = writeln!(out, "{}{header}[{}]", if out.is_empty() { "" } else { "\n" }, table.at);
            if by_name && !table.at.ends_with(".resources") {
                out.push_str("# A table in a later file replaces the whole table of this name.\n");
            }
            for key in table.keys {
                let Some(value) = (table.get)(key.name) else { continue };
                let default = match (by_name, same) {
                    (false, Some(other)) => (other.get)(key.name),
                    _ => (table.default)(key.name),
                };
                let commented = style == Style::Template && (hide_table || default.as_ref() == Some(&value));
                out.push('\n');
                for line in key.doc {
                    let _ = writeln!(out, "# {}", line.trim());
                }
                match key.effect {
                    Effect::Now => {}
                    Effect::NotYet => out.push_str("# (not yet in effect)\n"),
                    Effect::WithoutMeaning => out.push_str("# (without meaning in criox)\n"),
                }
                let _ = writeln!(out, "{}{} = {}", if commented { "# " } else { "" }, key.name, line(&value));
            }
        }
        out
    }
}

/// A value on one line.
fn line(value: &Value) -> String {
    match value {
        Value::Table(table) => {
            let fields: Vec<String> =
                table.iter().map(|(k, v)| format!("{} = {}", Value::String(k.clone()), line(v))).collect();
            if fields.is_empty() { "{}".to_owned() } else { format!("{{ {} }}", fields.join(", ")) }
        }
        Value::Array(items) => {
            format!("[{}]", items.iter().map(line).collect::<Vec<_>>().join(", "))
        }
        // A text with newlines would otherwise become a multi-line string, which can't be commented out.
        Value::String(text) if text.contains(['\n', '\r']) => escaped(text),
        other => other.to_string(),
    }
}

fn escaped(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            c if c.is_control() => {
                let _ = write!(out, "\\u{:04X}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out + "\""
}

impl Loaded {
    /// The effective configuration as TOML, see [`Config::render`].
    pub fn render(&self) -> String {
        self.config.render()
    }
}
