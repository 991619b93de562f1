//! Where our own git asks: a socket on the loopback that answers whoever knows the word of a fetch that is under way.
//!
//! So git needs neither a token nor the network, and what it asks goes the same way as what a sandbox asks. The word is told
//! in git's environment, which only its own user can read, and is worth nothing when the fetch is over.

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, PoisonError};

use egress::Body;
use http::{HeaderName, Request, Response, StatusCode};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use ring::rand::{SecureRandom as _, SystemRandom};
use tokio::net::TcpListener;
use tokio::sync::OnceCell;
use tokio::task::JoinSet;
use tokio_util::task::AbortOnDropHandle;

use crate::host::{Asker, Fault, Hosts, said};
use crate::smart::{self, Endpoint, Service};

/// The header that carries the word.
pub(crate) const WORD_HEADER: &str = "x-posthouse-fetch";
/// The path of the one repository that each word is for.
const PATH: &str = "/repository";
/// Connections at once; each fetch has two or three.
const CONNECTIONS_MAX: usize = 256;

pub(crate) struct Door {
    hosts: Hosts,
    fetches: Arc<Fetches>,
    open: OnceCell<Open>,
}

struct Open {
    port: u16,
    _serving: AbortOnDropHandle<()>,
}

type Fetches = Mutex<HashMap<String, Arc<Fetch>>>;

/// A fetch that is under way.
struct Fetch {
    asker: Asker,
    /// Why a request of it got no answer: the first such.
    fault: Mutex<Option<Fault>>,
}

/// The right to fetch one repository for one session, as long as this is held.
pub(crate) struct Pass {
    word: String,
    port: u16,
    fetch: Arc<Fetch>,
    fetches: Arc<Fetches>,
}

impl Door {
    pub(crate) fn new(hosts: Hosts) -> Self {
        Self { hosts, fetches: Arc::default(), open: OnceCell::new() }
    }

    /// Lets a git through that will ask for this repository. Opens the socket, the first time.
    pub(crate) async fn pass(&self, asker: Asker) -> std::io::Result<Pass> {
        let open = self.open.get_or_try_init(|| open(self.hosts.clone(), Arc::clone(&self.fetches))).await?;
        let mut bits = [0; 32];
        SystemRandom::new().fill(&mut bits).expect("the system has randomness");
        let word = crate::cache::hex(&bits);
        let fetch = Arc::new(Fetch { asker, fault: Mutex::default() });
        lock(&self.fetches).insert(word.clone(), Arc::clone(&fetch));
        Ok(Pass { word, port: open.port, fetch, fetches: Arc::clone(&self.fetches) })
    }
}

impl Pass {
    /// What git is to ask.
    pub(crate) fn url(&self) -> String {
        format!("http://127.0.0.1:{}{PATH}", self.port)
    }

    /// The header that git is to send. For its environment alone.
    pub(crate) fn header(&self) -> String {
        format!("{WORD_HEADER}: {}", self.word)
    }

    /// Why it got no answer, if it got none.
    pub(crate) fn fault(&self) -> Option<Fault> {
        lock(&self.fetch.fault).clone()
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        lock(&self.fetches).remove(&self.word);
    }
}

async fn open(hosts: Hosts, fetches: Arc<Fetches>) -> std::io::Result<Open> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let port = listener.local_addr()?.port();
    let serving = tokio::spawn(serve(listener, hosts, fetches));
    Ok(Open { port, _serving: AbortOnDropHandle::new(serving) })
}

async fn serve(listener: TcpListener, hosts: Hosts, fetches: Arc<Fetches>) {
    let mut connections = JoinSet::new();
    loop {
        let stream = tokio::select! {
            Some(_) = connections.join_next() => continue,
            accepted = listener.accept(), if connections.len() < CONNECTIONS_MAX => match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "our own git was not let in");
                    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                    continue;
                }
            },
        };
        let _ = stream.set_nodelay(true);
        let (hosts, fetches) = (hosts.clone(), Arc::clone(&fetches));
        connections.spawn(async move {
            let service = service_fn(move |request| {
                let (hosts, fetches) = (hosts.clone(), Arc::clone(&fetches));
                async move { Ok::<_, Infallible>(answer(&hosts, &fetches, request).await) }
            });
            // Its failures are gits that went away.
            let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

async fn answer(hosts: &Hosts, fetches: &Fetches, request: Request<Incoming>) -> Response<Body> {
    let (parts, body) = request.into_parts();
    let word = parts.headers.get(HeaderName::from_static(WORD_HEADER)).and_then(|word| word.to_str().ok());
    // A guess takes as long as any: what is compared are hashes of a map with a key of its own.
    let fetch = word.and_then(|word| lock(fetches).get(word).cloned());
    let Some(fetch) = fetch else { return said(StatusCode::FORBIDDEN, "nobody fetches this") };
    let asked = match smart::split(&parts.method, parts.uri.path(), parts.uri.query()) {
        Some((
            PATH,
            endpoint @ (Endpoint::Refs(Service::UploadPack) | Endpoint::Rpc(Service::UploadPack)),
        )) => endpoint,
        Some(_) | None => return said(StatusCode::FORBIDDEN, "this is not fetched"),
    };
    let body = body.map_err(Into::into).boxed_unsync();
    match hosts.ask(&fetch.asker, asked, &parts.headers, body).await {
        Ok(response) => response,
        Err(fault) => {
            let response = fault.response();
            lock(&fetch.fault).get_or_insert(fault);
            response
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
