//! Units of systemd over one D-Bus connection: scopes around processes, slices, their ends.
//!
//! The connection is made when it is first needed, and again when it broke: systemd may execute itself anew and the bus
//! may be restarted at any time. systemd does things in jobs, so each call here returns when its job has ended, and has a
//! deadline. A bus that hangs is tried by one caller, and known to hang for a while: the others don't wait for it.

mod bus;
mod error;
mod unit;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout, timeout_at};

use bus::Bus;
pub use bus::Route;
use error::Attempt;
pub use error::SystemdError;
pub use unit::Scope;

/// The socket on which systemd itself talks D-Bus, for root only.
const PRIVATE: &str = "/run/systemd/private";
/// For a connection and its subscription.
const CONNECT: Duration = Duration::from_secs(3);
/// How long systemd may be away: it executes itself anew within a second or two, on a loaded machine.
const AWAY: Duration = Duration::from_secs(5);
/// For a job, on a machine that starts all of its pods at once.
const JOB: Duration = Duration::from_secs(30);
/// Before systemd is looked for again.
const PAUSE: Duration = Duration::from_millis(50);
/// systemd's errors that say that what was to be done is done.
const EXISTS: &str = "org.freedesktop.systemd1.UnitExists";
const NO_UNIT: &str = "org.freedesktop.systemd1.NoSuchUnit";

/// systemd, as far as it is asked for units.
#[derive(Debug, Clone)]
pub struct Systemd(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    routes: Vec<Route>,
    limit: Duration,
    /// Locked while somebody connects, so that all share one attempt.
    bus: tokio::sync::Mutex<Option<Arc<Bus>>>,
    /// When systemd was last known not to answer, and how.
    silent: Mutex<Option<(Instant, String)>>,
}

/// Why there is no connection.
struct NoBus {
    tried: String,
    /// Trying again does not help: it hangs, or was away for as long as it may be.
    hangs: bool,
}

impl NoBus {
    fn into_error(self) -> SystemdError {
        SystemdError::Unreachable { tried: self.tried }
    }
}

impl Default for Systemd {
    fn default() -> Self {
        Self::new(vec![Route::SystemBus, Route::Private(PRIVATE.into())], JOB)
    }
}

impl Systemd {
    /// Reaches systemd by the first route that leads there; a call takes at most `limit`. Connects to nothing yet.
    pub fn new(routes: Vec<Route>, limit: Duration) -> Self {
        Self(Arc::new(Shared { routes, limit, bus: tokio::sync::Mutex::default(), silent: Mutex::default() }))
    }

    /// Makes a scope around a process. The group may be there already, with the process in it: then systemd just comes
    /// to know it.
    pub async fn start_scope(&self, scope: Scope<'_>) -> Result<(), SystemdError> {
        let body = (scope.name, "fail", scope.properties(), NO_AUXILIARY);
        self.job("StartTransientUnit", scope.name, &body, EXISTS).await
    }

    /// Starts a slice; one that runs already stays as it is.
    pub async fn start_slice(&self, name: &str) -> Result<(), SystemdError> {
        let body = (name, "fail", unit::slice_properties(), NO_AUXILIARY);
        self.job("StartTransientUnit", name, &body, EXISTS).await
    }

    /// Stops a unit; one that systemd doesn't know is stopped.
    pub async fn stop(&self, name: &str) -> Result<(), SystemdError> {
        self.job("StopUnit", name, &(name, "replace"), NO_UNIT).await
    }

    /// `fine`: an error that says that what was to be done is done, as after an attempt whose answer got lost.
    async fn job<B: zbus::export::serde::Serialize + zbus::Type>(
        &self,
        call: &'static str,
        unit: &str,
        body: &B,
        fine: &str,
    ) -> Result<(), SystemdError> {
        let start = Instant::now();
        let until = start + self.0.limit;
        let late = |waited| SystemdError::Timeout { call, unit: unit.to_owned(), waited };
        loop {
            let bus = match timeout_at(until, self.bus()).await {
                Ok(Ok(bus)) => bus,
                Ok(Err(none)) if none.hangs => return Err(none.into_error()),
                Ok(Err(none)) if start.elapsed() >= self.away() => {
                    self.note_silence(&none.tried);
                    return Err(none.into_error());
                }
                Ok(Err(_)) => {
                    sleep(PAUSE).await;
                    continue;
                }
                Err(_) => {
                    self.note_silence("it takes no connection");
                    return Err(late(self.0.limit));
                }
            };
            let lost = match timeout_at(until, bus.job(call, unit, body, self.patience())).await {
                Ok(Ok(())) => return Ok(()),
                Ok(Err(Attempt::Refused(name, _))) if name == fine => return Ok(()),
                Ok(Err(Attempt::Refused(name, message))) => {
                    let message = format!("{message} ({name})");
                    return Err(SystemdError::Refused { call, unit: unit.to_owned(), message });
                }
                Ok(Err(Attempt::Job(result))) => {
                    return Err(SystemdError::Job { unit: unit.to_owned(), result });
                }
                Ok(Err(Attempt::Lost(reason))) => reason,
                Ok(Err(Attempt::Silent)) => {
                    self.forget(&bus).await;
                    self.note_silence(&format!("no answer to {call}"));
                    return Err(late(self.patience()));
                }
                Err(_) => {
                    // The next caller tries a new one rather than this.
                    self.forget(&bus).await;
                    return Err(late(self.0.limit));
                }
            };
            tracing::debug!(
                unit,
                call,
                reason = lost,
                "the connection to systemd was lost; connecting again"
            );
            self.forget(&bus).await;
            if start.elapsed() >= self.away() {
                self.note_silence(&lost);
                return Err(SystemdError::Unreachable { tried: lost });
            }
            sleep(PAUSE).await;
        }
    }

    /// How long an answer may take, and for how long it is remembered that none came.
    fn patience(&self) -> Duration {
        self.0.limit / 3
    }

    fn away(&self) -> Duration {
        AWAY.min(self.0.limit)
    }

    fn note_silence(&self, tried: &str) {
        let mut silent = self.0.silent.lock().unwrap_or_else(PoisonError::into_inner);
        *silent = Some((Instant::now(), tried.to_owned()));
    }

    /// That it did not answer a moment ago.
    fn silence(&self) -> Option<NoBus> {
        let silent = self.0.silent.lock().unwrap_or_else(PoisonError::into_inner);
        let (since, tried) = silent.as_ref().filter(|(since, _)| since.elapsed() < self.patience())?;
        let tried = format!("{tried}, {:.0} s ago", since.elapsed().as_secs_f64());
        Some(NoBus { tried, hangs: true })
    }

    /// The connection that there is, or a new one.
    async fn bus(&self) -> Result<Arc<Bus>, NoBus> {
        let mut held = self.0.bus.lock().await;
        if let Some(bus) = held.as_ref().filter(|bus| !bus.is_closed()) {
            return Ok(bus.clone());
        }
        *held = None;
        if let Some(none) = self.silence() {
            return Err(none);
        }
        let (mut tried, mut hangs) = (Vec::new(), false);
        for route in &self.0.routes {
            match timeout(CONNECT, Bus::open(route)).await {
                Ok(Ok(bus)) => {
                    tracing::debug!(%route, "connected to systemd");
                    let bus = Arc::new(bus);
                    *held = Some(bus.clone());
                    return Ok(bus);
                }
                Ok(Err(error)) => tried.push(format!("{route}: {error}")),
                Err(_) => {
                    hangs = true;
                    tried.push(format!("{route}: no answer within {} s", CONNECT.as_secs()));
                }
            }
        }
        let tried = tried.join("; ");
        if hangs {
            self.note_silence(&tried);
        }
        Err(NoBus { tried, hangs })
    }

    async fn forget(&self, bus: &Arc<Bus>) {
        let mut held = self.0.bus.lock().await;
        if held.as_ref().is_some_and(|current| Arc::ptr_eq(current, bus)) {
            *held = None;
        }
    }
}

/// `StartTransientUnit` can make more units at once: none.
const NO_AUXILIARY: &[(&str, &[unit::Property<'static>])] = &[];
