//! What a log means, shown by the flow tables of the reference and by random histories.

mod admission;
mod flows;
mod invariants;
mod mcp;
mod properties;
mod records;
mod workspaces;
mod world;
