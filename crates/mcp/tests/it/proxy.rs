//! What a credential goes to, and what a token is good for.

use std::sync::Arc;
use std::time::Duration;

use mcp::{Error, SessionToken, Times};
use protocol::id::SessionId;
use serde_json::json;
use testkit::mcp::{McpServer, Reply};
use tokio::time::Instant;

use crate::common::{
    PATIENT, Vault, agent, called, connect, connect_to, failed, later, proxy_with, server, session, text_of,
};

/// A server that knows this bearer, and sends back what it was sent.
async fn guarded(bearer: &'static str) -> McpServer {
    McpServer::start(move |asked| {
        if asked.authorization.as_deref() != Some(&format!("Bearer {bearer}")) {
            return Reply::Http(401, vec![("www-authenticate", "Bearer".to_owned())], String::new());
        }
        match asked.method.as_str() {
            "tools/call" => {
                let text = format!("you sent {bearer}");
                Reply::Result(json!({"content": [{"type": "text", "text": text}]}))
            }
            _ => Reply::Usual,
        }
    })
    .await
}

#[tokio::test]
async fn a_credential_goes_into_every_request_and_comes_back_in_none() {
    let there = guarded("s3cret-token").await;
    let vault = Vault::with("s3cret-token", &[]);
    let connection = connect_to(&proxy_with(vault.clone(), PATIENT), &there.url()).await.expect("connects");
    let output = called(&connection, "echo", json!({})).await.expect("calls");
    assert_eq!(text_of(&output), "you sent [credential]");
    assert!(there.asked().iter().all(|asked| asked.authorization.as_deref() == Some("Bearer s3cret-token")));
    let lookups = vault.lookups.lock().expect("not poisoned").clone();
    assert_eq!(lookups, [format!("sesn_1 {} Connect", there.url())], "once for a connection of a moment");
    let uses = vault.uses.lock().expect("not poisoned").clone();
    assert_eq!(uses[0], "sesn_1 agent_1 vlt_1 vcrd_1 127.0.0.1 true");
    assert_eq!(uses.len(), there.asked().len(), "each use is taken down");
}

#[tokio::test]
async fn a_refused_credential_is_renewed_once() {
    let there = guarded("new").await;
    let vault = Vault::with("old", &["new"]);
    let connection = connect_to(&proxy_with(vault, PATIENT), &there.url()).await.expect("connects");
    called(&connection, "echo", json!({})).await.expect("calls");
    let refused =
        there.asked().iter().filter(|asked| asked.authorization.as_deref() == Some("Bearer old")).count();
    assert_eq!(refused, 1);

    let vault = Vault::with("old", &["also-wrong", "new"]);
    let error = failed(connect_to(&proxy_with(vault, PATIENT), &there.url()).await);
    assert!(matches!(&error, Error::Unauthorized(text) if text.contains("renewed")), "{error}");
}

#[tokio::test]
async fn a_server_that_wants_a_credential_that_is_not_there_is_named_as_that() {
    let there = guarded("s3cret").await;
    let error = failed(connect(&there.url()).await);
    assert!(matches!(&error, Error::Unauthorized(text) if text.contains("vaults have none")), "{error}");
    let error = failed(connect_to(&proxy_with(Vault::with("wrong", &[]), PATIENT), &there.url()).await);
    assert_eq!(error, Error::Unauthorized("the server refuses the credential".to_owned()));
}

#[tokio::test]
async fn a_withdrawn_credential_is_not_used_for_longer_than_it_may() {
    let there = guarded("s3cret").await;
    let vault = Vault::with("s3cret", &[]);
    let times = Times { credential_age_max: Duration::ZERO, ..PATIENT };
    let connection = connect_to(&proxy_with(vault.clone(), times), &there.url()).await.expect("connects");
    called(&connection, "echo", json!({})).await.expect("calls");
    *vault.token.lock().expect("not poisoned") = None;
    let error = failed(called(&connection, "echo", json!({})).await);
    assert!(matches!(error, Error::Unauthorized(_)), "{error}");
}

#[tokio::test]
async fn only_a_token_of_this_session_that_is_still_good_gets_anything() {
    let there = guarded("s3cret").await;
    let proxy = proxy_with(Vault::with("s3cret", &[]), PATIENT);
    let ours = server(&there.url());
    let issue = |until| proxy.issue(&session(), &agent(), std::slice::from_ref(&ours), until);
    let good = issue(later());
    proxy.connect(&good, &session(), &ours).await.expect("a good token");
    let greeted = there.count("initialize");

    let another = SessionId::from_text("sesn_2");
    let expired = issue(Instant::now());
    proxy.extend(&expired, later());
    let revoked = issue(later());
    proxy.revoke(&revoked);
    let elsewhere = server(&there.url().replace("/mcp", "/other"));
    for (what, token, session, server) in [
        ("replayed for another session", &good, &another, &ours),
        ("for a server that is not the session's", &good, &session(), &elsewhere),
        ("expired", &expired, &session(), &ours),
        ("revoked", &revoked, &session(), &ours),
        ("forged", &SessionToken::forged([7; 32]), &session(), &ours),
    ] {
        let error = failed(proxy.connect(token, session, server).await);
        assert_eq!(error, Error::TokenRefused, "{what}");
    }
    assert_eq!(there.count("initialize"), greeted, "and nothing was asked");
}

#[tokio::test]
async fn a_connection_is_of_no_use_once_its_token_is_revoked() {
    let there = guarded("s3cret").await;
    let proxy = proxy_with(Vault::with("s3cret", &[]), PATIENT);
    let ours = server(&there.url());
    let token = proxy.issue(&session(), &agent(), std::slice::from_ref(&ours), later());
    let connection = proxy.connect(&token, &session(), &ours).await.expect("connects");
    proxy.revoke(&token);
    assert_eq!(failed(called(&connection, "echo", json!({})).await), Error::TokenRefused);
}

#[tokio::test]
async fn a_redirect_to_another_origin_is_not_followed_and_gets_no_credential() {
    let elsewhere = McpServer::usual().await;
    for status in [301, 302, 303, 307, 308] {
        let target = elsewhere.url();
        let there =
            McpServer::start(move |_| Reply::Http(status, vec![("location", target.clone())], String::new()))
                .await;
        let error = failed(connect_to(&proxy_with(Vault::with("s3cret", &[]), PATIENT), &there.url()).await);
        assert!(error.to_string().contains("redirects to another place"), "{error}");
    }
    assert!(elsewhere.asked().is_empty());
}

#[tokio::test]
async fn a_redirect_within_the_origin_is_followed() {
    let there = McpServer::start(|asked| match asked.path.as_str() {
        "/mcp" => Reply::Http(307, vec![("location", "/mcp/".to_owned())], String::new()),
        _ => Reply::Usual,
    })
    .await;
    let connection = connect(&there.url()).await.expect("connects");
    assert_eq!(connection.tools().await.expect("lists").len(), 4);
}

#[tokio::test]
async fn what_the_guard_does_not_allow_is_not_asked() {
    let there = McpServer::usual().await;
    let _ = rustls::crypto::ring::default_provider().install_default();
    let guard = egress::Guard::new(egress::PrivateHosts::default(), []);
    let proxy = mcp::Proxy::new(Arc::new(guard), Vault::with("s3cret", &[]), PATIENT).expect("a client");
    let error = failed(connect_to(&proxy, &there.url()).await);
    assert!(matches!(error, Error::Unreachable(_)), "{error}");
    assert!(there.asked().is_empty());
}
