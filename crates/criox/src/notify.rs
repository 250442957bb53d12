//! sd_notify(3): tells systemd that the daemon is ready, alive, reads its configuration again, ends. Without
//! `NOTIFY_SOCKET` nothing is said.

use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use tokio::time::{Interval, MissedTickBehavior};

/// The daemon accepts requests.
pub(crate) fn ready(status: &str) {
    send(&format!("READY=1\nSTATUS={status}"));
}

/// The daemon reads its configuration again; [`ready`] follows. systemd wants to know since when.
pub(crate) fn reloading() {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    let microseconds = now.tv_sec * 1_000_000 + now.tv_nsec / 1000;
    send(&format!("RELOADING=1\nMONOTONIC_USEC={microseconds}\nSTATUS=reading the configuration again"));
}

/// The daemon ends.
pub(crate) fn stopping() {
    send("STOPPING=1\nSTATUS=ending; containers go on running");
}

/// The service's watchdog, petted at half its interval by the loop that lives as long as the daemon: when that hangs,
/// systemd starts another daemon, which finds all pods again.
#[derive(Debug)]
pub(crate) struct Watchdog(Option<Interval>);

impl Watchdog {
    /// As the environment says; none where the service has none.
    pub(crate) fn new() -> Self {
        let variable = |name: &str| std::env::var(name).ok();
        let own = std::process::id();
        let half = half_of(variable("WATCHDOG_USEC").as_deref(), variable("WATCHDOG_PID").as_deref(), own);
        Self(half.map(|half| {
            let mut ticks = tokio::time::interval(half);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            ticks
        }))
    }

    /// Waits until it is time, and pets it. Never returns where there is none.
    pub(crate) async fn pet(&mut self) {
        match &mut self.0 {
            Some(ticks) => {
                ticks.tick().await;
                send("WATCHDOG=1");
            }
            None => std::future::pending().await,
        }
    }
}

/// Half of the interval that systemd gives this process.
fn half_of(microseconds: Option<&str>, pid: Option<&str>, own: u32) -> Option<Duration> {
    let interval = microseconds?.parse::<u64>().ok().filter(|interval| *interval > 1)?;
    pid.is_none_or(|pid| pid == own.to_string()).then(|| Duration::from_micros(interval / 2))
}

fn send(state: &str) {
    let Some(path) = std::env::var_os("NOTIFY_SOCKET") else { return };
    let path = path.to_string_lossy();
    let address = match path.strip_prefix('@') {
        Some(name) => SocketAddr::from_abstract_name(name),
        None => SocketAddr::from_pathname(&*path),
    };
    let sent = address.and_then(|address| {
        let socket = UnixDatagram::unbound()?;
        // A systemd that takes nothing must not hold up the loop that it watches.
        socket.set_nonblocking(true)?;
        socket.send_to_addr(state.as_bytes(), &address)
    });
    if let Err(error) = sent {
        tracing::warn!(%error, state, "systemd could not be told");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_watchdog_is_petted_at_half_its_interval_and_only_by_its_own_process() {
        let half = Some(Duration::from_secs(30));
        assert_eq!(half_of(Some("60000000"), Some("7"), 7), half);
        assert_eq!(half_of(Some("60000000"), None, 7), half);
        assert_eq!(half_of(Some("60000000"), Some("8"), 7), None);
        for none in [None, Some(""), Some("0"), Some("1"), Some("-5"), Some("x")] {
            assert_eq!(half_of(none, None, 7), None, "{none:?}");
        }
    }
}
