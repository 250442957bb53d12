//! One per pod: owns the pod's processes, their streams, logs and exit codes.

fn main() {}
