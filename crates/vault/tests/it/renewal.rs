use std::sync::Mutex;
use std::sync::mpsc::Sender;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use protocol::credential::CredentialAuth;
use protocol::credential_validation::{CredentialValidation, RefreshStatus, Verdict};
use protocol::id::VaultId;
use serde_json::{Value, json};
use tokio::sync::mpsc::UnboundedReceiver;
use vault::{RenewalError, Spendable};

use crate::world::{Asked, Server, World, bearer, soon};

fn oauth(server: &Server, auth: Value) -> Value {
    json!({
        "type": "mcp_oauth", "mcp_server_url": server.url("/mcp"), "access_token": "at-0",
        "refresh": {
            "refresh_token": "rt-0", "client_id": "the client", "token_endpoint": server.url("/token"),
            "token_endpoint_auth": auth, "scope": "a b", "resource": "https://r.example/x",
        },
    })
}

fn tokens(number: u32) -> Value {
    json!({
        "access_token": format!("at-{number}"), "refresh_token": format!("rt-{number}"), "expires_in": 3600,
        "token_type": "Bearer",
    })
}

async fn found(world: &World, vault: &VaultId, server: &Server) -> Spendable {
    let vaults = std::slice::from_ref(vault);
    world
        .credentials
        .for_mcp(&world.workspace, vaults, &server.url("/mcp"))
        .await
        .expect("works")
        .expect("found")
}

/// A token endpoint of single-use refresh tokens.
fn rotating() -> impl Fn(&Asked) -> (u16, Value) + Send + Sync + 'static {
    let current = Mutex::new(0);
    move |asked| {
        let mut current = current.lock().expect("not poisoned");
        if !asked.body.contains(&format!("refresh_token=rt-{current}&")) {
            return (400, json!({"error": "invalid_grant"}));
        }
        *current += 1;
        (200, tokens(*current))
    }
}

#[tokio::test]
async fn a_renewed_token_is_kept_with_its_refresh_token_and_its_end() {
    let world = World::new().await;
    let server = Server::start(rotating()).await;
    let vault = world.vault().await;
    world.add(&vault, oauth(&server, json!({"type": "none"}))).await;
    let before = found(&world, &vault, &server).await;
    for number in 1..4 {
        let spendable = found(&world, &vault, &server).await;
        let renewed = soon(world.credentials.renew(&spendable, None)).await.expect("renewed");
        assert!(renewed.expires_at().is_some());
        let token = world.token(std::slice::from_ref(&vault), &server.url("/mcp")).await;
        assert_eq!(token, Some(format!("at-{number}")));
    }
    // Who still holds what was there before gets what is there now, and nobody is asked.
    let asked = server.asked().len();
    let renewed = world.credentials.renew(&before, None).await.expect("found");
    assert_eq!(world.credentials.open(&renewed).await.expect("opens").expose(str::to_owned), "at-3");
    assert_eq!(server.asked().len(), asked);
}

#[tokio::test]
async fn a_client_says_who_it_is_in_its_credentials_way() {
    for (auth, in_body, in_head) in [
        (json!({"type": "none"}), None, None),
        (json!({"type": "client_secret_post", "client_secret": "c&s"}), Some("client_secret=c%26s"), None),
        (json!({"type": "client_secret_basic", "client_secret": "c&s"}), None, Some("the+client:c%26s")),
    ] {
        let world = World::new().await;
        let server = Server::start(rotating()).await;
        let vault = world.vault().await;
        world.add(&vault, oauth(&server, auth.clone())).await;
        let spendable = found(&world, &vault, &server).await;
        world.credentials.renew(&spendable, None).await.expect("renewed");
        let asked = server.asked().remove(0);
        let body = "grant_type=refresh_token&refresh_token=rt-0&client_id=the+client&scope=a+b&resource=https%3A%2F%2Fr.example%2Fx";
        let expected = in_body.map_or_else(|| body.to_owned(), |more| format!("{body}&{more}"));
        assert_eq!(asked.body, expected, "{auth}");
        let basic = in_head.map(|pair| format!("authorization: Basic {}", STANDARD.encode(pair)));
        match basic {
            Some(line) => assert!(asked.head.contains(&line), "{}", asked.head),
            None => assert!(!asked.head.contains("authorization"), "{}", asked.head),
        }
    }
}

#[tokio::test]
async fn many_who_need_a_token_at_once_cause_one_renewal() {
    let world = World::new().await;
    let server = Server::start(rotating()).await;
    let vault = world.vault().await;
    world.add(&vault, oauth(&server, json!({"type": "none"}))).await;
    let spendable = found(&world, &vault, &server).await;
    let processes: Vec<_> = (0..12).map(|_| world.other()).collect();
    let renewed =
        futures_util::future::join_all(processes.iter().map(|process| process.renew(&spendable, None)));
    for renewed in soon(renewed).await {
        let opened = world.credentials.open(&renewed.expect("renewed")).await.expect("opens");
        assert_eq!(opened.expose(str::to_owned), "at-1");
    }
    assert_eq!(server.asked().len(), 1);
}

#[tokio::test]
async fn a_refusal_is_told_from_a_failure_and_neither_shows_a_secret() {
    for (status, is_permanent) in
        [(400, true), (401, true), (403, true), (408, false), (429, false), (500, false), (503, false)]
    {
        let world = World::new().await;
        let server = Server::start(move |_| {
            (
                status,
                json!({"error": "invalid_grant", "your_token": "rt-0", "and": "at-0", "secret": "c-s-c-s"}),
            )
        })
        .await;
        let vault = world.vault().await;
        let auth = json!({"type": "client_secret_post", "client_secret": "c-s-c-s"});
        world.add(&vault, oauth(&server, auth)).await;
        let spendable = found(&world, &vault, &server).await;
        let error = world.credentials.renew(&spendable, None).await.expect_err("refused");
        assert_eq!(error.is_permanent(), is_permanent, "{status}");
        let shown = format!("{error:?}");
        assert!(shown.contains("invalid_grant") && !shown.contains("rt-0"), "{shown}");
        assert!(!shown.contains("at-0") && !shown.contains("c-s-c-s"), "{shown}");
        // The next one may try at once.
        let error = soon(world.credentials.renew(&spendable, None)).await.expect_err("refused");
        assert_eq!(error.is_permanent(), is_permanent);
        assert_eq!(server.asked().len(), 2);
    }
}

#[tokio::test]
async fn what_cannot_be_renewed_is_told_at_once() {
    let world = World::new().await;
    let server = Server::start(|_| (200, json!({"no": "token"}))).await;
    let vault = world.vault().await;
    world.add(&vault, bearer(&server.url("/mcp"), "t-0")).await;
    let spendable = found(&world, &vault, &server).await;
    assert!(matches!(world.credentials.renew(&spendable, None).await, Err(RenewalError::NotRenewable)));
    let other = world.vault().await;
    let mut away = oauth(&server, json!({"type": "none"}));
    // Nobody listens there, and the guard would not let us either.
    away["refresh"]["token_endpoint"] = json!("http://127.0.0.2:1/token");
    world.add(&other, away).await;
    let spendable = found(&world, &other, &server).await;
    assert!(matches!(soon(world.credentials.renew(&spendable, None)).await, Err(RenewalError::Failed(None))));
    let third = world.vault().await;
    world.add(&third, oauth(&server, json!({"type": "none"}))).await;
    let spendable = found(&world, &third, &server).await;
    assert!(matches!(world.credentials.renew(&spendable, None).await, Err(RenewalError::Failed(Some(_)))));
}

/// A token endpoint that tells when it is asked, and holds its answer back until it is told to go on.
async fn holding() -> (Server, UnboundedReceiver<()>, Sender<()>) {
    let (arrived, arrives) = tokio::sync::mpsc::unbounded_channel();
    let (go, wait) = std::sync::mpsc::channel();
    let wait = Mutex::new(wait);
    let server = Server::start(move |_| {
        arrived.send(()).expect("somebody listens");
        tokio::task::block_in_place(|| wait.lock().expect("not poisoned").recv().expect("told to go on"));
        (200, tokens(1))
    })
    .await;
    (server, arrives, go)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_that_a_client_puts_there_meanwhile_win() {
    let world = World::new().await;
    let (server, mut arrives, go) = holding().await;
    let vault = world.vault().await;
    let credential = world.add(&vault, oauth(&server, json!({"type": "none"}))).await;
    let spendable = found(&world, &vault, &server).await;
    let meanwhile = async {
        arrives.recv().await.expect("asked");
        let auth =
            json!({"type": "mcp_oauth", "access_token": "at-new", "refresh": {"refresh_token": "rt-new"}});
        world.change(&credential, json!({ "auth": auth })).await;
        go.send(()).expect("it waits");
    };
    let (renewed, ()) =
        soon(async { tokio::join!(world.credentials.renew(&spendable, None), meanwhile) }).await;
    let opened = world.credentials.open(&renewed.expect("renewed")).await.expect("opens");
    assert_eq!(opened.expose(str::to_owned), "at-new");
    let token = world.token(std::slice::from_ref(&vault), &server.url("/mcp")).await;
    assert_eq!(token.as_deref(), Some("at-new"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_renewal_that_nobody_waits_for_any_more_is_kept_all_the_same() {
    let world = World::new().await;
    let (server, mut arrives, go) = holding().await;
    let vault = world.vault().await;
    world.add(&vault, oauth(&server, json!({"type": "none"}))).await;
    let spendable = found(&world, &vault, &server).await;
    tokio::select! {
        _ = world.credentials.renew(&spendable, None) => panic!("the endpoint holds its answer back"),
        asked = arrives.recv() => asked.expect("asked"),
    }
    go.send(()).expect("it waits");
    // The refresh token is used up: what came for it is there, and the next finds it without asking.
    let renewed = soon(world.credentials.renew(&spendable, None)).await.expect("renewed");
    assert_eq!(world.credentials.open(&renewed).await.expect("opens").expose(str::to_owned), "at-1");
    assert_eq!(server.asked().len(), 1);
}

fn speaks(good: &'static str) -> impl Fn(&Asked) -> (u16, Value) + Send + Sync + 'static {
    let endpoint = rotating();
    move |asked| {
        if asked.path == "/token" {
            return endpoint(asked);
        }
        if !asked.head.contains(&format!("authorization: Bearer {good}\r\n")) {
            let sent = asked.head.lines().find(|line| line.starts_with("authorization")).unwrap_or_default();
            return (401, json!({"error": "invalid_token", "sent": sent}));
        }
        let message: Value = serde_json::from_str(&asked.body).expect("JSON");
        (200, json!({"jsonrpc": "2.0", "id": message["id"], "result": {"tools": []}}))
    }
}

async fn validated(world: &World, vault: &VaultId, server: &Server) -> CredentialValidation {
    let id = found(world, vault, server).await.id().clone();
    soon(world.credentials.validate(&world.workspace, vault, &id)).await.expect("a verdict")
}

#[tokio::test]
async fn a_credential_that_works_is_valid() {
    let world = World::new().await;
    let server = Server::start(speaks("at-0")).await;
    let vault = world.vault().await;
    world.add(&vault, oauth(&server, json!({"type": "none"}))).await;
    let verdict = validated(&world, &vault, &server).await;
    assert_eq!((verdict.status, verdict.mcp_probe, verdict.refresh), (Verdict::Valid, None, None));
    assert!(verdict.has_refresh_token);
    let methods: Vec<String> = server
        .asked_at("/mcp")
        .iter()
        .map(|asked| {
            serde_json::from_str::<Value>(&asked.body).expect("JSON")["method"]
                .as_str()
                .expect("text")
                .to_owned()
        })
        .collect();
    assert_eq!(methods, ["initialize", "notifications/initialized", "tools/list"]);
}

#[tokio::test]
async fn a_token_that_is_not_accepted_is_renewed_once_and_kept() {
    let world = World::new().await;
    let server = Server::start(speaks("at-1")).await;
    let vault = world.vault().await;
    world.add(&vault, oauth(&server, json!({"type": "none"}))).await;
    let verdict = validated(&world, &vault, &server).await;
    assert_eq!((verdict.status, verdict.mcp_probe), (Verdict::Valid, None));
    assert_eq!(verdict.refresh.expect("tried").status, RefreshStatus::Succeeded);
    let token = world.token(std::slice::from_ref(&vault), &server.url("/mcp")).await;
    assert_eq!(token.as_deref(), Some("at-1"));
}

#[tokio::test]
async fn a_grant_that_is_gone_is_invalid_and_its_answers_are_scrubbed() {
    let world = World::new().await;
    let server = Server::start(speaks("at-nobody-has")).await;
    let vault = world.vault().await;
    let mut stale = oauth(&server, json!({"type": "none"}));
    stale["refresh"]["refresh_token"] = json!("rt-stale");
    world.add(&vault, stale).await;
    let verdict = validated(&world, &vault, &server).await;
    assert_eq!(verdict.status, Verdict::Invalid);
    let probe = verdict.mcp_probe.expect("failed");
    let answer = probe.http_response.expect("answered");
    assert_eq!((probe.method.as_str(), answer.status_code), ("initialize", 401));
    assert!(answer.body.contains("Bearer [secret]") && !answer.body.contains("at-0"), "{}", answer.body);
    let refresh = verdict.refresh.expect("tried");
    assert_eq!(
        (refresh.status, refresh.http_response.expect("answered").status_code),
        (RefreshStatus::Failed, 400)
    );
    let other = world.vault().await;
    let mut plain = oauth(&server, json!({"type": "none"}));
    plain.as_object_mut().expect("an object").remove("refresh");
    world.add(&other, plain).await;
    let verdict = validated(&world, &other, &server).await;
    assert_eq!((verdict.status, verdict.has_refresh_token), (Verdict::Invalid, false));
    assert_eq!(verdict.refresh.expect("tried").status, RefreshStatus::NoRefreshToken);
}

#[tokio::test]
async fn a_server_that_is_away_or_ill_leaves_it_unknown() {
    let world = World::new().await;
    for status in [429, 500, 503] {
        let server = Server::start(move |_| (status, json!({}))).await;
        let vault = world.vault().await;
        world.add(&vault, oauth(&server, json!({"type": "none"}))).await;
        assert_eq!(validated(&world, &vault, &server).await.status, Verdict::Unknown, "{status}");
    }
    let server = Server::start(|_| (200, json!({}))).await;
    let vault = world.vault().await;
    let mut away = oauth(&server, json!({"type": "none"}));
    away["mcp_server_url"] = json!("http://127.0.0.2:1/mcp");
    let credential = world.add(&vault, away).await;
    let verdict =
        soon(world.credentials.validate(&world.workspace, &vault, &credential.id)).await.expect("a verdict");
    assert_eq!(verdict.status, Verdict::Unknown);
    assert_eq!(verdict.mcp_probe.expect("failed").http_response, None);
    assert!(matches!(credential.auth, CredentialAuth::McpOauth { .. }));
}
