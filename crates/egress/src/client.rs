//! The server's own way out, for addresses that agents and web pages choose.
//!
//! reqwest asks its resolver for names only, not for addresses written into a URL, and tells it no port. So each URL is
//! checked before it is asked and before a redirect to it is followed, and each name again when it is resolved, just
//! before the connection to those very addresses. One consequence: an entry of the private hosts that is a range *with* a
//! port counts here for URLs that contain the address, not for names that lead there; list the name.
//!
//! Bounds on time and size are the caller's.

use std::net::SocketAddr;
use std::sync::Arc;

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::redirect::{Action, Attempt, Policy};
use reqwest::{ClientBuilder, Method, RequestBuilder, Url};

use crate::guard::Guard;
use crate::host::Host;
use crate::refusal::Refusal;

/// How many redirects are followed; browsers allow twenty, and what needs more than ten is a loop.
const REDIRECTS_MAX: usize = 10;

/// An HTTP client that reaches only what its guard allows. A clone shares the connections.
#[derive(Clone, Debug)]
pub struct Client {
    http: reqwest::Client,
    guard: Arc<Guard>,
}

/// Makes a guarded client. `configure` may set what does not concern where requests go: headers, time limits, the pool.
/// Resolver, redirects and proxies are set afterwards; it must not pin names to addresses. The process needs a default provider of cryptography for
/// rustls.
pub fn client(
    guard: Arc<Guard>,
    configure: impl FnOnce(ClientBuilder) -> ClientBuilder,
) -> reqwest::Result<Client> {
    let for_redirects = Arc::clone(&guard);
    let http = configure(reqwest::Client::builder())
        .dns_resolver(Resolver(Arc::clone(&guard)))
        .redirect(Policy::custom(move |attempt| follow(&for_redirects, attempt)))
        .referer(false)
        // A proxy would resolve names itself, and connect from another place of the network.
        .no_proxy()
        .build()?;
    Ok(Client { http, guard })
}

impl Client {
    /// Begins a request. Fails if the URL is none that may be asked; a name that leads to a forbidden address fails when
    /// the request is sent, and [`refusal`](Self::refusal) finds the reason in that error.
    pub fn request(&self, method: Method, url: Url) -> Result<RequestBuilder, Refusal> {
        check(&self.guard, &url)?;
        Ok(self.http.request(method, url))
    }

    /// The refusal that made a request fail, if it was one.
    pub fn refusal(error: &reqwest::Error) -> Option<&Refusal> {
        let mut cause: Option<&(dyn std::error::Error + 'static)> = std::error::Error::source(error);
        while let Some(error) = cause {
            if let Some(refusal) = error.downcast_ref() {
                return Some(refusal);
            }
            cause = error.source();
        }
        None
    }
}

fn check(guard: &Guard, url: &Url) -> Result<(), Refusal> {
    if !matches!(url.scheme(), "http" | "https") {
        return Err(Refusal::Url { why: "its scheme is neither http nor https" });
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(Refusal::Url { why: "it contains a user or a password" });
    }
    let (Some(host), Some(port)) = (url.host_str(), url.port_or_known_default()) else {
        return Err(Refusal::Url { why: "it has no host" });
    };
    guard.check(&Host::parse(host)?, port)
}

fn follow(guard: &Guard, attempt: Attempt<'_>) -> Action {
    if attempt.previous().len() > REDIRECTS_MAX {
        return attempt.error(Refusal::Url { why: "it redirects too often" });
    }
    let was_https = attempt.previous().last().is_some_and(|url| url.scheme() == "https");
    if was_https && attempt.url().scheme() != "https" {
        return attempt.error(Refusal::Url { why: "it redirects from https to http" });
    }
    match check(guard, attempt.url()) {
        Ok(()) => attempt.follow(),
        Err(refusal) => attempt.error(refusal),
    }
}

/// The guard, as reqwest asks it.
struct Resolver(Arc<Guard>);

impl Resolve for Resolver {
    fn resolve(&self, name: Name) -> Resolving {
        let guard = Arc::clone(&self.0);
        Box::pin(async move {
            let host = Host::parse(name.as_str())?;
            let addresses = guard.resolve_checked(&host).await?;
            // Port 0: reqwest puts the URL's in its place.
            let addresses = addresses.into_iter().map(|address| SocketAddr::new(address, 0));
            Ok(Box::new(addresses) as Addrs)
        })
    }
}
