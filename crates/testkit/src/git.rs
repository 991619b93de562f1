//! A git server as tests need it: real git behind TLS (`git http-backend`), with tokens and what each of them may do, and with
//! the tricks that a hostile or tired host could play.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rustls::ServerConfig;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;

/// What a token may do with the repositories that it knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Right {
    /// Fetch and push.
    Write,
    /// Fetch.
    Read,
    /// Nothing, and the server says so instead of hiding them.
    Forbidden,
}

/// How a token is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    /// `Basic`, as the password of `x-access-token`.
    Basic,
    /// `Bearer`.
    Bearer,
}

/// A request that came in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Method and path with its query.
    pub line: String,
    /// The `Authorization` header.
    pub authorization: Option<String>,
    /// The `Content-Encoding` header.
    pub encoding: Option<String>,
}

#[derive(Default)]
struct Rules {
    tokens: BTreeMap<String, Vec<(String, Right)>>,
    public: Vec<String>,
    redirects: BTreeMap<String, String>,
    silent: bool,
    endless: bool,
    bearer: bool,
    seen: Vec<Seen>,
}

/// The server. It ends when it is dropped.
pub struct Server {
    address: SocketAddr,
    folder: tempfile::TempDir,
    authority: String,
    rules: Arc<Mutex<Rules>>,
    serving: JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

impl Server {
    /// Starts one on a free port of the loopback.
    pub async fn start() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let made = rcgen::generate_simple_self_signed(["127.0.0.1", "localhost"].map(str::to_owned))
            .expect("a certificate");
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()));
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("the provider has them")
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key)
            .expect("a certificate with its key");
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        let rules = Arc::<Mutex<Rules>>::default();
        let serving = tokio::spawn(serve(
            listener,
            TlsAcceptor::from(Arc::new(config)),
            Arc::clone(&rules),
            folder.path().to_owned(),
        ));
        Self { address, folder, authority: made.cert.pem(), rules, serving }
    }

    /// Host and port.
    pub fn host(&self) -> String {
        self.address.to_string()
    }

    /// The address of a repository.
    pub fn url(&self, repository: &str) -> String {
        format!("https://{}/{repository}", self.address)
    }

    /// Whom to trust, in PEM.
    pub fn authority(&self) -> &str {
        &self.authority
    }

    /// Where a repository is on this machine.
    pub fn path(&self, repository: &str) -> PathBuf {
        self.folder.path().join(format!("{repository}.git"))
    }

    /// Makes an empty repository.
    pub fn repository(&self, name: &str) {
        run(
            self.folder.path(),
            &["init", "--quiet", "--bare", "--initial-branch=main", &format!("{name}.git")],
        );
    }

    /// Adds a commit with these files to a branch of a repository, made if it is not there; gives its hash.
    pub fn commit(&self, repository: &str, branch: &str, files: &[(&str, &[u8])]) -> String {
        let bare = self.path(repository);
        if !bare.exists() {
            self.repository(repository);
        }
        let work = tempfile::tempdir().expect("a folder");
        let at = |arguments: &[&str]| run(work.path(), arguments);
        at(&["init", "--quiet", "--initial-branch", branch]);
        let bare = bare.to_str().expect("text");
        at(&["remote", "add", "origin", bare]);
        if run(Path::new(bare), &["branch", "--list", branch]).contains(branch) {
            at(&["fetch", "--quiet", "origin", branch]);
            at(&["reset", "--quiet", "--hard", "FETCH_HEAD"]);
        }
        for (path, content) in files {
            let path = work.path().join(path);
            std::fs::create_dir_all(path.parent().expect("a folder")).expect("made");
            std::fs::write(path, content).expect("written");
        }
        at(&["add", "--all"]);
        at(&["commit", "--quiet", "--allow-empty", "-m", "change"]);
        at(&["push", "--quiet", "origin", &format!("HEAD:refs/heads/{branch}")]);
        at(&["rev-parse", "HEAD"]).trim().to_owned()
    }

    /// What a command of git says of a repository.
    pub fn git(&self, repository: &str, arguments: &[&str]) -> String {
        run(&self.path(repository), arguments)
    }

    /// Lets a token do this.
    pub fn allow(&self, token: &str, repository: &str, right: Right) {
        self.rules().tokens.entry(token.to_owned()).or_default().push((repository.to_owned(), right));
    }

    /// Takes all rights of a token away.
    pub fn revoke(&self, token: &str) {
        self.rules().tokens.remove(token);
    }

    /// Lets everybody fetch.
    pub fn publish(&self, repository: &str) {
        self.rules().public.push(repository.to_owned());
    }

    /// Sends who asks for one repository to another address.
    pub fn redirect(&self, repository: &str, to: &str) {
        self.rules().redirects.insert(repository.to_owned(), to.to_owned());
    }

    /// How tokens are told from now on.
    pub fn wants(&self, scheme: Scheme) {
        self.rules().bearer = scheme == Scheme::Bearer;
    }

    /// From now on it answers nobody.
    pub fn fall_silent(&self) {
        self.rules().silent = true;
    }

    /// It answers who asks from now on.
    pub fn speak_again(&self) {
        self.rules().silent = false;
    }

    /// From now on its packs never end.
    pub fn never_end(&self) {
        self.rules().endless = true;
    }

    /// The requests since the last time.
    pub fn seen(&self) -> Vec<Seen> {
        std::mem::take(&mut self.rules().seen)
    }

    fn rules(&self) -> std::sync::MutexGuard<'_, Rules> {
        lock(&self.rules)
    }
}

fn lock(rules: &Mutex<Rules>) -> std::sync::MutexGuard<'_, Rules> {
    rules.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs git as somebody.
fn run(folder: &Path, arguments: &[&str]) -> String {
    let output = git(folder).args(arguments).output().expect("git can be run");
    assert!(output.status.success(), "git {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn git(folder: &Path) -> Command {
    let mut git = Command::new("git");
    git.current_dir(folder)
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .envs([("GIT_AUTHOR_NAME", "A"), ("GIT_AUTHOR_EMAIL", "a@example.com")])
        .envs([("GIT_COMMITTER_NAME", "A"), ("GIT_COMMITTER_EMAIL", "a@example.com")]);
    git
}

async fn serve(listener: TcpListener, tls: TlsAcceptor, rules: Arc<Mutex<Rules>>, folder: PathBuf) {
    while let Ok((stream, _)) = listener.accept().await {
        let (tls, rules, folder) = (tls.clone(), Arc::clone(&rules), folder.clone());
        tokio::spawn(async move {
            let Ok(stream) = tls.accept(stream).await else { return };
            let service = service_fn(move |request| {
                let (rules, folder) = (Arc::clone(&rules), folder.clone());
                async move { Ok::<_, Infallible>(answer(&rules, folder, request).await) }
            });
            let _ = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}

type Body = http_body_util::combinators::UnsyncBoxBody<Bytes, Infallible>;

fn said(status: StatusCode) -> Response<Body> {
    let mut response = Response::new(Full::new(Bytes::from("no\n")).boxed_unsync());
    *response.status_mut() = status;
    response
}

async fn answer(rules: &Mutex<Rules>, folder: PathBuf, request: Request<Incoming>) -> Response<Body> {
    let (parts, body) = request.into_parts();
    let text = |name| {
        parts.headers.get(name).and_then(|value: &http::HeaderValue| value.to_str().ok()).map(str::to_owned)
    };
    let line = format!("{} {}", parts.method, parts.uri);
    let authorization = text(header::AUTHORIZATION);
    let seen = Seen { line, authorization: authorization.clone(), encoding: text(header::CONTENT_ENCODING) };
    lock(rules).seen.push(seen);
    if lock(rules).silent {
        tokio::time::sleep(Duration::from_secs(3600)).await;
    }
    let path = parts.uri.path().to_owned();
    let Some((repository, rest)) = path.strip_prefix('/').and_then(|path| path.split_once(".git/")) else {
        return said(StatusCode::NOT_FOUND);
    };
    if let Some(to) = lock(rules).redirects.get(repository) {
        let query = parts.uri.query().map(|query| format!("?{query}")).unwrap_or_default();
        let mut response = said(StatusCode::MOVED_PERMANENTLY);
        let to = format!("{to}.git/{rest}{query}").parse().expect("a header");
        response.headers_mut().insert(header::LOCATION, to);
        return response;
    }
    let is_push = path.ends_with("/git-receive-pack")
        || parts.uri.query().is_some_and(|query| query.contains("git-receive-pack"));
    let judged = judge(&lock(rules), authorization.as_deref(), repository, is_push);
    if let Err(status) = judged {
        let mut response = said(status);
        if status == StatusCode::UNAUTHORIZED {
            let scheme = if lock(rules).bearer { "Bearer" } else { "Basic realm=\"git\"" };
            response.headers_mut().insert(header::WWW_AUTHENTICATE, scheme.parse().expect("a header"));
        }
        return response;
    }
    let Ok(body) = body.collect().await else { return said(StatusCode::BAD_REQUEST) };
    if lock(rules).endless && path.ends_with("/git-upload-pack") {
        return endless();
    }
    let call = Call {
        method: parts.method.to_string(),
        path,
        query: parts.uri.query().unwrap_or_default().to_owned(),
        kind: text(header::CONTENT_TYPE).unwrap_or_default(),
        encoding: text(header::CONTENT_ENCODING).unwrap_or_default(),
        protocol: parts
            .headers
            .get("git-protocol")
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default()
            .to_owned(),
        body: body.to_bytes(),
    };
    tokio::task::spawn_blocking(move || call.run(&folder))
        .await
        .unwrap_or_else(|_| said(StatusCode::INTERNAL_SERVER_ERROR))
}

fn judge(
    rules: &Rules,
    authorization: Option<&str>,
    repository: &str,
    is_push: bool,
) -> Result<(), StatusCode> {
    if !is_push && rules.public.iter().any(|public| public == repository) {
        return Ok(());
    }
    let token = authorization.and_then(|authorization| match rules.bearer {
        true => authorization.strip_prefix("Bearer ").map(str::to_owned),
        false => {
            let pair = STANDARD.decode(authorization.strip_prefix("Basic ")?).ok()?;
            String::from_utf8(pair).ok()?.strip_prefix("x-access-token:").map(str::to_owned)
        }
    });
    let known = token.and_then(|token| rules.tokens.get(&token)).ok_or(StatusCode::UNAUTHORIZED)?;
    let right = known.iter().find(|(name, _)| name == repository).map(|(_, right)| *right);
    match right {
        Some(Right::Write) => Ok(()),
        Some(Right::Read) if !is_push => Ok(()),
        Some(Right::Read | Right::Forbidden) => Err(StatusCode::FORBIDDEN),
        None => Err(StatusCode::NOT_FOUND),
    }
}

/// An answer that goes on for ever with what is no end of a pack.
fn endless() -> Response<Body> {
    let piece = Bytes::from(vec![b'0'; 1 << 16]);
    let frames = futures_util::stream::repeat_with(move || Ok(hyper::body::Frame::data(piece.clone())));
    let mut response = Response::new(http_body_util::StreamBody::new(frames).boxed_unsync());
    let kind = "application/x-git-upload-pack-result".parse().expect("a header");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}

/// A request, as the gateway interface of git knows it.
struct Call {
    method: String,
    path: String,
    query: String,
    kind: String,
    encoding: String,
    protocol: String,
    body: Bytes,
}

impl Call {
    fn run(self, folder: &Path) -> Response<Body> {
        let mut child = git(folder)
            .arg("http-backend")
            .env("GIT_PROJECT_ROOT", folder)
            .env("GIT_HTTP_EXPORT_ALL", "1")
            .env("REMOTE_USER", "somebody")
            .env("REQUEST_METHOD", &self.method)
            .env("PATH_INFO", &self.path)
            .env("QUERY_STRING", &self.query)
            .env("CONTENT_TYPE", &self.kind)
            .env("CONTENT_LENGTH", self.body.len().to_string())
            .env("HTTP_CONTENT_ENCODING", &self.encoding)
            .env("GIT_PROTOCOL", &self.protocol)
            .env("GIT_CONFIG_COUNT", "2")
            .envs([("GIT_CONFIG_KEY_0", "http.receivepack"), ("GIT_CONFIG_VALUE_0", "true")])
            .envs([("GIT_CONFIG_KEY_1", "uploadpack.allowAnySHA1InWant"), ("GIT_CONFIG_VALUE_1", "true")])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("git can be run");
        let mut stdin = child.stdin.take().expect("piped");
        let body = self.body;
        let writing = std::thread::spawn(move || drop(stdin.write_all(&body)));
        let output = child.wait_with_output().expect("it ends").stdout;
        let _ = writing.join();
        let end = output.windows(4).position(|part| part == b"\r\n\r\n").unwrap_or(0);
        let head = String::from_utf8_lossy(&output[..end]).into_owned();
        let mut response = Response::new(Full::new(Bytes::from(output[end + 4..].to_vec())).boxed_unsync());
        for (name, value) in head.lines().filter_map(|line| line.split_once(": ")) {
            if name == "Status" {
                let status = value.get(..3).and_then(|status| status.parse().ok());
                *response.status_mut() = status.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
            } else if let (Ok(name), Ok(value)) = (name.parse::<http::HeaderName>(), value.parse()) {
                response.headers_mut().insert(name, value);
            }
        }
        response
    }
}
