//! What the monitor knows of a container.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Instant;

use criox_monitor_api::proto::{self, ContainerState, ExitFacts, container_state};
use criox_sys::process::Pidfd;

use crate::console::Console;
use crate::exec::Exec;
use crate::journald::Origin;
use crate::oom::OomWatch;
use crate::restore::Waiting;

/// `Creating → Created → Running → Exited`; a container may exit from Created too. Creating is in no list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    Creating,
    Created,
    Running,
    Exited,
}

/// Who waits for an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Caller {
    pub(crate) client: u32,
    pub(crate) request: u64,
}

pub(crate) struct Container {
    pub(crate) id: String,
    pub(crate) phase: Phase,
    pub(crate) runtime: proto::Runtime,
    pub(crate) pid: i32,
    pub(crate) start_time: u64,
    pub(crate) pidfd: Option<Pidfd>,
    /// Empty until created.
    pub(crate) cgroup: String,
    pub(crate) started_at: i64,
    pub(crate) exit: Option<ExitFacts>,
    /// Ended, but its output isn't in the log yet: given up at this time.
    pub(crate) settling: Option<Instant>,
    /// The output goes to a file.
    pub(crate) logged: bool,
    /// It goes to the journal, too.
    pub(crate) journal: Option<Rc<Origin>>,
    /// Records that are gathered for the log writer.
    pub(crate) pending: Vec<u8>,
    pub(crate) pending_records: u64,
    /// A timer will send them.
    pub(crate) gathering: bool,
    /// Bytes that the log writer has and has not told to be written.
    pub(crate) queued: usize,
    /// That is too much: its output waits.
    pub(crate) log_full: bool,
    pub(crate) stdin: Option<OwnedFd>,
    pub(crate) stdin_once: bool,
    /// The master, for sizes; its output is read through a duplicate.
    pub(crate) terminal: Option<OwnedFd>,
    pub(crate) oom: Option<OomWatch>,
    pub(crate) execs: BTreeMap<String, Exec>,
    /// Groups of ended execs whose descendants live on.
    pub(crate) lingering: Vec<String>,
    /// As the freezer names its group; empty until created.
    pub(crate) freezer: String,
    /// It is restored when it is started.
    pub(crate) restore: Option<Box<Waiting>>,
    /// It was.
    pub(crate) restored: bool,
    /// An update is at work.
    pub(crate) updating: bool,
    /// A delete is at work.
    pub(crate) deleting: Vec<Caller>,
    /// The runtime's part of it is over; until then its group is emptied.
    pub(crate) delete_until: Option<Instant>,
}

impl Container {
    pub(crate) fn new(id: String, runtime: proto::Runtime, logged: bool) -> Self {
        Self {
            id,
            phase: Phase::Creating,
            runtime,
            pid: 0,
            start_time: 0,
            pidfd: None,
            cgroup: String::new(),
            started_at: 0,
            exit: None,
            settling: None,
            logged,
            journal: None,
            pending: Vec::new(),
            pending_records: 0,
            gathering: false,
            queued: 0,
            log_full: false,
            stdin: None,
            stdin_once: false,
            terminal: None,
            oom: None,
            execs: BTreeMap::new(),
            lingering: Vec::new(),
            freezer: String::new(),
            restore: None,
            restored: false,
            updating: false,
            deleting: Vec::new(),
            delete_until: None,
        }
    }

    /// As List tells it.
    pub(crate) fn state(&self) -> Option<ContainerState> {
        let phase = match self.phase {
            Phase::Creating => return None,
            Phase::Created => container_state::Phase::Created,
            Phase::Running => container_state::Phase::Running,
            Phase::Exited => container_state::Phase::Exited,
        };
        Some(ContainerState {
            container_id: self.id.clone(),
            phase: phase.into(),
            pid: self.pid,
            start_time: self.start_time,
            started_at: self.started_at,
            exit: self.exit,
            cgroup: self.cgroup.clone(),
            forbidden: None,
        })
    }
}

/// A run of the OCI runtime.
pub(crate) struct RuntimeRun {
    pub(crate) process: Pidfd,
    pub(crate) stderr: Option<OwnedFd>,
    pub(crate) log: PathBuf,
    pub(crate) pid_file: Option<PathBuf>,
    pub(crate) container: u32,
    pub(crate) purpose: Purpose,
    pub(crate) timed_out: bool,
}

/// What follows when the runtime has ended.
pub(crate) enum Purpose {
    Create {
        caller: Caller,
        pipes: Vec<(OwnedFd, crate::log::Stream)>,
        console: Option<Console>,
    },
    Start {
        caller: Caller,
    },
    Exec {
        exec_id: String,
        console: Option<Console>,
        process_file: PathBuf,
    },
    Update(Box<crate::update::Change>),
    Checkpoint,
    Restore {
        console: Option<Console>,
    },
    /// Deletes what a failed restore left.
    Unrestore,
    Delete,
    /// Deletes what a failed creation left; the creator is told `failure` afterwards.
    Undo {
        caller: Caller,
        failure: proto::reply::Result,
    },
}
