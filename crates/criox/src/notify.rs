//! sd_notify(3): tells systemd that the daemon is ready, alive, ending. Without `NOTIFY_SOCKET` nothing is said.

use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

/// The daemon accepts requests.
pub(crate) fn ready() {
    send("READY=1");
}

/// The daemon ends.
pub(crate) fn stopping() {
    send("STOPPING=1");
}

/// Pets the watchdog at half its interval, as long as the runtime's threads turn.
pub(crate) async fn watchdog() {
    let interval = std::env::var("WATCHDOG_USEC").ok().and_then(|text| text.parse::<u64>().ok());
    let own = std::env::var("WATCHDOG_PID").ok().is_none_or(|pid| pid == std::process::id().to_string());
    let Some(interval) = interval.filter(|interval| own && *interval > 0) else { return };
    let mut ticks = tokio::time::interval(Duration::from_micros(interval) / 2);
    loop {
        ticks.tick().await;
        send("WATCHDOG=1");
    }
}

fn send(state: &str) {
    let Some(path) = std::env::var_os("NOTIFY_SOCKET") else { return };
    let path = path.to_string_lossy();
    let address = match path.strip_prefix('@') {
        Some(name) => SocketAddr::from_abstract_name(name),
        None => SocketAddr::from_pathname(&*path),
    };
    let sent = address.and_then(|address| UnixDatagram::unbound()?.send_to_addr(state.as_bytes(), &address));
    if let Err(error) = sent {
        tracing::warn!(%error, state, "systemd could not be told");
    }
}
