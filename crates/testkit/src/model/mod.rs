//! A model server that plays a script, over real HTTP.
//!
//! It speaks the wire formats of the providers (`POST /v1/messages`, `POST /v1/chat/completions`, `GET /v1/models`),
//! streamed and whole, and checks what it is sent as strictly as they do. What it answers is scripted per model
//! name, so tests that run side by side use a name each and never meet. It refuses to be clever: a request takes
//! the next reply of its model, and a request that breaks the format takes none.
//!
//! Control, as methods of [`Server`] and as routes for other languages:
//!
//! | route | meaning |
//! |---|---|
//! | `POST /_script` `{"model","replies":[…]}` | append [`Reply`]s to the model's queue |
//! | `POST /_release` `{"hold"}` | let go what waits on a hold, now and later |
//! | `GET /_requests?model=` | every request seen, in order, with headers, body and raw bytes |
//! | `GET /_waiting?hold=` | how many answers wait on a hold |

mod reply;
mod server;

mod anthropic;
mod openai;

mod check;
mod play;
mod state;

pub use reply::{Block, Chunks, Error, Raw, Reply, Usage};
pub use server::Server;
pub use state::{Outcome, Request};
