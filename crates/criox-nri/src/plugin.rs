//! One plugin: who it is, what it wants to hear, and how it is asked.

use std::fmt;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use prost::Message;
use tokio::sync::watch;

use crate::connection::{CallError, Connection, code};
use crate::proto::{Container, Empty, Event, FailurePolicy, PodSandbox, StateChangeEvent};

/// The longest name that is taken.
const NAME_MAX: usize = 128;

/// A plugin's name: its index decides the order.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Name {
    index: String,
    base: String,
}

/// Why a name is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// The index is not two digits.
    #[error("the index {0:?} is not two digits")]
    Index(String),
    /// The name is empty, too long, or has other characters.
    #[error("the name {0:?} is not one of letters, digits and \"-_.+\"")]
    Base(String),
}

impl Name {
    /// From an index of two digits and a name of letters, digits and `-_.+`.
    ///
    /// # Errors
    /// They are something else.
    pub fn new(index: &str, base: &str) -> Result<Self, NameError> {
        let shown = |text: &str| crate::connection::shown(text).to_owned();
        if index.len() != 2 || !index.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(NameError::Index(shown(index)));
        }
        let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.+".contains(c);
        if base.is_empty() || base.len() > NAME_MAX || !base.chars().all(allowed) {
            return Err(NameError::Base(shown(base)));
        }
        Ok(Self { index: index.into(), base: base.into() })
    }

    /// From the name of a file: `10-name`.
    ///
    /// # Errors
    /// It is not of that form.
    pub fn of_file(file: &str) -> Result<Self, NameError> {
        let (index, base) = file.split_once('-').unwrap_or((file, ""));
        Self::new(index, base)
    }

    /// Two digits.
    pub fn index(&self) -> &str {
        &self.index
    }

    /// Without the index.
    pub fn base(&self) -> &str {
        &self.base
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.index, self.base)
    }
}

/// What plugins object to.
#[derive(Debug, Clone, thiserror::Error)]
pub enum PluginError {
    /// A plugin answered an event with an error, or failed and asked for such failures to count.
    #[error("NRI plugin {plugin} failed {event}")]
    Refused {
        /// Its name.
        plugin: String,
        /// The event.
        event: &'static str,
        /// What it says.
        source: CallError,
    },
    /// Two plugins want to decide the same.
    #[error("NRI plugins {first} and {second} both set {what}; let one of them leave it")]
    Conflict {
        /// Who set it.
        first: String,
        /// Who wanted to set it after that.
        second: String,
        /// What.
        what: String,
    },
    /// What a plugin wants can't be.
    #[error("NRI plugin {plugin} asks for {what}")]
    Wish {
        /// Its name.
        plugin: String,
        /// What, and why not.
        what: String,
    },
    /// A validator does not let pass what the plugins want together.
    #[error("NRI validator {validator} rejects the container: {reason}")]
    Rejected {
        /// Its name.
        validator: String,
        /// Its words.
        reason: String,
    },
}

/// How far a plugin has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    /// It is being told what exists.
    Synchronizing,
    /// It is asked at every event.
    Ready,
    /// It is not asked any more.
    Gone,
}

/// A plugin.
#[derive(Debug)]
pub(crate) struct Plugin {
    pub(crate) name: Name,
    pub(crate) connection: Connection,
    /// Bit n-1: event n.
    events: i32,
    policy: FailurePolicy,
    limit: Duration,
    stage: watch::Sender<Stage>,
    /// It has no calls of its own for the events, and gets them as StateChange.
    old: AtomicBool,
    /// Why it was closed, for the log.
    end: Mutex<Option<String>>,
}

/// All events that there are.
const ALL: i32 = (1 << (Event::Last as i32 - 1)) - 1;

impl Plugin {
    /// One that has been configured. None: it wants events that there are not.
    pub(crate) fn new(
        name: Name,
        connection: Connection,
        events: i32,
        policy: FailurePolicy,
        limit: Duration,
    ) -> Option<Self> {
        let events = match events {
            0 => ALL,
            some if some & !ALL != 0 => return None,
            some => some,
        };
        let stage = watch::Sender::new(Stage::Synchronizing);
        let (old, end) = (AtomicBool::new(false), Mutex::default());
        Some(Self { name, connection, events, policy, limit, stage, old, end })
    }

    pub(crate) fn wants(&self, event: Event) -> bool {
        self.events & (1 << (event as i32 - 1)) != 0
    }

    /// It has been told of everything.
    pub(crate) fn ready(&self) {
        self.stage.send_if_modified(|stage| {
            let first = *stage == Stage::Synchronizing;
            if first {
                *stage = Stage::Ready;
            }
            first
        });
    }

    /// Ends it. The first reason counts.
    pub(crate) fn close(&self, why: &str) {
        self.end.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_with(|| why.to_owned());
        self.stage.send_replace(Stage::Gone);
        self.connection.close();
    }

    /// Why it was closed by us.
    pub(crate) fn end(&self) -> Option<String> {
        self.end.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether it can be asked, waiting for the end of its synchronization, which has a limit of its own.
    pub(crate) async fn can_be_asked(&self) -> bool {
        let mut stage = self.stage.subscribe();
        let settled = tokio::select! {
            settled = stage.wait_for(|stage| *stage != Stage::Synchronizing) => {
                settled.is_ok_and(|stage| *stage == Stage::Ready)
            }
            () = self.connection.ended() => false,
        };
        settled && !self.connection.is_closed()
    }

    /// Asks it about an event. None: it does not want the event, or is no longer there.
    ///
    /// # Errors
    /// It objects. A plugin that does not answer is closed and counts as not there, unless it asked for something else.
    pub(crate) async fn ask<Q: Message, A: Message + Default>(
        &self,
        event: Event,
        request: &Q,
    ) -> Result<Option<A>, PluginError> {
        if !self.wants(event) || !self.can_be_asked().await {
            return Ok(None);
        }
        match Box::pin(self.connection.call::<Q, A>(method(event), request, self.limit)).await {
            Ok(answer) => Ok(Some(answer)),
            Err(error) => self.failed(event, error).map(|()| None),
        }
    }

    /// Tells it of an event that has no answer worth reading. Old plugins get it as StateChange.
    ///
    /// # Errors
    /// As [`Plugin::ask`].
    pub(crate) async fn tell<Q: Message>(
        &self,
        event: Event,
        request: &Q,
        pod: &PodSandbox,
        container: Option<&Container>,
    ) -> Result<(), PluginError> {
        if !self.wants(event) || !self.can_be_asked().await {
            return Ok(());
        }
        if !self.old.load(Ordering::Relaxed) {
            match Box::pin(self.connection.call::<Q, Empty>(method(event), request, self.limit)).await {
                Ok(_) => return Ok(()),
                Err(CallError::Refused { code: code::UNIMPLEMENTED, .. }) if has_state_change(event) => {}
                Err(error) => return self.failed(event, error),
            }
            tracing::info!(plugin = %self.name, "an NRI plugin of before the separate events: it gets them as StateChange");
            self.old.store(true, Ordering::Relaxed);
        }
        let change =
            StateChangeEvent { event: event.into(), pod: Some(pod.clone()), container: container.cloned() };
        match Box::pin(self.connection.call::<_, Empty>("StateChange", &change, self.limit)).await {
            Ok(_) => Ok(()),
            Err(error) => self.failed(event, error),
        }
    }

    /// What a failed call means for the request, and for the plugin.
    fn failed(&self, event: Event, error: CallError) -> Result<(), PluginError> {
        let event = method(event);
        let refused = |source| PluginError::Refused { plugin: self.name.to_string(), event, source };
        let its_own_fault = match &error {
            CallError::Refused { .. } | CallError::TooLong(_) => return Err(refused(error)),
            CallError::TimedOut(_) => !self.policy.keep_connected,
            CallError::Closed | CallError::Malformed => true,
        };
        if its_own_fault {
            tracing::error!(plugin = %self.name, event, %error, "an NRI plugin failed and is disconnected");
            self.close(&format!("{event}: {error}"));
        } else {
            tracing::warn!(plugin = %self.name, event, %error, "an NRI plugin did not answer");
        }
        if self.policy.fail_request { Err(refused(error)) } else { Ok(()) }
    }
}

/// The plugin's method for an event.
pub(crate) fn method(event: Event) -> &'static str {
    match event {
        Event::Unknown | Event::Last => "none",
        Event::RunPodSandbox => "RunPodSandbox",
        Event::StopPodSandbox => "StopPodSandbox",
        Event::RemovePodSandbox => "RemovePodSandbox",
        Event::CreateContainer => "CreateContainer",
        Event::PostCreateContainer => "PostCreateContainer",
        Event::StartContainer => "StartContainer",
        Event::PostStartContainer => "PostStartContainer",
        Event::UpdateContainer => "UpdateContainer",
        Event::PostUpdateContainer => "PostUpdateContainer",
        Event::StopContainer => "StopContainer",
        Event::RemoveContainer => "RemoveContainer",
        Event::UpdatePodSandbox => "UpdatePodSandbox",
        Event::PostUpdatePodSandbox => "PostUpdatePodSandbox",
        Event::ValidateContainerAdjustment => "ValidateContainerAdjustment",
    }
}

/// Whether the event existed as a StateChange.
fn has_state_change(event: Event) -> bool {
    event != Event::UpdatePodSandbox
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_an_index_and_a_base() {
        let name = Name::of_file("10-device-injector").unwrap();
        assert_eq!((name.index(), name.base()), ("10", "device-injector"));
        for wrong in ["", "10", "10-", "1-a", "100-a", "ab-c", "10-a/b", "10-ä", "-10-a"] {
            assert!(Name::of_file(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn the_order_is_that_of_the_indices() {
        let name = |text| Name::of_file(text).unwrap();
        assert!(name("05-z") < name("10-a") && name("10-a") < name("10-b"));
    }
}
