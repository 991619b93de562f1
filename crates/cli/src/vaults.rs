//! `posthouse vaults`: what sessions may spend, and the key that seals it.
//!
//! A secret is read from a file or from standard input, never from an argument: those can be read by every user of the
//! machine.

use std::io::{IsTerminal as _, Read as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail, ensure};
use clap::{Args, Subcommand};
use comfy_table::{Table, presets};
use protocol::credential::{Credential, CredentialAuth, CredentialNetworking};
use protocol::secret::Secret;
use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};
use serde::Deserialize;
use serde_json::json;
use vault::{Book, Rotation, Source};

use crate::client_options::ClientOptions;
use crate::connect::{ConnectOptions, connect};
use crate::out;
use crate::server;
use crate::settings::{PlaceOptions, ServerOptions, Settings};

/// The variable that may hold the master key itself. There is no flag for it, and the file has no place for it.
const KEY: &str = "POSTHOUSE_VAULT_KEY";
/// More than any secret may be long.
const SECRET_BYTES_MAX: u64 = 64 << 10;
const LIST_MAX: &str = "100";

/// Where the master key of the vaults comes from.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Vaults (docs/configuration.md)")]
pub(crate) struct VaultOptions {
    /// The file with the master key that vaults are sealed with. Made at the first start; only its owner may read it. The
    /// variable POSTHOUSE_VAULT_KEY may hold the key itself instead. [default: vault.key in the data directory]
    #[arg(long, env = "POSTHOUSE_VAULT_KEY_FILE", value_name = "FILE")]
    vault_key_file: Option<PathBuf>,

    /// A command for the shell that prints that key, such as one that asks a key service. Run once.
    #[arg(long, env = "POSTHOUSE_VAULT_KEY_COMMAND", value_name = "COMMAND")]
    vault_key_command: Option<String>,
}

/// The table `[vault]` of the file.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct VaultTable {
    key_file: Option<PathBuf>,
    key_command: Option<String>,
}

impl VaultOptions {
    /// A flag or variable wins over the file, whatever kind of source it names.
    pub(crate) fn over(self, file: VaultTable, data_dir: &Path) -> anyhow::Result<Source> {
        let given = |text: &String| !text.trim().is_empty();
        let text = std::env::var(KEY).ok().filter(given);
        let command = self.vault_key_command.filter(given);
        let path = self.vault_key_file.filter(|path| !path.as_os_str().is_empty());
        let source = match (path, text, command) {
            (Some(path), None, None) => Source::File(path),
            (None, Some(text), None) => Source::Text(Secret::new(text)),
            (None, None, Some(command)) => Source::Command(command),
            (None, None, None) => match (file.key_file, file.key_command.filter(given)) {
                (Some(path), None) => Source::File(path),
                (None, Some(command)) => Source::Command(command),
                (None, None) => Source::File(data_dir.join("vault.key")),
                (Some(_), Some(_)) => bail!("[vault]: `key_file` and `key_command` exclude each other"),
            },
            _ => bail!("--vault-key-file, --vault-key-command and {KEY} exclude each other: name one"),
        };
        Ok(match source {
            Source::File(path) => Source::File(
                std::path::absolute(&path)
                    .with_context(|| format!("the key file {} cannot be used", path.display()))?,
            ),
            source => source,
        })
    }
}

/// Make, fill and empty vaults, and change the key that seals them.
#[derive(Args, Debug)]
pub(crate) struct VaultsOptions {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Make a vault.
    Create {
        /// A name for people.
        name: String,
        #[command(flatten)]
        server: ClientOptions,
    },
    /// List vaults, newest first.
    List {
        /// Archived ones, too.
        #[arg(long)]
        archived: bool,
        #[command(flatten)]
        server: ClientOptions,
    },
    /// List what a vault holds, without the secrets, which nobody gets to see.
    Show {
        /// The vault's id.
        vault: String,
        /// Archived credentials, too.
        #[arg(long)]
        archived: bool,
        #[command(flatten)]
        server: ClientOptions,
    },
    /// Put a secret into a vault: a token for an MCP server, or the value of an environment variable.
    Add(AddOptions),
    /// Get OAuth tokens for an MCP server, with your consent in a browser, and put them into a vault.
    Connect(ConnectOptions),
    /// Archive a vault, or one of its credentials: the secrets are gone for good.
    Archive {
        /// The vault's id.
        vault: String,
        /// One credential of it, by id.
        credential: Option<String>,
        #[command(flatten)]
        server: ClientOptions,
    },
    /// Delete a vault, or one of its credentials.
    Delete {
        /// The vault's id.
        vault: String,
        /// One credential of it, by id.
        credential: Option<String>,
        #[command(flatten)]
        server: ClientOptions,
    },
    /// Seal with another master key from now on, and everything that is sealed already. Servers go on meanwhile; if this is
    /// killed, run it again.
    RotateKey {
        #[command(flatten)]
        place: PlaceOptions,
        #[command(flatten)]
        vault: VaultOptions,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
}

/// What is put into a vault.
#[derive(Args, Debug)]
struct AddOptions {
    /// The vault's id.
    vault: String,
    /// A bearer token for the MCP server at this address.
    #[arg(long, value_name = "URL", conflicts_with = "variable", required_unless_present = "variable")]
    mcp_server: Option<String>,
    /// The value of this environment variable. A sandbox sees a placeholder.
    #[arg(long, value_name = "NAME")]
    variable: Option<String>,
    /// With --variable: on the way to which hosts the value is put in; may be repeated. [default: wherever the environment
    /// may go]
    #[arg(long, value_name = "HOST", requires = "variable")]
    host: Vec<String>,
    /// A name for people.
    #[arg(long)]
    name: Option<String>,
    /// Read the secret from this file instead of standard input.
    #[arg(long, value_name = "FILE")]
    secret_file: Option<PathBuf>,
    #[command(flatten)]
    server: ClientOptions,
}

pub(crate) async fn vaults(options: VaultsOptions) -> anyhow::Result<()> {
    match options.command {
        Command::Create { name, server } => {
            let vault = server.client()?.create_vault(json!({"display_name": name})).await?;
            if server.json { show_json(&vault) } else { out::line(vault.id.as_str()) }
        }
        Command::List { archived, server } => list(&server, archived).await,
        Command::Show { vault, archived, server } => show(&server, &vault, archived).await,
        Command::Add(options) => add(options).await,
        Command::Connect(options) => connect(options).await,
        Command::Archive { vault, credential, server } => {
            let client = server.client()?;
            match credential {
                None => done(&server, &client.archive_vault(&vault).await?, "archived", &vault),
                Some(id) => done(&server, &client.archive_credential(&vault, &id).await?, "archived", &id),
            }
        }
        Command::Delete { vault, credential, server } => {
            let client = server.client()?;
            let id = match &credential {
                None => client.delete_vault(&vault).await?.id,
                Some(id) => client.delete_credential(&vault, id).await?.id,
            };
            done(&server, &json!({"id": id, "deleted": true}), "deleted", &id)
        }
        Command::RotateKey { place, vault, json } => {
            let settings = ServerOptions { place, vault, ..ServerOptions::default() }.settle_quiet()?;
            rotate(&settings, json).await
        }
    }
}

fn done(server: &ClientOptions, value: &impl serde::Serialize, what: &str, id: &str) -> anyhow::Result<()> {
    if server.json { show_json(value) } else { out::line(&format!("{what} {id}")) }
}

fn show_json(value: &impl serde::Serialize) -> anyhow::Result<()> {
    out::line(&serde_json::to_string(value)?)
}

async fn list(server: &ClientOptions, archived: bool) -> anyhow::Result<()> {
    let archived = if archived { "true" } else { "false" };
    let page = server.client()?.list_vaults(&[("limit", LIST_MAX), ("include_archived", archived)]).await?;
    if server.json {
        return page.data.iter().try_for_each(show_json);
    }
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_header(["id", "name", "created", "archived"]);
    for vault in page.data {
        let archived = vault.archived_at.map_or_else(String::new, |at| at.to_string());
        table.add_row([vault.id.to_string(), vault.display_name, vault.created_at.to_string(), archived]);
    }
    out::line(&table.to_string())
}

async fn show(server: &ClientOptions, vault: &str, archived: bool) -> anyhow::Result<()> {
    let archived = if archived { "true" } else { "false" };
    let query = [("limit", LIST_MAX), ("include_archived", archived)];
    let page = server.client()?.list_credentials(vault, &query).await?;
    if server.json {
        return page.data.iter().try_for_each(show_json);
    }
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_header(["id", "for", "where", "name", "created", "archived"]);
    for credential in page.data {
        let (what, place) = described(&credential);
        let archived = credential.archived_at.map_or_else(String::new, |at| at.to_string());
        table.add_row([
            credential.id.to_string(),
            what,
            place,
            credential.display_name.unwrap_or_default(),
            credential.created_at.to_string(),
            archived,
        ]);
    }
    out::line(&table.to_string())
}

/// What a credential is for, and where it is spent.
fn described(credential: &Credential) -> (String, String) {
    match &credential.auth {
        CredentialAuth::McpOauth { mcp_server_url, expires_at, refresh } => {
            let renewal = match (refresh, expires_at) {
                (Some(_), _) => "renewed".to_owned(),
                (None, Some(at)) => format!("until {at}"),
                (None, None) => String::new(),
            };
            (format!("MCP, OAuth {renewal}").trim_end().to_owned(), mcp_server_url.clone())
        }
        CredentialAuth::StaticBearer { mcp_server_url } => ("MCP, token".to_owned(), mcp_server_url.clone()),
        CredentialAuth::EnvironmentVariable { secret_name, networking, .. } => {
            let hosts = match networking {
                CredentialNetworking::Unrestricted {} => "wherever the environment may go".to_owned(),
                CredentialNetworking::Limited { allowed_hosts } => allowed_hosts.join(", "),
            };
            (format!("${secret_name}"), hosts)
        }
    }
}

async fn add(options: AddOptions) -> anyhow::Result<()> {
    let AddOptions { vault, mcp_server, variable, host, name, secret_file, server } = options;
    let client = server.client()?;
    let secret = read_secret(secret_file.as_deref())?;
    let auth = match (mcp_server, variable) {
        (Some(url), _) => json!({"type": "static_bearer", "mcp_server_url": url, "token": secret}),
        (None, Some(name)) => {
            let networking = match host.is_empty() {
                true => json!({"type": "unrestricted"}),
                false => json!({"type": "limited", "allowed_hosts": host}),
            };
            json!({
                "type": "environment_variable", "secret_name": name, "secret_value": secret, "networking": networking,
            })
        }
        (None, None) => bail!("say what the secret is for: --mcp-server or --variable"),
    };
    let credential = client.create_credential(&vault, json!({"auth": auth, "display_name": name})).await?;
    if server.json { show_json(&credential) } else { out::line(credential.id.as_str()) }
}

/// A secret out of a file or standard input, without the end of its last line.
pub(crate) fn read_secret(file: Option<&Path>) -> anyhow::Result<String> {
    let mut text = String::new();
    match file {
        Some(path) => {
            let opened = std::fs::File::open(path);
            let read = opened.and_then(|file| file.take(SECRET_BYTES_MAX + 1).read_to_string(&mut text));
            read.with_context(|| format!("the secret cannot be read from {}", path.display()))?;
        }
        None if std::io::stdin().is_terminal() => {
            out::remark("Type or paste the secret; it is not shown. Then press Enter.");
            let _silent = Silent::begin();
            std::io::stdin().read_line(&mut text).context("the secret cannot be read")?;
        }
        None => {
            let read = std::io::stdin().lock().take(SECRET_BYTES_MAX + 1).read_to_string(&mut text);
            read.context("the secret cannot be read from standard input")?;
        }
    }
    ensure!(text.len() as u64 <= SECRET_BYTES_MAX, "the secret is longer than any may be");
    let secret =
        text.strip_suffix('\n').map_or(text.as_str(), |text| text.strip_suffix('\r').unwrap_or(text));
    ensure!(!secret.is_empty(), "the secret is empty");
    Ok(secret.to_owned())
}

/// A terminal that does not show what is typed, until this is dropped.
struct Silent(Option<rustix::termios::Termios>);

impl Silent {
    fn begin() -> Self {
        let Ok(usual) = tcgetattr(std::io::stdin()) else { return Self(None) };
        let mut silent = usual.clone();
        silent.local_modes.remove(LocalModes::ECHO);
        let _ = tcsetattr(std::io::stdin(), OptionalActions::Flush, &silent);
        Self(Some(usual))
    }
}

impl Drop for Silent {
    fn drop(&mut self) {
        if let Some(usual) = &self.0 {
            let _ = tcsetattr(std::io::stdin(), OptionalActions::Now, usual);
        }
    }
}

async fn rotate(settings: &Settings, json: bool) -> anyhow::Result<()> {
    let mut book = match &settings.database {
        Some(_) => Book::Store(server::open(settings).await?),
        None => {
            let dir = &settings.data_dir;
            ensure!(
                dir.join(crate::keys::DATABASE).exists(),
                "{} holds no data of Posthouse: say where it is with --data-dir",
                dir.display()
            );
            let keys = store::VaultKeys::open(dir)
                .with_context(|| format!("the data directory {} cannot be opened", dir.display()))?;
            Book::Directory(Box::new(keys))
        }
    };
    let rotated = vault::rotate(&mut book, &settings.vault).await;
    if let Book::Store(store) = book {
        store.close().await;
    }
    let Rotation { master, rewrapped, leaves_old_keys } = rotated.context("the key was not changed")?;
    if json {
        let shown = json!({"master": master, "rewrapped": rewrapped, "leaves_old_keys": leaves_old_keys});
        return out::line(&shown.to_string());
    }
    out::line(&format!("sealed with master key {master}: {rewrapped} workspace(s) changed"))?;
    if leaves_old_keys {
        out::remark(
            "Nothing needs the other keys any more: leave only the first one where the key comes from.",
        );
    }
    Ok(())
}
