//! criox as a service of systemd on a node with cgroup v2 and AppArmor. `scripts/node test` runs this program in the guest.
//!
//! The tests use the machine as it is: its service, its D-Bus, its cgroup tree. Nothing of that is there outside of the
//! guest, so elsewhere the program ends at once.

mod checkpoint;
mod guest;
mod journal;
mod limits;
mod restarts;
mod security;
mod service;
mod units;

use std::process::ExitCode;

use testkit::harness;

fn main() -> ExitCode {
    if std::env::var_os("CRIOX_NODE_DIST").is_none() {
        return ExitCode::SUCCESS;
    }
    let long = std::env::var_os("CRIOX_NODE_LONG").is_some();
    let mut tests: Vec<harness::Test> = [
        units::TESTS,
        limits::TESTS,
        security::TESTS,
        service::TESTS,
        journal::TESTS,
        checkpoint::TESTS,
        restarts::TESTS,
    ]
    .concat();
    if long {
        tests.extend_from_slice(restarts::LONG);
    }
    harness::run_then(&tests, guest::finish)
}
