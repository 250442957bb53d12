//! Executing one plugin (CNI specification, section 2): environment, standard input, deadline, output.

use std::fs::Metadata;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};
use serde_json::{Map, Value};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, Command};

use crate::{PluginFailure, Verb};

/// The most that is taken from a plugin's stdout; a real result has a few hundred bytes.
const MAX_STDOUT: usize = 1 << 20;
/// How much of the end of its stderr is kept for an error, beside its beginning.
const KEPT_STDERR: usize = 64 << 10;
/// The most of a plugin's own words in an error: gRPC carries it to the pod's events.
const MAX_WORDS: usize = 2048;
/// As much of that is their beginning, if they are longer: a Go program that crashes says why in its first lines, and
/// then where, at length.
const FIRST_WORDS: usize = 512;
/// How long its pipes are read on after it ended; a child it left behind may hold them open for ever.
const DRAIN: Duration = Duration::from_millis(500);

/// The executable of a plugin type: the first in `dirs`.
pub(crate) fn find(kind: &str, dirs: &[PathBuf]) -> Result<PathBuf, PluginFailure> {
    let mut refused = None;
    for dir in dirs {
        let path = dir.join(kind);
        match std::fs::metadata(&path) {
            Ok(metadata) => match objection(&metadata) {
                None => return Ok(path),
                Some(reason) => {
                    refused.get_or_insert(format!("{} {reason}", path.display()));
                }
            },
            Err(_) => continue,
        }
    }
    let plugin = kind.to_owned();
    Err(match refused {
        Some(reason) => PluginFailure::Refused { plugin, reason },
        None => {
            let searched = dirs.iter().map(|dir| dir.display().to_string()).collect::<Vec<_>>().join(", ");
            PluginFailure::Missing { plugin, searched }
        }
    })
}

/// Why a file may not be run with the daemon's power.
fn objection(metadata: &Metadata) -> Option<&'static str> {
    let mode = metadata.permissions().mode();
    if !metadata.is_file() {
        Some("is not a regular file")
    } else if mode & 0o111 == 0 {
        Some("is not executable")
    } else if mode & 0o002 != 0 {
        Some("can be written by everyone")
    } else if metadata.uid() != 0 && metadata.uid() != rustix::process::geteuid().as_raw() {
        Some("does not belong to root")
    } else {
        None
    }
}

/// One execution.
#[derive(Debug)]
pub(crate) struct Call<'a> {
    pub(crate) plugin: &'a str,
    pub(crate) verb: Verb,
    pub(crate) dirs: &'a [PathBuf],
    pub(crate) env: &'a [(&'static str, String)],
    pub(crate) stdin: Vec<u8>,
    pub(crate) deadline: Duration,
}

impl Call<'_> {
    /// Executes the plugin and gives its result; `None` if it printed nothing. If the future is dropped, the plugin
    /// and its process group are killed.
    pub(crate) async fn run(self) -> Result<Option<Value>, PluginFailure> {
        let path = find(self.plugin, self.dirs)?;
        let begun = Instant::now();
        let mut running = Running::start(self.command(&path)).await.map_err(|e| self.io("start it", e))?;
        let mut stdout = Vec::new();
        let mut stderr = Vec::new();
        let ended =
            tokio::time::timeout(self.deadline, running.finish(&self.stdin, &mut stdout, &mut stderr)).await;
        tracing::debug!(plugin = self.plugin, verb = %self.verb, took = ?begun.elapsed(), "a CNI plugin was executed");
        match ended {
            Err(_) => Err(PluginFailure::Deadline {
                plugin: self.plugin.to_owned(),
                verb: self.verb,
                waited: self.deadline,
                stderr: words(&stderr),
            }),
            Ok(Err(Ended::TooMuch)) => Err(PluginFailure::TooMuchOutput {
                plugin: self.plugin.to_owned(),
                verb: self.verb,
                limit: MAX_STDOUT,
            }),
            Ok(Err(Ended::Io(error))) => Err(self.io("wait for it", error)),
            Ok(Ok(status)) if status.success() => self.parse(&stdout),
            Ok(Ok(status)) => Err(self.failure(status, &stdout, &stderr)),
        }
    }

    fn command(&self, path: &Path) -> Command {
        let mut command = Command::new(path);
        command
            .envs(self.env.iter().map(|(name, value)| (name, value)))
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true);
        command
    }

    fn parse(&self, stdout: &[u8]) -> Result<Option<Value>, PluginFailure> {
        if stdout.trim_ascii().is_empty() {
            return Ok(None);
        }
        match serde_json::from_slice::<Value>(stdout) {
            Ok(value @ Value::Object(_)) => Ok(Some(value)),
            // Only ADD has a result; what a plugin says at other verbs is nobody's business.
            _ if self.verb != Verb::Add => Ok(None),
            Ok(_) => Err(self.bad_result("it is not a JSON object".into())),
            Err(error) => Err(self.bad_result(format!("it is not JSON: {error}"))),
        }
    }

    pub(crate) fn bad_result(&self, reason: String) -> PluginFailure {
        PluginFailure::BadResult { plugin: self.plugin.to_owned(), verb: self.verb, reason }
    }

    fn failure(&self, status: ExitStatus, stdout: &[u8], stderr: &[u8]) -> PluginFailure {
        let plugin = self.plugin.to_owned();
        let verb = self.verb;
        let said: Option<Map<String, Value>> = serde_json::from_slice(stdout).ok();
        if let Some(said) = said
            && let Some(code) = said.get("code").and_then(Value::as_u64)
        {
            let text = |key| words(said.get(key).and_then(Value::as_str).unwrap_or_default().as_bytes());
            let code = u32::try_from(code).unwrap_or(u32::MAX);
            return PluginFailure::Answered {
                plugin,
                verb,
                code,
                message: text("msg"),
                details: text("details"),
            };
        }
        let exit = match (status.code(), status.signal()) {
            (Some(code), _) => format!("exited with {code}"),
            (None, Some(signal)) => format!("was killed by signal {signal}"),
            (None, None) => "ended".to_owned(),
        };
        let output = words(if stderr.trim_ascii().is_empty() { stdout } else { stderr });
        PluginFailure::Died { plugin, verb, exit, output }
    }

    fn io(&self, stage: &'static str, source: io::Error) -> PluginFailure {
        PluginFailure::Io { plugin: self.plugin.to_owned(), verb: self.verb, stage, source }
    }
}

/// The beginning and the end of a plugin's words, on one line, without what could act on a terminal.
fn words(bytes: &[u8]) -> String {
    let bytes = bytes.trim_ascii();
    let text = if bytes.len() <= MAX_WORDS {
        String::from_utf8_lossy(bytes).into_owned()
    } else {
        let (first, last) = (&bytes[..FIRST_WORDS], &bytes[bytes.len() - (MAX_WORDS - FIRST_WORDS)..]);
        format!("{} … {}", String::from_utf8_lossy(first), String::from_utf8_lossy(last))
    };
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect::<String>().trim().to_owned()
}

enum Ended {
    TooMuch,
    Io(io::Error),
}

/// A started plugin; dropping it kills its process group.
struct Running {
    child: Child,
    group: Option<Pid>,
}

impl Running {
    async fn start(mut command: Command) -> io::Result<Self> {
        let mut tries = 0;
        loop {
            match command.spawn() {
                Ok(child) => {
                    let group = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
                    return Ok(Self { child, group });
                }
                // An installer is just writing the file, or a process forked meanwhile holds it open for writing.
                Err(error) if error.kind() == io::ErrorKind::ExecutableFileBusy && tries < 20 => {
                    tries += 1;
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                Err(error) => return Err(error),
            }
        }
    }

    async fn finish(
        &mut self,
        stdin: &[u8],
        out: &mut Vec<u8>,
        err: &mut Vec<u8>,
    ) -> Result<ExitStatus, Ended> {
        let (to, from, aside) = (self.child.stdin.take(), self.child.stdout.take(), self.child.stderr.take());
        let feed = async {
            if let Some(mut to) = to {
                // A plugin may end without reading; its exit says whether that was right.
                let _unread = to.write_all(stdin).await;
            }
            Ok(())
        };
        let pipes = async { tokio::try_join!(feed, take(from, out), keep_end(aside, err)) };
        tokio::pin!(pipes);
        let status = tokio::select! {
            read = &mut pipes => {
                read?;
                self.child.wait().await.map_err(Ended::Io)?
            }
            status = self.child.wait() => {
                let status = status.map_err(Ended::Io)?;
                if let Ok(read) = tokio::time::timeout(DRAIN, pipes).await {
                    read?;
                }
                status
            }
        };
        self.group = None;
        Ok(status)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(group) = self.group {
            // Only its leader can have been reaped, and a group's number isn't reused while a member lives.
            let _gone = rustix::process::kill_process_group(group, Signal::KILL);
        }
    }
}

async fn take(from: Option<impl AsyncRead + Unpin>, to: &mut Vec<u8>) -> Result<(), Ended> {
    let Some(from) = from else { return Ok(()) };
    let limit = MAX_STDOUT as u64 + 1;
    from.take(limit).read_to_end(to).await.map_err(Ended::Io)?;
    if to.len() > MAX_STDOUT { Err(Ended::TooMuch) } else { Ok(()) }
}

async fn keep_end(from: Option<impl AsyncRead + Unpin>, to: &mut Vec<u8>) -> Result<(), Ended> {
    let Some(mut from) = from else { return Ok(()) };
    while from.read_buf(to).await.map_err(Ended::Io)? > 0 {
        if to.len() > 2 * KEPT_STDERR {
            to.drain(FIRST_WORDS..to.len() - KEPT_STDERR);
        }
    }
    Ok(())
}

#[cfg(test)]
pub(crate) mod tests {
    use std::os::unix::fs::OpenOptionsExt;

    use super::*;

    /// Writes an executable shell script named as a plugin. By rename: the one before may be running, which can't be
    /// written to.
    pub(crate) fn write_plugin(dir: &Path, name: &str, body: &str) -> PathBuf {
        let (path, new) = (dir.join(name), dir.join(format!(".{name}.new")));
        let mut file = std::fs::OpenOptions::new()
            .create(true)
            .truncate(true)
            .write(true)
            .mode(0o755)
            .open(&new)
            .unwrap();
        io::Write::write_all(&mut file, format!("#!/bin/sh\n{body}\n").as_bytes()).unwrap();
        drop(file);
        std::fs::rename(&new, &path).unwrap();
        path
    }

    /// Runs a script as a plugin's ADD.
    async fn run(body: &str) -> Result<Option<Value>, PluginFailure> {
        let dir = tempfile::tempdir().unwrap();
        write_plugin(dir.path(), "fake", body);
        let dirs = [dir.path().to_owned()];
        let deadline = Duration::from_secs(2);
        Call { plugin: "fake", verb: Verb::Add, dirs: &dirs, env: &[], stdin: b"{}".to_vec(), deadline }
            .run()
            .await
    }

    #[tokio::test]
    async fn a_result_is_given() {
        let result = run(r#"cat >/dev/null; echo '{"cniVersion":"1.0.0"}'"#).await.unwrap();
        assert_eq!(result.unwrap()["cniVersion"], "1.0.0");
        assert_eq!(run("exit 0").await.unwrap(), None);
    }

    #[tokio::test]
    async fn an_error_of_the_specification_is_decoded() {
        let error = run(r#"echo '{"code":11,"msg":"try again","details":"lock is held"}'; exit 1"#)
            .await
            .unwrap_err();
        assert_eq!(error.to_string(), "CNI plugin fake ADD failed (code 11): try again; lock is held");
    }

    #[tokio::test]
    async fn other_failures_show_what_was_printed() {
        let error = run("echo boom >&2; exit 3").await.unwrap_err();
        assert_eq!(error.to_string(), "CNI plugin fake ADD exited with 3 without a CNI error; boom");
        let error = run("kill -SEGV $$").await.unwrap_err();
        assert!(error.to_string().contains("was killed by signal 11"), "{error}");
        for garbage in ["echo '{'", "echo '[]'", "printf '\\377\\376'"] {
            let error = run(garbage).await.unwrap_err();
            assert!(matches!(error, PluginFailure::BadResult { .. }), "{error}");
        }
    }

    #[tokio::test]
    async fn a_hanging_plugin_and_its_children_are_killed() {
        let dir = tempfile::tempdir().unwrap();
        let note = dir.path().join("pid");
        let begun = Instant::now();
        let error = run(&format!("sleep 600 & echo $! >{}; echo waiting >&2; wait", note.display()))
            .await
            .unwrap_err();
        assert!(matches!(error, PluginFailure::Deadline { .. }), "{error}");
        assert!(error.to_string().ends_with("waiting"), "{error}");
        assert!(begun.elapsed() < Duration::from_secs(20));
        let child = std::fs::read_to_string(&note).unwrap();
        let alive = || {
            let stat = std::fs::read_to_string(format!("/proc/{}/stat", child.trim())).unwrap_or_default();
            !stat.is_empty() && !stat.contains(") Z ")
        };
        let gone = (0..100).any(|_| {
            std::thread::sleep(Duration::from_millis(20));
            !alive()
        });
        assert!(gone, "the child of the plugin still runs");
    }

    #[tokio::test]
    async fn endless_output_is_cut() {
        let error = run("yes").await.unwrap_err();
        assert!(matches!(error, PluginFailure::TooMuchOutput { .. }), "{error}");
        let error = run("head -c 3000000 /dev/zero >&2; exit 1").await.unwrap_err();
        assert!(error.to_string().len() < 3000, "{}", error.to_string().len());
    }

    #[tokio::test]
    async fn of_many_words_the_first_and_the_last_are_shown() {
        let script =
            "echo fatal error: no luck >&2; head -c 400000 /dev/zero | tr '\\0' x >&2; echo last >&2; exit 2";
        let text = run(script).await.unwrap_err().to_string();
        assert!(text.contains("fatal error: no luck") && text.ends_with("xlast"), "{text}");
        assert!(text.len() < MAX_WORDS + 200, "{}", text.len());
    }

    #[tokio::test]
    async fn a_child_that_holds_the_output_open_is_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let note = dir.path().join("pid");
        let result = run(&format!("sleep 600 & echo $! >{}; echo '{{}}'", note.display())).await.unwrap();
        assert!(result.is_some());
        let child: i32 = std::fs::read_to_string(&note).unwrap().trim().parse().unwrap();
        rustix::process::kill_process(Pid::from_raw(child).unwrap(), Signal::KILL).unwrap();
    }

    #[test]
    fn only_safe_executables_are_found() {
        let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let dirs = [one.path().to_owned(), two.path().to_owned()];
        let error = find("p", &dirs).unwrap_err();
        assert!(
            matches!(error, PluginFailure::Missing { .. }) && error.to_string().contains("plugin_dirs"),
            "{error}"
        );
        std::fs::create_dir(one.path().join("p")).unwrap();
        assert!(matches!(find("p", &dirs), Err(PluginFailure::Refused { .. })));
        let path = write_plugin(two.path(), "p", "");
        assert_eq!(find("p", &dirs).unwrap(), path);
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o777)).unwrap();
        assert!(find("p", &dirs[1..]).unwrap_err().to_string().contains("everyone"));
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        assert!(find("p", &dirs[1..]).unwrap_err().to_string().contains("not executable"));
    }
}
