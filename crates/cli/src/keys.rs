//! `posthouse keys`: API keys of a data directory, whether or not a server runs on it.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use clap::{Args, Subcommand};
use comfy_table::{Table, presets};
use ring::rand::{SecureRandom as _, SystemRandom};
use serde_json::json;
use store::{ChangeError, Keys, Store, hash_key};

use crate::out;
use crate::settings::{PlaceOptions, Settings};

/// The name of the keys with which `posthouse run` speaks to its own server. Nobody else's key has it: one that is
/// left over from a run that was killed is revoked by its name.
pub(crate) const INTERNAL: &str = "internal: posthouse run";

/// The database of a data directory. Only to see whether there is one.
pub(crate) const DATABASE: &str = "posthouse.db";

/// Make, list and revoke API keys.
#[derive(Args, Debug)]
pub(crate) struct KeysOptions {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Make a key and print it. It is stored hashed, so it is shown only now.
    Create {
        /// A name for people.
        #[arg(default_value = "key")]
        name: String,
        /// The workspace that the key sees, by id; `new` makes one. [default: the first workspace]
        #[arg(long)]
        workspace: Option<String>,
        #[command(flatten)]
        common: Common,
    },
    /// List the keys.
    List {
        #[command(flatten)]
        common: Common,
    },
    /// Revoke a key. Running requests finish; new ones are refused within a second.
    Revoke {
        /// The key's id, as `list` shows it.
        id: String,
        #[command(flatten)]
        common: Common,
    },
}

#[derive(Args, Debug)]
struct Common {
    /// Print JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    place: PlaceOptions,
}

impl Common {
    fn data_dir(&self) -> anyhow::Result<PathBuf> {
        let settings = self.place.clone().settle()?;
        ensure!(settings.database.is_none(), "keys of a database are not built yet");
        Ok(settings.data_dir)
    }

    /// Opens the directory, making it if need be: a key may be made before the first server runs.
    fn open(&self) -> anyhow::Result<Keys> {
        open(&self.data_dir()?)
    }

    /// Opens a directory that is there: who mistypes its name is told so, and does not get an empty one.
    fn open_existing(&self) -> anyhow::Result<Keys> {
        let dir = self.data_dir()?;
        let shown = dir.display();
        ensure!(
            dir.join(DATABASE).exists(),
            "{shown} holds no data of Posthouse: say where it is with --data-dir, or run `posthouse serve` first"
        );
        open(&dir)
    }
}

fn open(dir: &Path) -> anyhow::Result<Keys> {
    Keys::open(dir, store::Options::default())
        .with_context(|| format!("the data directory {} cannot be opened", dir.display()))
}

pub(crate) fn keys(options: KeysOptions) -> anyhow::Result<()> {
    match options.command {
        Command::Create { name, workspace, common } => create(&name, workspace, &common),
        Command::List { common } => list(&common),
        Command::Revoke { id, common } => revoke(&id, &common),
    }
}

fn create(name: &str, workspace: Option<String>, common: &Common) -> anyhow::Result<()> {
    ensure!(name != INTERNAL, "the name `{INTERNAL}` is for our own keys: choose another");
    let mut keys = common.open()?;
    let workspace = match workspace {
        None => keys.ensure_workspace()?,
        Some(new) if new == "new" => keys.create_workspace()?,
        Some(id) => {
            let known = keys.workspaces()?.into_iter().find(|known| known.as_str() == id);
            known.with_context(|| format!("there is no workspace {id}; `posthouse keys list` shows them"))?
        }
    };
    let key = mint();
    let made = keys.create_key(&workspace, name, hash_key(&key))?;
    if common.json {
        out::line(&json!({"id": made.id, "name": name, "workspace_id": workspace, "key": key}).to_string())?;
    } else {
        out::line(&key)?;
        out::remark(&format!("This is key {} of workspace {workspace}. It is not shown again.", made.id));
    }
    Ok(())
}

fn list(common: &Common) -> anyhow::Result<()> {
    let keys = list_all(&mut common.open_existing()?)?;
    if common.json {
        for key in keys {
            let shown = json!({
                "id": key.id, "name": key.name, "workspace_id": key.workspace,
                "created_at": key.created_at, "revoked_at": key.revoked_at,
            });
            out::line(&shown.to_string())?;
        }
        return Ok(());
    }
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_header(["id", "name", "workspace", "created", "revoked"]);
    for key in keys {
        let revoked = key.revoked_at.map_or_else(String::new, |at| at.to_string());
        table.add_row([
            key.id.to_string(),
            key.name,
            key.workspace.to_string(),
            key.created_at.to_string(),
            revoked,
        ]);
    }
    out::line(&table.to_string())
}

fn revoke(id: &str, common: &Common) -> anyhow::Result<()> {
    let mut keys = common.open_existing()?;
    let known = list_all(&mut keys)?.into_iter().find(|key| key.id.as_str() == id);
    let key = known.with_context(|| format!("there is no key {id}; `posthouse keys list` shows them"))?;
    keys.revoke_key(&key.workspace, &key.id)?;
    let text =
        if common.json { json!({"id": id, "revoked": true}).to_string() } else { format!("revoked {id}") };
    out::line(&text)
}

/// What the data directory knows of the key with which a server is to be reached.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Known {
    /// The key that was named works.
    Named,
    /// The key that was named was revoked, and stays so.
    Revoked,
    /// None was named, and there are some that work.
    Some,
    /// None was named and none works, so this one was made.
    Minted(String),
}

/// Sees to it that a server can be reached: makes the key that is named, or one of its own if there is none. Then
/// revokes what killed runs left over, which a database that is shared never has.
pub(crate) async fn ensure_some(store: &Store, settings: &Settings) -> anyhow::Result<Known> {
    let named = settings.api_key.as_deref();
    let workspace = store.ensure_workspace().await?;
    let known = match named {
        Some(key) => match store.create_key(&workspace, "POSTHOUSE_API_KEY", hash_key(key)).await {
            Ok(_) => Known::Named,
            Err(ChangeError::Exists) if store.find_key(hash_key(key)).await?.is_some() => Known::Named,
            Err(ChangeError::Exists) => Known::Revoked,
            Err(error) => return Err(error.into()),
        },
        None => {
            let keys = store.list_keys(&workspace).await?;
            if keys.iter().any(|key| key.revoked_at.is_none() && key.name != INTERNAL) {
                Known::Some
            } else {
                let key = mint();
                store.create_key(&workspace, "first key", hash_key(&key)).await?;
                Known::Minted(key)
            }
        }
    };
    if settings.database.is_none() {
        revoke_leftovers(store, named).await?;
    }
    Ok(known)
}

/// Revokes the keys of runs that were killed, except the one that is in use. To be called by who holds the data
/// directory: no other run has a server on it then.
pub(crate) async fn revoke_leftovers(store: &Store, in_use: Option<&str>) -> anyhow::Result<()> {
    let workspace = store.ensure_workspace().await?;
    let in_use = match in_use {
        Some(key) => store.find_key(hash_key(key)).await?,
        None => None,
    };
    for key in store.list_keys(&workspace).await? {
        let is_in_use = in_use.as_ref().is_some_and(|used| used.id == key.id);
        if key.name == INTERNAL && key.revoked_at.is_none() && !is_in_use {
            store.revoke_key(&workspace, &key.id).await?;
        }
    }
    Ok(())
}

/// A new key: 256 random bits, which no table of hashes holds.
pub(crate) fn mint() -> String {
    let mut bits = [0_u8; 32];
    SystemRandom::new().fill(&mut bits).expect("the system has randomness");
    let digits: String = bits.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("ph_{digits}")
}

fn list_all(keys: &mut Keys) -> anyhow::Result<Vec<store::ApiKey>> {
    let mut all = Vec::new();
    for workspace in keys.workspaces()? {
        all.extend(keys.list_keys(&workspace)?);
    }
    Ok(all)
}
