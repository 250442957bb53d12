//! Configuration in the formats of CRI-O and containers/image: read, merged, validated.
