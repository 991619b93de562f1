//! Serves the exits of this machine's sandboxes: each is answered by the egress proxy as long as its sandbox lives.
//!
//! A server that starts finds the exits of sandboxes that outlived another; what connected meanwhile has waited.

use std::collections::HashMap;
use std::sync::Arc;

use broker::Broker;
use egress::{Grant, Guard, Limits, Pattern, Policy, Proxy, Uninspected, Who};
use protocol::id::SessionId;
use sandbox::{Exit, ExitNews, Provider, SandboxId};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// What the operator says of TLS out of sandboxes.
#[derive(Clone, Debug, Default)]
pub(crate) struct Rules {
    /// The ports on which it is expected, so that its names are looked at and secrets can be spent.
    pub(crate) tls_ports: Vec<u16>,
    /// What becomes of what cannot be looked into, where secrets could be spent.
    pub(crate) uninspected: Uninspected,
    /// Where it is not even tried.
    pub(crate) uninspected_hosts: Vec<Pattern>,
}

/// Serves exits until `shutdown`, when connections through them are cut off.
pub(crate) async fn serve(
    hands: Arc<dyn Provider>,
    guard: Arc<Guard>,
    broker: Option<Broker>,
    rules: Rules,
    shutdown: CancellationToken,
) {
    let Rules { tls_ports, uninspected, uninspected_hosts } = rules;
    let proxy = Proxy::new(guard, Limits::default())
        .with_tls_ports(tls_ports)
        .with_roots(egress::system_roots())
        .with_uninspected(uninspected)
        .with_uninspected_hosts(uninspected_hosts);
    let mut exits = hands.exits();
    let mut served: HashMap<SandboxId, CancellationToken> = HashMap::new();
    let mut tasks = JoinSet::new();
    loop {
        let news = tokio::select! {
            () = shutdown.cancelled() => break,
            Some(_) = tasks.join_next() => continue,
            news = exits.next() => news,
        };
        match news {
            Some(ExitNews::Opened(exit)) => {
                let stop = shutdown.child_token();
                if let Some(former) = served.insert(exit.sandbox.clone(), stop.clone()) {
                    former.cancel();
                }
                tasks.spawn(answer(proxy.clone(), broker.clone(), exit, stop));
            }
            Some(ExitNews::Ended(sandbox)) => {
                if let Some(stop) = served.remove(&sandbox) {
                    stop.cancel();
                }
            }
            // There will never be another: these hands reach nothing.
            None => {
                shutdown.cancelled().await;
                break;
            }
        }
    }
    while tasks.join_next().await.is_some() {}
}

async fn answer(proxy: Proxy, broker: Option<Broker>, exit: Exit, stop: CancellationToken) {
    let Exit { sandbox, network, listener } = exit;
    let Grant { session, policy } = Grant::parse(&network.0).unwrap_or_else(|error| {
        // A server of a later version has made it. Who asks is told that nothing is allowed.
        tracing::error!(sandbox.id = %sandbox, %error, "what this sandbox may reach cannot be read; nothing is allowed");
        Grant { session: None, policy: Policy::NOTHING }
    });
    let edge =
        broker.zip(session.as_ref()).map(|(broker, session)| broker.edge(SessionId::from_text(session)));
    let who = Who { sandbox: sandbox.to_string(), session };
    if let Err(error) = proxy.serve(listener, who, policy, edge, stop).await {
        tracing::error!(sandbox.id = %sandbox, %error, "the exit of a sandbox cannot be served");
    }
}
