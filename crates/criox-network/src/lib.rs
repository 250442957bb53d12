//! Pod networks through CNI, and host ports.
