//! A store with sessions, a git server, and what stands between them.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, LazyLock, Mutex};

use egress::{Guard, PrivateHosts};
use http_body_util::BodyExt as _;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use protocol::agent::{
    AgentSpec, AgentTag, Effort, EffortLevel, ExecutionIdentity, ModelConfig, SessionAgent, Speed,
};
use protocol::environment::EnvironmentConfig;
use protocol::hands::HandsSettings;
use protocol::id::{AgentId, EnvironmentId, ResourceId, SessionId, WorkspaceId};
use protocol::resource::{Checkout, Repository, Resource};
use protocol::secret::Secret;
use repositories::{Limits, Prepared, Repositories, Settings};
use serde_json::json;
use session::Record;
use store::{Brought, NewSession, Store};
use testkit::git::{Right, Server};
use tokio::net::TcpListener;
use tokio_util::task::AbortOnDropHandle;
use vault::{Credentials, Source};

pub(crate) const TOKEN: &str = "ghp_the_first_token";
pub(crate) const REPOSITORY: &str = "team/project";

pub(crate) struct World {
    pub(crate) folder: tempfile::TempDir,
    pub(crate) store: Store,
    pub(crate) credentials: Credentials,
    pub(crate) workspace: WorkspaceId,
    pub(crate) git: Server,
    pub(crate) repositories: Repositories,
}

/// One repository of a session.
pub(crate) struct Wanted<'a> {
    pub(crate) repository: &'a str,
    pub(crate) token: Option<&'a str>,
    pub(crate) checkout: Option<Checkout>,
    pub(crate) mount: &'a str,
}

impl<'a> Wanted<'a> {
    pub(crate) fn new(repository: &'a str, token: &'a str) -> Self {
        Self { repository, token: Some(token), checkout: None, mount: "/workspace/project" }
    }
}

impl World {
    pub(crate) async fn start() -> Self {
        Self::bounded(Limits::default()).await
    }

    pub(crate) async fn bounded(limits: Limits) -> Self {
        Self::made(limits, None).await
    }

    /// With a git that does this before it is one. `$world` is the world's folder.
    pub(crate) async fn with_git(script: &str) -> Self {
        Self::made(Limits::default(), Some(script)).await
    }

    async fn made(limits: Limits, script: Option<&str>) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let store = Store::open(&folder.path().join("data"), store::Options::default()).expect("opens");
        let workspace = store.ensure_workspace().await.expect("a workspace");
        let credentials = Credentials::new(store.clone(), Source::File(folder.path().join("vault.key")));
        let git = Server::start().await;
        git.commit(REPOSITORY, "main", &[("README.md", b"hello\n"), ("src/a.txt", b"a\n")]);
        git.allow(TOKEN, REPOSITORY, Right::Write);
        let private = git.host().parse::<PrivateHosts>().expect("a host");
        let guard = Arc::new(Guard::new(private, []));
        let hosts = git.host().parse().expect("a host");
        let mut settings = Settings {
            authorities: vec![git.authority().to_owned()],
            limits,
            ..Settings::new(folder.path().join("repositories"), hosts, guard)
        };
        if let Some(script) = script {
            settings.git = folder.path().join("a-git");
            let script = format!("#!/bin/sh\nworld={}\n{script}\nexec git \"$@\"\n", folder.path().display());
            std::fs::write(&settings.git, script).expect("written");
            std::fs::set_permissions(&settings.git, std::fs::Permissions::from_mode(0o700))
                .expect("a program");
        }
        let repositories = Repositories::new(store.clone(), credentials.clone(), settings).expect("a client");
        Self { folder, store, credentials, workspace, git, repositories }
    }

    /// A session with one repository.
    pub(crate) async fn session(&self, wanted: Wanted<'_>) -> Record {
        self.session_with(vec![wanted]).await
    }

    pub(crate) async fn session_with(&self, all: Vec<Wanted<'_>>) -> Record {
        let (store, now) = (&self.store, self.store.now());
        let id: SessionId = store.ids().make();
        let (mut resources, mut tokens) = (Vec::new(), Vec::new());
        for Wanted { repository, token, checkout, mount } in all {
            let resource: ResourceId = store.ids().make();
            if let Some(token) = token {
                let token = Secret::new(token.to_owned());
                let sealed = self.credentials.seal_token(&self.workspace, &id, &resource, &token).await;
                tokens.push(sealed.expect("sealed"));
            }
            resources.push(Resource::GithubRepository(Repository {
                id: resource,
                url: self.git.url(repository),
                mount_path: mount.to_owned(),
                checkout,
                created_at: now,
                updated_at: now,
            }));
        }
        let record = Record {
            id,
            agent: agent(),
            environment_id: EnvironmentId::from_text("env_1"),
            environment: EnvironmentConfig::SelfHosted {},
            hands: HandsSettings::default(),
            title: None,
            metadata: BTreeMap::new(),
            vault_ids: Vec::new(),
            resources,
            created_at: now,
            updated_at: now,
            archived_at: None,
        };
        let thread_id = store.ids().make();
        let new = NewSession {
            workspace: self.workspace.clone(),
            record: record.clone(),
            thread_id,
            initial: Vec::new(),
        };
        store.create_session_with(new, Brought { snapshot: None, tokens }).await.expect("made");
        record
    }

    pub(crate) async fn prepare(&self, record: &Record) -> Prepared {
        self.repositories.prepare(&self.workspace, record).await
    }

    /// What a session gets, unpacked as in a sandbox.
    pub(crate) async fn checkout(&self, record: &Record) -> tempfile::TempDir {
        let prepared = self.prepare(record).await;
        assert!(prepared.errors.is_empty(), "{:?}", prepared.errors);
        unpacked(prepared.trees[0].archive())
    }

    /// The kind and the message of the only error.
    pub(crate) async fn trouble(&self, record: &Record) -> (String, String) {
        let prepared = self.prepare(record).await;
        assert!(prepared.trees.is_empty());
        let [error] = prepared.errors.as_slice() else { panic!("{:?}", prepared.errors) };
        assert_eq!(
            error.repository_url.as_deref(),
            record.resources[0].repository().map(|one| one.url.as_str())
        );
        let told = serde_json::to_value(error).expect("JSON");
        assert_eq!(told["retry_status"], json!({"type": "retrying"}));
        (told["type"].as_str().expect("a kind").to_owned(), error.message.clone())
    }

    /// The exit of a session's sandbox.
    pub(crate) async fn exit(&self, record: &Record) -> Exit {
        Exit::open(self.repositories.clone(), record.id.clone()).await
    }

    pub(crate) async fn rotate(&self, record: &Record, token: &str) {
        let id = record.resources[0].id();
        let token = Secret::new(token.to_owned());
        let sealed =
            self.credentials.seal_token(&self.workspace, &record.id, id, &token).await.expect("sealed");
        self.store.rotate_session_token(&self.workspace, &record.id, sealed).await.expect("rotated");
    }

    pub(crate) fn cache(&self) -> PathBuf {
        self.folder.path().join("repositories/cache")
    }

    /// The folder of the only repository that is kept.
    pub(crate) fn kept(&self) -> PathBuf {
        let mut all = std::fs::read_dir(self.cache()).expect("a cache");
        let kept = all.next().expect("one is kept").expect("read").path();
        assert!(all.next().is_none(), "one alone");
        kept
    }

    /// Processes of this test's own git.
    pub(crate) fn processes(&self) -> Vec<PathBuf> {
        let all = std::fs::read_dir("/proc").expect("processes").flatten().map(|process| process.path());
        let is_own = |process: &PathBuf| {
            std::fs::read_link(process.join("cwd")).is_ok_and(|cwd| cwd.starts_with(self.folder.path()))
        };
        all.filter(is_own).collect()
    }
}

fn agent() -> SessionAgent {
    let model = ModelConfig {
        id: "m".to_owned(),
        effort: Effort { level: EffortLevel::High },
        speed: Speed::Standard,
        inference_geo: None,
    };
    let spec = AgentSpec {
        name: "a".to_owned(),
        description: None,
        model,
        system: None,
        tools: Vec::new(),
        mcp_servers: Vec::new(),
        skills: Vec::new(),
        multiagent: None,
        execution_identity: ExecutionIdentity::ServiceAccount {},
    };
    SessionAgent { tag: AgentTag::Agent, id: AgentId::from_text("agent_1"), version: 1, spec }
}

pub(crate) fn unpacked(archive: &Path) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    let status = Command::new("tar")
        .arg("--strip-components=1")
        .arg("-xf")
        .arg(archive)
        .arg("-C")
        .arg(folder.path())
        .status();
    assert!(status.expect("tar can be run").success());
    folder
}

/// What answers the requests of one session's sandbox.
pub(crate) struct Exit {
    pub(crate) port: u16,
    _serving: AbortOnDropHandle<()>,
}

impl Exit {
    async fn open(repositories: Repositories, session: SessionId) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let port = listener.local_addr().expect("bound").port();
        let serving = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (repositories, session) = (repositories.clone(), session.clone());
                tokio::spawn(async move {
                    let service = service_fn(move |request: http::Request<hyper::body::Incoming>| {
                        let (repositories, session) = (repositories.clone(), session.clone());
                        async move {
                            let request = request.map(|body| body.map_err(Into::into).boxed_unsync());
                            let answered = repositories.local(&session, request).await;
                            Ok::<_, Infallible>(answered.unwrap_or_else(|_| {
                                let empty = http_body_util::Empty::new().map_err(|never| match never {});
                                let mut response = http::Response::new(empty.boxed_unsync());
                                *response.status_mut() = http::StatusCode::NOT_IMPLEMENTED;
                                response
                            }))
                        }
                    });
                    let _ = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
        });
        Self { port, _serving: AbortOnDropHandle::new(serving) }
    }

    /// The address of the session's first repository.
    pub(crate) fn url(&self, record: &Record, path: &str) -> String {
        format!("http://127.0.0.1:{}/git/{}/{path}", self.port, record.resources[0].id())
    }

    /// Sends a request as it stands; gives the head and the body of the answer.
    pub(crate) async fn ask(&self, method: &str, target: &str) -> String {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let mut stream = tokio::net::TcpStream::connect(("127.0.0.1", self.port)).await.expect("connects");
        let length = if method == "POST" { "content-length: 4\r\n" } else { "" };
        let body = if method == "POST" { "0000" } else { "" };
        let request = format!(
            "{method} {target} HTTP/1.1\r\nhost: 127.0.0.1:3128\r\nconnection: close\r\n{length}\r\n{body}"
        );
        stream.write_all(request.as_bytes()).await.expect("sent");
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        String::from_utf8_lossy(&answer).into_owned()
    }
}

/// Git as an agent would run it; whether it went well, and what it printed.
pub(crate) async fn git(folder: &Path, arguments: &[&str]) -> (bool, String) {
    let mut command = tokio::process::Command::new("git");
    command
        .args(arguments)
        .current_dir(folder)
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .envs([
            ("HOME", "/nonexistent"),
            ("GIT_CONFIG_NOSYSTEM", "1"),
            ("GIT_TERMINAL_PROMPT", "0"),
            ("LC_ALL", "C"),
        ])
        .envs([("GIT_AUTHOR_NAME", "B"), ("GIT_AUTHOR_EMAIL", "b@example.com")])
        .envs([("GIT_COMMITTER_NAME", "B"), ("GIT_COMMITTER_EMAIL", "b@example.com")]);
    let output = command.output().await.expect("git can be run");
    let text =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    (output.status.success(), text)
}

pub(crate) async fn good(folder: &Path, arguments: &[&str]) -> String {
    let (ok, text) = git(folder, arguments).await;
    assert!(ok, "git {arguments:?}: {text}");
    text
}

/// If there is only one subscriber, whether anybody listens to a line is asked of the thread that comes to it first, which may
/// be another test's.
static ANOTHER: LazyLock<tracing::Dispatch> =
    LazyLock::new(|| tracing::Dispatch::new(tracing_subscriber::registry()));

/// Everything that is logged while this is held, on this thread.
pub(crate) fn logged() -> (Arc<Mutex<Vec<u8>>>, tracing::subscriber::DefaultGuard) {
    struct Writer(Arc<Mutex<Vec<u8>>>);
    impl std::io::Write for Writer {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    LazyLock::force(&ANOTHER);
    let lines = Arc::<Mutex<Vec<u8>>>::default();
    let kept = Arc::clone(&lines);
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_ansi(false)
        .with_writer(move || Writer(Arc::clone(&kept)))
        .finish();
    (lines, tracing::subscriber::set_default(subscriber))
}
