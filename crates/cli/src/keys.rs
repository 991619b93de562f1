//! `posthouse keys`: API keys of a data directory or a database, whether or not a server runs on it.

use anyhow::{Context as _, ensure};
use clap::{Args, Subcommand};
use comfy_table::{Table, presets};
use protocol::id::{ApiKeyId, WorkspaceId};
use ring::rand::{SecureRandom as _, SystemRandom};
use serde_json::json;
use store::{ApiKey, ChangeError, Keys, Store, hash_key};

use crate::out;
use crate::server;
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

/// What a command finds where it looks for keys.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Need {
    /// A key may be made before the first server runs: what is not there is made.
    MayBeNew,
    /// Who mistypes a directory's name is told so, and does not get an empty one.
    Existing,
}

/// Where keys are kept.
enum Book {
    /// Beside a server, if there is one: without the directory's lock.
    Directory(Keys),
    Shared(Store),
}

impl Book {
    async fn open(place: &PlaceOptions, need: Need) -> anyhow::Result<Self> {
        let settings = place.clone().settle()?;
        if settings.database.is_some() {
            return Ok(Self::Shared(server::open(&settings).await?));
        }
        let dir = &settings.data_dir;
        ensure!(
            need == Need::MayBeNew || dir.join(DATABASE).exists(),
            "{} holds no data of Posthouse: say where it is with --data-dir, or run `posthouse serve` first",
            dir.display()
        );
        let keys = Keys::open(dir, store::Options::default())
            .with_context(|| format!("the data directory {} cannot be opened", dir.display()))?;
        Ok(Self::Directory(keys))
    }

    async fn ensure_workspace(&mut self) -> Result<WorkspaceId, store::Error> {
        match self {
            Self::Directory(keys) => keys.ensure_workspace(),
            Self::Shared(store) => store.ensure_workspace().await,
        }
    }

    async fn create_workspace(&mut self) -> Result<WorkspaceId, store::Error> {
        match self {
            Self::Directory(keys) => keys.create_workspace(),
            Self::Shared(store) => store.create_workspace().await,
        }
    }

    async fn workspaces(&mut self) -> Result<Vec<WorkspaceId>, store::Error> {
        match self {
            Self::Directory(keys) => keys.workspaces(),
            Self::Shared(store) => store.workspaces().await,
        }
    }

    async fn create_key(
        &mut self,
        workspace: &WorkspaceId,
        name: &str,
        key: &str,
    ) -> Result<ApiKey, ChangeError> {
        match self {
            Self::Directory(keys) => keys.create_key(workspace, name, hash_key(key)),
            Self::Shared(store) => store.create_key(workspace, name, hash_key(key)).await,
        }
    }

    async fn revoke_key(&mut self, workspace: &WorkspaceId, id: &ApiKeyId) -> Result<ApiKey, ChangeError> {
        match self {
            Self::Directory(keys) => keys.revoke_key(workspace, id),
            Self::Shared(store) => store.revoke_key(workspace, id).await,
        }
    }

    async fn list_all(&mut self) -> Result<Vec<ApiKey>, store::Error> {
        let mut all = Vec::new();
        for workspace in self.workspaces().await? {
            all.extend(match self {
                Self::Directory(keys) => keys.list_keys(&workspace)?,
                Self::Shared(store) => store.list_keys(&workspace).await?,
            });
        }
        Ok(all)
    }

    async fn close(self) {
        match self {
            Self::Directory(_) => {}
            Self::Shared(store) => store.close().await,
        }
    }
}

pub(crate) async fn keys(options: KeysOptions) -> anyhow::Result<()> {
    let (place, need) = match &options.command {
        Command::Create { common, .. } => (&common.place, Need::MayBeNew),
        Command::List { common } | Command::Revoke { common, .. } => (&common.place, Need::Existing),
    };
    if let Command::Create { name, .. } = &options.command {
        ensure!(name != INTERNAL, "the name `{INTERNAL}` is for our own keys: choose another");
    }
    let mut book = Book::open(place, need).await?;
    let done = match options.command {
        Command::Create { name, workspace, common } => create(&mut book, &name, workspace, common.json).await,
        Command::List { common } => list(&mut book, common.json).await,
        Command::Revoke { id, common } => revoke(&mut book, &id, common.json).await,
    };
    book.close().await;
    done
}

async fn create(book: &mut Book, name: &str, workspace: Option<String>, json: bool) -> anyhow::Result<()> {
    let workspace = match workspace {
        None => book.ensure_workspace().await?,
        Some(new) if new == "new" => book.create_workspace().await?,
        Some(id) => {
            let known = book.workspaces().await?.into_iter().find(|known| known.as_str() == id);
            known.with_context(|| format!("there is no workspace {id}; `posthouse keys list` shows them"))?
        }
    };
    let key = mint();
    let made = book.create_key(&workspace, name, &key).await?;
    if json {
        out::line(&json!({"id": made.id, "name": name, "workspace_id": workspace, "key": key}).to_string())?;
    } else {
        out::line(&key)?;
        out::remark(&format!("This is key {} of workspace {workspace}. It is not shown again.", made.id));
    }
    Ok(())
}

async fn list(book: &mut Book, json: bool) -> anyhow::Result<()> {
    let keys = book.list_all().await?;
    if json {
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

async fn revoke(book: &mut Book, id: &str, json: bool) -> anyhow::Result<()> {
    let known = book.list_all().await?.into_iter().find(|key| key.id.as_str() == id);
    let key = known.with_context(|| format!("there is no key {id}; `posthouse keys list` shows them"))?;
    book.revoke_key(&key.workspace, &key.id).await?;
    let text = if json { json!({"id": id, "revoked": true}).to_string() } else { format!("revoked {id}") };
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
