//! The CRI v1 interface: our own protocol file, the generated types, identifiers and reason strings.
