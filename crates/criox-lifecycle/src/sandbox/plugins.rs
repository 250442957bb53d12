//! CNI plugins that a daemon which was killed has left at work.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use criox_cri::ids::SandboxId;
use criox_sys::process::Pidfd;

/// How long a plugin may go on: the start waits for it.
const PATIENCE: Duration = Duration::from_secs(2);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(10);
/// What a plugin has in its environment (CNI specification, section 2), and with it what it starts.
const ID: &[u8] = b"CNI_CONTAINERID=";

/// Waits for the plugins that the last daemon began for these pods, and kills what takes too long: an ADD beside our
/// DEL would leave an address or a rule that nobody gives back.
pub(crate) async fn outlive(pods: &HashSet<SandboxId>) {
    let pods = pods.clone();
    let waited = tokio::task::spawn_blocking(move || {
        let until = Instant::now() + PATIENCE;
        loop {
            let plugins = of(&pods);
            let late = Instant::now() > until;
            for plugin in plugins.iter().filter(|_| late) {
                if let Ok(plugin) = Pidfd::open(*plugin) {
                    // It has ended by itself meanwhile: so much the better.
                    drop(plugin.send_signal(9));
                }
            }
            if plugins.is_empty() || late {
                return plugins.len();
            }
            std::thread::sleep(LOOK);
        }
    });
    if let Ok(killed @ 1..) = waited.await {
        tracing::warn!(
            killed,
            "CNI plugins that the last criox began were still at work, and have been killed"
        );
    }
}

fn of(pods: &HashSet<SandboxId>) -> Vec<i32> {
    if pods.is_empty() {
        return Vec::new();
    }
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|pid: &i32| {
            // It has gone meanwhile, or is the kernel's.
            std::fs::read(format!("/proc/{pid}/environ")).is_ok_and(|environment| is_of(&environment, pods))
        })
        .collect()
}

fn is_of(environment: &[u8], pods: &HashSet<SandboxId>) -> bool {
    let ids = environment.split(|byte| *byte == 0).filter_map(|pair| pair.strip_prefix(ID));
    ids.filter_map(|id| SandboxId::parse(std::str::from_utf8(id).ok()?).ok()).any(|id| pods.contains(&id))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plugin_is_known_by_its_pod() {
        let id = "5".repeat(64);
        let pods = HashSet::from([SandboxId::parse(&id).expect("an ID")]);
        let check = |environment: String| is_of(environment.as_bytes(), &pods);
        assert!(check(format!("PATH=/bin\0CNI_CONTAINERID={id}\0CNI_COMMAND=ADD\0")));
        assert!(!check(format!("CNI_CONTAINERID={}\0", "6".repeat(64))));
        assert!(!check(format!("X_CNI_CONTAINERID={id}\0ARGS=CNI_CONTAINERID={id}\0CNI_CONTAINERID=\0")));
        assert!(!check(String::new()));
    }
}
