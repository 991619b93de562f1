//! The brain over a real store, and the models over real bytes.

mod brain;
mod crash;
mod model;
mod world;
