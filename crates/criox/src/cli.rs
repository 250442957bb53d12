//! The command line: CRI-O's flags and environment variables, and the sub-commands.

use std::ffi::OsString;

use clap::error::ErrorKind;
use clap::{Arg, ArgAction, ArgMatches};
use criox_config::flags::{FLAGS, Flag};
use criox_config::{Kind, Overrides};

/// What to do.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Command {
    /// No sub-command: be the daemon.
    Run,
    /// Print the configuration.
    Config {
        /// The built-in one instead of the effective one.
        default: bool,
    },
    /// Print the version.
    Version {
        /// As JSON.
        json: bool,
    },
}

/// A parsed command line.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Invocation {
    /// What to do.
    pub(crate) command: Command,
    /// What flags and environment set. Values of the wrong kind are reported when the configuration is loaded,
    /// together with all other mistakes.
    pub(crate) overrides: Overrides,
}

/// Parses arguments, the first of which is the program's name. `env` looks up environment variables.
///
/// # Errors
/// A request for help, or a command line that can't be understood; [`clap::Error::exit`] does what is due.
pub(crate) fn parse<I, T>(args: I, env: impl Fn(&str) -> Option<String>) -> Result<Invocation, clap::Error>
where
    I: IntoIterator<Item = T>,
    T: Into<OsString>,
{
    let matches = parser().try_get_matches_from(args.into_iter().map(|arg| go_style(arg.into())))?;
    let mut overrides = Overrides::from_env(env);
    for flag in FLAGS {
        if let Some(values) = matches.get_many::<String>(flag.name) {
            overrides.set(flag.name, &values.cloned().collect::<Vec<_>>());
        }
    }
    Ok(Invocation { command: command(&matches)?, overrides })
}

fn command(matches: &ArgMatches) -> Result<Command, clap::Error> {
    match matches.subcommand() {
        None if matches.get_flag("version") => Ok(Command::Version { json: false }),
        None => Ok(Command::Run),
        Some(("config", sub)) => Ok(Command::Config { default: sub.get_flag("default") }),
        Some(("version", sub)) => Ok(Command::Version { json: sub.get_flag("json") }),
        Some((name, _)) => {
            let message = format!("command \"{name}\" not supported\n");
            Err(clap::Error::raw(ErrorKind::InvalidSubcommand, message))
        }
    }
}

fn parser() -> clap::Command {
    let switch = |name: &'static str, help: &'static str| {
        Arg::new(name).long(name).action(ArgAction::SetTrue).help(help)
    };
    clap::Command::new("criox")
        .about("Kubernetes container runtime. Without a command, run the daemon.")
        .disable_version_flag(true)
        .args_override_self(true)
        // Anything else is refused in CRI-O's words.
        .allow_external_subcommands(true)
        .args(FLAGS.iter().map(arg))
        .arg(switch("version", "Print the version").short('v'))
        .subcommand(
            clap::Command::new("config")
                .about("Print the effective configuration as TOML")
                .arg(switch("default", "Print the built-in configuration instead")),
        )
        .subcommand(
            clap::Command::new("version")
                .about("Print the version")
                .arg(switch("json", "Print it as JSON").short('j'))
                .arg(
                    switch("verbose", "Accepted for scripts that ask CRI-O for its dependencies").short('v'),
                ),
        )
}

/// Values stay text here: `criox-config` knows their kinds and reports all mistakes at once.
fn arg(flag: &'static Flag) -> Arg {
    let mut help = flag.help();
    if let Some(env) = flag.env.first() {
        help.push_str(&format!(" [${env}]"));
    }
    let mut arg = Arg::new(flag.name).long(flag.name).help(help).hide(flag.hidden).allow_hyphen_values(true);
    for alias in flag.aliases {
        let mut letters = alias.chars();
        arg = match (letters.next(), letters.next()) {
            (Some(letter), None) => arg.short(letter),
            _ => arg.visible_alias(*alias),
        };
    }
    match flag.kind {
        // `--flag` or `--flag=false`, never `--flag false`: the latter is a flag and a command.
        Kind::Bool => {
            arg.num_args(0..=1).require_equals(true).default_missing_value("true").value_name("BOOL")
        }
        Kind::List | Kind::Map => arg.action(ArgAction::Append).value_name("LIST"),
        Kind::Int => arg.value_name("NUMBER"),
        Kind::Duration => arg.value_name("DURATION"),
        Kind::String => arg.value_name("TEXT"),
    }
}

/// CRI-O's parser takes long names after a single dash, too, and unit files use that.
fn go_style(arg: OsString) -> OsString {
    let Some(text) = arg.to_str() else { return arg };
    let Some(name) = text.strip_prefix('-').filter(|name| !name.starts_with('-')) else { return arg };
    let name = name.split('=').next().unwrap_or(name);
    let long = name == "version"
        || name == "help"
        || FLAGS.iter().any(|flag| flag.name == name || (name.len() > 1 && flag.aliases.contains(&name)));
    if long { format!("-{text}").into() } else { arg }
}

/// What `criox version` prints. The commit is that of `CRIOX_COMMIT` at build time.
pub(crate) fn version(json: bool) -> String {
    let fields = [
        ("Version", "version", env!("CARGO_PKG_VERSION").to_owned()),
        ("GitCommit", "gitCommit", option_env!("CRIOX_COMMIT").unwrap_or_default().to_owned()),
        ("Compiler", "compiler", "rustc".to_owned()),
        ("Platform", "platform", format!("linux/{}", go_arch())),
    ];
    let set = fields.iter().filter(|(_, _, value)| !value.is_empty());
    let enabled =
        [("SeccompEnabled", "seccompEnabled", true), ("AppArmorEnabled", "appArmorEnabled", apparmor())];
    if json {
        let mut object = serde_json::Map::new();
        object.extend(set.map(|(_, key, value)| ((*key).to_owned(), value.clone().into())));
        object.extend(enabled.iter().map(|(_, key, on)| ((*key).to_owned(), (*on).into())));
        return format!("{:#}\n", serde_json::Value::Object(object));
    }
    let lines = set.map(|(label, _, value)| (*label, value.clone()));
    let lines = lines.chain(enabled.iter().map(|(label, _, on)| (*label, on.to_string())));
    lines.map(|(label, value)| format!("{:<17}{value}\n", format!("{label}:"))).collect()
}

/// Go's name of this architecture, which tools compare with images.
fn go_arch() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn apparmor() -> bool {
    std::fs::read("/sys/module/apparmor/parameters/enabled").is_ok_and(|text| text.first() == Some(&b'Y'))
}

#[cfg(test)]
mod tests {
    use criox_config::{Config, ConfigFile, LoadOptions, Loaded};

    use super::*;

    fn invoke(args: &[&str]) -> Result<Invocation, String> {
        let args = std::iter::once("criox").chain(args.iter().copied());
        parse(args, |_| None).map_err(|e| e.to_string())
    }

    fn load(args: &[&str]) -> Loaded {
        let overrides = invoke(args).unwrap().overrides;
        Config::load(&LoadOptions { overrides, ..LoadOptions::defaults() }).unwrap_or_else(|e| panic!("{e}"))
    }

    #[test]
    fn the_parser_is_consistent() {
        parser().debug_assert();
    }

    #[test]
    fn without_a_command_the_daemon_runs() {
        assert_eq!(invoke(&[]).unwrap().command, Command::Run);
        assert_eq!(invoke(&["--log-level", "debug"]).unwrap().command, Command::Run);
        assert_eq!(invoke(&["config"]).unwrap().command, Command::Config { default: false });
        assert_eq!(invoke(&["config", "--default"]).unwrap().command, Command::Config { default: true });
        assert_eq!(invoke(&["version", "-j"]).unwrap().command, Command::Version { json: true });
        assert_eq!(invoke(&["-version"]).unwrap().command, Command::Version { json: false });
        let error = invoke(&["serve"]).unwrap_err();
        assert!(error.contains("command \"serve\" not supported"), "{error}");
        assert!(invoke(&["--no-such-flag"]).is_err());
    }

    #[test]
    fn flags_are_written_as_for_cri_o() {
        let c = load(&[
            "-r=/r",
            "-runroot",
            "/rr",
            "--pids-limit",
            "-1",
            "--read-only",
            "--selinux=false",
            "--default-env",
            "A=1",
            "--default-env",
            "B=2,C",
            "--default-env=D=3",
            "--default-sysctls=a=1, b=2",
            "--log-level",
            "debug",
            "-l",
            "trace",
            "--tz",
            "local",
            "--pause-command=",
        ])
        .config;
        assert_eq!(c.root.root, std::path::Path::new("/r"));
        assert_eq!(c.root.runroot, std::path::Path::new("/rr"));
        assert!(c.runtime.read_only && !c.runtime.selinux);
        assert_eq!(c.runtime.default_env, ["A=1", "B=2,C", "D=3"]);
        assert_eq!(c.runtime.default_sysctls.len(), 2);
        assert_eq!(c.runtime.log_level.as_str(), "trace");
        assert_eq!(c.runtime.timezone, "local");
        assert_eq!(c.image.pause_command, "");
    }

    #[test]
    fn the_place_of_the_files_comes_from_flags_or_environment() {
        let overrides = |args: &[&str]| invoke(args).unwrap().overrides;
        let options = LoadOptions::system(overrides(&["-c", "/x", "-config-dir="]));
        assert_eq!(options.config_path, ConfigFile::Required("/x".into()));
        assert_eq!(options.drop_in_dir, None);
        assert_eq!(LoadOptions::system(overrides(&["--config", ""])).config_path, ConfigFile::None);
        let env = |name: &str| (name == "CONTAINER_CONFIG").then(|| "/env".to_owned());
        let options = LoadOptions::system(parse(["criox"], env).unwrap().overrides);
        assert_eq!(options.config_path, ConfigFile::Required("/env".into()));
    }

    #[test]
    fn the_version_is_text_or_json() {
        assert!(version(false).starts_with("Version:         "));
        let json: serde_json::Value = serde_json::from_str(&version(true)).unwrap();
        assert_eq!(json["version"], env!("CARGO_PKG_VERSION"));
        assert!(json["appArmorEnabled"].is_boolean());
    }
}
