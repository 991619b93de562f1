//! How commands find a running server.

use anyhow::Context as _;
use clap::Args;
use client::Client;

/// Which server, and as whom.
#[derive(Args, Clone, Debug)]
pub(crate) struct ClientOptions {
    /// The server.
    #[arg(long, env = "POSTHOUSE_URL", default_value = "http://127.0.0.1:8400", value_name = "URL")]
    pub(crate) url: String,
    /// The API key.
    #[arg(long, env = "POSTHOUSE_API_KEY", value_name = "KEY", hide_env_values = true)]
    pub(crate) api_key: Option<String>,
    /// Print JSON, one object a line.
    #[arg(long)]
    pub(crate) json: bool,
}

impl ClientOptions {
    pub(crate) fn client(&self) -> anyhow::Result<Client> {
        let key = self.api_key.as_deref().context(
            "no API key: set POSTHOUSE_API_KEY or --api-key to the key that `posthouse serve` printed at its first \
             start, or make one with `posthouse keys create`",
        )?;
        Ok(Client::new(&self.url, key)?)
    }
}
