//! Short-lived processes of our own binary that do what needs a process of its own: making namespaces, becoming
//! process 1 of one. The loop hears them over a descriptor and waits for none; each has a deadline.
//!
//! A helper writes lines: the step that it begins, and at last its result (see [`Line`]).

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use criox_monitor_api::proto::{PinNamespaces, SandboxProcessExited, SandboxProcessReply, event};
use criox_monitor_api::proto::{StartSandboxProcess, failure::Kind, reply};
use criox_sys::process::Pidfd;

use crate::client::{done, failure};
use crate::container::Caller;
use crate::monitor::{Monitor, Timer};
use crate::{exec, init, namespaces};

/// A helper's work is a few system calls; more time means that one of them hangs.
const TIMEOUT: Duration = Duration::from_secs(10);
/// The longest text that is taken from a helper.
const MAX_TEXT: usize = 4096;

/// What a helper says; each line begins with the letter.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Line {
    /// `S`: the step that it does next, for messages.
    Step(String),
    /// `U`: its user namespace waits for mappings; it goes on when it gets a byte.
    User,
    /// `D`: done; with process 1's number where there is one.
    Done(String),
    /// `F`: failed, and why.
    Failed(String),
}

impl Line {
    /// As it is written.
    pub(crate) fn text(&self) -> String {
        let (letter, text) = match self {
            Self::Step(text) => ('S', text.as_str()),
            Self::User => ('U', ""),
            Self::Done(text) => ('D', text.as_str()),
            Self::Failed(text) => ('F', text.as_str()),
        };
        format!("{letter}{}\n", text.replace('\n', " "))
    }

    fn parse(line: &str) -> Option<Self> {
        let text = line.get(1..)?.to_owned();
        match line.as_bytes().first()? {
            b'S' => Some(Self::Step(text)),
            b'U' => Some(Self::User),
            b'D' => Some(Self::Done(text)),
            b'F' => Some(Self::Failed(text)),
            _ => None,
        }
    }
}

/// Takes the whole lines out of `heard`.
fn take_lines(heard: &mut Vec<u8>) -> Vec<String> {
    let Some(end) = memchr::memrchr(b'\n', heard) else { return Vec::new() };
    let text: Vec<u8> = heard.drain(..=end).collect();
    String::from_utf8_lossy(&text).lines().map(str::to_owned).collect()
}

/// What a helper works at.
pub(crate) enum Task {
    Pin(Box<PinNamespaces>),
    Init(Box<StartSandboxProcess>),
}

impl Task {
    fn name(&self) -> &'static str {
        match self {
            Self::Pin(_) => "could not pin namespaces",
            Self::Init(_) => "could not start the sandbox process",
        }
    }
}

/// A helper at work.
pub(crate) struct Helper {
    pub(crate) process: Pidfd,
    /// Its end is heard by the helper too.
    pub(crate) line: OwnedFd,
    heard: Vec<u8>,
    step: String,
    caller: Caller,
    task: Task,
}

impl Monitor {
    pub(crate) fn pin(&mut self, caller: Caller, request: PinNamespaces) {
        let started = namespaces::start(&request);
        self.help(caller, Task::Pin(Box::new(request)), started);
    }

    pub(crate) fn start_init(&mut self, caller: Caller, request: StartSandboxProcess) {
        let pending = self.helpers.values().any(|helper| matches!(helper.task, Task::Init(_)));
        if self.sandbox_process != 0 || pending {
            let text = "the sandbox process is there already";
            return self.answer(caller, failure(Kind::WrongState, text));
        }
        let started = init::start(&request);
        self.help(caller, Task::Init(Box::new(request)), started);
    }

    fn help(&mut self, caller: Caller, task: Task, started: Result<(Pidfd, OwnedFd), String>) {
        let name = task.name();
        let followed = started.and_then(|(process, line)| {
            let step = "starting the helper process".to_owned();
            self.add_helper(Helper { process, line, heard: Vec::new(), step, caller, task })
                .map_err(|error| format!("following the helper process: {error}"))
        });
        match followed {
            Ok(number) => self.after(TIMEOUT, Timer::Helper(number)),
            Err(error) => self.answer(caller, failure(Kind::Internal, format!("{name}: {error}"))),
        }
    }

    /// Something was heard, or the helper has let go of the line.
    pub(crate) fn hear(&mut self, number: u32) {
        let Some(helper) = self.helpers.get_mut(&number) else { return };
        let mut space = [0; 512];
        let ended = match rustix::io::read(&helper.line, &mut space) {
            Ok(0) => true,
            Ok(length) => {
                helper.heard.extend_from_slice(&space[..length]);
                helper.heard.len() > MAX_TEXT
            }
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => return,
            Err(_) => true,
        };
        for line in take_lines(&mut helper.heard) {
            let result = match (Line::parse(&line), &helper.task) {
                (Some(Line::Step(step)), _) => {
                    helper.step = step;
                    continue;
                }
                (Some(Line::User), Task::Pin(request)) => {
                    match namespaces::map_users(request, helper.process.pid(), &helper.line) {
                        Ok(()) => continue,
                        Err(error) => Err(error),
                    }
                }
                (Some(Line::Done(text)), _) => Ok(text),
                (Some(Line::Failed(text)), _) => Err(text),
                (Some(Line::User) | None, _) => Err(format!("the helper process says {line:?}")),
            };
            return self.helped(number, result);
        }
        if ended {
            let error = format!("the helper process ended while {}", helper.step);
            self.helped(number, Err(error));
        }
    }

    /// A helper's time is over, if it is still at work.
    pub(crate) fn helper_late(&mut self, number: u32) {
        let Some(helper) = self.helpers.get(&number) else { return };
        let error = format!("{} took more than {} s", helper.step, TIMEOUT.as_secs());
        self.helped(number, Err(error));
    }

    fn helped(&mut self, number: u32, result: Result<String, String>) {
        let Some(helper) = self.helpers.remove(&number) else { return };
        self.unwatch(&helper.line);
        let result = result.and_then(|text| match &helper.task {
            Task::Pin(request) => {
                namespaces::pin(request, helper.process.pid())?;
                self.pod_root = namespaces::root_of(request);
                Ok(done())
            }
            Task::Init(request) => {
                let pid = init::pin(request, &text)?;
                Ok(reply::Result::SandboxProcess(SandboxProcessReply { pid }))
            }
        });
        if result.is_err() {
            exec::kill_tree(helper.process.pid());
            drop(helper.process.send_signal(9));
        }
        let name = helper.task.name();
        if let Ok(reply::Result::SandboxProcess(init)) = &result {
            self.sandbox_process = init.pid;
        }
        let text = |error| failure(Kind::Internal, format!("{name}: {error}"));
        self.answer(helper.caller, result.unwrap_or_else(text));
        // It may have ended before its number was known.
        let init = self.sandbox_process;
        if init != 0 && self.strays.remove(&init).is_some() {
            self.sandbox_process_ended();
        }
    }

    pub(crate) fn sandbox_process_ended(&mut self) {
        let pid = std::mem::take(&mut self.sandbox_process);
        self.publish(event::Kind::SandboxProcessExited(SandboxProcessExited { pid }));
    }
}

/// Says a line; the loop that should hear it may have gone.
pub(crate) fn say(to: impl io::Write, line: &Line) -> io::Result<()> {
    let mut to = to;
    to.write_all(line.text().as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_taken_whole_and_read_back() {
        let lines = [
            Line::Step("making".into()),
            Line::User,
            Line::Done("7".into()),
            Line::Failed("two lines".into()),
        ];
        let mut heard: Vec<u8> = lines.iter().flat_map(|line| line.text().into_bytes()).collect();
        heard.extend_from_slice(b"Sunfin");
        let parsed: Vec<Line> = take_lines(&mut heard).iter().filter_map(|line| Line::parse(line)).collect();
        assert_eq!(parsed, lines);
        assert_eq!(heard, b"Sunfin");
        assert_eq!(Line::Failed("a\nb".into()).text(), "Fa b\n");
        assert!([Line::parse(""), Line::parse("X"), Line::parse("é")].iter().all(Option::is_none));
    }
}
