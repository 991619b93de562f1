//! `posthouse keys`: API keys of a data directory, whether or not a server runs on it.

use anyhow::Context as _;
use clap::{Args, Subcommand};
use comfy_table::{Table, presets};
use ring::rand::{SecureRandom as _, SystemRandom};
use serde_json::json;
use store::{Keys, hash_key};

use crate::settings::ServerOptions;

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
    /// The data directory. [default: posthouse in $XDG_DATA_HOME or ~/.local/share]
    #[arg(long, env = "POSTHOUSE_DATA_DIR", value_name = "DIR")]
    data_dir: Option<std::path::PathBuf>,
}

impl Common {
    fn open(&self) -> anyhow::Result<Keys> {
        let options = ServerOptions { data_dir: self.data_dir.clone(), ..ServerOptions::default() };
        let dir = options.settle()?.data_dir;
        Keys::open(&dir, store::Options::default())
            .with_context(|| format!("the data directory {} cannot be opened", dir.display()))
    }
}

pub(crate) fn keys(options: KeysOptions) -> anyhow::Result<()> {
    match options.command {
        Command::Create { name, workspace, common } => create(&name, workspace, &common),
        Command::List { common } => list(&common),
        Command::Revoke { id, common } => revoke(&id, &common),
    }
}

fn create(name: &str, workspace: Option<String>, common: &Common) -> anyhow::Result<()> {
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
        println!("{}", json!({"id": made.id, "name": name, "workspace_id": workspace, "key": key}));
    } else {
        println!("{key}");
        eprintln!("This is key {} of workspace {workspace}. It is not shown again.", made.id);
    }
    Ok(())
}

fn list(common: &Common) -> anyhow::Result<()> {
    let keys = list_all(&mut common.open()?)?;
    if common.json {
        for key in keys {
            println!(
                "{}",
                json!({
                    "id": key.id, "name": key.name, "workspace_id": key.workspace,
                    "created_at": key.created_at, "revoked_at": key.revoked_at,
                })
            );
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
    println!("{table}");
    Ok(())
}

fn revoke(id: &str, common: &Common) -> anyhow::Result<()> {
    let mut keys = common.open()?;
    let known = list_all(&mut keys)?.into_iter().find(|key| key.id.as_str() == id);
    let key = known.with_context(|| format!("there is no key {id}; `posthouse keys list` shows them"))?;
    keys.revoke_key(&key.workspace, &key.id)?;
    if common.json {
        println!("{}", json!({"id": id, "revoked": true}));
    } else {
        println!("revoked {id}");
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
