//! Image references, the registry client, and the pull pipeline.
