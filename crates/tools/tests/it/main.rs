//! The real binary, driven over its wire.

mod archive;
mod bash;
mod dial;
mod equip;
mod files;
mod hands;
mod ledger;
mod outputs;
mod paths;
mod process;
mod sh;
mod trees;
