//! Bad input of every kind: each gets a clear error that names the thing, leaves nothing behind, and keeps nobody else
//! waiting.
//!
//! | module | who misbehaves |
//! |---|---|
//! | [`pull`] | registries and images |
//! | [`network`] | CNI configurations and plugins |
//! | [`runtime`] | OCI runtimes |
//! | [`requests`] | clients |
//! | [`mounts`] | sources and targets of mounts |
//! | [`configuration`] | whoever wrote `crio.conf` |
//! | [`hang`] | all of them, by not answering |

mod configuration;
mod hang;
mod mounts;
mod network;
mod pull;
mod requests;
mod runtime;

use std::process::ExitCode;
use std::sync::{Mutex, PoisonError};

use testkit::daemon::plugins_dir;
use testkit::harness::Test;
use testkit::{Daemon, Node, Result, Shared, StandIn};

/// The daemon of most of these tests: its default runtime and its bridge plugin are stand-ins, `real` is crun itself, and
/// `absent` has no program.
static NODE: Shared = Shared::new(|| {
    let stand_ins =
        StandIns { bridge: StandIn::plugin("bridge", &plugins_dir())?, runtime: StandIn::runtime(&crun()?)? };
    let node = Node::start(|registry| {
        let mut daemon = Daemon::builder()
            .registry(registry)
            .plugins(stand_ins.bridge.dir())
            .runtime("stand-in", stand_ins.runtime.path())
            .runtime("real", crun()?)
            .runtime("absent", "/no/such/runtime")
            .drop_in("[crio.image]\npull_progress_timeout = \"2s\"\n")
            .drop_in("[crio.runtime]\nabsent_mount_sources_to_reject = [\"/no/such/source\"]\n")
            .prepare()?;
        // A later file replaces the whole table of a handler.
        let table = format!(
            "[crio.runtime.runtimes.stand-in]\nruntime_path = \"{}\"\nruntime_root = \"{}\"\ncontainer_create_timeout = 30\n",
            stand_ins.runtime.path().display(),
            daemon.run_root().join("stand-in").display(),
        );
        put(&daemon.config_dir().join("50-timeout.conf"), &table)?;
        daemon.watch(stand_ins.bridge.dir());
        daemon.watch(stand_ins.runtime.dir());
        daemon.start()?;
        Ok(daemon)
    })?;
    *STAND_INS.lock().unwrap_or_else(PoisonError::into_inner) = Some(stand_ins);
    Ok(node)
});

/// What stands in for the bridge plugin and for the runtime.
struct StandIns {
    bridge: StandIn,
    runtime: StandIn,
}

static STAND_INS: Mutex<Option<StandIns>> = Mutex::new(None);

fn main() -> ExitCode {
    let modules: &[&[Test]] = &[
        pull::TESTS,
        network::TESTS,
        runtime::TESTS,
        requests::TESTS,
        mounts::TESTS,
        configuration::TESTS,
        hang::TESTS,
    ];
    testkit::harness::run_then(&modules.concat(), || {
        let finished = NODE.finish();
        drop(STAND_INS.lock().unwrap_or_else(PoisonError::into_inner).take());
        finished
    })
}

#[expect(clippy::disallowed_methods, reason = "a file in the test's own directory")]
fn put(path: &std::path::Path, text: &str) -> Result {
    Ok(std::fs::write(path, text)?)
}

/// The machine's crun.
fn crun() -> Result<std::path::PathBuf> {
    let places = ["/usr/bin/crun", "/usr/local/bin/crun"];
    let found = places.iter().map(std::path::PathBuf::from).find(|path| path.exists());
    found.ok_or_else(|| "crun is not installed (scripts/deps installs it)".into())
}

/// Lends the node and its stand-ins; afterwards these do again what the real ones do.
fn with_stand_ins(test: impl FnOnce(&Node, &StandIns) -> Result) -> Result {
    NODE.test(|node| {
        let stand_ins = STAND_INS.lock().unwrap_or_else(PoisonError::into_inner);
        let stand_ins = stand_ins.as_ref().ok_or("the stand-ins are there with the node")?;
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| test(node, stand_ins)));
        for verb in ["ADD", "DEL", "CHECK", "STATUS", "GC"] {
            stand_ins.bridge.set(verb, testkit::Behaviour::Real)?;
        }
        for verb in ["create", "start", "exec", "kill", "delete", "state"] {
            stand_ins.runtime.set(verb, testkit::Behaviour::Real)?;
        }
        match result {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

/// The status of a call that must fail; its text, which is one line and names all of `parts`.
fn refused<T>(answer: Result<T, tonic::Status>, parts: &[&str]) -> Result<tonic::Status> {
    let status = answer.err().ok_or("it succeeded")?;
    for part in parts {
        assert!(status.message().contains(part), "{part:?} is not in: {status}");
    }
    assert!(!status.message().trim_end().contains('\n'), "{status}");
    Ok(status)
}

/// A small pod still runs: nothing was broken by what went before.
fn still_works(node: &Node) -> Result {
    let config = node.cri.pod("still-works");
    let pod = node.cri.run_pod_as(&config, "real")?;
    let id = node.cri.create(&pod, &node.cri.container("c", &node.image, &["sleep", "100"]), &config)?;
    node.cri.start(&id)?;
    assert_eq!(node.cri.exec(&id, &["cat", "/etc/hello"], 10)?.stdout, b"hello from the image\n");
    node.cri.stop(&id, 0)?;
    node.cri.remove_pod(&pod)?;
    Ok(())
}
