//! Pulls on a node whose environment names a proxy.

use std::io::Write as _;

use testkit::harness::Test;
use testkit::{Daemon, Entry, Registry, Result, busybox_image};

pub(crate) const TESTS: &[Test] = &[
    ("an image comes through the proxy of the environment", through_the_proxy),
    ("a proxy that is not there is named, without its password", absent_proxy),
];

/// A name that nobody but a proxy can resolve.
const NAMED: &str = "registry.example:5000";
/// Reached without one.
const DIRECT: &str = "direct.example:5000";

/// A daemon for which plain registries of these names are well.
fn daemon(proxy: &str) -> Result<Daemon> {
    let mut daemon = Daemon::builder()
        .env("HTTP_PROXY", proxy)
        .env("https_proxy", proxy)
        .env("NO_PROXY", "10.0.0.0/8, .direct.example,direct.example")
        .prepare()?;
    let plain = |name| format!("[[registry]]\nlocation = \"{name}\"\ninsecure = true\n");
    let path = daemon.dir().join("registries.d/plain.conf");
    let mut file = std::fs::OpenOptions::new().write(true).create_new(true).open(path)?;
    file.write_all((plain(NAMED) + &plain(DIRECT)).as_bytes())?;
    daemon.start()?;
    Ok(daemon)
}

fn through_the_proxy() -> Result {
    // A registry that is asked with a whole address answers as if it were the proxy before it; it opens no tunnels, so that
    // its name is asked over plain HTTP in the end.
    let registry = Registry::start()?;
    let image = busybox_image()?.layer(&[Entry::file("etc/own", "proxied\n")]).build()?;
    image.push(&registry, "some/image", "1")?;
    let daemon = daemon(&format!("http://user:canary@{}", registry.address()))?;
    let cri = daemon.cri()?;
    assert_eq!(cri.pull(&format!("{NAMED}/some/image:1"))?, image.id());
    let refused = |name: &str| cri.pull(name).err().map(|error| error.to_string()).ok_or("it was pulled");
    let missing = refused(&format!("{NAMED}/no/such:1"))?;
    assert!(missing.contains(&format!("(through the proxy http://{})", registry.address())), "{missing}");
    let direct = refused(&format!("{DIRECT}/some/image:1"))?;
    assert!(direct.contains("can't be reached") && !direct.contains("proxy"), "{direct}");
    assert!(!daemon.log().contains("canary"), "a password is in the log");
    daemon.finish()
}

fn absent_proxy() -> Result {
    let daemon = daemon("http://user:canary@127.0.0.1:1")?;
    let refused = daemon.cri()?.pull(&format!("{NAMED}/some/image:1"));
    let message = refused.err().ok_or("it was pulled")?.to_string();
    assert!(message.contains("RegistryUnavailable"), "{message}");
    assert!(
        message.contains("can't be reached through the proxy http://127.0.0.1:1: no connection"),
        "{message}"
    );
    assert!(!message.contains("canary") && !daemon.log().contains("canary"), "{message}");
    daemon.finish()
}
