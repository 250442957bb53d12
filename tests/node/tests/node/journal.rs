//! `log_to_journald` with a real journald: read back with `journalctl`.

use criox_cri::v1::ContainerState;
use testkit::harness::Test;
use testkit::{Result, wait_for};

use crate::guest::{self, Guest, Ids, LIMIT, put, sh};

pub(crate) const TESTS: &[Test] = &[
    ("what a container logs is in the journal too, with its fields, also where a line is long", || {
        guest::test(fields)
    }),
    ("a journald that is started anew misses nothing, and one that hangs holds up no container", || {
        guest::test(faults)
    }),
];

const SWITCH: &str = "/etc/crio/crio.conf.d/30-journal.conf";

fn journaled(test: impl FnOnce() -> Result) -> Result {
    put(SWITCH, "[crio.runtime]\nlog_to_journald = true\n")?;
    sh("systemctl restart criox")?;
    let result = test();
    sh(&format!("rm {SWITCH}; systemctl restart criox"))?;
    result
}

fn run(guest: &Guest, name: &str, script: &str) -> Result<Ids> {
    let pod = guest.pod(name);
    guest.run(&pod, "", &guest.cri.container("main", &guest.image, &["sh", "-c", script]))
}

/// Messages of the entries that have all these fields.
fn entries(matches: &str) -> Result<Vec<String>> {
    // The status says only whether there are any.
    let text = sh(&format!("journalctl --no-pager --all --quiet --output cat {matches} || true"))?;
    Ok(text.lines().map(ToOwned::to_owned).collect())
}

/// Content of the records in the log file.
fn logged(guest: &Guest, container: &str) -> Result<Vec<String>> {
    let log = guest.cri.log(container)?;
    Ok(log.lines().filter_map(|line| line.splitn(4, ' ').nth(3)).map(ToOwned::to_owned).collect())
}

fn fields(guest: &Guest) -> Result {
    journaled(|| {
        // As long as a piece of a line, a datagram doesn't fit any more: it goes as a file in memory.
        let before = sh("sysctl -n net.core.wmem_default")?;
        sh("sysctl -q -w net.core.wmem_default=8192")?;
        let script = "echo one; echo oops >&2; head -c 40000 /dev/zero | tr '\\0' x; echo; sleep 1; echo end";
        let ran = run(guest, "journal", script);
        let ended = ran.and_then(|ids| {
            guest.cri.wait_state(&ids.container, ContainerState::ContainerExited, LIMIT)?;
            Ok(ids)
        });
        sh(&format!("sysctl -q -w net.core.wmem_default={before}"))?;
        let Ids { sandbox, container } = ended?;
        let all = format!("CONTAINER_ID_FULL={container}");
        wait_for("the last line", LIMIT, || {
            Ok(entries(&all)?.last().is_some_and(|last| last == "end").then_some(()))
        })?;
        let expected = logged(guest, &container)?;
        let mut found = entries(&all)?;
        assert_eq!(found.len(), expected.len());
        // The two streams have no order between them.
        assert!(found.iter().all(|line| expected.contains(line)));
        found.retain(|line| line.starts_with('x'));
        assert_eq!(found.iter().map(String::len).sum::<usize>(), 40_000);
        assert_eq!(entries(&format!("{all} PRIORITY=3"))?, ["oops"]);
        // Two at least; more where the writer was kept waiting in the middle of the line.
        assert_eq!(entries(&format!("{all} CONTAINER_PARTIAL_MESSAGE=true"))?.len(), found.len() - 1);
        assert!(found.len() >= 3);
        let short = container.get(..12).ok_or("an ID")?;
        let unit = format!("_SYSTEMD_UNIT=crio-conmon-{sandbox}.scope");
        for matches in [format!("CONTAINER_ID={short}"), unit] {
            assert_eq!(entries(&format!("{all} {matches}"))?.len(), expected.len(), "{matches}");
        }
        let name = sh(&format!("journalctl --no-pager -o verbose {all} -n 1"))?;
        let name =
            name.lines().find_map(|line| line.trim().strip_prefix("CONTAINER_NAME=")).ok_or("no name")?;
        assert!(name.starts_with("k8s_main_"), "{name}");
        assert_eq!(entries(&format!("{all} -t {name}"))?.len(), expected.len());
        Ok(())
    })
}

fn faults(guest: &Guest) -> Result {
    journaled(|| {
        let ids = run(
            guest,
            "journal-anew",
            "i=0; while [ $i -lt 100 ]; do echo line $i; i=$((i+1)); sleep 0.1; done",
        )?;
        let all = format!("CONTAINER_ID_FULL={}", ids.container);
        let has = |lines: usize| {
            wait_for("lines in the journal", LIMIT, || Ok((entries(&all)?.len() >= lines).then_some(())))
        };
        has(10)?;
        sh("systemctl restart systemd-journald")?;
        has(100)?;
        assert_eq!(entries(&all)?, (0..100).map(|n| format!("line {n}")).collect::<Vec<_>>());

        sh("systemctl kill --signal STOP systemd-journald")?;
        // More than its socket and the monitor's queue hold.
        let script = "yes 'a line of some fifty bytes, as programs write them' | head -n 20000; echo end";
        let ran = run(guest, "journal-hangs", script).and_then(|ids| {
            guest.cri.wait_state(&ids.container, ContainerState::ContainerExited, LIMIT)?;
            Ok((logged(guest, &ids.container)?.len(), ids))
        });
        sh("systemctl kill --signal CONT systemd-journald")?;
        let (lines, ids) = ran?;
        // Records: a writer that is kept waiting in the middle of a line makes one more.
        assert!(lines > 20_000, "{lines}");
        let all = format!("CONTAINER_ID_FULL={}", ids.container);
        wait_for("the note in the journal", LIMIT, || {
            let entries = entries(&all)?;
            let missing = entries
                .iter()
                .find_map(|line| line.strip_prefix("criox: ")?.split(' ').next()?.parse::<usize>().ok());
            Ok((missing.is_some_and(|missing| entries.len() - 1 + missing == lines)).then_some(()))
        })
    })
}
