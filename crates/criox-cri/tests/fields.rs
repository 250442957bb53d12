//! Holds `FIELDS.md` against the interface: each field that a request can hold is honoured, refused or ignored on
//! purpose, and what a row names as its proof is there. A field of a later interface fails this test until somebody has
//! decided what becomes of it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use prost_types::field_descriptor_proto::Type;
use prost_types::{DescriptorProto, FileDescriptorProto};

const PROTO: &str = "proto/runtime/v1/api.proto";
const TABLE: &str = include_str!("../FIELDS.md");

fn compiled() -> FileDescriptorProto {
    let set = protox::compile([PROTO], ["proto"]).expect("api.proto compiles");
    set.file.into_iter().find(|file| file.package() == "runtime.v1").expect("package runtime.v1")
}

fn local(name: &str) -> &str {
    name.strip_prefix(".runtime.v1.").unwrap_or(name)
}

/// `Message.field` of everything that a request can hold.
fn fields_of_requests(file: &FileDescriptorProto) -> BTreeSet<String> {
    let messages: BTreeMap<&str, &DescriptorProto> =
        file.message_type.iter().map(|message| (message.name(), message)).collect();
    let mut pending: Vec<&str> = file
        .service
        .iter()
        .flat_map(|service| &service.method)
        .map(|method| local(method.input_type()))
        .collect();
    let mut seen = BTreeSet::new();
    let mut fields = BTreeSet::new();
    while let Some(name) = pending.pop() {
        // Entries of maps are nested messages, and have only strings.
        let Some(message) = messages.get(name).filter(|_| seen.insert(name)) else { continue };
        for field in &message.field {
            fields.insert(format!("{name}.{}", field.name()));
            if field.r#type() == Type::Message {
                pending.push(local(field.type_name()));
            }
        }
    }
    fields
}

/// One row of the table.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Row {
    field: String,
    fate: String,
    why: String,
}

fn rows(table: &str) -> Vec<Row> {
    let mut message = "";
    let mut rows = Vec::new();
    for line in table.lines() {
        if let Some(name) = line.strip_prefix("## ") {
            message = name;
        } else if let Some(cells) = line.strip_prefix("| `").and_then(|line| line.strip_suffix(" |")) {
            let mut cells = cells.splitn(3, " | ");
            let mut cell = || cells.next().unwrap_or_default();
            let field = format!("{message}.{}", cell().trim_end_matches('`'));
            rows.push(Row { field, fate: cell().to_owned(), why: cell().to_owned() });
        }
    }
    rows
}

/// The file that a place in the table names.
fn file_of(place: &str) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let test = ["cri/", "streaming/", "bad_input/"].iter().any(|prefix| place.starts_with(prefix));
    root.join(if test { format!("dev/testkit/tests/{place}.rs") } else { place.to_owned() })
}

/// What is wrong with a row by itself.
fn mistake(row: &Row) -> Option<String> {
    match row.fate.as_str() {
        "ignored" if row.why.len() < 20 => Some("ignored without a reason".to_owned()),
        "ignored" => None,
        "honoured" | "refused" => row.why.split("<br>").find_map(|proof| {
            let Some((place, text)) = proof.split_once(": ") else {
                return Some(format!("{proof:?} is not of the form `place`: text"));
            };
            let path = file_of(place.trim_matches('`'));
            match std::fs::read_to_string(&path) {
                Ok(content) if !text.is_empty() && content.contains(text) => None,
                Ok(_) => Some(format!("{place} has no {text:?}")),
                Err(error) => Some(format!("{place}: {error}")),
            }
        }),
        other => Some(format!("{other:?} is neither honoured, refused nor ignored")),
    }
}

fn mistakes(fields: &BTreeSet<String>, rows: &[Row]) -> Vec<String> {
    let mut found = Vec::new();
    let mut described = BTreeSet::new();
    for row in rows {
        if !described.insert(row.field.clone()) {
            found.push(format!("{}: has two rows", row.field));
        }
        if !fields.contains(&row.field) {
            found.push(format!("{}: no request has it", row.field));
        }
        found.extend(mistake(row).map(|mistake| format!("{}: {mistake}", row.field)));
    }
    found.extend(
        fields.difference(&described).map(|field| format!("{field}: nobody says what becomes of it")),
    );
    found
}

#[test]
fn each_field_of_each_request_is_honoured_refused_or_ignored_on_purpose() {
    let found = mistakes(&fields_of_requests(&compiled()), &rows(TABLE));
    assert!(found.is_empty(), "FIELDS.md:\n{}", found.join("\n"));
}

#[test]
fn all_requests_are_walked() {
    let fields = fields_of_requests(&compiled());
    assert_eq!(fields.len(), 244);
    for field in
        ["RestorePodRequest.container_configs", "Mount.mount_options", "WindowsCpuGroupAffinity.cpu_group"]
    {
        assert!(fields.contains(field), "{field}");
    }
    // Only in answers.
    assert!(!fields.iter().any(|field| field.starts_with("ContainerStatus.")));
}

#[test]
fn a_new_field_a_stale_row_and_a_lost_proof_are_found() {
    let mut file = compiled();
    let version =
        file.message_type.iter_mut().find(|message| message.name() == "VersionRequest").expect("there");
    let mut new = version.field[0].clone();
    new.name = Some("novelty".into());
    version.field.push(new);
    let mut table = rows(TABLE);
    table.retain(|row| row.field != "StatusRequest.verbose");
    let row = |field: &str, fate: &str, why: &str| Row {
        field: field.to_owned(),
        fate: fate.to_owned(),
        why: why.to_owned(),
    };
    table.push(row("VersionRequest.gone", "ignored", "there was such a field once"));
    table.push(row("StatusRequest.verbose", "honoured", "`cri/handlers`: a sentence that no test has"));
    let found = mistakes(&fields_of_requests(&file), &table);
    assert_eq!(
        found,
        [
            "VersionRequest.gone: no request has it",
            "StatusRequest.verbose: `cri/handlers` has no \"a sentence that no test has\"",
            "VersionRequest.novelty: nobody says what becomes of it",
        ]
    );
    assert!(mistake(&row("X.y", "honoured", "`cri/none`: x")).is_some());
    assert!(mistake(&row("X.y", "ignored", "")).is_some());
    assert!(mistake(&row("X.y", "perhaps", "it depends on the weather")).is_some());
}
