//! The system calls of criox, and all of its unsafe code.
