//! Checks of the repository that the compiler does not make.

fn main() {}
