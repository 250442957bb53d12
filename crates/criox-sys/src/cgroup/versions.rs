//! Which versions of cgroups processes have places in.

use std::io;

/// Whether this process has places in controllers of v1 and in v2's tree as well, so that containers have, too: a hybrid
/// machine (cgroups(7), `/proc/pid/cgroup`).
pub fn both_versions() -> io::Result<bool> {
    std::fs::read_to_string("/proc/self/cgroup").map(|text| both_in(&text))
}

/// Lines are `id:controllers:path`, that of v2 is `0::path`; systemd's own hierarchy of v1 has no controller.
fn both_in(text: &str) -> bool {
    let controllers = |line: &str| !matches!(line.split(':').nth(1), None | Some("" | "name=systemd"));
    text.lines().any(|line| line.starts_with("0::")) && text.lines().any(controllers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_with_both_versions_of_cgroups_is_told_from_one_with_one() {
        assert!(both_in("9:name=systemd:/\n8:pids:/x\n0::/\n"));
        for one in ["0::/a\n", "8:pids:/\n1:name=systemd:/\n", "1:name=systemd:/\n0::/\n", ""] {
            assert!(!both_in(one), "{one:?}");
        }
    }
}
