//! Is the network ready: what the directory holds, and what its plugins said to STATUS.
//!
//! ```text
//!             no default network ──► not ready
//!  default network, before 1.1.0 ──► ready
//!   from 1.1.0: unasked ──STATUS──► well ──fails──► ailing ──grace period over──► not ready
//!               (not ready)          (ready) ◄──────(ready)                          │
//!                                       ▲──────────────── STATUS succeeds ───────────┘
//! ```

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::Map;

use super::chain::{environment, stdin};
use super::{Network, NetworkOptions};
use crate::plugin::Call;
use crate::{Directory, NetworkConf, NetworkStatus, PluginFailure, Verb};

/// How many problems of files the message names.
const NAMED_PROBLEMS: usize = 3;

#[derive(Debug, Clone, PartialEq)]
enum Answer {
    Unasked,
    Well,
    Ill { since: Instant, was_well: bool, message: String },
}

#[derive(Debug)]
pub(super) struct Readiness {
    conf_dir: PathBuf,
    named: Option<String>,
    grace: Duration,
    directory: Directory,
    answer: Answer,
}

impl Readiness {
    pub(super) fn new(options: &NetworkOptions) -> Self {
        Self {
            conf_dir: options.conf_dir.clone(),
            named: options.default_network.clone().filter(|name| !name.is_empty()),
            grace: options.status_grace_period,
            directory: Directory::default(),
            answer: Answer::Unasked,
        }
    }

    pub(super) fn default_network(&self) -> Option<Arc<NetworkConf>> {
        self.directory.default_network(self.named.as_deref()).cloned()
    }

    /// Takes what was read; true if the default network is another than before.
    fn take(&mut self, directory: Directory) -> bool {
        let before = self.default_network();
        self.directory = directory;
        let changed = self.default_network() != before;
        if changed {
            self.answer = Answer::Unasked;
        }
        changed
    }

    fn heard(&mut self, answer: Result<(), PluginFailure>, now: Instant) {
        self.answer = match (answer, &self.answer) {
            (Ok(()), _) => Answer::Well,
            (Err(failure), Answer::Ill { since, was_well, .. }) => {
                Answer::Ill { since: *since, was_well: *was_well, message: failure.to_string() }
            }
            (Err(failure), before) => {
                Answer::Ill { since: now, was_well: *before == Answer::Well, message: failure.to_string() }
            }
        };
    }

    fn status(&self, now: Instant) -> NetworkStatus {
        let problems: Vec<String> = self
            .directory
            .problems
            .iter()
            .map(|problem| format!("{}: {}", problem.path.display(), problem.reason))
            .collect();
        let Some(conf) = self.default_network() else {
            return NetworkStatus::not_ready(self.nothing(&problems), None, problems);
        };
        let network = Some(conf.name.clone());
        if conf.version.has_gc_and_status() {
            match &self.answer {
                Answer::Well => {}
                Answer::Unasked => {
                    let message = format!("network {:?} has not answered CNI STATUS yet", conf.name);
                    return NetworkStatus::not_ready(message, network, problems);
                }
                Answer::Ill { since, was_well, .. }
                    if *was_well && now.duration_since(*since) < self.grace => {}
                Answer::Ill { message, .. } => {
                    let message = format!("network {:?}: {message}", conf.name);
                    return NetworkStatus::not_ready(message, network, problems);
                }
            }
        }
        NetworkStatus { ready: true, reason: "", message: String::new(), network, problems }
    }

    fn nothing(&self, problems: &[String]) -> String {
        let dir = self.conf_dir.display();
        let mut message = match &self.named {
            Some(name) => {
                format!("no valid CNI configuration in {dir} has the name {name:?} (cni_default_network)")
            }
            None => format!("no valid CNI configuration in {dir}: has your network provider started?"),
        };
        for problem in problems.iter().take(NAMED_PROBLEMS) {
            message.push_str("; ");
            message.push_str(problem);
        }
        if problems.len() > NAMED_PROBLEMS {
            message.push_str("; and more");
        }
        message
    }
}

impl Network {
    /// Reads the directories again now. Blocks for as long as the disk does.
    pub fn reload(&self) {
        let options = &self.shared.options;
        let directory = Directory::read(&options.conf_dir, &options.plugin_dirs);
        let changed = self.readiness().take(directory);
        self.publish();
        if changed {
            self.ask_soon();
        }
    }

    /// Has STATUS asked without waiting for its time.
    pub(crate) fn ask_soon(&self) {
        self.shared.ask_soon.notify_one();
    }

    pub(crate) async fn asked_soon(&self) {
        self.shared.ask_soon.notified().await;
    }

    /// Asks STATUS, if the default network's configuration has it; false while the network isn't well.
    pub(crate) async fn ask_status(&self) -> bool {
        let Some(conf) = self.readiness().default_network() else { return true };
        if !conf.version.has_gc_and_status() {
            return true;
        }
        let answer = self.call_status(&conf).await;
        let well = answer.is_ok();
        {
            let mut readiness = self.readiness();
            // An answer about a configuration that was replaced meanwhile says nothing.
            if readiness.default_network().as_ref() != Some(&conf) {
                return false;
            }
            readiness.heard(answer, Instant::now());
        }
        self.publish();
        well
    }

    async fn call_status(&self, conf: &NetworkConf) -> Result<(), PluginFailure> {
        let options = &self.shared.options;
        let (dirs, deadline) = (&options.plugin_dirs, options.deadlines.status);
        let env = environment(Verb::Status, dirs);
        for plugin in &conf.plugins {
            let stdin = stdin(conf, plugin, Map::new());
            let call =
                Call { plugin: &plugin.plugin_type, verb: Verb::Status, dirs, env: &env, stdin, deadline };
            call.run().await?;
        }
        Ok(())
    }

    fn publish(&self) {
        // Under the lock, so that two publishers can't overtake each other.
        let readiness = self.readiness();
        let new = readiness.status(Instant::now());
        let before = self.status();
        let now = Arc::new(new);
        if *before != *now {
            self.shared.status.send_replace(Arc::clone(&now));
            for problem in now.problems.iter().filter(|problem| !before.problems.contains(problem)) {
                tracing::warn!(%problem, "a CNI configuration is passed over");
            }
            match (&now.network, now.ready) {
                (Some(network), true) => tracing::info!(%network, "the pod network is ready"),
                _ => tracing::warn!(message = %now.message, "the pod network is not ready"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn readiness(version: &str, grace: Duration) -> Readiness {
        let text = format!(r#"{{"cniVersion":"{version}","name":"pods","plugins":[{{"type":"t"}}]}}"#);
        let options = NetworkOptions { status_grace_period: grace, ..NetworkOptions::default() };
        let mut readiness = Readiness::new(&options);
        assert!(!readiness.status(Instant::now()).ready, "nothing is read yet");
        let networks = vec![Arc::new(NetworkConf::parse_list(&text).unwrap())];
        assert!(readiness.take(Directory { networks, problems: vec![] }));
        readiness
    }

    fn ill() -> Result<(), PluginFailure> {
        Err(PluginFailure::Missing { plugin: "t".into(), searched: "/x".into() })
    }

    #[test]
    fn an_old_configuration_is_ready_unasked() {
        assert!(readiness("1.0.0", Duration::ZERO).status(Instant::now()).ready);
    }

    #[test]
    fn a_new_one_is_ready_once_it_said_so() {
        let mut it = readiness("1.1.0", Duration::ZERO);
        let now = Instant::now();
        assert!(it.status(now).message.contains("has not answered"));
        it.heard(Ok(()), now);
        assert!(it.status(now).ready);
        it.heard(ill(), now);
        let status = it.status(now);
        assert!(!status.ready && status.message.starts_with("network \"pods\": CNI plugin"), "{status:?}");
        assert_eq!((status.reason, status.network.as_deref()), ("NetworkPluginNotReady", Some("pods")));
    }

    #[test]
    fn failures_count_after_the_grace_period() {
        let mut it = readiness("1.1.0", Duration::from_secs(10));
        let begin = Instant::now();
        it.heard(ill(), begin);
        assert!(!it.status(begin).ready, "there is no grace for what never was ready");
        it.heard(Ok(()), begin);
        it.heard(ill(), begin);
        it.heard(ill(), begin + Duration::from_secs(9));
        assert!(it.status(begin + Duration::from_secs(9)).ready);
        assert!(!it.status(begin + Duration::from_secs(10)).ready, "it counts from the first failure");
    }

    #[test]
    fn the_message_names_what_is_missing() {
        let options = NetworkOptions { default_network: Some("mine".into()), ..NetworkOptions::default() };
        let mut it = Readiness::new(&options);
        let problem =
            |n: u8| crate::FileProblem { path: format!("/etc/cni/net.d/{n}").into(), reason: "bad".into() };
        it.take(Directory { networks: vec![], problems: (0..5).map(problem).collect() });
        let status = it.status(Instant::now());
        assert!(status.message.contains("\"mine\" (cni_default_network)"), "{}", status.message);
        assert!(status.message.ends_with("/etc/cni/net.d/2: bad; and more"), "{}", status.message);
        assert_eq!(status.problems.len(), 5);
    }
}
