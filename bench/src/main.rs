//! Drives any CRI socket with the same work and prints a table.

fn main() {}
