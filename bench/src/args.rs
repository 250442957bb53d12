//! The command line.

use std::path::PathBuf;

use crate::Failure;

/// What `--help` prints.
pub(crate) const USAGE: &str = "\
usage: bench --socket PATH [socket flags] [--socket PATH ...] [flags]
       bench images DIRECTORY --pause PROGRAM [--big-files N]

Drives the CRI sockets with the same work, in turn, and prints one table.

For the socket named last:
  --name TEXT         column heading (default: the socket's file name)
  --pid-file FILE     PID of the daemon, read anew after each restart: its memory and CPU are measured
  --helper NAME       name of a program that it keeps for its pods (monitor, shim, pause); may be repeated
  --mark TEXT         only helpers whose command line holds this, and their children, are this daemon's
  --restart COMMAND   shell command that kills the daemon and starts it again, and returns at once

For all:
  --work DIRECTORY    for logs and bundles (default: a new one in the temporary directory)
  --cgroup-parent P   cgroup of all pods and bare containers (default: /criox-bench-PID)
  --image REF         small image with a shell (needed)
  --big-image REF     image whose pull is measured
  --crun PROGRAM      OCI runtime to be measured bare; needs --rootfs
  --rootfs DIRECTORY  root file system with sleep and true
  --cni-conf FILE     .conflist whose ADD and DEL are measured bare; needs --cni-bin
  --cni-bin DIRECTORY CNI plugins
  --cycles N          turns of the single steps (default 20)
  --pods N            pods of the bursts, of memory and restart; lists have twice as many (default 50)
  --pulls N           pulls of the big image (default 3)
  --log-lines N       lines of 100 bytes that one container logs (default 1000000)
  --check             end with code 1 when the first socket breaks a promise
  --only A,B          of: steps, bursts, crowd, pull, logs, bare (default: all)
";

/// What to do.
#[derive(Debug, PartialEq)]
pub(crate) enum Command {
    /// Print [`USAGE`].
    Help,
    /// Write the images that the measurements want.
    Images(ImageOptions),
    /// Measure.
    Measure(Box<Options>),
}

/// For `bench images`.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct ImageOptions {
    /// Where to write OCI layouts named `busybox`, `pause` and `big`.
    pub(crate) directory: PathBuf,
    /// Static program of the sandbox image that some daemons want.
    pub(crate) pause: PathBuf,
    /// Files in the big image.
    pub(crate) big_files: usize,
}

/// One daemon to be measured.
#[derive(Debug, Default, Clone, PartialEq)]
pub(crate) struct Socket {
    pub(crate) path: PathBuf,
    pub(crate) name: String,
    pub(crate) pid_file: Option<PathBuf>,
    pub(crate) helpers: Vec<String>,
    pub(crate) mark: String,
    pub(crate) restart: Option<String>,
}

/// For a measurement.
#[derive(Debug, PartialEq)]
pub(crate) struct Options {
    pub(crate) sockets: Vec<Socket>,
    pub(crate) work: Option<PathBuf>,
    pub(crate) cgroup_parent: String,
    pub(crate) image: String,
    pub(crate) big_image: Option<String>,
    pub(crate) crun: Option<PathBuf>,
    pub(crate) rootfs: Option<PathBuf>,
    pub(crate) cni_conf: Option<PathBuf>,
    pub(crate) cni_bin: Option<PathBuf>,
    pub(crate) cycles: usize,
    pub(crate) pods: usize,
    pub(crate) pulls: usize,
    pub(crate) log_lines: usize,
    /// Whether a broken promise is a failure.
    pub(crate) check: bool,
    only: Vec<String>,
}

impl Options {
    /// Whether a part of the measurements is wanted.
    pub(crate) fn wants(&self, part: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|only| only == part)
    }
}

const PARTS: &[&str] = &["steps", "bursts", "crowd", "pull", "logs", "bare"];

/// Reads the command line, without the program's name.
///
/// # Errors
/// A text that names the flag.
pub(crate) fn parse(arguments: impl IntoIterator<Item = String>) -> Result<Command, Failure> {
    let mut arguments = arguments.into_iter().peekable();
    if arguments.next_if(|first| first == "images").is_some() {
        return parse_images(arguments);
    }
    let mut options = Options {
        sockets: Vec::new(),
        work: None,
        cgroup_parent: format!("/criox-bench-{}", std::process::id()),
        image: String::new(),
        big_image: None,
        crun: None,
        rootfs: None,
        cni_conf: None,
        cni_bin: None,
        cycles: 20,
        pods: 50,
        pulls: 3,
        log_lines: 1_000_000,
        check: false,
        only: Vec::new(),
    };
    while let Some(flag) = arguments.next() {
        if flag == "--help" || flag == "-h" {
            return Ok(Command::Help);
        }
        if flag == "--check" {
            options.check = true;
            continue;
        }
        let value = arguments.next().ok_or_else(|| format!("{flag} needs a value; see --help"))?;
        set(&mut options, &flag, value)?;
    }
    if options.sockets.is_empty() && options.only != ["bare"] {
        return Err("no --socket to drive; see --help".into());
    }
    if options.image.is_empty() && !options.sockets.is_empty() {
        return Err("no --image to run; see --help".into());
    }
    Ok(Command::Measure(Box::new(options)))
}

fn set(options: &mut Options, flag: &str, value: String) -> Result<(), Failure> {
    match flag {
        "--socket" => {
            let path = PathBuf::from(value);
            let name = path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
            options.sockets.push(Socket { path, name, ..Socket::default() });
        }
        "--name" | "--pid-file" | "--helper" | "--mark" | "--restart" => {
            let socket =
                options.sockets.last_mut().ok_or_else(|| format!("{flag} comes after its --socket"))?;
            match flag {
                "--name" => socket.name = value,
                "--pid-file" => socket.pid_file = Some(value.into()),
                "--helper" => socket.helpers.push(value),
                "--mark" => socket.mark = value,
                _ => socket.restart = Some(value),
            }
        }
        "--work" => options.work = Some(value.into()),
        "--cgroup-parent" if !value.starts_with('/') || value.len() < 2 => {
            return Err("--cgroup-parent wants a path like /NAME".into());
        }
        "--cgroup-parent" => options.cgroup_parent = value,
        "--image" => options.image = value,
        "--big-image" => options.big_image = Some(value),
        "--crun" => options.crun = Some(value.into()),
        "--rootfs" => options.rootfs = Some(value.into()),
        "--cni-conf" => options.cni_conf = Some(value.into()),
        "--cni-bin" => options.cni_bin = Some(value.into()),
        "--cycles" => options.cycles = number(flag, &value)?,
        "--pods" => options.pods = number(flag, &value)?,
        "--pulls" => options.pulls = number(flag, &value)?,
        "--log-lines" => options.log_lines = number(flag, &value)?,
        "--only" => {
            options.only = value.split(',').map(str::to_owned).collect();
            if let Some(unknown) = options.only.iter().find(|part| !PARTS.contains(&part.as_str())) {
                return Err(format!("--only knows {}, not {unknown}", PARTS.join(", ")).into());
            }
        }
        _ => return Err(format!("no flag is called {flag}; see --help").into()),
    }
    Ok(())
}

fn number(flag: &str, value: &str) -> Result<usize, Failure> {
    match value.parse() {
        Ok(number) if number > 0 => Ok(number),
        _ => Err(format!("{flag} wants a number above zero, not {value:?}").into()),
    }
}

fn parse_images(mut arguments: impl Iterator<Item = String>) -> Result<Command, Failure> {
    let mut options = ImageOptions { big_files: 14_400, ..ImageOptions::default() };
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().ok_or_else(|| format!("{argument} needs a value; see --help"));
        match argument.as_str() {
            "--pause" => options.pause = value()?.into(),
            "--big-files" => options.big_files = number("--big-files", &value()?)?,
            flag if flag.starts_with('-') => return Err(format!("no flag of images is called {flag}").into()),
            directory => options.directory = directory.into(),
        }
    }
    if options.directory.as_os_str().is_empty() || options.pause.as_os_str().is_empty() {
        return Err("images needs a directory and --pause; see --help".into());
    }
    Ok(Command::Images(options))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<Command, String> {
        parse(line.split_whitespace().map(str::to_owned)).map_err(|error| error.to_string())
    }

    #[test]
    fn flags_belong_to_the_socket_before_them() {
        let line = "--socket /run/a.sock --helper shim --helper pause --socket b.sock --name two --check --image i --pods 3";
        let Ok(Command::Measure(options)) = parsed(line) else { panic!("{line}") };
        assert_eq!(options.sockets[0].name, "a");
        assert_eq!(options.sockets[0].helpers, ["shim", "pause"]);
        assert_eq!(options.sockets[1].name, "two");
        assert_eq!((options.image.as_str(), options.pods, options.cycles), ("i", 3, 20));
        assert!(options.wants("pull") && options.check);
    }

    #[test]
    fn a_bad_line_is_refused_with_the_flag() {
        for (line, part) in [
            ("", "--socket"),
            ("--socket a", "--image"),
            ("--name a", "--name comes after"),
            ("--socket a --image i --pods 0", "--pods"),
            ("--socket a --image", "--image needs"),
            ("--socket a --image i --cgroup-parent /", "/NAME"),
            ("--socket a --image i --only x", "not x"),
            ("--sockets a", "--sockets"),
            ("images", "--pause"),
        ] {
            let error = parsed(line).expect_err(line);
            assert!(error.contains(part), "{line}: {error}");
        }
    }
}
