//! Sandboxes as containers: an engine that speaks the Docker API (Docker, Podman) starts them, the supervisor keeps them.
//!
//! The engine makes a container whose process 1 is our own `tools`; that calls the supervisor, and from then on the engine is
//! not asked again until the container is removed. So calls, fences, the ledger, exits and deliverables are those of every
//! sandbox, and a container outlives the server. See docs/design/containers.md.
//!
//! In reading order: `settings` (what the operator chooses), `provider` ([`Docker`]), `container` (what each one is made of),
//! `engine` (the connection), `report` (what the engine gives, for `posthouse doctor`),
//! `layers` (packages, over an image).
//!
//! Nothing here pulls an image, talks to an engine on another machine, or gives a container a network.

mod container;
mod engine;
mod layers;
mod provider;
mod report;
mod settings;

pub use provider::Docker;
pub use settings::Settings;
