//! Changes of containers that exist, as several plugins ask for them: put together by container.

use crate::owners::Owners;
use crate::plugin::PluginError;
use crate::proto::{ContainerEviction, ContainerUpdate, LinuxContainerUpdate, LinuxResources};
use crate::{check, resources};

/// What plugins want done to other containers.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Updates {
    /// Limits to change, each container once.
    pub updates: Vec<ContainerUpdate>,
    /// Containers to end.
    pub evictions: Vec<ContainerEviction>,
}

impl Updates {
    /// Takes in what one plugin asks for. An update that may fail is left out when it is in conflict.
    pub(crate) fn take(
        &mut self,
        owners: &mut Owners,
        plugin: &str,
        updates: &[ContainerUpdate],
        evictions: &[ContainerEviction],
    ) -> Result<(), PluginError> {
        for update in updates {
            let Some(wish) = update.linux.as_ref().and_then(|linux| linux.resources.as_ref()) else {
                continue;
            };
            let id = update.container_id.as_str();
            let known = self.updates.iter().position(|other| other.container_id == id);
            let mut merged = known.map_or_else(LinuxResources::default, |at| limits(&self.updates[at]));
            let taken = check::resources(plugin, wish)
                .and_then(|()| resources::merge(owners, (id, plugin), wish, &mut merged));
            match taken {
                Ok(()) => {}
                Err(error) if update.ignore_failure => {
                    tracing::info!(container = id, %error, "left out an update of a container that may fail");
                    continue;
                }
                Err(error) => return Err(error),
            }
            let ignore_failure =
                update.ignore_failure && known.is_none_or(|at| self.updates[at].ignore_failure);
            let entry = ContainerUpdate {
                container_id: id.to_owned(),
                linux: Some(LinuxContainerUpdate { resources: Some(merged) }),
                ignore_failure,
            };
            match known {
                Some(at) => self.updates[at] = entry,
                None => self.updates.push(entry),
            }
        }
        for eviction in evictions {
            if !self.evictions.iter().any(|other| other.container_id == eviction.container_id) {
                self.evictions.push(eviction.clone());
            }
        }
        Ok(())
    }

    /// Takes the update of one container out of the others.
    pub(crate) fn split_off(&mut self, id: &str) -> Option<LinuxResources> {
        let at = self.updates.iter().position(|update| update.container_id == id)?;
        Some(limits(&self.updates.remove(at)))
    }
}

fn limits(update: &ContainerUpdate) -> LinuxResources {
    update.linux.as_ref().and_then(|linux| linux.resources.clone()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::{LinuxCpu, LinuxMemory, OptionalInt64, OptionalUInt64};

    fn memory(id: &str, limit: i64, ignore_failure: bool) -> ContainerUpdate {
        let memory = LinuxMemory { limit: Some(OptionalInt64 { value: limit }), ..Default::default() };
        update(id, LinuxResources { memory: Some(memory), ..Default::default() }, ignore_failure)
    }

    fn update(id: &str, resources: LinuxResources, ignore_failure: bool) -> ContainerUpdate {
        let linux = Some(LinuxContainerUpdate { resources: Some(resources) });
        ContainerUpdate { container_id: id.into(), linux, ignore_failure }
    }

    #[test]
    fn updates_of_one_container_become_one() {
        let (mut updates, mut owners) = (Updates::default(), Owners::default());
        let cpu = LinuxCpu { shares: Some(OptionalUInt64 { value: 7 }), ..Default::default() };
        let cpu = update("c", LinuxResources { cpu: Some(cpu), ..Default::default() }, true);
        updates.take(&mut owners, "10-a", &[memory("c", 5, true), memory("d", 6, false)], &[]).unwrap();
        updates.take(&mut owners, "20-b", &[cpu], &[]).unwrap();
        assert_eq!(updates.updates.len(), 2);
        let own = updates.split_off("c").unwrap();
        assert_eq!(own.memory.unwrap().limit.unwrap().value, 5);
        assert_eq!(own.cpu.unwrap().shares.unwrap().value, 7);
    }

    #[test]
    fn a_conflict_fails_unless_it_may() {
        let (mut updates, mut owners) = (Updates::default(), Owners::default());
        updates.take(&mut owners, "10-a", &[memory("c", 5, false)], &[]).unwrap();
        updates.take(&mut owners, "20-b", &[memory("c", 9, true)], &[]).unwrap();
        assert_eq!(updates.clone().split_off("c").unwrap().memory.unwrap().limit.unwrap().value, 5);
        assert!(updates.take(&mut owners, "20-b", &[memory("c", 9, false)], &[]).is_err());
    }
}
