//! `criox config`: the configuration as TOML.

use std::io::Write;

use criox_config::{Config, LoadOptions, Overrides, Problems};
use thiserror::Error;

/// Why nothing was printed.
#[derive(Debug, Error)]
pub(crate) enum ConfigCommandError {
    /// Mistakes in it, one a line.
    #[error("the configuration has mistakes")]
    Problems(#[from] Problems),
    /// The output can't be written.
    #[error("write the configuration")]
    Write(#[from] std::io::Error),
}

/// Prints the effective configuration with keys at their defaults commented out; with `default`, the built-in one with
/// every key set. Nothing is printed if the configuration has mistakes.
pub(crate) fn run(
    overrides: Overrides,
    default: bool,
    out: &mut impl Write,
) -> Result<(), ConfigCommandError> {
    let text = if default {
        Config::load(&LoadOptions::defaults())?.config.render_full()
    } else {
        Config::load(&LoadOptions::system(overrides))?.config.render()
    };
    out.write_all(text.as_bytes())?;
    Ok(out.flush()?)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn output(overrides: Overrides, default: bool) -> Result<String, ConfigCommandError> {
        let mut out = Vec::new();
        run(overrides, default, &mut out)?;
        Ok(String::from_utf8(out).unwrap())
    }

    fn set(flags: &[(&str, &str)]) -> Overrides {
        let mut overrides = Overrides::default();
        for (name, value) in [("config", ""), ("config-dir", "")].iter().chain(flags) {
            overrides.set(name, &[(*value).to_owned()]);
        }
        overrides
    }

    #[test]
    fn the_built_in_configuration_reads_back_as_the_defaults() {
        let text = output(Overrides::default(), true).unwrap();
        let read = Config::parse(Path::new("printed"), text.as_bytes()).unwrap();
        assert_eq!(read.config, Config::load(&LoadOptions::defaults()).unwrap().config);
    }

    #[test]
    fn what_a_flag_changes_is_printed_uncommented() {
        let text = output(set(&[("cgroup-manager", "cgroupfs")]), false).unwrap();
        assert!(text.contains("\ncgroup_manager = \"cgroupfs\"\n"), "{text}");
        assert!(text.contains("\n# log_level = \"info\"\n"), "{text}");
    }

    #[test]
    fn mistakes_end_the_command_without_output() {
        let error = output(set(&[("cgroup-manager", "none")]), false).unwrap_err();
        assert!(matches!(error, ConfigCommandError::Problems(problems) if problems.0.len() == 1));
    }
}
