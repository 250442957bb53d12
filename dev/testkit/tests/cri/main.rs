//! What CRI obliges to, asked of the running daemon over its socket: each test is one sentence of the interface.
//!
//! | module | about |
//! |---|---|
//! | [`pod`] | a pod to test in |
//! | [`lifecycle`] | states, and requests that are repeated or come too late |
//! | [`join`] | creations that are retried |
//! | [`lists`] | filters, labels, annotations |
//! | [`namespaces`] | what containers share with their pod, the node and each other |
//! | [`files`] | what lies in a container: files of the pod, mounts, devices |
//! | [`process`] | who a container's process is, and what it may |
//! | [`security`] | what confines it |
//! | [`seccomp_artifact`] | filters that a registry keeps |
//! | [`seccomp_notify`] | calls that are refused, counted and end a container |
//! | [`devices`] | devices, and what a node's configuration gives to every container |
//! | [`resources`] | cgroups and limits |
//! | [`signals`] | how a container is stopped |
//! | [`logs`] | the log format |
//! | [`events`] | GetContainerEvents |
//! | [`stats`] | statistics of containers and pods |
//! | [`metrics`] | the same for Prometheus |
//! | [`streams`] | lists as streams |
//! | [`images`] | the image service |
//! | [`proxy`] | pulls through a proxy |
//! | [`socket`] | the socket itself: HTTP, mode, sizes, what is not there |
//! | [`handlers`] | each runtime |
//! | [`userns`] | pods with users of their own |
//! | [`volumes`] | image volumes, recursive read-only mounts, options of mounts |
//! | [`updates`] | changed limits |
//! | [`checkpoint`] | checkpoints |
//! | [`traps`] | what bites a kubelet first |

mod checkpoint;
mod devices;
mod events;
mod files;
mod handlers;
mod images;
mod join;
mod lifecycle;
mod lists;
mod logs;
mod metrics;
mod namespaces;
mod pod;
mod process;
mod proxy;
mod resources;
mod seccomp_artifact;
mod seccomp_notify;
mod security;
mod signals;
mod socket;
mod stats;
mod streams;
mod traps;
mod updates;
mod userns;
mod volumes;

use std::process::ExitCode;

use testkit::daemon::peer;
use testkit::harness::Test;
use testkit::{Daemon, Node, Shared};

/// The daemon of all these tests.
static NODE: Shared = Shared::new(|| {
    Node::start(|registry| {
        let mut builder = Daemon::builder().registry(registry).runtime("crun", "").runtime("runc", "");
        for name in handlers::PEERS {
            // Without them the test about handlers says so.
            if let Ok(path) = peer(name) {
                builder = builder.runtime(&handlers::of_peer(name), path);
            }
        }
        builder.drop_in("[crio.stats]\nincluded_pod_metrics = [\"all\"]\n[crio.runtime]\ndefault_ulimits = [\"nofile=1000:2000\"]\n").start()
    })
});

fn main() -> ExitCode {
    let modules: &[&[Test]] = &[
        lifecycle::TESTS,
        join::TESTS,
        lists::TESTS,
        namespaces::TESTS,
        files::TESTS,
        process::TESTS,
        security::TESTS,
        seccomp_artifact::TESTS,
        seccomp_notify::TESTS,
        devices::TESTS,
        resources::TESTS,
        signals::TESTS,
        logs::TESTS,
        events::TESTS,
        images::TESTS,
        proxy::TESTS,
        socket::TESTS,
        stats::TESTS,
        metrics::TESTS,
        streams::TESTS,
        handlers::TESTS,
        userns::TESTS,
        volumes::TESTS,
        updates::TESTS,
        checkpoint::refused::TESTS,
        checkpoint::faults::TESTS,
        checkpoint::TESTS,
        traps::TESTS,
    ];
    testkit::harness::run_then(&modules.concat(), || {
        NODE.finish()
            .and_then(|()| devices::CONFIGURED.finish())
            .and_then(|()| seccomp_artifact::ALLOWED.finish())
            .and_then(|()| checkpoint::finish())
    })
}
