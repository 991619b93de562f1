//! The proxy that a sandbox gets instead of a network.
//!
//! HTTP/1.1: absolute-form requests for `http://`, and CONNECT for everything else. One connection carries one request, so
//! nothing that follows a request can be taken for another. A request goes:
//!
//! ```text
//! head (shape, size, time) → exchange (target, policy, guard, dial) ─┬→ one request and its response
//!                                                                    └→ tunnel (ClientHello) ─┬→ bytes both ways
//!                                                                                             └→ intercept (secrets are spent)
//! ```
//!
//! Every decision is one line of the log with the target `egress`: denials at `info`, because an operator will want to see
//! them without asking; what is allowed, and the bytes and the duration at its end, at `debug`, because one `npm install`
//! makes a thousand of them. No line has a path, a query, a header or content.
//!
//! What it cannot see: what happens inside TLS, from the second message of a handshake on. Two sites behind one front that
//! serves both under either name are one site to it. Only where the sandbox may spend secrets to a host does TLS end here,
//! behind the same decision (`intercept`).

mod answer;
mod exchange;
mod head;
mod hello;
mod intercept;
mod meter;
mod splice;
mod tunnel;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use rustls::{ClientConfig, RootCertStore};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::edge::Edge;
use crate::guard::Guard;
use crate::host::Pattern;
use crate::policy::Policy;

/// The ports on which TLS is expected unless the operator says otherwise.
const TLS_PORTS_DEFAULT: [u16; 1] = [443];
/// How many lookups of one sandbox may run at once, so that it cannot take those of all.
const LOOKUPS_MAX: usize = 8;
/// How many bodies of one sandbox may be held as a whole at once, while secrets are put into them.
const BODIES_MAX: usize = 16;
/// How long to wait after the system refused a connection, most likely for want of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// For whom a listener is served; for the log only.
#[derive(Clone, Debug)]
pub struct Who {
    /// The sandbox's id.
    pub sandbox: String,
    /// The session's id, if it is known.
    pub session: Option<String>,
}

/// The proxy's bounds.
#[derive(Clone, Debug)]
pub struct Limits {
    /// How many connections one sandbox may have at once. Further ones wait in its listener's queue. By default 128:
    /// package managers open at most fifty.
    pub connections_max: usize,
    /// How many connections there may be at once for all sandboxes; each takes two descriptors. By default 8,192.
    pub connections_total_max: usize,
    /// How long the head of a request may take. By default 10 seconds.
    pub head_time_max: Duration,
    /// How long connecting to one address may take; at most four are tried. By default 5 seconds.
    pub connect_time_max: Duration,
    /// How long the beginning of TLS may take inside a tunnel. By default 10 seconds.
    pub hello_time_max: Duration,
    /// How long a connection may stay without a byte either way on the far side. By default 5 minutes: long polls and
    /// slow builds are quiet for minutes.
    pub idle_time_max: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections_max: 128,
            connections_total_max: 8_192,
            head_time_max: Duration::from_secs(10),
            connect_time_max: Duration::from_secs(5),
            hello_time_max: Duration::from_secs(10),
            idle_time_max: Duration::from_secs(300),
        }
    }
}

/// The proxy. One serves all sandboxes, each on its own listener. A clone is the same proxy.
#[derive(Clone, Debug)]
pub struct Proxy {
    guard: Arc<Guard>,
    limits: Limits,
    tls_ports: Arc<[u16]>,
    tls: Arc<ClientConfig>,
    uninspected: Uninspected,
    uninspected_hosts: Arc<[Pattern]>,
    connections: Arc<Semaphore>,
}

/// What becomes of TLS to a host to which secrets may be spent, if it is not for HTTP, so that no placeholder can be found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Uninspected {
    /// It is refused with an alert, and the log says so.
    #[default]
    Refuse,
    /// It passes as it is, with its placeholders.
    Pass,
}

/// One sandbox, as its connections see it.
#[derive(Debug)]
struct Served {
    guard: Arc<Guard>,
    limits: Limits,
    tls_ports: Arc<[u16]>,
    tls: Arc<ClientConfig>,
    uninspected: Uninspected,
    uninspected_hosts: Arc<[Pattern]>,
    who: Who,
    policy: Policy,
    edge: Option<Arc<dyn Edge>>,
    lookups: Semaphore,
    bodies: Arc<Semaphore>,
}

impl Proxy {
    /// A proxy that reaches what the guard allows.
    pub fn new(guard: Arc<Guard>, limits: Limits) -> Self {
        let connections = Arc::new(Semaphore::new(limits.connections_total_max));
        let tls = Arc::new(trusting(RootCertStore::empty()));
        let tls_ports = Arc::new(TLS_PORTS_DEFAULT);
        let (uninspected, uninspected_hosts) = (Uninspected::default(), Arc::default());
        Self { guard, limits, tls_ports, tls, uninspected, uninspected_hosts, connections }
    }

    /// The same proxy, which trusts these authorities where it ends TLS itself; without them it trusts nobody.
    pub fn with_roots(self, roots: RootCertStore) -> Self {
        Self { tls: Arc::new(trusting(roots)), ..self }
    }

    /// The same proxy, with this rule for what it cannot look into.
    pub fn with_uninspected(self, uninspected: Uninspected) -> Self {
        Self { uninspected, ..self }
    }

    /// The same proxy, which spends nothing to these hosts: TLS with them passes as it is.
    pub fn with_uninspected_hosts(self, hosts: impl IntoIterator<Item = Pattern>) -> Self {
        Self { uninspected_hosts: hosts.into_iter().collect(), ..self }
    }

    /// The same proxy, expecting TLS on these ports instead of 443: there the name that TLS asks for must be the name of
    /// the CONNECT. For operators who open more ports for HTTPS.
    pub fn with_tls_ports(self, ports: impl IntoIterator<Item = u16>) -> Self {
        Self { tls_ports: ports.into_iter().collect(), ..self }
    }

    /// Serves one sandbox's listener, and spends what `edge` gives it, until `shutdown` is cancelled; then every connection is cut off at once. Fails only
    /// if the listener cannot be used at all. The caller awaits it; dropping the future has the effect of `shutdown`.
    pub async fn serve(
        &self,
        listener: std::net::TcpListener,
        who: Who,
        policy: Policy,
        edge: Option<Arc<dyn Edge>>,
        shutdown: CancellationToken,
    ) -> io::Result<()> {
        listener.set_nonblocking(true)?;
        let listener = TcpListener::from_std(listener)?;
        let served = Arc::new(Served {
            guard: Arc::clone(&self.guard),
            limits: self.limits.clone(),
            tls_ports: Arc::clone(&self.tls_ports),
            tls: Arc::clone(&self.tls),
            uninspected: self.uninspected,
            uninspected_hosts: Arc::clone(&self.uninspected_hosts),
            who,
            policy,
            edge,
            lookups: Semaphore::new(LOOKUPS_MAX),
            bodies: Arc::new(Semaphore::new(BODIES_MAX)),
        });
        let mut connections = JoinSet::new();
        loop {
            let next = tokio::select! {
                () = shutdown.cancelled() => Next::Stop,
                Some(_) = connections.join_next() => Next::Finished,
                accepted = listener.accept(), if connections.len() < self.limits.connections_max => {
                    Next::Accepted(accepted.map(|(stream, _)| stream))
                }
            };
            match next {
                Next::Stop => return Ok(()),
                Next::Finished => {}
                Next::Accepted(Ok(stream)) => {
                    let permit = tokio::select! {
                        () = shutdown.cancelled() => return Ok(()),
                        permit = Arc::clone(&self.connections).acquire_owned() => permit,
                    };
                    let served = Arc::clone(&served);
                    connections.spawn(async move {
                        let _permit = permit;
                        exchange::connection(served, stream).await;
                    });
                }
                Next::Accepted(Err(error)) => {
                    tracing::debug!(target: "egress", %error, "a connection out of a sandbox was refused by the system");
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
}

/// A client of TLS that trusts these authorities.
fn trusting(roots: RootCertStore) -> ClientConfig {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("the provider has the default versions")
        .with_root_certificates(roots)
        .with_no_client_auth()
}

/// The authorities that this machine trusts. What cannot be read is left out.
pub fn system_roots() -> RootCertStore {
    let mut roots = RootCertStore::empty();
    let found = rustls_native_certs::load_native_certs();
    for error in &found.errors {
        tracing::warn!(target: "egress", %error, "some authorities of this machine cannot be read");
    }
    roots.add_parsable_certificates(found.certs);
    roots
}

/// What may happen next to a listener.
enum Next {
    Stop,
    Finished,
    Accepted(io::Result<TcpStream>),
}
