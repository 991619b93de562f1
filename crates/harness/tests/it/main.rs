//! The brain over a real store, and the models over real bytes.

mod brain;
mod crash;
mod drain;
mod limits;
mod mcp;
mod model;
mod simulation;
mod speculation;
mod web;
mod workspace;
mod world;
