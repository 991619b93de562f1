//! The probes: without a key, each dependency by name.

use api::{Condition, Health};
use reqwest::Method;
use serde_json::json;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::server::{Answer, Server, send};

async fn probe(server: &Server, path: &str) -> Answer {
    send(server.bare(Method::GET, path)).await
}

#[tokio::test]
async fn a_process_that_lives_says_so_and_nothing_else() {
    let health = Health::default().with("database", async || Condition::Down("it is away"));
    let server = Server::start_probed(health).await;
    for path in ["/livez", "/health"] {
        assert_eq!(probe(&server, path).await.ok(), json!({"status": "ok"}), "{path}");
    }
}

#[tokio::test]
async fn a_process_is_ready_though_something_is_degraded() {
    let health = Health::default()
        .with("database", async || Condition::Ok)
        .with("listener", async || Condition::Degraded("it polls"));
    let server = Server::start_probed(health).await;
    let expected = json!({
        "status": "ready", "draining": false,
        "dependencies": {"database": {"state": "ok"}, "listener": {"state": "degraded", "reason": "it polls"}},
    });
    assert_eq!(probe(&server, "/readyz").await.ok(), expected);
}

#[tokio::test]
async fn a_process_is_not_ready_while_something_is_down() {
    let health = Health::default().with("database", async || Condition::Down("it does not answer"));
    let server = Server::start_probed(health).await;
    let answer = probe(&server, "/readyz").await;
    let expected = json!({
        "status": "unready", "draining": false,
        "dependencies": {"database": {"state": "down", "reason": "it does not answer"}},
    });
    assert_eq!((answer.status, answer.body), (503, expected));
}

#[tokio::test]
async fn a_process_that_drains_is_not_ready_and_goes_on_serving() {
    let draining = CancellationToken::new();
    let server = Server::start_probed(Health::new(draining.clone())).await;
    assert_eq!(probe(&server, "/readyz").await.status, 200);
    draining.cancel();
    let answer = probe(&server, "/readyz").await;
    assert_eq!(
        (answer.status, answer.body),
        (503, json!({"status": "unready", "draining": true, "dependencies": {}}))
    );
    assert_eq!(probe(&server, "/livez").await.status, 200);
    server.agent().await;
}

#[tokio::test]
async fn a_process_without_the_api_serves_its_probes_only() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let base = format!("http://{}", listener.local_addr().expect("an address"));
    let stop = CancellationToken::new();
    let serving = tokio::spawn(api::serve_health(listener, Health::default(), stop.clone()));
    let http = reqwest::Client::builder().no_proxy().build().expect("a client");
    for (path, status) in [("/livez", 200), ("/readyz", 200), ("/health", 200), ("/v1/sessions", 404)] {
        assert_eq!(send(http.get(format!("{base}{path}"))).await.status, status, "{path}");
    }
    stop.cancel();
    serving.await.expect("no panic").expect("no error");
}
