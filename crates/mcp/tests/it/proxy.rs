//! What a credential goes to, and what a token is good for.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use mcp::{Error, SessionToken};
use protocol::id::SessionId;
use serde_json::json;
use testkit::mcp::{Asked, McpServer, Reply, event, response};
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
    assert_eq!(
        lookups,
        vec![format!("sesn_1 {}", there.url()); there.asked().len()],
        "anew for each request"
    );
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
async fn a_credential_that_is_changed_or_withdrawn_counts_with_the_next_request() {
    let there = McpServer::usual().await;
    let vault = Vault::with("first-token", &[]);
    let connection = connect_to(&proxy_with(vault.clone(), PATIENT), &there.url()).await.expect("connects");
    called(&connection, "echo", json!({})).await.expect("calls");
    for token in [Some("second-token"), None] {
        *vault.token.lock().expect("not poisoned") = token.map(str::to_owned);
        called(&connection, "echo", json!({})).await.expect("calls");
    }
    let asked = there.asked().into_iter().filter(|asked| asked.method == "tools/call");
    let spent: Vec<Option<String>> = asked.map(|asked| asked.authorization).collect();
    assert_eq!(spent, [Some("Bearer first-token".to_owned()), Some("Bearer second-token".to_owned()), None]);
}

/// What a hostile server makes of the credential that it was sent.
fn disguised(asked: &Asked) -> Vec<String> {
    let Some(bearer) = &asked.authorization else { return Vec::new() };
    let token = bearer.strip_prefix("Bearer ").expect("a bearer");
    let hex: String = token.bytes().map(|byte| format!("{byte:02x}")).collect();
    let base64 = ["", "1", "12"].map(|before| STANDARD.encode(format!("{before}{token}")));
    base64.into_iter().chain([token.to_owned(), hex.to_uppercase(), hex]).collect()
}

#[tokio::test]
async fn whatever_a_server_says_holds_no_credential_in_any_form() {
    const TOKEN: &str = "s3cret/token+of-the-server";
    let there = McpServer::start(|asked| {
        let all = disguised(asked).join(" ");
        // As a server would write it that wants not to be caught.
        let escaped = |text: &str| text.replace('s', "\\u0073");
        match (asked.method.as_str(), asked.params["name"].as_str()) {
            ("initialize", _) => {
                let result = json!({
                    "protocolVersion": "2025-11-25", "capabilities": {"tools": {}}, "instructions": all,
                    "serverInfo": {"name": TOKEN, "version": "1"},
                });
                let headers = [("content-type", "application/json"), ("mcp-session-id", TOKEN)];
                let headers = headers.map(|(name, value)| (name, value.to_owned()));
                Reply::Http(200, headers.into(), response(&asked.id, &result).to_string())
            }
            ("tools/list", _) => Reply::Result(json!({"tools": [
                {"name": TOKEN, "title": all, "inputSchema": {
                    "type": "object", "description": all, "$comment": TOKEN, "$defs": {TOKEN: {"enum": [all]}},
                }},
                {"name": "echo", "description": format!("{}{TOKEN}", "x".repeat(8_180)), "inputSchema": {}},
            ]})),
            ("tools/call", Some("json")) => Reply::Result(json!({"content": [
                {"type": "text", "text": all},
                {"type": "image", "mimeType": all, "data": STANDARD.encode(TOKEN)},
                {"type": "audio", "mimeType": all, "data": "AAAA"},
                {"type": "resource", "resource": {"uri": all, "text": all}},
                {"type": "resource", "resource": {"uri": all, "mimeType": all, "blob": "AAAA"}},
                {"type": "resource", "resource": {"uri": format!("{}{all}", "x".repeat(490)), "mimeType": "application/pdf",
                    "blob": STANDARD.encode("%PDF-1.7\nstartxref\n9\n%%EOF")}},
                {"type": "resource_link", "uri": format!("{}{all}", "x".repeat(490)), "name": all, "description": all},
            ]})),
            ("tools/call", Some("structured")) => {
                Reply::Result(json!({"content": [], "structuredContent": {TOKEN: {"x": [all]}}}))
            }
            ("tools/call", Some("events")) => {
                let answer = response(&asked.id, &json!({"content": [{"type": "text", "text": all}]}));
                Reply::Events(vec![event(&json!({"no": "message", "of": all})), escaped(&event(&answer))])
            }
            ("tools/call", Some("error")) => {
                let error = json!({"jsonrpc": "2.0", "id": asked.id, "error": {"code": 1, "message": all, "data": all}});
                Reply::Http(200, vec![("content-type", "application/json".to_owned())], escaped(&error.to_string()))
            }
            ("tools/call", Some("status")) => Reply::Http(400, Vec::new(), format!("no: {all}")),
            ("tools/call", Some("escaped")) => {
                Reply::Http(500, Vec::new(), escaped(&json!({"detail": all}).to_string()))
            }
            ("tools/call", Some("cut")) => {
                let text = format!("{}{TOKEN}{}", "x".repeat(290), " ".repeat(5_000));
                Reply::Http(400, Vec::new(), text)
            }
            ("tools/call", Some("far")) => {
                Reply::Http(400, Vec::new(), format!("{}{TOKEN}", " ".repeat((4 << 10) - 10)))
            }
            _ => Reply::Usual,
        }
    })
    .await;
    let proxy = proxy_with(Vault::with(TOKEN, &[]), PATIENT);
    let connection = connect_to(&proxy, &there.url()).await.expect("connects");
    let tools = connection.tools().await.expect("lists");
    assert_eq!(tools.len(), 2, "{tools:?}");
    let mut shown = format!("{tools:?}");
    for tool in ["json", "structured", "events", "error", "status", "escaped", "cut", "far"] {
        let output = called(&connection, tool, json!({})).await;
        shown.push_str(&format!("{output:?}"));
    }
    assert!(shown.contains("[credential]"), "{shown}");
    let calls = there.asked().into_iter().filter(|asked| asked.method == "tools/call");
    let sessions: Vec<_> = calls.filter_map(|asked| asked.session).collect();
    assert!(sessions.iter().all(|session| session != TOKEN), "a session by that name would be logged");
    // Also of those that were cut: no more than the first letters.
    let beginnings = disguised(&there.asked()[0]).into_iter().map(|form| form[3..11].to_owned());
    for form in beginnings {
        assert!(!shown.contains(&form), "{form} in {shown}");
    }
}

#[tokio::test]
async fn each_request_is_one_line_of_the_audit_however_it_ends() {
    let there = McpServer::start(|asked| match asked.params["name"].as_str() {
        Some("pay") => Reply::Never,
        _ => Reply::Usual,
    })
    .await;
    let vault = Vault::with("s3cret-token", &[]);
    let proxy = proxy_with(vault.clone(), PATIENT);
    let ours = server(&there.url());
    let token = proxy.issue(&session(), &agent(), std::slice::from_ref(&ours), later());
    let connection = proxy.connect(&token, &session(), &ours).await.expect("connects");
    let uses = || vault.uses.lock().expect("not poisoned").clone();
    let all_are_said = async || {
        while uses().len() < there.asked().len() {
            tokio::task::yield_now().await;
        }
    };
    let begin = async |calls: usize| {
        let call = connection.call("pay", serde_json::Map::new()).await.expect("begins");
        while there.count("tools/call") < calls {
            tokio::task::yield_now().await;
        }
        call
    };

    let call = begin(1).await;
    assert!(uses().len() < there.asked().len(), "the call is on its way");
    let cancel = call.cancel();
    drop(call);
    cancel.send().await;
    while there.count("notifications/cancelled") == 0 {
        tokio::task::yield_now().await;
    }
    all_are_said().await;

    // The token ends while another is on its way, and then the connection.
    let call = begin(2).await;
    proxy.revoke(&token);
    drop((connection, call));
    all_are_said().await;
    let line = "sesn_1 agent_1 vlt_1 vcrd_1 127.0.0.1 true";
    assert_eq!(uses(), vec![line; there.asked().len()], "each use is taken down, once");
}

#[tokio::test]
async fn what_never_left_is_no_line_of_the_audit() {
    // Bound, and never listening.
    let nobody = tokio::net::TcpSocket::new_v4().expect("a socket");
    nobody.bind((std::net::Ipv4Addr::LOCALHOST, 0).into()).expect("a free port");
    let url = format!("http://127.0.0.1:{}/mcp", nobody.local_addr().expect("it is bound").port());
    let vault = Vault::with("s3cret", &[]);
    let error = failed(connect_to(&proxy_with(vault.clone(), PATIENT), &url).await);
    assert!(matches!(error, Error::Unreachable(_)), "{error}");
    assert_eq!(vault.lookups.lock().expect("not poisoned").len(), 1);
    assert_eq!(*vault.uses.lock().expect("not poisoned"), [""; 0]);
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
