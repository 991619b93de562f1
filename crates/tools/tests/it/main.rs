//! The real binary, driven over its wire.
