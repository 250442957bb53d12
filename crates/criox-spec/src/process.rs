//! Program, arguments, environment and working directory.

use criox_cri::v1;

use crate::error::{SpecError, Warning};
use crate::input::SpecInput;
use crate::mounts::clean_destination;
use crate::oci;

/// What a program finds when nobody says anything: the base of every container's environment.
const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Kubernetes' rules: `command` sets both entrypoint and `Cmd` of the image aside, `args` only the latter.
pub(crate) fn args(input: &SpecInput<'_>) -> Result<Vec<String>, SpecError> {
    let container = input.container;
    let mut args: Vec<String> = Vec::new();
    if !container.command.is_empty() {
        args.extend_from_slice(&container.command);
        args.extend_from_slice(&container.args);
    } else {
        args.extend_from_slice(&input.image.entrypoint);
        args.extend_from_slice(if container.args.is_empty() { &input.image.cmd } else { &container.args });
    }
    check_args(&args, "command", "no command specified: neither the request nor the image names a program")?;
    Ok(args)
}

fn check_args(args: &[String], field: &str, empty: &str) -> Result<(), SpecError> {
    if args.first().is_none_or(String::is_empty) {
        return Err(SpecError::invalid(field, empty));
    }
    match args.iter().position(|arg| arg.contains('\0')) {
        Some(index) => Err(SpecError::invalid(field, format!("argument {index} contains a NUL byte"))),
        None => Ok(()),
    }
}

/// Whether the program is an init system that wants its usual surroundings.
pub(crate) fn is_systemd(args: &[String]) -> bool {
    args.first().is_some_and(|program| {
        program.contains("/sbin/init") || program.rsplit('/').next() == Some("systemd")
    })
}

/// The environment: base, host name, configuration, image, request; a later value replaces an earlier one in place.
pub(crate) fn env(
    input: &SpecInput<'_>,
    systemd: bool,
    warnings: &mut Vec<Warning>,
) -> Result<Vec<String>, SpecError> {
    let mut env = Environment::default();
    env.set("PATH", DEFAULT_PATH);
    env.set("TERM", "TERM=xterm");
    if systemd {
        env.set("container", "container=crio");
    }
    if !input.identity.hostname.is_empty() {
        env.set("HOSTNAME", &format!("HOSTNAME={}", input.identity.hostname));
    }
    for entry in &input.defaults.env {
        env.add(entry, "default_env", warnings)?;
    }
    for entry in &input.image.env {
        env.add(entry, "image.env", warnings)?;
    }
    for (index, pair) in input.container.envs.iter().enumerate() {
        env.add_pair(index, pair)?;
    }
    Ok(env.entries)
}

#[derive(Default)]
struct Environment {
    entries: Vec<String>,
    positions: std::collections::HashMap<String, usize>,
}

impl Environment {
    fn set(&mut self, name: &str, entry: &str) {
        if let Some(position) = self.positions.get(name) {
            entry.clone_into(&mut self.entries[*position]);
        } else {
            self.positions.insert(name.to_owned(), self.entries.len());
            self.entries.push(entry.to_owned());
        }
    }

    /// An entry of the image or the configuration. One without a name or a value means nothing to any program.
    fn add(&mut self, entry: &str, field: &str, warnings: &mut Vec<Warning>) -> Result<(), SpecError> {
        if entry.contains('\0') {
            return Err(SpecError::image(field, format!("entry {entry:?} contains a NUL byte")));
        }
        match entry.split_once('=') {
            Some(("HOME", home)) if home.contains(['\n', '\r']) => {
                return Err(SpecError::image(field, "HOME contains a line break"));
            }
            Some((name, _)) if !name.is_empty() => self.set(name, entry),
            _ => Warning::add_image(warnings, || {
                format!("{field}: {entry:?} is not of the form NAME=value and is left out")
            }),
        }
        Ok(())
    }

    fn add_pair(&mut self, index: usize, pair: &v1::KeyValue) -> Result<(), SpecError> {
        if pair.key.is_empty() || pair.key.contains(['=', '\0']) {
            let reason = format!("{:?} is no name of a variable", pair.key);
            return Err(SpecError::invalid(format!("envs[{index}].key"), reason));
        }
        let field = || format!("envs[{index}].value");
        // The specification is JSON, which has only text.
        let value = std::str::from_utf8(pair.value.as_ref())
            .map_err(|_| SpecError::invalid(field(), format!("the value of {:?} is not UTF-8", pair.key)))?;
        if value.contains('\0') {
            return Err(SpecError::invalid(
                field(),
                format!("the value of {:?} contains a NUL byte", pair.key),
            ));
        }
        // A broken line here once reached the container's passwd file; there is no use for it in a home directory.
        if pair.key == "HOME" && value.contains(['\n', '\r']) {
            return Err(SpecError::invalid(field(), "HOME contains a line break"));
        }
        self.set(&pair.key, &format!("{}={value}", pair.key));
        Ok(())
    }
}

/// The value of a variable in a list of `NAME=value`.
pub(crate) fn variable<'a>(env: &'a [String], name: &str) -> Option<&'a str> {
    env.iter().find_map(|entry| entry.strip_prefix(name)?.strip_prefix('='))
}

/// The working directory: the request's, else the image's, else the root.
pub(crate) fn cwd(input: &SpecInput<'_>) -> Result<String, SpecError> {
    let (text, field) = if input.container.working_dir.is_empty() {
        (input.image.working_dir.as_str(), "image.working_dir")
    } else {
        (input.container.working_dir.as_str(), "working_dir")
    };
    if text.is_empty() {
        return Ok("/".to_owned());
    }
    let clean = clean_destination(text).map_err(|reason| SpecError::invalid(field, reason))?;
    // A directory of a descriptor that leaked in is a way out of the root file system.
    if is_descriptor_directory(&clean) {
        return Err(SpecError::invalid(field, format!("{text:?} lies in a process's directory of /proc")));
    }
    Ok(clean)
}

fn is_descriptor_directory(path: &str) -> bool {
    let mut parts = path.trim_start_matches('/').split('/');
    parts.next() == Some("proc")
        && parts.next().is_some_and(|process| {
            process == "self" || process == "thread-self" || process.bytes().all(|byte| byte.is_ascii_digit())
        })
}

/// The process of an exec: the container's own identity, environment and confinement with another command.
///
/// # Errors
/// When `cmd` is empty or holds a NUL byte.
pub fn exec_process(container: &oci::Process, cmd: &[String], tty: bool) -> Result<oci::Process, SpecError> {
    check_args(cmd, "cmd", "no command specified")?;
    Ok(oci::Process { terminal: tty, console_size: None, args: cmd.to_vec(), ..container.clone() })
}
