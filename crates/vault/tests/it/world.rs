//! A vault of its own for each test, and a server that answers as it is told.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use egress::{Guard, PrivateHosts};
use protocol::credential::Credential;
use protocol::credential_request::{CredentialCreate, CredentialUpdate};
use protocol::id::{VaultId, WorkspaceId};
use protocol::vault_request::VaultCreate;
use serde_json::{Value, json};
use store::{Options, Store};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use vault::{Credentials, Source};

pub(crate) struct World {
    pub(crate) credentials: Credentials,
    pub(crate) workspace: WorkspaceId,
    pub(crate) dir: TempDir,
}

impl World {
    pub(crate) async fn new() -> Self {
        let dir = TempDir::new().expect("a directory");
        let store = Store::open(dir.path(), Options::default()).expect("opens");
        Self::over(store, dir).await
    }

    async fn over(store: Store, dir: TempDir) -> Self {
        let workspace = store.ensure_workspace().await.expect("a workspace");
        let credentials = credentials(store, Source::File(dir.path().join("vault.key")));
        Self { credentials, workspace, dir }
    }

    pub(crate) fn store(&self) -> &Store {
        self.credentials.store()
    }

    pub(crate) fn key_file(&self) -> PathBuf {
        self.dir.path().join("vault.key")
    }

    /// The same store for another process: with nothing in memory.
    pub(crate) fn other(&self) -> Credentials {
        credentials(self.store().clone(), Source::File(self.key_file()))
    }

    pub(crate) async fn vault(&self) -> VaultId {
        let create = VaultCreate::parse(json!({"display_name": "v"})).expect("parses");
        let vault = create.into_vault(self.store().ids().make(), self.store().now());
        self.store().create_vault(&self.workspace, vault).await.expect("made").id
    }

    pub(crate) async fn add(&self, vault: &VaultId, auth: Value) -> Credential {
        let create = CredentialCreate::parse(json!({ "auth": auth }), self.store().now()).expect("parses");
        self.credentials.create(&self.workspace, vault, create).await.expect("added")
    }

    pub(crate) async fn change(&self, credential: &Credential, body: Value) -> Credential {
        let update = CredentialUpdate::parse(body, self.store().now()).expect("parses");
        let Credential { vault_id, id, .. } = credential;
        self.credentials.update(&self.workspace, vault_id, id, update).await.expect("changed")
    }

    pub(crate) async fn archive(&self, credential: &Credential) {
        let Credential { vault_id, id, .. } = credential;
        self.credentials.archive(&self.workspace, vault_id, id).await.expect("archived");
    }

    /// What is spent at that server now.
    pub(crate) async fn token(&self, vaults: &[VaultId], url: &str) -> Option<String> {
        let found = self.credentials.for_mcp(&self.workspace, vaults, url).await.expect("works")?;
        Some(self.credentials.open(&found).await.expect("opens").expose(str::to_owned))
    }
}

pub(crate) fn credentials(store: Store, source: Source) -> Credentials {
    // Another test may have been first.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let private: PrivateHosts = "127.0.0.1".parse().expect("a host");
    // The servers of tests take any port.
    let guard = Arc::new(Guard::new(private, 1_024..=u16::MAX));
    Credentials::new(store, source).reaching(guard).expect("a client")
}

pub(crate) fn bearer(url: &str, token: &str) -> Value {
    json!({"type": "static_bearer", "mcp_server_url": url, "token": token})
}

pub(crate) fn variable(name: &str, value: &str) -> Value {
    json!({
        "type": "environment_variable", "secret_name": name, "secret_value": value,
        "networking": {"type": "unrestricted"},
    })
}

/// A request as it came.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    pub(crate) path: String,
    pub(crate) head: String,
    pub(crate) body: String,
}

type Answers = dyn Fn(&Asked) -> (u16, Value) + Send + Sync;

/// A server that answers with JSON.
pub(crate) struct Server {
    pub(crate) base: String,
    asked: Arc<Mutex<Vec<Asked>>>,
    _tasks: JoinSet<()>,
}

impl Server {
    pub(crate) async fn start(answers: impl Fn(&Asked) -> (u16, Value) + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let base = format!("http://{}", listener.local_addr().expect("an address"));
        let (asked, answers): (Arc<Mutex<Vec<Asked>>>, Arc<Answers>) = (Arc::default(), Arc::new(answers));
        let mut tasks = JoinSet::new();
        let seen = Arc::clone(&asked);
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.expect("accepts");
                connections.spawn(answer(stream, Arc::clone(&answers), Arc::clone(&seen)));
            }
        });
        Self { base, asked, _tasks: tasks }
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("{}{path}", self.base)
    }

    pub(crate) fn asked(&self) -> Vec<Asked> {
        self.asked.lock().expect("not poisoned").clone()
    }

    pub(crate) fn asked_at(&self, path: &str) -> Vec<Asked> {
        self.asked().into_iter().filter(|asked| asked.path == path).collect()
    }
}

async fn answer(mut stream: tokio::net::TcpStream, answers: Arc<Answers>, seen: Arc<Mutex<Vec<Asked>>>) {
    let mut bytes = Vec::new();
    let (head, body) = loop {
        let mut piece = [0; 4_096];
        let count = stream.read(&mut piece).await.unwrap_or_default();
        if count == 0 {
            return;
        }
        bytes.extend_from_slice(&piece[..count]);
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let length = head.lines().find_map(|line| {
            let (name, value) = line.split_once(':')?;
            name.eq_ignore_ascii_case("content-length")
                .then(|| value.trim().parse::<usize>().expect("a length"))
        });
        if body.len() >= length.unwrap_or_default() {
            break (head.to_owned(), body.to_owned());
        }
    };
    let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
    let asked = Asked { path, head, body };
    let (status, body) = answers(&asked);
    seen.lock().expect("not poisoned").push(asked);
    let body = body.to_string();
    let text = format!(
        "HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    );
    let _ = stream.write_all(text.as_bytes()).await;
}

/// What must come soon. A test that waits for ever says nothing.
pub(crate) async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(60), future).await.expect("in time")
}
