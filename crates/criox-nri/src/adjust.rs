//! What plugins want of a container that is being made, put together in their order: each sees what those before it
//! have asked for, and two that decide the same are a conflict.

use crate::owners::Owners;
use crate::plugin::PluginError;
use crate::proto::{
    Container, ContainerAdjustment, CreateContainerResponse, Field, Hooks, KeyValue, LinuxContainer,
    LinuxContainerAdjustment, LinuxDevice, LinuxNamespace, LinuxRdt, Mount,
};
use crate::update::Updates;
use crate::{REMOVAL, check, removal, resources};

/// The wishes so far.
#[derive(Debug)]
pub(crate) struct Merge {
    /// The container as the next plugin sees it.
    pub(crate) container: Container,
    /// All adjustments together.
    pub(crate) adjust: ContainerAdjustment,
    pub(crate) updates: Updates,
    pub(crate) owners: Owners,
}

impl Merge {
    /// Without any wish.
    pub(crate) fn new(container: Container) -> Self {
        let adjust =
            ContainerAdjustment { linux: Some(LinuxContainerAdjustment::default()), ..Default::default() };
        Self { container, adjust, updates: Updates::default(), owners: Owners::default() }
    }

    /// Takes in what one plugin answered.
    pub(crate) fn take(
        &mut self,
        plugin: &str,
        response: CreateContainerResponse,
    ) -> Result<(), PluginError> {
        if let Some(wish) = response.adjust {
            check::adjustment(plugin, &wish)?;
            self.adjust(plugin, wish)?;
        }
        if let Some(own) = response.update.iter().find(|update| update.container_id == self.container.id) {
            let what = format!("an update of container {} while it is being made", own.container_id);
            return Err(PluginError::Wish { plugin: plugin.into(), what });
        }
        self.updates.take(&mut self.owners, plugin, &response.update, &response.evict)
    }

    fn adjust(&mut self, plugin: &str, wish: ContainerAdjustment) -> Result<(), PluginError> {
        self.annotations(plugin, wish.annotations)?;
        self.mounts(plugin, wish.mounts)?;
        self.env(plugin, wish.env)?;
        self.args(plugin, wish.args)?;
        self.hooks(plugin, wish.hooks);
        self.rlimits(plugin, wish.rlimits)?;
        for device in wish.cdi_devices {
            self.owners.claim_entry(&self.container.id, Field::CdiDevices, &device.name, plugin)?;
            self.adjust.cdi_devices.push(device);
        }
        match wish.linux {
            Some(linux) => self.linux(plugin, linux),
            None => Ok(()),
        }
    }

    fn annotations(&mut self, plugin: &str, wish: Map<String>) -> Result<(), PluginError> {
        let Self { container, adjust, owners, .. } = self;
        let claim = Claim::new(owners, (&container.id, plugin), Field::Annotations);
        claim.map(wish, &mut container.annotations, &mut adjust.annotations)
    }

    fn mounts(&mut self, plugin: &str, wish: Vec<Mount>) -> Result<(), PluginError> {
        let Self { container, adjust, owners, .. } = self;
        let claim = Claim::new(owners, (&container.id, plugin), Field::Mounts);
        claim.list(wish, &mut container.mounts, &mut adjust.mounts)
    }

    fn env(&mut self, plugin: &str, wish: Vec<KeyValue>) -> Result<(), PluginError> {
        let Self { container, adjust, owners, .. } = self;
        let mut shown: Vec<KeyValue> = container.env.iter().map(|pair| variable(pair)).collect();
        let claim = Claim::new(owners, (&container.id, plugin), Field::Env);
        claim.list(wish, &mut shown, &mut adjust.env)?;
        container.env = shown.into_iter().map(|pair| format!("{}={}", pair.key, pair.value)).collect();
        Ok(())
    }

    fn args(&mut self, plugin: &str, mut wish: Vec<String>) -> Result<(), PluginError> {
        let id = &self.container.id;
        match wish.first() {
            None => return Ok(()),
            // Overrides another plugin's on purpose.
            Some(first) if first.is_empty() => {
                self.owners.clear(id, Field::Args, plugin);
                wish.remove(0);
            }
            Some(_) => {}
        }
        self.owners.claim(id, Field::Args, plugin)?;
        self.container.args.clone_from(&wish);
        self.adjust.args = wish;
        Ok(())
    }

    /// Hooks of several plugins add up.
    fn hooks(&mut self, plugin: &str, wish: Option<Hooks>) {
        let Some(wish) = wish.filter(|hooks| *hooks != Hooks::default()) else { return };
        self.owners.share(&self.container.id, Field::OciHooks, plugin);
        for target in [&mut self.container.hooks, &mut self.adjust.hooks] {
            let target = target.get_or_insert_default();
            target.prestart.extend(wish.prestart.iter().cloned());
            target.create_runtime.extend(wish.create_runtime.iter().cloned());
            target.create_container.extend(wish.create_container.iter().cloned());
            target.start_container.extend(wish.start_container.iter().cloned());
            target.poststart.extend(wish.poststart.iter().cloned());
            target.poststop.extend(wish.poststop.iter().cloned());
        }
    }

    fn rlimits(&mut self, plugin: &str, wish: Vec<crate::proto::PosixRlimit>) -> Result<(), PluginError> {
        for limit in wish {
            self.owners.claim_entry(&self.container.id, Field::Rlimits, &limit.r#type, plugin)?;
            self.container.rlimits.retain(|other| other.r#type != limit.r#type);
            self.container.rlimits.push(limit.clone());
            self.adjust.rlimits.push(limit);
        }
        Ok(())
    }

    fn linux(&mut self, plugin: &str, wish: LinuxContainerAdjustment) -> Result<(), PluginError> {
        let Self { container, adjust, owners, .. } = self;
        let id = container.id.clone();
        let shown = container.linux.get_or_insert_default();
        let adjust = adjust.linux.get_or_insert_default();
        let whose = (id.as_str(), plugin);
        Claim::new(owners, whose, Field::Devices).list(
            wish.devices,
            &mut shown.devices,
            &mut adjust.devices,
        )?;
        Claim::new(owners, whose, Field::Sysctl).map(wish.sysctl, &mut shown.sysctl, &mut adjust.sysctl)?;
        Claim::new(owners, whose, Field::LinuxNetDevices).map(
            wish.net_devices,
            &mut shown.net_devices,
            &mut adjust.net_devices,
        )?;
        Claim::new(owners, whose, Field::Namespace).namespaces(
            wish.namespaces,
            &mut shown.namespaces,
            &mut adjust.namespaces,
        )?;
        if let Some(limits) = &wish.resources {
            let mut asked = adjust.resources.take().unwrap_or_default();
            resources::merge(owners, whose, limits, &mut asked)?;
            adjust.resources = Some(asked);
            // What the next plugin sees: the claims are made, so this claims nothing.
            overlay(limits, shown);
        }
        if !wish.cgroups_path.is_empty() {
            owners.claim(&id, Field::CgroupsPath, plugin)?;
            shown.cgroups_path.clone_from(&wish.cgroups_path);
            adjust.cgroups_path = wish.cgroups_path;
        }
        take_over(
            owners,
            whose,
            Field::OomScoreAdj,
            wish.oom_score_adj,
            &mut [&mut shown.oom_score_adj, &mut adjust.oom_score_adj],
        )?;
        take_over(
            owners,
            whose,
            Field::IoPriority,
            wish.io_priority,
            &mut [&mut shown.io_priority, &mut adjust.io_priority],
        )?;
        take_over(
            owners,
            whose,
            Field::SeccompPolicy,
            wish.seccomp_policy,
            &mut [&mut shown.seccomp_policy, &mut adjust.seccomp_policy],
        )?;
        take_over(
            owners,
            whose,
            Field::LinuxSched,
            wish.scheduler,
            &mut [&mut shown.scheduler, &mut adjust.scheduler],
        )?;
        take_over(owners, whose, Field::MemoryPolicy, wish.memory_policy, &mut [&mut adjust.memory_policy])?;
        match wish.rdt {
            Some(rdt) => self.rdt(plugin, rdt),
            None => Ok(()),
        }
    }

    fn rdt(&mut self, plugin: &str, wish: LinuxRdt) -> Result<(), PluginError> {
        let Self { container, adjust, owners, .. } = self;
        let id = container.id.as_str();
        let target = adjust.linux.get_or_insert_default().rdt.get_or_insert_default();
        if wish.remove {
            for field in [Field::RdtClosId, Field::RdtSchemata, Field::RdtEnableMonitoring] {
                owners.clear(id, field, plugin);
            }
            *target = LinuxRdt { remove: true, ..Default::default() };
        }
        let whose = (id, plugin);
        take_over(owners, whose, Field::RdtClosId, wish.clos_id, &mut [&mut target.clos_id])?;
        take_over(owners, whose, Field::RdtSchemata, wish.schemata, &mut [&mut target.schemata])?;
        let monitoring = wish.enable_monitoring;
        take_over(owners, whose, Field::RdtEnableMonitoring, monitoring, &mut [&mut target.enable_monitoring])
    }
}

type Map<T> = std::collections::BTreeMap<String, T>;

/// A field with one owner, taken over where it goes.
fn take_over<T: Clone>(
    owners: &mut Owners,
    (id, plugin): (&str, &str),
    field: Field,
    wish: Option<T>,
    targets: &mut [&mut Option<T>],
) -> Result<(), PluginError> {
    let Some(wish) = wish else { return Ok(()) };
    owners.claim(id, field, plugin)?;
    for target in targets {
        **target = Some(wish.clone());
    }
    Ok(())
}

/// Limits over those that the container has.
fn overlay(wish: &crate::proto::LinuxResources, shown: &mut LinuxContainer) {
    let target = shown.resources.get_or_insert_default();
    // Owners of their own: here nothing can be in conflict.
    if let Err(error) = resources::merge(&mut Owners::default(), ("", ""), wish, target) {
        tracing::debug!(%error, "a plugin set a limit twice in one answer");
    }
}

/// An entry of a list that is told from others by a key.
trait Entry: Clone {
    fn key(&self) -> &str;
    /// What says that the entry is to be removed.
    fn gone(key: &str) -> Self;
}

impl Entry for Mount {
    fn key(&self) -> &str {
        &self.destination
    }

    fn gone(key: &str) -> Self {
        Self { destination: format!("{REMOVAL}{key}"), ..Default::default() }
    }
}

impl Entry for LinuxDevice {
    fn key(&self) -> &str {
        &self.path
    }

    fn gone(key: &str) -> Self {
        Self { path: format!("{REMOVAL}{key}"), ..Default::default() }
    }
}

impl Entry for KeyValue {
    fn key(&self) -> &str {
        &self.key
    }

    fn gone(key: &str) -> Self {
        Self { key: format!("{REMOVAL}{key}"), ..Default::default() }
    }
}

fn variable(pair: &str) -> KeyValue {
    let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
    KeyValue { key: key.into(), value: value.into() }
}

/// One plugin's claims on the entries of one field.
struct Claim<'a> {
    owners: &'a mut Owners,
    id: &'a str,
    field: Field,
    plugin: &'a str,
}

impl<'a> Claim<'a> {
    fn new(owners: &'a mut Owners, (id, plugin): (&'a str, &'a str), field: Field) -> Self {
        Self { owners, id, field, plugin }
    }

    /// Entries of a list: those marked for removal go, of the container and of what plugins before have asked for;
    /// others replace the container's of their key.
    fn list<T: Entry>(self, wish: Vec<T>, shown: &mut Vec<T>, asked: &mut Vec<T>) -> Result<(), PluginError> {
        let (gone, set): (Vec<T>, Vec<T>) =
            wish.into_iter().partition(|entry| removal(entry.key()).is_some());
        for entry in &gone {
            let key = removal(entry.key()).unwrap_or_default();
            self.owners.clear_entry(self.id, self.field, key, self.plugin);
            asked.retain(|other| other.key() != key && removal(other.key()) != Some(key));
            shown.retain(|other| other.key() != key);
            asked.push(T::gone(key));
        }
        for entry in set {
            self.owners.claim_entry(self.id, self.field, entry.key(), self.plugin)?;
            shown.retain(|other| other.key() != entry.key());
            shown.push(entry.clone());
            asked.push(entry);
        }
        Ok(())
    }

    /// The same for a map.
    fn map<T: Clone + Default>(
        self,
        wish: Map<T>,
        shown: &mut Map<T>,
        asked: &mut Map<T>,
    ) -> Result<(), PluginError> {
        let (gone, set): (Map<T>, Map<T>) = wish.into_iter().partition(|(key, _)| removal(key).is_some());
        for key in gone.keys().filter_map(|key| removal(key)) {
            self.owners.clear_entry(self.id, self.field, key, self.plugin);
            asked.remove(key);
            shown.remove(key);
            asked.insert(format!("{REMOVAL}{key}"), T::default());
        }
        for (key, value) in set {
            self.owners.claim_entry(self.id, self.field, &key, self.plugin)?;
            shown.insert(key.clone(), value.clone());
            asked.insert(key, value);
        }
        Ok(())
    }

    /// Namespaces: one of each kind, which one plugin may decide, also to have it removed.
    fn namespaces(
        self,
        wish: Vec<LinuxNamespace>,
        shown: &mut Vec<LinuxNamespace>,
        asked: &mut Vec<LinuxNamespace>,
    ) -> Result<(), PluginError> {
        for namespace in wish {
            let gone = removal(&namespace.r#type);
            let kind = gone.unwrap_or(&namespace.r#type);
            self.owners.claim_entry(self.id, self.field, kind, self.plugin)?;
            shown.retain(|other| other.r#type != kind);
            if gone.is_none() {
                shown.push(namespace.clone());
            }
            asked.push(namespace);
        }
        Ok(())
    }
}

/// For the fuzzer: two plugins that answer the same.
pub(crate) fn fuzz(response: CreateContainerResponse) {
    let mut merge = Merge::new(Container { id: "c".into(), ..Default::default() });
    if merge.take("10-a", response.clone()).is_ok() {
        drop(merge.take("20-b", response));
    }
}

#[cfg(test)]
mod tests;
