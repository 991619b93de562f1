//! Repositories against a real git server with tokens, by real git.

mod attacks;
mod fetching;
mod proxying;
mod world;
