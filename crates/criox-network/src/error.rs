//! What can go wrong, in words for the one who runs the node.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use criox_sys::netns::NetnsError;

/// A CNI verb (`CNI_COMMAND`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Verb {
    /// Attach a pod.
    Add,
    /// Detach a pod.
    Del,
    /// Verify an attachment; from 0.4.0.
    Check,
    /// Remove what belongs to no valid attachment; from 1.1.0.
    Gc,
    /// Can the network attach pods now? From 1.1.0.
    Status,
}

impl Verb {
    /// The value of `CNI_COMMAND`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Add => "ADD",
            Self::Del => "DEL",
            Self::Check => "CHECK",
            Self::Gc => "GC",
            Self::Status => "STATUS",
        }
    }
}

impl fmt::Display for Verb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One plugin's failure at one verb.
#[derive(Debug, thiserror::Error)]
pub enum PluginFailure {
    /// No executable of that name in any plugin directory.
    #[error("CNI plugin {plugin:?} is not in {searched}: install it there or correct plugin_dirs")]
    Missing {
        /// The plugin's type.
        plugin: String,
        /// The directories, for the message.
        searched: String,
    },
    /// The type isn't a plain file name, or the file may not be executed as root.
    #[error("CNI plugin {plugin:?} is refused: {reason}")]
    Refused {
        /// The plugin's type.
        plugin: String,
        /// Why.
        reason: String,
    },
    /// The plugin could not be started or spoken to.
    #[error("CNI plugin {plugin} {verb}: {stage}")]
    Io {
        /// The plugin's type.
        plugin: String,
        /// What it was asked to do.
        verb: Verb,
        /// What we were doing.
        stage: &'static str,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// It did not end in time; it and its process group were killed.
    #[error(
        "CNI plugin {plugin} {verb} did not answer in {waited:?} and was killed; see what it waits for (its own \
         daemon, its API server, an IPAM lock){}", tail(.stderr)
    )]
    Deadline {
        /// The plugin's type.
        plugin: String,
        /// What it was asked to do.
        verb: Verb,
        /// How long it was given.
        waited: Duration,
        /// The end of what it wrote to stderr.
        stderr: String,
    },
    /// It printed more than is taken.
    #[error("CNI plugin {plugin} {verb} printed more than {limit} bytes and was killed")]
    TooMuchOutput {
        /// The plugin's type.
        plugin: String,
        /// What it was asked to do.
        verb: Verb,
        /// The limit, in bytes.
        limit: usize,
    },
    /// It ended in failure with an error object of the CNI specification, section 5.
    #[error("CNI plugin {plugin} {verb} failed (code {code}): {message}{}", tail(.details))]
    Answered {
        /// The plugin's type.
        plugin: String,
        /// What it was asked to do.
        verb: Verb,
        /// Code: 1–99 are the specification's, 100 and up the plugin's.
        code: u32,
        /// The short message.
        message: String,
        /// The long message, or empty.
        details: String,
    },
    /// It ended in failure without saying why in the way the specification asks for.
    #[error("CNI plugin {plugin} {verb} {exit} without a CNI error{}", tail(.output))]
    Died {
        /// The plugin's type.
        plugin: String,
        /// What it was asked to do.
        verb: Verb,
        /// "exited with 3" or "was killed by signal 11".
        exit: String,
        /// The end of what it printed.
        output: String,
    },
    /// It succeeded but printed something that isn't a result.
    #[error("CNI plugin {plugin} {verb} printed no valid result: {reason}")]
    BadResult {
        /// The plugin's type.
        plugin: String,
        /// What it was asked to do.
        verb: Verb,
        /// What is wrong with it.
        reason: String,
    },
}

fn tail(text: &str) -> String {
    if text.is_empty() { String::new() } else { format!("; {text}") }
}

/// A failed operation of the network.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// There is no network to attach to.
    #[error("network is not ready: {message}")]
    NotReady {
        /// The status's message.
        message: String,
    },
    /// The request can't be carried out as it stands.
    #[error("{field}: {reason}")]
    InvalidRequest {
        /// The field.
        field: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// The pod's network namespace is missing or isn't the one that was recorded.
    #[error("sandbox {sandbox}: network namespace")]
    Netns {
        /// The sandbox's ID.
        sandbox: String,
        /// What is wrong with it.
        #[source]
        source: NetnsError,
    },
    /// Another namespace than the recorded one is at the path: nothing was done.
    #[error(
        "sandbox {sandbox}: {path} holds another network namespace than the recorded one; nothing was done"
    )]
    NetnsReplaced {
        /// The sandbox's ID.
        sandbox: String,
        /// The path.
        path: PathBuf,
    },
    /// ADD or CHECK failed. After a failed ADD, DEL was called on the whole chain.
    #[error("sandbox {sandbox}, network {network:?}: {verb}")]
    Plugin {
        /// The sandbox's ID.
        sandbox: String,
        /// The network's name.
        network: String,
        /// The verb.
        verb: Verb,
        /// The plugin's failure.
        #[source]
        source: Box<PluginFailure>,
    },
    /// Some plugins of the chain failed at DEL or GC, the others did their part. It may be called again.
    #[error("network {network:?}: {verb} is incomplete and can be retried: {}", join(.failures))]
    Incomplete {
        /// The network's name.
        network: String,
        /// The verb.
        verb: Verb,
        /// Every plugin's failure, in the order of the calls.
        failures: Vec<PluginFailure>,
    },
    /// The host port belongs to another pod.
    #[error("host port {port} is already mapped to sandbox {holder}")]
    HostPortTaken {
        /// Address, port and protocol, such as `0.0.0.0:80/tcp`.
        port: String,
        /// The sandbox that has it.
        holder: String,
    },
    /// The host's firewall didn't take the rules.
    #[error("host ports: {stage}: {message}")]
    HostPorts {
        /// What was being done.
        stage: &'static str,
        /// What the tool said.
        message: String,
    },
    /// A record of this version isn't understood: it was made by a newer criox and is left alone.
    #[error("network record of version {found} is newer than this program knows ({known})")]
    RecordVersion {
        /// The record's.
        found: u32,
        /// Ours.
        known: u32,
    },
    /// The configuration inside a record can't be parsed.
    #[error("network record of sandbox {sandbox}: its configuration is damaged: {reason}")]
    RecordConfig {
        /// The sandbox's ID.
        sandbox: String,
        /// What is wrong with it.
        reason: String,
    },
    /// GC ran into operations in flight; call it again later.
    #[error("CNI GC is put off: pods are being attached")]
    Busy,
    /// The operation's turn didn't come: others were in front of it for too long.
    #[error("sandbox {sandbox}: waited {waited:?} for {stage}; see which CNI plugin hangs")]
    Waited {
        /// The sandbox's ID.
        sandbox: String,
        /// What it waited for.
        stage: &'static str,
        /// How long.
        waited: Duration,
    },
    /// A file of ours.
    #[error(transparent)]
    File(#[from] criox_sys::durable::PathError),
    /// A file or directory of ours.
    #[error("{stage} {path}")]
    Io {
        /// What was being done.
        stage: &'static str,
        /// To what.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
}

fn join(failures: &[PluginFailure]) -> String {
    let mut text = String::new();
    for failure in failures {
        if !text.is_empty() {
            text.push_str("; ");
        }
        text.push_str(&failure.to_string());
        // These have no place in a source chain, which has only one strand.
        if let Some(source) = std::error::Error::source(failure) {
            text.push_str(": ");
            text.push_str(&source.to_string());
        }
    }
    text
}
