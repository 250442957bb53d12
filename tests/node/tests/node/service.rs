//! The unit: ready, watched, read again, and CRI-O's own in its place.

use std::path::Path;

use testkit::harness::Test;
use testkit::{Result, wait_for};

use crate::guest::{self, Guest, LIMIT, property, put, sh};

pub(crate) const TESTS: &[Test] = &[
    ("the service is ready when it answers, and says what it does", || guest::test(ready)),
    ("a reload is over when the configuration has been read", || guest::test(reload)),
    ("a daemon whose main loop hangs is ended by the watchdog, and its pods live on", || {
        guest::test(watchdog)
    }),
    ("a unit with the contents of CRI-O's runs the daemon as crio", || guest::test(crio_unit)),
];

fn ready(guest: &Guest) -> Result {
    sh("systemctl restart criox")?;
    // Ready means that the first call is answered.
    guest.cri.version()?;
    assert_eq!(property("criox", "StatusText")?, format!("serving {}", guest::SOCKET));
    assert_eq!(property("criox", "NRestarts")?, "0");
    assert_eq!(sh("cat /proc/$(systemctl show --value --property MainPID criox)/oom_score_adj")?, "-999");
    Ok(())
}

fn reload(guest: &Guest) -> Result {
    let pid = property("criox", "MainPID")?;
    sh("systemctl reload criox")?;
    wait_for("the reload to be over", LIMIT, || {
        Ok((property("criox", "ActiveState")? == "active"
            && property("criox", "StatusText")?.starts_with("serving"))
        .then_some(()))
    })?;
    assert_eq!(property("criox", "MainPID")?, pid);
    guest.cri.version()?;
    let log = sh("journalctl --no-pager --output cat --unit criox")?;
    assert!(log.contains("SIGHUP: read"), "{log}");
    Ok(())
}

fn watchdog(guest: &Guest) -> Result {
    const DROP_IN: &str = "/run/systemd/system/criox.service.d";
    std::fs::create_dir_all(DROP_IN)?;
    put(&format!("{DROP_IN}/watchdog.conf"), "[Service]\nWatchdogSec=6s\nTimeoutAbortSec=2s\n")?;
    sh("systemctl daemon-reload && systemctl restart criox")?;
    let ids = guest.service("watched")?;
    let pid = property("criox", "MainPID")?;
    // Longer than the interval: petted, it stays.
    std::thread::sleep(std::time::Duration::from_secs(8));
    assert_eq!(property("criox", "MainPID")?, pid);
    sh(&format!("kill -STOP {pid}"))?;
    wait_for("another daemon", LIMIT, || {
        let now = property("criox", "MainPID")?;
        Ok((now != pid && now != "0").then_some(()))
    })?;
    guest.answers()?;
    assert_eq!(property("criox", "NRestarts")?, "1");
    assert!(guest.is_running(&ids.container)?);
    sh(&format!("rm -r {DROP_IN} && systemctl daemon-reload && systemctl restart criox"))?;
    Ok(())
}

/// What CRI-O's unit says, as far as it says anything about the daemon; its path is another there.
const CRIO_UNIT: &str = "[Unit]
After=network-online.target
[Service]
Type=notify
KillMode=process
EnvironmentFile=-/etc/sysconfig/crio
Environment=GOTRACEBACK=crash
ExecStart=/usr/local/bin/crio \\
    $CRIO_CONFIG_OPTIONS \\
    $CRIO_RUNTIME_OPTIONS \\
    $CRIO_STORAGE_OPTIONS \\
    $CRIO_NETWORK_OPTIONS \\
    $CRIO_METRICS_OPTIONS
ExecReload=/bin/kill -s HUP $MAINPID
TasksMax=infinity
LimitNPROC=1048576
LimitCORE=infinity
OOMScoreAdjust=-999
TimeoutStartSec=0
Restart=on-failure
RestartSec=10
WatchdogSec=60s
";

fn crio_unit(guest: &Guest) -> Result {
    let before = guest.service("before")?;
    sh("systemctl stop criox")?;
    std::fs::create_dir_all("/etc/sysconfig")?;
    put("/etc/sysconfig/crio", "CRIO_RUNTIME_OPTIONS=--log-level=debug\n")?;
    put("/etc/systemd/system/crio.service", CRIO_UNIT)?;
    // Beside its monitor, as a package would put it.
    sh("cp /usr/bin/criox /usr/local/bin/crio && cp /usr/bin/criox-monitor /usr/local/bin/")?;
    let run = || -> Result {
        sh("systemctl daemon-reload && systemctl start crio")?;
        guest.cri.version()?;
        assert!(guest.is_running(&before.container)?);
        let ids = guest.service("crio")?;
        let scope = format!("crio-conmon-{}.scope", ids.sandbox);
        wait_for("the monitor's scope", LIMIT, || {
            Ok((property(&scope, "ActiveState")? == "active").then_some(()))
        })?;
        assert!(property(&scope, "After")?.split(' ').any(|unit| unit == "crio.service"));
        assert!(sh("journalctl --no-pager --output cat --unit crio")?.contains("DEBUG"));
        sh("systemctl reload crio && systemctl restart crio")?;
        guest.answers()?;
        assert!(guest.is_running(&ids.container)?);
        assert!(Path::new("/proc").join(property("crio", "MainPID")?).exists());
        Ok(())
    };
    let ran = run();
    sh(
        "systemctl stop crio; rm /etc/systemd/system/crio.service /etc/sysconfig/crio /usr/local/bin/crio*; systemctl daemon-reload",
    )?;
    ran
}
