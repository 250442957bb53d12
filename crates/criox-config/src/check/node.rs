//! Checks that need a look at this node.

use std::path::Path;

use crate::load::{Loaded, quoted};
use crate::problem::{Origin, Problem, Problems};

impl Loaded {
    /// Looks at this node, as the daemon must before it starts: finds every handler's program, by its name in
    /// `search_path` (`$PATH`) where no path is set, and puts the path into the configuration. A handler without a
    /// program is left out with a warning.
    ///
    /// # Errors
    /// The default handler has no program; a device or the time zone doesn't exist.
    pub fn check_node(&mut self, search_path: &str) -> Result<(), Problems> {
        let mut problems = Problems::default();
        let mut ignored = Vec::new();
        let mut found = Vec::new();
        for (name, handler) in &self.config.runtime.runtimes {
            match handler.program(name, search_path) {
                Ok(path) => found.push((name.clone(), path)),
                Err(message) => ignored.push((name.clone(), message)),
            }
        }
        for (name, path) in found {
            if let Some(handler) = self.config.runtime.runtimes.get_mut(&name) {
                handler.runtime_path = Some(path);
            }
        }
        for (name, message) in ignored {
            let table = format!("crio.runtime.runtimes.{}", quoted(&name));
            let key = format!("{table}.runtime_path");
            let origin = self.origins.get(&key).or_else(|| self.origins.get(&table));
            let origin = origin.cloned().unwrap_or(Origin::Default);
            if name == self.config.runtime.default_runtime {
                problems.add(origin, key, message);
            } else {
                self.config.runtime.runtimes.remove(&name);
                self.warnings.push(Problem::new(
                    origin,
                    key,
                    format!("{message}; handler \"{name}\" is ignored"),
                ));
            }
        }
        for device in self.config.runtime.additional_devices.iter().filter(|device| !device.source.exists()) {
            let key = "crio.runtime.additional_devices";
            problems.add(self.origin(key), key, format!("{} does not exist", device.source.display()));
        }
        let zone = &self.config.runtime.timezone;
        let file = Path::new("/usr/share/zoneinfo").join(zone);
        if !zone.is_empty() && !zone.eq_ignore_ascii_case("local") && !file.is_file() {
            let message =
                format!("\"{zone}\" is not a time zone of this node ({} is missing)", file.display());
            problems.add(self.origin("crio.runtime.timezone"), "crio.runtime.timezone", message);
        }
        problems.or(())
    }
}
