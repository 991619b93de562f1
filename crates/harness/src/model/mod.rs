//! Models: asking one, over whatever wire its provider speaks.
//!
//! A [`Prompt`] goes in, a stream of [`Delta`]s comes out and ends with the [`Answer`] or a [`Failure`]. This module
//! knows the providers' wires and nothing else does; it knows no session, stores nothing, and does not retry: a
//! failure says whether and when trying again can help, and the caller makes the retry visible in the log.
//!
//! Keys live in [`ApiKey`] and leave it for a request header only. No message, log line or `Debug` output of this
//! module holds one.
//!
//! ```text
//! Providers ── resolve(model) ──> Provider ── ask(prompt) ──> Asking ── next() ──> Delta … Delta::Done(Answer)
//!                                    │                          └── Failure, once, last
//!                                    ├ anthropic   POST /v1/messages
//!                                    ├ openai      POST /chat/completions
//!                                    └ scripted    no wire: plays a Script
//! ```

mod prompt;

mod answer;

mod failure;

mod provider;

mod config;

mod key;

mod connect;

mod turns;

mod anthropic;
mod openai;
pub mod scripted;

mod http;

mod drive;

mod pace;

mod rates;

pub(crate) use connect::{innermost, proxy};

pub use answer::{Answer, Asking, Block, Delta, Stop};
pub use config::{ConfigError, Kind, ProviderConfig, Thinking};
pub use failure::{Failure, FailureKind};
pub use http::install_crypto;
pub use key::ApiKey;
pub use pace::OnPause;
pub use prompt::{Message, Prompt, ToolResult, ToolSpec, UserBlock};
pub use provider::{Listed, Provider, Providers, Retry};
pub use scripted::Script;
