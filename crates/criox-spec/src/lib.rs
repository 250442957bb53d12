//! Pure: CRI configuration, image configuration and node facts become an OCI runtime specification.
