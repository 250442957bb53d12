//! What the tests share: a registry on loopback, images made on the spot, a daemon to start and kill.
//!
//! | module | for |
//! |---|---|
//! | [`harness`] | a `main` for tests that need root and namespaces of their own |
//! | [`tar`] | layers byte by byte, also the ones that no decent program writes |
//! | [`image`] | images and indexes from such layers |
//! | [`registry`] | a real registry on loopback, which can be frozen, spoilt and asked for a password |
//! | [`daemon`] | the daemon with everything of its own in a temporary directory |
//! | [`shared`] | a daemon, a registry and an image that several tests use, one after the other |
//! | [`standin`] | CNI plugins and OCI runtimes that fail and hang when told to |
//! | [`cri`] | a blocking CRI client |
//! | [`cgroups`] | where groups are and what limits they have, with cgroup v1 and v2 |
//! | [`mod@leftovers`] | what a dead pod should not have left |

pub mod cgroups;
pub mod cri;
pub mod daemon;
pub mod harness;
pub mod image;
pub mod leftovers;
pub mod registry;
pub mod shared;
pub mod standin;
pub mod tar;

pub use cri::Cri;
pub use daemon::Daemon;
pub use image::{Compression, Image, ImageBuilder, busybox_image};
pub use leftovers::{Traces, leftovers};
pub use registry::Registry;
pub use shared::{Node, Shared};
pub use standin::{Behaviour, StandIn};
pub use tar::Entry;

/// Whatever went wrong, with its chain. Tests branch on nothing.
pub type Error = Box<dyn std::error::Error + Send + Sync>;

/// The result of a test and of everything that a test calls here.
pub type Result<T = (), E = Error> = std::result::Result<T, E>;

/// Asks `ready` every 10 ms until it has a value; after `limit` the error says what was waited for.
pub fn wait_for<T>(
    what: &str,
    limit: std::time::Duration,
    mut ready: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let start = std::time::Instant::now();
    loop {
        if let Some(value) = ready()? {
            return Ok(value);
        }
        if start.elapsed() > limit {
            return Err(format!("waited {:.1} s for {what}", limit.as_secs_f64()).into());
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
}
