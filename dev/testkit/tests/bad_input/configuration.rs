//! Whoever wrote `crio.conf`.

use std::time::{Duration, Instant};

use testkit::harness::Test;
use testkit::{Daemon, Result};

pub(crate) const TESTS: &[Test] = &[
    ("all mistakes of a configuration are told at once, with file and line", all_at_once),
    ("a file that isn't TOML is told with file and line", no_toml),
    ("a second daemon on the same directories is refused", second_daemon),
];

/// Starts a daemon that must not start; what it says.
fn refusal(builder: testkit::daemon::Builder) -> Result<String> {
    let daemon = builder.prepare()?;
    let begun = Instant::now();
    let output = daemon.command().output()?;
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    assert!(!output.status.success());
    assert!(!daemon.socket().exists());
    Ok(String::from_utf8(output.stderr)?)
}

fn all_at_once() -> Result {
    let said = refusal(
        Daemon::builder()
            .drop_in("[crio.runtime]\n\ncgroup_manager = \"nonsense\"\npids_limit = \"many\"\n")
            .drop_in("# first\n[crio.runtime]\ndefault_capabilities = [\"NO_SUCH\"]\n[crio.image]\nimage_volumes = 7\n"),
    )?;
    for part in [
        "00-test.conf:3: ",
        "cgroup_manager",
        "nonsense",
        "00-test.conf:4: ",
        "pids_limit",
        "01-test.conf:3: ",
        "NO_SUCH",
        "01-test.conf:5: ",
        "image_volumes",
    ] {
        assert!(said.contains(part), "{part:?} is not in:\n{said}");
    }
    Ok(())
}

fn no_toml() -> Result {
    let said = refusal(Daemon::builder().drop_in("[crio.runtime]\nlog_level = \n"))?;
    assert!(said.contains("00-test.conf:2"), "{said}");
    Ok(())
}

fn second_daemon() -> Result {
    let daemon = Daemon::builder().without_network().start()?;
    let output = daemon.command().output()?;
    assert!(!output.status.success());
    let said = String::from_utf8(output.stderr)?;
    let last = said.lines().last().unwrap_or_default();
    let run_root = daemon.run_root().display().to_string();
    assert!(last.contains("another criox") && last.contains(&run_root), "{last}");
    daemon.cri()?.version()?;
    daemon.finish()
}
