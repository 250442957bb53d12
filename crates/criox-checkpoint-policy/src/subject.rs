//! What a request names: containers of a pod, configurations for those of a checkpoint, options.

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;

use criox_checkpoint::pod::PodContainer;
use criox_cri::ids::ContainerId;
use criox_cri::v1;
use criox_records::ContainerRecord;
use criox_records::key::ContainerKey;

use crate::error::{Error, Result};

/// The containers that a request for a pod's checkpoint names, each once, as `find` finds them.
///
/// # Errors
/// None is named, or one twice, or it is not found.
pub fn distinct<E: From<Error>>(
    asked: &[String],
    find: impl Fn(&str) -> std::result::Result<ContainerId, E>,
) -> std::result::Result<Vec<ContainerId>, E> {
    const FIELD: &str = "container_ids";
    if asked.is_empty() {
        return Err(
            Error::invalid(FIELD, "must not be empty; name the containers, there is no \"all\"").into()
        );
    }
    let (mut ids, mut seen) = (Vec::new(), HashSet::new());
    for id in asked {
        let id = find(id)?;
        if !seen.insert(id) {
            return Err(Error::invalid(FIELD, format!("container {id} is named twice")).into());
        }
        ids.push(id);
    }
    Ok(ids)
}

/// What the manifest of a pod's checkpoint says of its containers. A restore knows them by their names, which can be those
/// of directories.
///
/// # Errors
/// Two of them have one name.
pub fn manifest_entries(records: &[Arc<ContainerRecord>]) -> Result<Vec<PodContainer>> {
    let mut seen = HashSet::new();
    let entry = |record: &Arc<ContainerRecord>| {
        let metadata = record.config.0.metadata.clone().unwrap_or_default();
        if !seen.insert(metadata.name.clone()) {
            let text =
                format!("two of the containers have the name {:?}; checkpoint one of them", metadata.name);
            return Err(Error::Refused(text));
        }
        Ok(PodContainer { name: metadata.name, id: record.id.to_string(), attempt: metadata.attempt })
    };
    records.iter().map(entry).collect()
}

/// Refuses what CRIU is known not to capture.
///
/// # Errors
/// What it is.
pub fn capturable(record: &ContainerRecord) -> Result<()> {
    if record.notifier.is_some() {
        let text = format!(
            "container {} has a seccomp notifier, which CRIU can't take along; run it without seccomp-notifier-action.crio.io",
            record.id
        );
        return Err(Error::Refused(text));
    }
    Ok(())
}

/// The names of the configurations for a restored pod, each once.
///
/// # Errors
/// None, one without a name, or one that is named twice.
pub fn each_named_once(configs: &[v1::ContainerConfig]) -> Result<Vec<String>> {
    const FIELD: &str = "container_configs";
    if configs.is_empty() {
        return Err(Error::invalid(FIELD, "must not be empty"));
    }
    let (mut names, mut seen) = (Vec::new(), BTreeSet::new());
    for (index, config) in configs.iter().enumerate() {
        let key =
            ContainerKey::of(config).map_err(|error| Error::invalid(&format!("{FIELD}[{index}]"), error))?;
        if !seen.insert(key.name.clone()) {
            return Err(Error::invalid(FIELD, format!("{:?} is named twice", key.name)));
        }
        names.push(key.name);
    }
    Ok(names)
}

/// Whether those names are exactly the containers of the checkpoint.
///
/// # Errors
/// Which are unknown, or missing.
pub fn same_names<'a>(asked: &[String], there: impl IntoIterator<Item = &'a str>) -> Result<()> {
    let asked: BTreeSet<&str> = asked.iter().map(String::as_str).collect();
    let there: BTreeSet<&str> = there.into_iter().collect();
    let list = |names: BTreeSet<&str>| names.into_iter().collect::<Vec<_>>().join(", ");
    let unknown: BTreeSet<&str> = asked.difference(&there).copied().collect();
    let missing: BTreeSet<&str> = there.difference(&asked).copied().collect();
    match (unknown.is_empty(), missing.is_empty()) {
        (true, true) => Ok(()),
        (false, _) => {
            Err(Error::invalid("container_configs", format!("the checkpoint has no {}", list(unknown))))
        }
        (true, false) => Err(Error::invalid(
            "container_configs",
            format!("of the checkpoint these are missing: {}", list(missing)),
        )),
    }
}

/// Refuses options: none is known.
///
/// # Errors
/// The first that is there.
pub fn no_options<'a>(options: impl IntoIterator<Item = &'a String>) -> Result<()> {
    match options.into_iter().min() {
        Some(key) => {
            let key: String = key.chars().take(64).collect();
            Err(Error::invalid("options", format!("{key:?} is not known; there are none")))
        }
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(digit: char) -> ContainerId {
        ContainerId::parse(&digit.to_string().repeat(64)).expect("an ID")
    }

    #[test]
    fn containers_are_named_once_each_and_at_least_one() {
        let find = |text: &str| text.chars().next().map(id).ok_or_else(|| Error::Refused(text.to_owned()));
        let asked = |ids: &[&str]| {
            let ids: Vec<String> = ids.iter().map(|&id| id.to_owned()).collect();
            distinct(&ids, find)
        };
        assert_eq!(asked(&["a", "b"]).expect("two"), [id('a'), id('b')]);
        for bad in [&[][..], &["a", "b", "a"], &["aa", "a"]] {
            let error = asked(bad).expect_err("not a set");
            assert!(matches!(error, Error::Invalid { .. }), "{error:?}");
            assert!(error.to_string().starts_with("container_ids: "), "{error}");
        }
    }

    fn config(name: &str) -> v1::ContainerConfig {
        let metadata = v1::ContainerMetadata { name: name.into(), attempt: 0 };
        v1::ContainerConfig { metadata: Some(metadata), ..Default::default() }
    }

    #[test]
    fn configurations_are_exactly_those_of_the_checkpoint() {
        assert_eq!(each_named_once(&[config("a"), config("b")]).expect("two"), ["a", "b"]);
        for (bad, word) in [
            (vec![], "empty"),
            (vec![config("a"), config("a")], "twice"),
            (vec![config("")], "container_configs[0]"),
            (vec![config("a"), v1::ContainerConfig::default()], "container_configs[1]"),
        ] {
            let error = each_named_once(&bad).expect_err(word);
            assert!(error.to_string().contains(word), "{error}");
        }
        let asked = ["a".to_owned(), "b".to_owned()];
        same_names(&asked, ["b", "a"]).expect("the same");
        for (there, word) in
            [(&["a"][..], "has no b"), (&["a", "b", "c"], "missing: c"), (&["c"], "has no a, b")]
        {
            let error = same_names(&asked, there.iter().copied()).expect_err(word);
            assert!(error.to_string().contains(word), "{error}");
        }
    }

    #[test]
    fn an_option_is_refused_by_its_name() {
        let options = std::collections::HashMap::from([("leave-stopped".to_owned(), "1".to_owned())]);
        let error = no_options(options.keys()).expect_err("unknown");
        assert_eq!(error.to_string(), "options: \"leave-stopped\" is not known; there are none");
        assert!(no_options([]).is_ok());
    }
}
