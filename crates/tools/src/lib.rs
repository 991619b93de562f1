//! What hands can do: bash, read, write, edit, glob and grep, and the ledger that keeps a call from
//! running twice.
//!
//! Without the feature `bin` this is only [`wire`]: what the supervisor and `tools` say to each other.

pub mod wire;
