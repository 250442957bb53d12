//! Transient units, as properties of `StartTransientUnit` (org.freedesktop.systemd1(5)).

use zbus::Variant;

/// A property and its value.
pub(crate) type Property<'a> = (&'static str, Variant<'a>);

/// SIGPIPE: a monitor ignores it, so that stopping its scope waits for its pod or for the final SIGKILL.
const SIGPIPE: i32 = 13;

/// A scope around one process, which lies below its group already or is moved there.
#[derive(Debug, Clone, Copy)]
pub struct Scope<'a> {
    /// With `.scope`.
    pub name: &'a str,
    /// The slice it lies in.
    pub slice: &'a str,
    /// The process.
    pub pid: i32,
    /// For `systemctl status`.
    pub description: &'a str,
    /// Units that are stopped after it: the daemon's service.
    pub after: &'a [&'a str],
}

impl<'a> Scope<'a> {
    pub(crate) fn properties(&self) -> Vec<Property<'a>> {
        let pid = u32::try_from(self.pid).unwrap_or_default();
        vec![
            ("Description", Variant::from(self.description)),
            ("PIDs", Variant::from(vec![pid])),
            ("Slice", Variant::from(self.slice)),
            // Nobody but us makes groups below it. Also keeps systemd from ending it for a killed process.
            ("Delegate", Variant::from(true)),
            // Else it would end with the first step of a shutdown, before the containers.
            ("DefaultDependencies", Variant::from(false)),
            ("After", Variant::from(self.after.to_vec())),
            ("KillSignal", Variant::from(SIGPIPE)),
            // A monitor that failed leaves no failed unit, of which a node would gather thousands.
            ("CollectMode", Variant::from("inactive-or-failed")),
        ]
    }
}

/// What a slice of ours is started with.
pub(crate) fn slice_properties() -> Vec<Property<'static>> {
    vec![
        ("Description", Variant::from("slice of pods")),
        ("DefaultDependencies", Variant::from(false)),
        ("CPUAccounting", Variant::from(true)),
        ("IOAccounting", Variant::from(true)),
        ("MemoryAccounting", Variant::from(true)),
        ("TasksAccounting", Variant::from(true)),
    ]
}
