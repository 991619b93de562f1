//! `posthouse vaults connect`: gets OAuth tokens for an MCP server and puts them into a vault.
//!
//!     discovery ▶ client ▶ browser ▶ code ▶ tokens ▶ vault
//!
//! All of it happens on the operator's machine; the server gets the result, through its API. Nothing is stored before the last
//! step, and nothing that failed leaves anything behind but, perhaps, a client registered with the authorization server.
//! Secrets come from files or standard input and go into requests: they are neither printed nor in arguments.

mod authorization;
mod discovery;
mod redirect;
mod registration;
mod web;

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::Args;
use client::Client;
use protocol::credential::{Credential, CredentialKey, TokenEndpointAuth};
use reqwest::Url;
use serde_json::{Value, json};
use store::{Clock as _, SystemClock};

use self::authorization::{Authorization, Tokens};
use self::redirect::Redirect;
use self::registration::OauthClient;
use self::web::{Hidden, Web};
use crate::client_options::ClientOptions;
use crate::out;
use crate::vaults::read_secret;

const LIST_MAX: &str = "100";
/// More pages of vaults than this are not looked through for a name.
const PAGES_MAX: usize = 100;
const VAULT_PREFIX: &str = "vlt_";

/// What is connected with what.
#[derive(Args, Debug)]
pub(crate) struct ConnectOptions {
    /// The MCP server's address, as agents name it.
    mcp_server: String,
    /// The vault that gets the tokens: its id or its name.
    #[arg(long, value_name = "VAULT")]
    vault: String,
    /// A name for people.
    #[arg(long)]
    name: Option<String>,
    /// What to ask for, separated by spaces. [default: what the MCP server says]
    #[arg(long)]
    scope: Option<String>,
    /// A client that is registered with the authorization server. [default: one is registered now]
    #[arg(long, value_name = "ID")]
    client_id: Option<String>,
    /// Read the client's secret from this file.
    #[arg(long, value_name = "FILE", requires = "client_id")]
    client_secret_file: Option<PathBuf>,
    /// Read the client's secret from standard input.
    #[arg(long, requires = "client_id", conflicts_with = "client_secret_file")]
    client_secret_stdin: bool,
    /// The port of 127.0.0.1 that the browser comes back to: for clients that are registered with one, and for
    /// `ssh -L PORT:127.0.0.1:PORT` if the browser is on another machine. [default: any that is free]
    #[arg(long, value_name = "PORT", default_value_t = 0, hide_default_value = true)]
    redirect_port: u16,
    /// How many seconds to wait for the browser.
    #[arg(long, value_name = "SECONDS", default_value_t = 300, value_parser = clap::value_parser!(u64).range(1..=3_600))]
    timeout: u64,
    /// Try to open a browser, too. Other users of this machine may see the address then.
    #[arg(long)]
    open: bool,
    /// Only print the address; so it is without --open.
    #[arg(long, conflicts_with = "open")]
    no_browser: bool,
    #[command(flatten)]
    server: ClientOptions,
}

pub(crate) async fn connect(options: ConnectOptions) -> anyhow::Result<()> {
    let client = options.server.client()?;
    let server = web::address(&options.mcp_server).context("the MCP server cannot be used")?;
    let vault = vault_of(&client, &options.vault).await?;
    ensure_free(&client, &vault, &options.mcp_server).await?;
    let secret = match (&options.client_secret_file, options.client_secret_stdin) {
        (Some(file), _) => Some(Hidden::from(read_secret(Some(file))?)),
        (None, true) => Some(Hidden::from(read_secret(None)?)),
        (None, false) => None,
    };

    let web = Web::new()?;
    let found =
        discovery::discover(&web, &server, options.scope.clone()).await.context("discovery failed")?;
    let redirect = Redirect::listen(options.redirect_port).await?;
    let oauth_client = match options.client_id.clone() {
        Some(id) => registration::known(&found, id, secret),
        None => registration::register(&web, &found, redirect.address()).await,
    };
    let oauth_client = oauth_client.context("client registration failed")?;

    let authorization = Authorization::begin(&found, &oauth_client, redirect.address().to_owned());
    let address = authorization.address();
    out::remark(&format!("Open this address in a browser, and allow it:\n\n  {address}\n"));
    if options.open {
        open(&address);
    }
    let brought = redirect.wait(Duration::from_secs(options.timeout)).await;
    let code = brought.and_then(|query| {
        let query = query.with_context(|| {
            format!(
                "no browser came back within {} seconds: run it again, and give yourself more with --timeout",
                options.timeout
            )
        })?;
        authorization.code(&query)
    });
    let code = code.context("authorization failed")?;
    let tokens = authorization.exchange(&web, &code, SystemClock.now()).await;
    let tokens = tokens.context("the code was not exchanged for tokens")?;

    if tokens.refresh_token.is_none() {
        out::remark(
            "The authorization server gave no refresh token: when the access token ends, connect again.",
        );
    }
    let body = json!({
        "auth": auth(&options.mcp_server, &authorization, &tokens), "display_name": options.name,
    });
    let stored = client.create_credential(&vault, body).await;
    let credential: Credential =
        stored.context("the tokens were obtained but not stored, and are gone: connect again")?;
    match options.server.json {
        true => out::line(&serde_json::to_string(&credential)?),
        false => out::line(credential.id.as_str()),
    }
}

/// A vault by its id or its name.
async fn vault_of(client: &Client, named: &str) -> anyhow::Result<String> {
    if named.starts_with(VAULT_PREFIX) {
        return Ok(named.to_owned());
    }
    let (mut ids, mut page) = (Vec::new(), None::<String>);
    for _ in 0..PAGES_MAX {
        let mut query = vec![("limit", LIST_MAX)];
        query.extend(page.as_deref().map(|page| ("page", page)));
        let vaults = client.list_vaults(&query).await?;
        ids.extend(vaults.data.into_iter().filter(|vault| vault.display_name == named).map(|vault| vault.id));
        page = vaults.next_page;
        if page.is_none() {
            break;
        }
    }
    match ids.as_slice() {
        [] => bail!("no vault has the name `{named}`: make one with `posthouse vaults create`"),
        [id] => Ok(id.to_string()),
        [..] => bail!("{} vaults have the name `{named}`: name one by its id", ids.len()),
    }
}

/// A vault has one credential for each server: said before somebody is asked for consent.
async fn ensure_free(client: &Client, vault: &str, server: &str) -> anyhow::Result<()> {
    let held = client.list_credentials(vault, &[("limit", LIST_MAX)]).await?;
    let key = CredentialKey::of_server(server);
    let other = held.data.iter().find(|credential| Some(credential.auth.key()) == key);
    if let Some(Credential { id, .. }) = other {
        bail!(
            "the vault has a credential for this server, {id}: take it away first, with `posthouse vaults archive {vault} {id}`"
        );
    }
    Ok(())
}

/// What is sent to be sealed.
fn auth(server: &str, authorization: &Authorization<'_>, tokens: &Tokens) -> Value {
    let OauthClient { id, auth, secret } = authorization.client;
    let mut sent = json!({
        "type": "mcp_oauth", "mcp_server_url": server, "access_token": tokens.access_token.as_str(),
        "expires_at": tokens.expires_at,
    });
    if let Some(refresh_token) = &tokens.refresh_token {
        let secret = secret.as_ref().map(Hidden::as_str);
        let proof = match auth {
            TokenEndpointAuth::None {} => json!({"type": "none"}),
            TokenEndpointAuth::ClientSecretBasic {} => {
                json!({"type": "client_secret_basic", "client_secret": secret})
            }
            TokenEndpointAuth::ClientSecretPost {} => {
                json!({"type": "client_secret_post", "client_secret": secret})
            }
        };
        sent["refresh"] = json!({
            "refresh_token": refresh_token.as_str(), "client_id": id,
            "token_endpoint": authorization.found.token_endpoint.as_str(), "token_endpoint_auth": proof,
            "scope": tokens.scope, "resource": authorization.found.resource,
        });
    }
    sent
}

/// A browser, if there is one. The address is printed all the same.
fn open(address: &Url) {
    let mut command = tokio::process::Command::new("xdg-open");
    command.arg(address.as_str()).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    if command.spawn().is_err() {
        out::remark("No browser could be started.");
    }
}
