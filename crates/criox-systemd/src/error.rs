//! Why systemd did not do what was asked.

use std::time::Duration;

/// Why systemd did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum SystemdError {
    /// Neither the system bus nor systemd's own socket leads to systemd.
    #[error("systemd can't be reached ({tried}); is it PID 1, and does dbus.service run?")]
    Unreachable {
        /// What was tried, each with its error.
        tried: String,
    },
    /// It answered with an error.
    #[error("systemd refused {call} of {unit}: {message}")]
    Refused {
        /// The method.
        call: &'static str,
        /// The unit.
        unit: String,
        /// Its name and text.
        message: String,
    },
    /// The job ended in another way than `done`.
    #[error("systemd's job for {unit} ended as {result:?}; see systemctl status {unit}")]
    Job {
        /// The unit.
        unit: String,
        /// `failed`, `canceled`, `timeout`, `dependency` or `skipped`.
        result: String,
    },
    /// It did not answer, or did not finish the job.
    #[error("{call} of {unit} by systemd is not finished after {} s; see systemctl list-jobs", waited.as_secs())]
    Timeout {
        /// The method.
        call: &'static str,
        /// The unit.
        unit: String,
        /// How long it was waited for.
        waited: Duration,
    },
}

/// What became of one attempt.
#[derive(Debug)]
pub(crate) enum Attempt {
    /// The connection broke, or systemd was between two lives: another one may succeed.
    Lost(String),
    /// No answer came: systemd or the bus hangs.
    Silent,
    /// D-Bus name and text of an error.
    Refused(String, String),
    /// As [`SystemdError::Job`].
    Job(String),
}

impl From<zbus::Error> for Attempt {
    fn from(error: zbus::Error) -> Self {
        /// The peer is away, or went while it was asked: systemd executes itself anew, or the bus restarts.
        const AWAY: [&str; 6] = [
            "org.freedesktop.DBus.Error.NoReply",
            "org.freedesktop.DBus.Error.ServiceUnknown",
            "org.freedesktop.DBus.Error.NameHasNoOwner",
            "org.freedesktop.DBus.Error.Disconnected",
            "org.freedesktop.DBus.Error.NoServer",
            "org.freedesktop.DBus.Error.TimedOut",
        ];
        let (name, message) = match &error {
            zbus::Error::MethodError(name, message, _) => {
                (name.to_string(), message.clone().unwrap_or_default())
            }
            zbus::Error::FDO(known) => {
                use zbus::DBusError as _;
                (known.name().to_string(), known.description().unwrap_or_default().to_owned())
            }
            _ => return Self::Lost(error.to_string()),
        };
        if AWAY.contains(&name.as_str()) {
            Self::Lost(format!("{name}: {message}"))
        } else {
            Self::Refused(name, message)
        }
    }
}
