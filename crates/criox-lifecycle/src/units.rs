//! What systemd is told where it manages cgroups: it comes to know the groups that are made here as units of its own.
//!
//! A monitor is born in its group, so it needs systemd for nothing: one that can't be reached costs a warning and its
//! own time limit, no pod. What systemd does not know, it leaves alone.

use std::sync::Arc;
use std::time::Duration;

use criox_records::{ProcessIdentity, SandboxRecord};
use criox_sys::cgroup::{Driver, slice_path};
use criox_systemd::{Scope, Systemd};
use tokio::time::timeout;

use crate::context::Context;

/// What the daemon is called where it is no service of systemd.
const SERVICE: &str = "crio.service";
/// What the end of an empty scope may cost a pod's removal.
const END: Duration = Duration::from_secs(10);
/// Between attempts to stop a scope that was not stopped in time, and how many there are.
const AGAIN: Duration = Duration::from_secs(30);
const ATTEMPTS: u32 = 20;

/// Starts the slice of a pod if nobody has: the kubelet makes those of its pods, other callers rely on the runtime.
pub(crate) async fn start_slice(context: &Context, sandbox: &SandboxRecord) {
    if context.driver() != Driver::Systemd {
        return;
    }
    let Some(slice) = sandbox.cgroup_parent.rsplit('/').next() else { return };
    let missing = slice_path(slice).is_ok_and(|path| !context.cgroups.exists(&path));
    if missing && let Err(error) = context.systemd.start_slice(slice).await {
        tracing::warn!(sandbox = %sandbox.id, %error, "the pod's slice is made without systemd");
    }
}

/// Tells systemd of a process that was born in the group of a scope: `/some.slice/name.scope`.
pub(crate) async fn adopt(
    context: &Context,
    sandbox: &SandboxRecord,
    group: &str,
    process: ProcessIdentity,
    what: &str,
) {
    if context.driver() != Driver::Systemd {
        return;
    }
    let mut parts = group.rsplit('/');
    let (Some(name), slice) = (parts.next(), parts.next().filter(|slice| !slice.is_empty())) else { return };
    let description = format!("{what} of pod sandbox {}", sandbox.id);
    let own = own_service();
    let scope = Scope {
        name,
        slice: slice.unwrap_or("-.slice"),
        pid: process.pid,
        description: &description,
        after: &[own.as_deref().unwrap_or(SERVICE)],
    };
    if let Err(error) = context.systemd.start_scope(scope).await
        && criox_sys::process::is_alive(process.pid, process.start_time)
    {
        tracing::warn!(sandbox = %sandbox.id, %error, "systemd does not know the scope {name}; it runs all the same");
    }
}

/// As [`adopt`], beside everything else: also for the monitors that a start of the daemon finds, for a daemon may have
/// ended, or systemd may have been away, before the unit was made. A unit that there is stays as it is.
pub(crate) fn adopt_monitor(
    context: &Arc<Context>,
    sandbox: &SandboxRecord,
    group: String,
    monitor: ProcessIdentity,
) {
    if context.driver() == Driver::Systemd {
        let (context, sandbox) = (context.clone(), sandbox.clone());
        tokio::spawn(async move { adopt(&context, &sandbox, &group, monitor, "monitor").await });
    }
}

/// Stops the scopes of groups in which nothing runs any more; systemd removes the groups with them. It must be asked: a
/// group that goes without its word can be made again for the unit, which then never ends.
pub(crate) async fn end(context: &Context, groups: &[String]) {
    if context.driver() != Driver::Systemd {
        return;
    }
    for name in groups.iter().filter_map(|group| scope_of(group)) {
        let late = || format!("it is not finished after {} s", END.as_secs());
        let reason = match timeout(END, context.systemd.stop(name)).await {
            Ok(Ok(())) => continue,
            Ok(Err(error)) => error.to_string(),
            Err(_) => late(),
        };
        tracing::warn!(unit = name, reason, "a scope that is over was not stopped; trying again later");
        tokio::spawn(end_later(context.systemd.clone(), name.to_owned()));
    }
}

/// The scope that a group belongs to. The groups of spare monitors are none: no unit is made for what may never be used.
fn scope_of(group: &str) -> Option<&str> {
    group.rsplit('/').next().filter(|name| name.ends_with(".scope"))
}

async fn end_later(systemd: Systemd, unit: String) {
    for _ in 0..ATTEMPTS {
        tokio::time::sleep(AGAIN).await;
        if systemd.stop(&unit).await.is_ok() {
            return;
        }
    }
    tracing::warn!(unit, "a scope that is over stays with systemd: stop it with systemctl stop");
}

/// The service that this process belongs to.
fn own_service() -> Option<String> {
    service_in(&std::fs::read_to_string("/proc/self/cgroup").ok()?)
}

/// The last name of a service in the text of `/proc/<pid>/cgroup` (cgroups(7)).
fn service_in(text: &str) -> Option<String> {
    let paths = text.lines().filter_map(|line| {
        let (controllers, path) = line.split_once(':')?.1.split_once(':')?;
        (controllers.is_empty() || controllers == "name=systemd").then_some(path)
    });
    let names = paths.flat_map(|path| path.rsplit('/')).find(|name| name.ends_with(".service"));
    names.map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_daemons_service_is_found_in_its_own_cgroup() {
        let check = |text: &str, expected: Option<&str>| assert_eq!(service_in(text).as_deref(), expected);
        check("0::/system.slice/criox.service\n", Some("criox.service"));
        check("0::/system.slice/criox.service/sub\n", Some("criox.service"));
        check("5:memory:/x.service\n1:name=systemd:/system.slice/crio.service\n", Some("crio.service"));
        check("0::/user.slice/session-1.scope\n", None);
        check("", None);
    }

    #[test]
    fn only_scopes_are_ended() {
        let check = |group: &str, expected: Option<&str>| assert_eq!(scope_of(group), expected);
        check("/kubepods.slice/crio-1.scope", Some("crio-1.scope"));
        check("/kubepods.slice/crio-1", None);
        check("/kubepods.slice", None);
        check("", None);
    }
}
