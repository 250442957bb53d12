//! A daemon that several tests use, one after the other: starting one for each would take longer than the tests.

use std::sync::{Arc, Mutex, PoisonError};

use crate::{Cri, Daemon, Registry, Result, busybox_image};

/// A registry, a daemon that may pull from it, a client, and an image that is pulled already.
#[derive(Debug)]
pub struct Node {
    /// The registry that has the image.
    pub registry: Registry,
    /// The daemon.
    pub daemon: Daemon,
    /// A client of it.
    pub cri: Cri,
    /// The reference of [`busybox_image`].
    pub image: String,
}

impl Node {
    /// With a daemon as `make` wants it; it is given the registry.
    pub fn start(make: impl FnOnce(&Registry) -> Result<Daemon>) -> Result<Self> {
        let registry = Registry::start()?;
        let image = busybox_image()?.build()?.push(&registry, "tests/busybox", "1")?;
        let daemon = make(&registry)?;
        let cri = daemon.cri()?;
        cri.pull(&image)?;
        Ok(Self { registry, daemon, cri, image })
    }
}

/// A [`Node`] in a `static`, made when the first test asks for it.
#[derive(Debug)]
pub struct Shared {
    node: Mutex<Option<Arc<Node>>>,
    make: fn() -> Result<Node>,
}

impl Shared {
    /// Not started yet.
    pub const fn new(make: fn() -> Result<Node>) -> Self {
        Self { node: Mutex::new(None), make }
    }

    /// Lends the node to a test. Afterwards the test's pods are removed, and anything that they leave fails the test.
    ///
    /// A node whose daemon has died (of an earlier test), or that keeps what a test has left, is made anew.
    pub fn test(&self, test: impl FnOnce(&Node) -> Result) -> Result {
        let node = {
            let mut slot = self.node.lock().unwrap_or_else(PoisonError::into_inner);
            if slot.as_ref().is_some_and(|node| node.cri.version().is_err()) {
                *slot = None;
            }
            match &*slot {
                Some(node) => Arc::clone(node),
                None => Arc::clone(slot.insert(Arc::new((self.make)()?))),
            }
        };
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| test(&node)));
        let removed = node.cri.remove_all_pods();
        match result {
            Ok(result) => result?,
            Err(panic) => std::panic::resume_unwind(panic),
        }
        removed?;
        let left = node.daemon.leftovers();
        if left.is_empty() {
            return Ok(());
        }
        // The next test would find the same again.
        *self.node.lock().unwrap_or_else(PoisonError::into_inner) = None;
        Err(format!("left behind: {}", left.join("; ")).into())
    }

    /// Ends the daemon, and fails if anything is left.
    pub fn finish(&self) -> Result {
        let node = self.node.lock().unwrap_or_else(PoisonError::into_inner).take();
        match node.and_then(Arc::into_inner) {
            Some(node) => node.daemon.finish(),
            None => Ok(()),
        }
    }
}
