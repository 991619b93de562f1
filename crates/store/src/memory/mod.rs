//! The engine in memory: sessions as they lie in maps. For tests and simulations; it forgets everything.
//!
//! The same every time: no thread, no clock but the store's, nothing whose order is left to chance. On one thread,
//! with tokio's time paused, the same calls in the same order leave the same bytes.
//!
//! - [`engine`]: the seam, from the parts below.
//! - [`sessions`]: sessions, changed and read.
//! - [`logs`]: slices of a log, and what a follower is shown next.
//! - [`resources`]: agents, environments, workspaces, keys.
//! - [`vaults`]: vaults, credentials, sealing keys.
//! - [`weather`]: what may befall a call on its way, for simulations.

mod engine;
mod logs;
mod resources;
mod sessions;
mod vaults;
mod weather;

use std::sync::Arc;

use crate::hub::Hub;
use crate::{Options, Store};
use engine::Memory;
use weather::Weathered;
pub use weather::{Asked, Fate, Luck, Weather};

impl Store {
    /// A store in memory. For tests and simulations: it forgets everything.
    pub fn in_memory(options: Options) -> Self {
        let hub = Arc::new(Hub::default());
        let engine = Memory::new(options.clone(), hub.clone());
        Self::over(options, hub, Arc::new(engine))
    }

    /// The same, in such weather.
    pub fn in_weather(options: Options, weather: Arc<dyn Weather>) -> Self {
        let hub = Arc::new(Hub::default());
        let memory = Memory::new(options.clone(), hub.clone());
        Self::over(options, hub, Arc::new(Weathered::new(memory, weather)))
    }
}
