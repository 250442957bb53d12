//! Tests through the public interface: whole documents, rules, refusals, properties.

mod golden;
mod properties;
mod refusals;
mod rules;
mod support;
