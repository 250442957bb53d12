//! Holds `api.proto` against `interface.txt`, a listing of the interface's facts that was made by program.
//!
//! The wire is a promise to every kubelet: a wrong number or type would be read as another field, silently.

use std::collections::BTreeSet;
use std::sync::LazyLock;

use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{DescriptorProto, EnumDescriptorProto, FieldDescriptorProto, FileDescriptorProto};
use protox::Compiler;
use protox::prost_reflect::DescriptorPool;

const PROTO: &str = "proto/runtime/v1/api.proto";
const LISTING: &str = include_str!("interface.txt");

/// Reads the option by reflection: the descriptor types of prost are older than it.
fn redacted(message: &str, field: &str) -> bool {
    static POOL: LazyLock<DescriptorPool> = LazyLock::new(|| {
        let mut compiler = Compiler::new(["proto"]).expect("the directory is there");
        compiler.include_imports(true).open_file(PROTO).expect("api.proto compiles");
        compiler.descriptor_pool()
    });
    let message = POOL.get_message_by_name(&format!("runtime.v1.{message}")).expect("message");
    let options = message.get_field_by_name(field).expect("field").options();
    options.get_field_by_name("debug_redact").is_some_and(|value| value.as_bool() == Some(true))
}

fn compiled() -> FileDescriptorProto {
    let set = protox::compile([PROTO], ["proto"]).expect("api.proto compiles");
    set.file.into_iter().find(|file| file.package() == "runtime.v1").expect("package runtime.v1")
}

/// `.runtime.v1.X.Y` to `X.Y`.
fn local(name: &str) -> &str {
    name.strip_prefix(".runtime.v1.").unwrap_or(name)
}

fn type_of(field: &FieldDescriptorProto) -> String {
    match field.r#type() {
        Type::Message | Type::Enum => local(field.type_name()).to_owned(),
        plain => plain.as_str_name().trim_start_matches("TYPE_").to_lowercase(),
    }
}

fn field_line(message: &DescriptorProto, field: &FieldDescriptorProto) -> String {
    let entry = message.nested_type.iter().find(|nested| {
        nested.options.as_ref().is_some_and(|options| options.map_entry())
            && type_of(field) == format!("{}.{}", message.name(), nested.name())
    });
    let (label, kind) = match entry {
        Some(entry) => {
            assert_eq!(type_of(&entry.field[0]), "string", "key of {}.{}", message.name(), field.name());
            ("map", type_of(&entry.field[1]))
        }
        None if field.label() == Label::Repeated => ("repeated", type_of(field)),
        None => ("single", type_of(field)),
    };
    assert!(!field.proto3_optional() && field.oneof_index.is_none(), "{}.{}", message.name(), field.name());
    let mut line = format!("field {} {} {} {label} {kind}", message.name(), field.number(), field.name());
    if field.options.as_ref().is_some_and(|options| options.deprecated()) {
        line += " deprecated";
    }
    if redacted(message.name(), field.name()) {
        line += " debug_redact";
    }
    line
}

fn enum_lines(prefix: &str, group: &EnumDescriptorProto) -> Vec<String> {
    let line = |value: &prost_types::EnumValueDescriptorProto| {
        format!("enum {prefix}{} {} {}", group.name(), value.name(), value.number())
    };
    group.value.iter().map(line).collect()
}

fn lines(file: &FileDescriptorProto) -> BTreeSet<String> {
    let mut found = Vec::new();
    for service in &file.service {
        for method in &service.method {
            assert!(!method.client_streaming(), "{} takes no stream", method.name());
            let stream = if method.server_streaming() { " stream" } else { "" };
            found.push(format!(
                "rpc {} {} {} {}{stream}",
                service.name(),
                method.name(),
                local(method.input_type()),
                local(method.output_type())
            ));
        }
    }
    for group in &file.enum_type {
        found.extend(enum_lines("", group));
    }
    for message in &file.message_type {
        found.push(format!("message {}", message.name()));
        found.extend(message.field.iter().map(|field| field_line(message, field)));
        for group in &message.enum_type {
            found.extend(enum_lines(&format!("{}.", message.name()), group));
        }
    }
    found.into_iter().collect()
}

fn listed() -> BTreeSet<String> {
    LISTING.lines().filter(|line| !line.starts_with('#')).map(str::to_owned).collect()
}

fn differences(want: &BTreeSet<String>, have: &BTreeSet<String>) -> Vec<String> {
    let missing = want.difference(have).map(|line| format!("missing: {line}"));
    missing.chain(have.difference(want).map(|line| format!("unknown: {line}"))).collect()
}

#[test]
fn the_protocol_file_says_what_the_interface_says() {
    let found = differences(&listed(), &lines(&compiled()));
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn the_listing_is_whole() {
    let count = |kind: &str| LISTING.lines().filter(|line| line.starts_with(kind)).count();
    assert_eq!((count("rpc "), count("message ")), (43, 175));
    let enums: BTreeSet<_> =
        LISTING.lines().filter(|l| l.starts_with("enum ")).filter_map(|l| l.split(' ').nth(1)).collect();
    assert_eq!(enums.len(), 11);
}

#[test]
fn a_renumbered_field_a_lost_stream_and_a_new_value_are_found() {
    let mut file = compiled();
    file.message_type[0].field[0].number = Some(7);
    let events = file.service[0].method.iter_mut().find(|m| m.name() == "GetContainerEvents").unwrap();
    events.server_streaming = Some(false);
    file.enum_type[0].value[0].name = Some("QUIC".into());
    let found = differences(&listed(), &lines(&file));
    assert_eq!(
        found,
        [
            "missing: enum Protocol TCP 0",
            "missing: field VersionRequest 1 version single string",
            "missing: rpc RuntimeService GetContainerEvents GetEventsRequest ContainerEventResponse stream",
            "unknown: enum Protocol QUIC 0",
            "unknown: field VersionRequest 7 version single string",
            "unknown: rpc RuntimeService GetContainerEvents GetEventsRequest ContainerEventResponse",
        ]
    );
}
