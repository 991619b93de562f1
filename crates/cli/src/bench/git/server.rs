//! A git server of the bench's own: real git behind TLS, one repository, and no tokens, so that only the way is measured.

use std::convert::Infallible;
use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use anyhow::{Context as _, ensure};
use bytes::Bytes;
use http::{HeaderName, HeaderValue, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rand::rngs::SmallRng;
use rand::{RngCore as _, SeedableRng as _};
use rustls::ServerConfig;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_util::task::AbortOnDropHandle;

/// Its one repository.
pub(super) const REPOSITORY: &str = "bench/project";
/// Files of it.
const FILES: usize = 100;

pub(super) struct Server {
    pub(super) address: SocketAddr,
    /// Whom to trust, in PEM.
    pub(super) authority: String,
    _serving: AbortOnDropHandle<()>,
}

/// Starts one in this folder, with a repository of so many bytes, which do not compress.
pub(super) async fn start(folder: &Path, bytes: usize, seed: u64) -> anyhow::Result<Server> {
    make(folder, bytes, seed)?;
    let made = rcgen::generate_simple_self_signed([Ipv4Addr::LOCALHOST.to_string()])?;
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()));
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)?;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let address = listener.local_addr()?;
    let serving = tokio::spawn(serve(listener, TlsAcceptor::from(Arc::new(config)), folder.to_owned()));
    Ok(Server { address, authority: made.cert.pem(), _serving: AbortOnDropHandle::new(serving) })
}

fn make(folder: &Path, bytes: usize, seed: u64) -> anyhow::Result<()> {
    let work = folder.join("work");
    std::fs::create_dir_all(&work)?;
    let mut random = SmallRng::seed_from_u64(seed);
    let mut content = vec![0; bytes / FILES];
    for number in 0..FILES {
        random.fill_bytes(&mut content);
        std::fs::write(work.join(format!("{number}.bin")), &content)?;
    }
    let bare = folder.join(format!("{REPOSITORY}.git"));
    git(&work, &["init", "--quiet", "--initial-branch=main"])?;
    git(&work, &["add", "--all"])?;
    git(
        &work,
        &["-c", "user.name=bench", "-c", "user.email=bench@localhost", "commit", "--quiet", "-m", "all"],
    )?;
    let bare = bare.to_str().context("the folder's name is no text")?;
    git(&work, &["clone", "--quiet", "--bare", ".", bare])?;
    std::fs::remove_dir_all(&work)?;
    Ok(())
}

fn git(folder: &Path, arguments: &[&str]) -> anyhow::Result<()> {
    run(bare_git(folder).args(arguments))
}

/// A clone as anybody makes it, who trusts this authority.
pub(super) fn clone(folder: &Path, authority: &Path, url: &str) -> anyhow::Result<()> {
    let mut git = bare_git(folder);
    git.env("GIT_SSL_CAINFO", authority).env("NO_PROXY", "*").env("no_proxy", "*");
    run(git.args(["clone", "--quiet", url, "plain"]))
}

fn run(git: &mut Command) -> anyhow::Result<()> {
    let output = git.output().context("git cannot be run")?;
    ensure!(output.status.success(), "git: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

fn bare_git(folder: &Path) -> Command {
    let mut git = Command::new("git");
    git.current_dir(folder).env("GIT_CONFIG_NOSYSTEM", "1").env("GIT_CONFIG_GLOBAL", "/dev/null");
    git
}

async fn serve(listener: TcpListener, tls: TlsAcceptor, folder: PathBuf) {
    while let Ok((stream, _)) = listener.accept().await {
        let (tls, folder) = (tls.clone(), folder.clone());
        tokio::spawn(async move {
            let _ = stream.set_nodelay(true);
            let Ok(stream) = tls.accept(stream).await else { return };
            let service = service_fn(move |request| answer(folder.clone(), request));
            // Its failures are clients that went away.
            let _ = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}

async fn answer(folder: PathBuf, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let (parts, body) = request.into_parts();
    let body = body.collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
    let called = tokio::task::spawn_blocking(move || call(&folder, &parts, &body)).await;
    Ok(called.ok().and_then(Result::ok).unwrap_or_else(|| {
        let mut failed = Response::new(Full::default());
        *failed.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
        failed
    }))
}

/// Asks `git http-backend`.
fn call(folder: &Path, request: &http::request::Parts, body: &[u8]) -> anyhow::Result<Response<Full<Bytes>>> {
    let text =
        |name: &str| request.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let mut child = bare_git(folder)
        .arg("http-backend")
        .env("GIT_PROJECT_ROOT", folder)
        .env("GIT_HTTP_EXPORT_ALL", "1")
        .env("REQUEST_METHOD", request.method.as_str())
        .env("PATH_INFO", request.uri.path())
        .env("QUERY_STRING", request.uri.query().unwrap_or_default())
        .env("CONTENT_TYPE", text("content-type"))
        .env("CONTENT_LENGTH", body.len().to_string())
        .env("HTTP_CONTENT_ENCODING", text("content-encoding"))
        .env("GIT_PROTOCOL", text("git-protocol"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    // Requests of a fetch are short: they fit the pipe.
    child.stdin.take().context("piped")?.write_all(body)?;
    let output = Bytes::from(child.wait_with_output()?.stdout);
    let end = output.windows(4).position(|part| part == b"\r\n\r\n").context("no head")?;
    let mut response = Response::new(Full::new(output.slice(end + 4..)));
    for (name, value) in
        String::from_utf8_lossy(&output[..end]).lines().filter_map(|line| line.split_once(": "))
    {
        if name != "Status" {
            response.headers_mut().insert(name.parse::<HeaderName>()?, value.parse::<HeaderValue>()?);
        }
    }
    Ok(response)
}
