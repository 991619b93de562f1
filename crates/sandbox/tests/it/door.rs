//! What stands outside a sandbox's exit: the real proxy, and a site on this machine to ask for.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use egress::{Guard, Policy, PrivateHosts, Proxy, Who};
use sandbox::{ExitNews, Network};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::task::{JoinHandle, JoinSet};
use tokio_util::sync::CancellationToken;

use crate::host::Host;

/// Serves the exits of a host's sandboxes with the real proxy until it is dropped.
pub(crate) struct Door {
    shutdown: CancellationToken,
    task: JoinHandle<()>,
}

impl Door {
    /// By which package registries are reached, mirrors of them included.
    pub(crate) fn open(host: &Host) -> Self {
        Self::guarded(host, Guard::new(registries_allowed().parse::<PrivateHosts>().unwrap(), []))
    }

    /// By which what this guard allows is reached.
    pub(crate) fn guarded(host: &Host, guard: Guard) -> Self {
        let proxy = Proxy::new(Arc::new(guard), egress::Limits::default());
        let (shutdown, mut exits) = (CancellationToken::new(), host.provider.exits());
        let ended = shutdown.clone();
        let task = tokio::spawn(async move {
            let mut served = JoinSet::new();
            while let Some(news) = exits.next().await {
                let ExitNews::Opened(exit) = news else { continue };
                let policy: Policy = serde_json::from_str(&exit.network.0).unwrap();
                let who = Who { sandbox: exit.sandbox.to_string(), session: None };
                let (proxy, ended) = (proxy.clone(), ended.clone());
                served.spawn(async move { proxy.serve(exit.listener, who, policy, None, ended).await });
            }
        });
        Self { shutdown, task }
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        self.shutdown.cancel();
        self.task.abort();
    }
}

/// Private hosts by name: where this machine's registries are mirrors, their addresses may be any.
pub(crate) fn registries_allowed() -> String {
    std::env::var("POSTHOUSE_ALLOW_PRIVATE_HOSTS").unwrap_or_else(|_| egress::PACKAGE_REGISTRIES.join(","))
}

/// As a sandbox is given it.
pub(crate) fn network(policy: &Policy) -> Network {
    Network(serde_json::to_string(policy).unwrap())
}

/// A network in which package registries can be reached, and nothing else.
pub(crate) fn registries() -> Network {
    network(&Policy::Limited { allowed_hosts: vec![], mcp_hosts: vec![], allow_package_managers: true })
}

/// A site on this machine: private, unless a guard says otherwise.
pub(crate) struct Site {
    pub(crate) port: u16,
    asked: Arc<AtomicUsize>,
    _serving: JoinSet<()>,
}

impl Site {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (asked, mut serving) = (Arc::new(AtomicUsize::new(0)), JoinSet::new());
        let counted = Arc::clone(&asked);
        serving.spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                counted.fetch_add(1, Ordering::SeqCst);
                let _ = stream.read(&mut [0; 4096]).await;
                let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\nconnection: close\r\n\r\nhello";
                let _ = stream.write_all(answer).await;
            }
        });
        Self { port, asked, _serving: serving }
    }

    /// How many connections came to it.
    pub(crate) fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }

    /// Lets it be reached by the name `localhost`.
    pub(crate) fn allowed(&self) -> Guard {
        Guard::new(format!("localhost:{}", self.port).parse::<PrivateHosts>().unwrap(), [])
    }
}
