//! Where things lie. Everything is named from an ID, so that undoing, recovery and collection need nothing else.

use std::path::{Path, PathBuf};

use crate::namespaces::Namespace;

/// The roots of the daemon.
#[derive(Debug, Clone)]
pub struct Paths {
    graph_root: PathBuf,
    run_root: PathBuf,
    namespaces: PathBuf,
}

impl Paths {
    /// Below the graph root (survives a reboot), the run root and the directory of pinned namespaces (do not).
    pub fn new(
        graph_root: impl Into<PathBuf>,
        run_root: impl Into<PathBuf>,
        namespaces: impl Into<PathBuf>,
    ) -> Self {
        Self { graph_root: graph_root.into(), run_root: run_root.into(), namespaces: namespaces.into() }
    }

    /// The pin of a pod's namespace, where CRI-O has it too: `<namespaces_dir>/netns/<ID>` and the like.
    pub fn namespace(&self, kind: Namespace, sandbox: &str) -> PathBuf {
        self.namespaces.join(kind.directory()).join(sandbox)
    }

    /// Records of all pods.
    pub fn pods(&self) -> PathBuf {
        self.graph_root.join("criox/pods")
    }

    /// Records of one pod.
    pub fn pod(&self, sandbox: &str) -> PathBuf {
        self.pods().join(sandbox)
    }

    /// An empty directory where cAdvisor looks for the writable layer of the sandbox itself, with every pass over its
    /// containers, and complains if there is none: that of the pod's records is given as the sandbox's root.
    pub fn no_layer(&self, sandbox: &str) -> PathBuf {
        self.pod(sandbox).join("diff")
    }

    /// The record of a sandbox.
    pub fn sandbox_record(&self, sandbox: &str) -> PathBuf {
        self.pod(sandbox).join("sandbox.json")
    }

    /// What the network owes: the intent of an ADD, later its result.
    pub fn network_record(&self, sandbox: &str) -> PathBuf {
        self.pod(sandbox).join("network.json")
    }

    /// Networks that could not be given back when their pod was removed; tried again.
    pub fn network_debts(&self) -> PathBuf {
        self.graph_root.join("criox/network-debts")
    }

    /// The record of a container.
    pub fn container_record(&self, sandbox: &str, container: &str) -> PathBuf {
        self.pod(sandbox).join(format!("container-{container}.json"))
    }

    /// What is being captured of containers for an archive, and nothing else: empty when no call is at work.
    pub fn captures(&self) -> PathBuf {
        self.graph_root.join("criox/captures")
    }

    /// What is being captured of a container.
    pub fn capture(&self, container: &str) -> PathBuf {
        self.captures().join(container)
    }

    /// The checkpoints that containers go on from, which are not needed after the start.
    pub fn intakes(&self) -> PathBuf {
        self.graph_root.join("criox/intakes")
    }

    /// The checkpoint that a container goes on from.
    pub fn intake(&self, container: &str) -> PathBuf {
        self.intakes().join(container)
    }

    /// Where a pod's checkpoint is being written to, while it is.
    pub fn checkpoint_intent(&self, sandbox: &str) -> PathBuf {
        self.pod(sandbox).join("checkpoint.json")
    }

    /// Run directories of all pods.
    pub fn runs(&self) -> PathBuf {
        self.run_root.join("criox")
    }

    /// Where the roots of containers in user namespaces are reached.
    pub fn ways(&self) -> PathBuf {
        self.run_root.join("criox-roots")
    }

    /// The run directory of a pod: the monitor's socket and log, exit records, pinned namespaces, shm.
    pub fn run(&self, sandbox: &str) -> RunDir {
        RunDir(self.runs().join(sandbox))
    }
}

/// The run directory of a pod.
#[derive(Debug, Clone)]
pub struct RunDir(PathBuf);

impl RunDir {
    /// Itself.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// The socket on which the monitor listens.
    pub fn monitor_socket(&self) -> PathBuf {
        self.0.join("monitor.sock")
    }

    /// What the monitor writes to its standard error.
    pub fn monitor_log(&self) -> PathBuf {
        self.0.join("monitor.log")
    }

    /// The exit record of a container, written by the monitor.
    pub fn exit_record(&self, container: &str) -> PathBuf {
        self.0.join("exits").join(container)
    }

    /// The tmpfs that is `/dev/shm` of the pod's containers.
    pub fn shm(&self) -> PathBuf {
        self.0.join("shm")
    }

    /// `/etc/resolv.conf` of the pod.
    pub fn resolv_conf(&self) -> PathBuf {
        self.0.join("resolv.conf")
    }

    /// `/etc/hostname` of the pod.
    pub fn hostname(&self) -> PathBuf {
        self.0.join("hostname")
    }

    /// An empty file, `/run/.containerenv` of the pod's containers.
    pub fn containerenv(&self) -> PathBuf {
        self.0.join(".containerenv")
    }
}
