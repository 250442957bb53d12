//! Who is connected, and who is told of what: the one place where plugins and objects meet, under one lock that nobody
//! holds while anything waits.
//!
//! A plugin that connects is in the list from the moment at which the snapshot for its synchronization is taken, so
//! each object is either in that snapshot or in an event that the plugin gets:
//!
//! ```text
//! creation begins its event  ── list taken, object marked ──►  object shown  ──►  mark taken back
//!      plugin joined before: gets the event (after its synchronization)
//!      plugin joined after:  finds the object by its mark, or shown
//! ```
//!
//! A removal marks likewise: a plugin that joins after its event has begun is not told of the object.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;

use crate::plugin::Plugin;
use crate::proto::Event;
use crate::round::Round;
use crate::validator::{Validator, ValidatorOptions};

/// How NRI is set up.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where plugins connect; none: they can't.
    pub listen: Option<PathBuf>,
    /// Programs that are started: `10-name`.
    pub plugin_dir: PathBuf,
    /// Their configurations: `10-name.conf`, or `name.conf`.
    pub config_dir: PathBuf,
    /// From the connection to the registration.
    pub registration_timeout: Duration,
    /// For each answer.
    pub request_timeout: Duration,
    /// What plugins are told that we are.
    pub runtime_name: String,
    /// Its version.
    pub runtime_version: String,
    /// The validator that is built in.
    pub validator: Option<ValidatorOptions>,
}

/// NRI as who works on pods sees it. Cheap to clone; the default one is off.
#[derive(Debug, Clone, Default)]
pub struct Nri(pub(crate) Option<Arc<Registry>>);

#[derive(Debug)]
pub(crate) struct Registry {
    pub(crate) options: Options,
    pub(crate) validator: Option<Arc<Validator>>,
    state: Mutex<State>,
    /// Plugins in the list, so that asking nobody costs one load.
    count: AtomicUsize,
    /// Programs that we started and that live.
    pub(crate) programs: watch::Sender<usize>,
    pub(crate) stopping: watch::Sender<bool>,
    /// The socket at `listen` is ours.
    listening: AtomicBool,
}

#[derive(Debug, Default)]
struct State {
    /// In the order in which they are asked.
    plugins: Vec<Arc<Plugin>>,
    marks: Marks,
}

/// Objects between an event and what it leads to.
#[derive(Debug, Default)]
pub struct Marks {
    creating: HashSet<String>,
    removing: HashSet<String>,
}

impl Marks {
    /// Whether plugins have been asked for the object's creation, while it is not shown yet.
    pub fn is_being_created(&self, id: &str) -> bool {
        self.creating.contains(id)
    }

    /// Whether plugins have been told of the object's removal, while it is still shown.
    pub fn is_being_removed(&self, id: &str) -> bool {
        self.removing.contains(id)
    }
}

/// What an event says about its object's being there.
#[derive(Debug, Clone, Copy)]
pub enum Mark<'a> {
    /// Nothing.
    Nothing,
    /// It will be, under this ID: [`Nri::settled`] follows, whatever comes of it.
    Creating(&'a str),
    /// It will be no longer: [`Nri::settled`] follows.
    Removing(&'a str),
}

impl Nri {
    /// On, but without any plugin until [`Nri::start`].
    pub fn new(options: Options) -> Self {
        let validator = options.validator.clone().map(|options| Arc::new(Validator::new(options)));
        Self(Some(Arc::new(Registry {
            options,
            validator,
            state: Mutex::default(),
            count: AtomicUsize::new(0),
            programs: watch::Sender::new(0),
            stopping: watch::Sender::new(false),
            listening: AtomicBool::new(false),
        })))
    }

    /// Those who are to be asked about an event, in their order. None: nobody, and nothing needs to be described.
    pub fn round(&self, mark: Mark<'_>) -> Option<Round> {
        let registry = self.0.as_ref()?;
        let plugins = match mark {
            // The common case on nodes without plugins.
            Mark::Nothing if registry.count.load(Ordering::Acquire) == 0 => Vec::new(),
            Mark::Nothing => registry.state().plugins.clone(),
            Mark::Creating(id) => {
                let mut state = registry.state();
                state.marks.creating.insert(id.to_owned());
                state.plugins.clone()
            }
            Mark::Removing(id) => {
                let mut state = registry.state();
                state.marks.removing.insert(id.to_owned());
                state.plugins.clone()
            }
        };
        // The built-in validator misses plugins also where there are none.
        let validator = registry.validator.clone().filter(|_| matches!(mark, Mark::Creating(_)));
        (!plugins.is_empty() || validator.is_some()).then(|| Round::new(plugins, validator))
    }

    /// The object is shown, or is shown no longer, or did not come about: its marks are taken back.
    pub fn settled(&self, id: &str) {
        let Some(registry) = &self.0 else { return };
        let mut state = registry.state();
        state.marks.creating.remove(id);
        state.marks.removing.remove(id);
    }

    /// Whether plugins have been asked about the object's creation, and it has not settled.
    pub fn has_begun(&self, id: &str) -> bool {
        self.0.as_ref().is_some_and(|registry| registry.state().marks.is_being_created(id))
    }

    /// Whether any plugin wants the event: a hint, for what costs more than asking.
    pub fn is_wanted(&self, event: Event) -> bool {
        let Some(registry) = &self.0 else { return false };
        registry.count.load(Ordering::Acquire) > 0
            && registry.state().plugins.iter().any(|plugin| plugin.wants(event))
    }

    /// The names of the plugins, in their order.
    pub fn plugins(&self) -> Vec<String> {
        let Some(registry) = &self.0 else { return Vec::new() };
        registry.state().plugins.iter().map(|plugin| plugin.name.to_string()).collect()
    }
}

impl Registry {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a plugin at its place, and looks at what there is in the same moment. `look` must not wait.
    pub(crate) fn join<T>(&self, plugin: Arc<Plugin>, look: impl FnOnce(&Marks) -> T) -> T {
        let mut state = self.state();
        let place = state.plugins.partition_point(|other| other.name <= plugin.name);
        state.plugins.insert(place, plugin);
        self.count.store(state.plugins.len(), Ordering::Release);
        look(&state.marks)
    }

    pub(crate) fn leave(&self, plugin: &Arc<Plugin>) {
        let mut state = self.state();
        state.plugins.retain(|other| !Arc::ptr_eq(other, plugin));
        self.count.store(state.plugins.len(), Ordering::Release);
    }

    /// The socket is bound, and is removed at the end.
    pub(crate) fn listens(&self) {
        self.listening.store(true, Ordering::Release);
    }

    /// The socket, if it is ours.
    pub(crate) fn bound(&self) -> Option<&Path> {
        self.options.listen.as_deref().filter(|_| self.listening.load(Ordering::Acquire))
    }

    /// Ends all plugins.
    pub(crate) fn close(&self, why: &str) {
        for plugin in self.state().plugins.clone() {
            plugin.close(why);
        }
    }
}
