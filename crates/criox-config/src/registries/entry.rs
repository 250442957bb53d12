//! Reading `[[registry]]` and `[[registry.mirror]]`.

use toml::de::{DeTable, DeValue};

use super::{Mirror, Registry};
use crate::document::{Document, find};
use crate::problem::Origin;
use crate::table::{Sink, apply};

pub(super) fn registry(
    doc: &Document<'_>,
    origin: &Origin,
    table: &DeTable<'_>,
    sink: &mut Sink,
) -> Option<Registry> {
    let before = sink.problems.0.len();
    let mut entry = Registry::default();
    apply(&mut entry, "registry", doc, table, &["mirror", "pull_from_mirror"], sink);
    let mut problem = |key: &str, message: String| sink.problems.add(origin.clone(), key, message);
    if table.keys().any(|key| key.get_ref() == "pull-from-mirror") {
        problem("registry.pull-from-mirror", "belongs into [[registry.mirror]]".to_owned());
    }
    let unset = entry.location.is_empty();
    entry.location = location(&entry.location).unwrap_or_else(|message| {
        problem("registry.location", message);
        String::new()
    });
    entry.prefix = location(&entry.prefix).unwrap_or_else(|message| {
        problem("registry.prefix", message);
        String::new()
    });
    let wildcard = entry.prefix.starts_with("*.");
    if wildcard && entry.prefix[2..].contains(['/', '@', ':', '*']) {
        let message = format!("\"{}\": after *. only a domain may follow", entry.prefix);
        problem("registry.prefix", message);
    } else if !wildcard && entry.prefix.contains('*') {
        let message =
            format!("\"{}\": a wildcard stands only at the beginning, as in *.example.com", entry.prefix);
        problem("registry.prefix", message);
    }
    if unset && !wildcard {
        problem("registry.location", "must be set".to_owned());
    }
    if entry.prefix.is_empty() {
        entry.prefix.clone_from(&entry.location);
    }
    for (at, table) in list(doc, table, "mirror", sink) {
        entry.mirrors.extend(mirror(doc, &at, table, entry.mirror_by_digest_only, sink));
    }
    (sink.problems.0.len() == before).then_some(entry)
}

fn mirror(
    doc: &Document<'_>,
    origin: &Origin,
    table: &DeTable<'_>,
    by_digest_only: bool,
    sink: &mut Sink,
) -> Option<Mirror> {
    let before = sink.problems.0.len();
    let mut mirror = Mirror::default();
    apply(&mut mirror, "registry.mirror", doc, table, &[], sink);
    let selective = table.iter().any(|(key, value)| {
        key.get_ref() == "pull-from-mirror" && value.get_ref().as_str().is_some_and(|text| !text.is_empty())
    });
    let mut problem = |key: &str, message: &str| sink.problems.add(origin.clone(), key, message);
    if selective && by_digest_only {
        problem("registry.mirror.pull-from-mirror", "can't be used together with mirror-by-digest-only");
    }
    match location(&mirror.location) {
        Ok(location) if location.is_empty() => problem("registry.mirror.location", "must be set"),
        Ok(location) => mirror.location = location,
        Err(message) => problem("registry.mirror.location", &message),
    }
    (sink.problems.0.len() == before).then_some(mirror)
}

fn location(text: &str) -> Result<String, String> {
    if text.starts_with("http://") || text.starts_with("https://") {
        return Err(format!("\"{text}\" must not have a scheme: use insecure = true for plain HTTP"));
    }
    Ok(text.trim_end_matches('/').to_owned())
}

/// The tables of an array of tables, each with its origin.
pub(super) fn list<'t, 'i>(
    doc: &Document<'_>,
    table: &'t DeTable<'i>,
    name: &str,
    sink: &mut Sink,
) -> Vec<(Origin, &'t DeTable<'i>)> {
    let Some((key, value)) = find(table, name) else { return Vec::new() };
    let DeValue::Array(array) = value.get_ref() else {
        sink.problems.add(doc.origin(key), name, format!("must be written as [[{name}]]"));
        return Vec::new();
    };
    let mut found = Vec::new();
    for value in array.iter() {
        match value.get_ref() {
            DeValue::Table(table) => found.push((doc.origin(value), table)),
            _ => sink.problems.add(doc.origin(value), name, format!("must be written as [[{name}]]")),
        }
    }
    found
}
