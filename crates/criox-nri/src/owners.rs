//! Which plugin has set what: two that set the same are a conflict, which fails the request and names both.
//!
//! Who removes what another has set owns it from then on, and may set it anew.

use crate::plugin::PluginError;
use crate::proto::{Field, OwningPlugins};
use crate::{REMOVAL, removal};

/// Owners of what plugins ask for in one request.
#[derive(Debug, Default)]
pub(crate) struct Owners {
    /// In the form in which validators see them.
    all: OwningPlugins,
}

impl Owners {
    pub(crate) fn as_message(&self) -> &OwningPlugins {
        &self.all
    }

    /// `plugin` sets a field of the container.
    pub(crate) fn claim(&mut self, id: &str, field: Field, plugin: &str) -> Result<(), PluginError> {
        let fields = self.all.owners.entry(id.to_owned()).or_default();
        let entry = fields.simple.entry(field.into()).or_default();
        take(entry, plugin, || field.as_str_name().to_owned())
    }

    /// `plugin` sets one entry of a field: a mount by destination, a variable by name.
    pub(crate) fn claim_entry(
        &mut self,
        id: &str,
        field: Field,
        key: &str,
        plugin: &str,
    ) -> Result<(), PluginError> {
        let fields = self.all.owners.entry(id.to_owned()).or_default();
        let entries = &mut fields.compound.entry(field.into()).or_default().owners;
        take(entries.entry(key.to_owned()).or_default(), plugin, || {
            format!("{} {key:?}", field.as_str_name())
        })
    }

    /// `plugin` takes a field back.
    pub(crate) fn clear(&mut self, id: &str, field: Field, plugin: &str) {
        let fields = self.all.owners.entry(id.to_owned()).or_default();
        fields.simple.insert(field.into(), format!("{REMOVAL}{plugin}"));
    }

    /// `plugin` takes one entry of a field back.
    pub(crate) fn clear_entry(&mut self, id: &str, field: Field, key: &str, plugin: &str) {
        let fields = self.all.owners.entry(id.to_owned()).or_default();
        let entries = &mut fields.compound.entry(field.into()).or_default().owners;
        entries.insert(key.to_owned(), format!("{REMOVAL}{plugin}"));
    }

    /// `plugin` adds to a field that several may add to.
    pub(crate) fn share(&mut self, id: &str, field: Field, plugin: &str) {
        let fields = self.all.owners.entry(id.to_owned()).or_default();
        let entry = fields.simple.entry(field.into()).or_default();
        if !entry.is_empty() {
            entry.push(',');
        }
        entry.push_str(plugin);
    }

    /// Who has set a field.
    pub(crate) fn of(&self, id: &str, field: Field) -> Option<&str> {
        self.all.owners.get(id)?.simple.get(&field.into()).map(String::as_str)
    }

    /// Who has set which entries of a field.
    pub(crate) fn entries(&self, id: &str, field: Field) -> impl Iterator<Item = (&str, &str)> {
        let fields = self.all.owners.get(id).and_then(|fields| fields.compound.get(&field.into()));
        let entries = fields.into_iter().flat_map(|entries| &entries.owners);
        entries.map(|(key, plugin)| (key.as_str(), plugin.as_str()))
    }
}

fn take(owner: &mut String, plugin: &str, what: impl FnOnce() -> String) -> Result<(), PluginError> {
    let other = removal(owner).unwrap_or(owner);
    let mine = owner.is_empty() || (other == plugin && removal(owner).is_some());
    if !mine {
        return Err(PluginError::Conflict { first: other.to_owned(), second: plugin.into(), what: what() });
    }
    owner.clear();
    owner.push_str(plugin);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_plugins_that_set_the_same_are_named_both() {
        let mut owners = Owners::default();
        owners.claim("c", Field::MemLimit, "10-a").unwrap();
        owners.claim("d", Field::MemLimit, "20-b").unwrap();
        let error = owners.claim("c", Field::MemLimit, "20-b").unwrap_err().to_string();
        assert!(error.contains("10-a") && error.contains("20-b") && error.contains("MemLimit"), "{error}");
        owners.claim_entry("c", Field::Env, "A", "10-a").unwrap();
        owners.claim_entry("c", Field::Env, "B", "20-b").unwrap();
        let error = owners.claim_entry("c", Field::Env, "A", "20-b").unwrap_err().to_string();
        assert!(error.contains("Env \"A\""), "{error}");
    }

    #[test]
    fn who_removes_may_set_anew_and_nobody_after_it() {
        let mut owners = Owners::default();
        owners.claim_entry("c", Field::Mounts, "/a", "10-a").unwrap();
        owners.clear_entry("c", Field::Mounts, "/a", "20-b");
        owners.claim_entry("c", Field::Mounts, "/a", "20-b").unwrap();
        assert!(owners.claim_entry("c", Field::Mounts, "/a", "30-c").is_err());
        owners.clear("c", Field::Args, "10-a");
        assert!(owners.claim("c", Field::Args, "20-b").is_err());
    }

    #[test]
    fn the_same_plugin_sets_a_thing_once() {
        let mut owners = Owners::default();
        owners.claim_entry("c", Field::Env, "A", "10-a").unwrap();
        assert!(owners.claim_entry("c", Field::Env, "A", "10-a").is_err());
    }
}
