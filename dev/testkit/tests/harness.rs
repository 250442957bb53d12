//! The harness, by what its tests find around them.

use std::process::ExitCode;

use testkit::Result;
use testkit::harness::INSIDE;

fn main() -> ExitCode {
    testkit::harness::run(&[
        ("the mount and the network namespace are not the machine's", namespaces_are_new),
        ("loopback is up", loopback_is_up),
        ("crun runs here", crun_runs),
        ("the root mount is shared, as bidirectional volumes need it", mounts_are_shared),
    ])
}

fn loopback_is_up() -> Result {
    let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
    std::net::TcpStream::connect(listener.local_addr()?)?;
    Ok(())
}

fn crun_runs() -> Result {
    let root = tempfile::tempdir()?;
    let output = std::process::Command::new("crun").arg("--root").arg(root.path()).arg("list").output()?;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

fn namespaces_are_new() -> Result {
    let outer = std::env::var(INSIDE)?;
    let inner = testkit::harness::namespaces();
    for (outer, inner) in outer.split(' ').zip(inner.split(' ')) {
        assert_ne!(outer, inner);
    }
    Ok(())
}

fn mounts_are_shared() -> Result {
    let inside = std::fs::read_to_string("/proc/self/mountinfo")?;
    let root = inside.lines().find(|line| line.split(' ').nth(4) == Some("/")).ok_or("no root mount")?;
    assert!(root.contains(" shared:"), "{root}");
    Ok(())
}
