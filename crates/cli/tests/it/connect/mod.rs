//! OAuth tokens for an MCP server, from the question to the vault: with the real binary, a browser that follows redirects, and
//! an authorization server that verifies.

mod authority;

use std::process::Stdio;

use protocol::credential::{CredentialAuth, TokenEndpointAuth};
use protocol::credential_validation::{RefreshStatus, Verdict};
use protocol::time::Timestamp;
use serde_json::json;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;
use tokio::process::Child;

use self::authority::{Authority, KNOWN_CLIENT, KNOWN_SECRET, Manner, PLANTED};
use crate::server::{KEY, Server, posthouse};

struct World {
    authority: Authority,
    server: Server,
    dir: tempfile::TempDir,
}

/// A `posthouse vaults connect` that runs.
struct Connecting {
    child: Child,
    stderr: BufReader<tokio::process::ChildStderr>,
    said: String,
}

struct Ended {
    is_success: bool,
    stdout: String,
    stderr: String,
}

impl World {
    async fn start() -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        let authority = Authority::start().await;
        let private = ("POSTHOUSE_ALLOW_PRIVATE_HOSTS", format!("127.0.0.1:{}", authority.port));
        let server = Server::start(&dir.path().join("data"), &[private]).await;
        Self { authority, server, dir }
    }

    async fn vault(&self, name: &str) -> String {
        let vault = self.server.client().create_vault(json!({"display_name": name})).await;
        vault.expect("made").id.to_string()
    }

    async fn held(&self, vault: &str) -> usize {
        self.server.client().list_credentials(vault, &[]).await.expect("listed").data.len()
    }

    async fn connect(&self, vault: &str, words: &[&str], input: &str) -> Connecting {
        let mut command = posthouse();
        command.args([
            "vaults",
            "connect",
            &self.authority.mcp(),
            "--vault",
            vault,
            "--url",
            &self.server.url,
        ]);
        command.args(words).env("POSTHOUSE_API_KEY", KEY);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("the binary starts");
        // It may have refused before it reads.
        let _ = child.stdin.take().expect("piped").write_all(input.as_bytes()).await;
        let stderr = BufReader::new(child.stderr.take().expect("piped"));
        Connecting { child, stderr, said: String::new() }
    }

    /// Connects with a browser at hand, should one be asked for.
    async fn connected(&self, vault: &str, words: &[&str], input: &str) -> Ended {
        let mut connecting = self.connect(vault, words, input).await;
        if let Some(address) = connecting.address().await {
            let target = get(&address).await.headers()["location"].to_str().expect("text").to_owned();
            let page = get(&target).await;
            assert_eq!(
                (page.status().as_u16(), &page.headers()["cache-control"]),
                (200, &"no-store".parse().expect("a value"))
            );
            assert!(!page.text().await.expect("a page").contains(PLANTED));
        }
        connecting.end().await
    }
}

impl Connecting {
    /// What it asks to be opened; `None` if it ends before that.
    async fn address(&mut self) -> Option<String> {
        loop {
            let mut line = String::new();
            if self.stderr.read_line(&mut line).await.expect("readable") == 0 {
                return None;
            }
            self.said.push_str(&line);
            if line.contains("/authorize?") {
                return Some(line.trim().to_owned());
            }
        }
    }

    async fn end(mut self) -> Ended {
        self.stderr.read_to_string(&mut self.said).await.expect("readable");
        let output = self.child.wait_with_output().await.expect("it ends");
        let stdout = String::from_utf8(output.stdout).expect("text");
        for text in [&stdout, &self.said] {
            assert!(!text.contains(PLANTED), "{text}");
        }
        Ended { is_success: output.status.success(), stdout: stdout.trim().to_owned(), stderr: self.said }
    }
}

/// A browser's request, which shows where it is sent on to.
async fn get(address: &str) -> reqwest::Response {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let http = reqwest::Client::builder().no_proxy().redirect(reqwest::redirect::Policy::none()).build();
    http.expect("builds").get(address).send().await.expect("answers")
}

#[tokio::test]
async fn a_server_is_connected_and_its_token_is_renewed_whatever_its_clients_prove_themselves_by() {
    let world = World::start().await;
    let client = world.server.client();
    for (method, proof) in [
        ("none", TokenEndpointAuth::None {}),
        ("client_secret_basic", TokenEndpointAuth::ClientSecretBasic {}),
        ("client_secret_post", TokenEndpointAuth::ClientSecretPost {}),
    ] {
        world.authority.behave(Manner { auth_methods: vec!["unknown", method], ..Manner::default() });
        let vault = world.vault(method).await;
        let ended = world.connected(method, &["--name", "mine"], "").await;
        assert!(ended.is_success, "{method}: {}", ended.stderr);
        let id = ended.stdout;

        let held = client.list_credentials(&vault, &[]).await.expect("listed").data;
        assert_eq!(held.len(), 1);
        assert_eq!((held[0].id.as_str(), held[0].display_name.as_deref()), (id.as_str(), Some("mine")));
        let CredentialAuth::McpOauth { mcp_server_url, expires_at, refresh } = &held[0].auth else {
            panic!("{:?}", held[0].auth);
        };
        let refresh = refresh.as_ref().expect("it can be renewed");
        assert_eq!(*mcp_server_url, world.authority.mcp());
        assert_eq!(refresh.token_endpoint, format!("{}/token", world.authority.base));
        assert_eq!(refresh.token_endpoint_auth, proof);
        // What was granted, not what was asked for.
        assert_eq!(refresh.scope.as_deref(), Some("tools"));
        assert_eq!(refresh.resource.as_deref(), Some(world.authority.mcp().as_str()));
        let (made, ends): (Timestamp, Timestamp) = (held[0].created_at, expires_at.expect("known"));
        let life = ends.seconds_since(made);
        assert!(life <= 3_600.0 && life > 0.0, "{life}");

        let validation = client.validate_credential(&vault, &id).await.expect("tried");
        assert_eq!((validation.status, validation.refresh), (Verdict::Valid, None));
        world.authority.expire();
        let validation = client.validate_credential(&vault, &id).await.expect("tried");
        let attempt = validation.refresh.map(|attempt| attempt.status);
        assert_eq!((validation.status, attempt), (Verdict::Valid, Some(RefreshStatus::Succeeded)));
        assert_eq!(world.authority.last_renewal()["resource"], world.authority.mcp());
    }
    // Said before anybody is asked for consent.
    let again = world.connected("none", &[], "").await;
    assert!(
        !again.is_success && again.stderr.contains("has a credential for this server"),
        "{}",
        again.stderr
    );
    world.server.stop().await;
}

#[tokio::test]
async fn a_client_that_the_operator_has_registered_is_used_with_its_secret() {
    let world = World::start().await;
    let (by_basic, by_post) = (vec!["client_secret_basic"], vec!["client_secret_post"]);
    let file = world.dir.path().join("secret");
    std::fs::write(&file, format!("{KNOWN_SECRET}\n")).expect("written");
    let file = file.to_str().expect("text");
    let vault = world.vault("v").await;
    world.authority.behave(Manner { registers: false, auth_methods: by_basic.clone(), ..Manner::default() });
    let ended = world.connected("v", &[], "").await;
    assert!(!ended.is_success && ended.stderr.contains("--client-id"), "{}", ended.stderr);

    for (auth_methods, words, input) in [
        (by_basic, &["--client-id", KNOWN_CLIENT, "--client-secret-stdin"][..], KNOWN_SECRET),
        (by_post, &["--client-id", KNOWN_CLIENT, "--client-secret-file", file], ""),
    ] {
        world.authority.behave(Manner { registers: false, auth_methods, ..Manner::default() });
        let ended = world.connected("v", words, input).await;
        assert!(ended.is_success, "{}", ended.stderr);
        let client = world.server.client();
        world.authority.expire();
        let validation = client.validate_credential(&vault, &ended.stdout).await.expect("tried");
        assert_eq!(validation.status, Verdict::Valid);
        client.delete_credential(&vault, &ended.stdout).await.expect("deleted");
    }
    world.server.stop().await;
}

#[tokio::test]
async fn what_the_servers_do_wrong_is_said_by_its_step_and_stores_nothing() {
    let world = World::start().await;
    let vault = world.vault("v").await;
    let over = |field: &str, value: &str| Some(json!({ field: value }));
    let usual = Manner::default;
    for (manner, expected) in [
        (
            Manner { state: Some("another"), ..usual() },
            "authorization failed: the browser brought an answer that belongs to no question of ours (wrong state)",
        ),
        (
            Manner { refusal: Some("access_denied"), ..usual() },
            "authorization failed: the authorization server says no: access_denied",
        ),
        (
            Manner { iss: Some("https://other.example"), ..usual() },
            "authorization failed: the issuer does not match",
        ),
        (Manner { resource: None, ..usual() }, "does not say whose"),
        (Manner { resource: None, names_metadata: false, ..usual() }, "does not say whose"),
        (Manner { resource: None, is_open: true, ..usual() }, "it needs no credential"),
        (Manner { authorizer: None, ..usual() }, "publishes no metadata"),
        (
            Manner { authorizer: over("issuer", "https://other.example"), ..usual() },
            "discovery failed: the issuer does not match",
        ),
        (
            Manner { authorizer: over("token_endpoint", "http://other.example/token"), ..usual() },
            "its token endpoint cannot be used: http://other.example/token must begin with https://",
        ),
        (
            Manner { authorizer: Some(json!({"code_challenge_methods_supported": ["plain"]})), ..usual() },
            "PKCE",
        ),
        (
            Manner { resource: over("resource", "https://other.example/mcp"), ..usual() },
            "another resource, https://other.example/mcp",
        ),
        (
            Manner { resource: Some(json!({"authorization_servers": []})), ..usual() },
            "names no authorization server",
        ),
        (Manner { auth_methods: vec!["private_key_jwt"], ..usual() }, "client registration failed"),
        (Manner { token_status: 400, ..usual() }, "the code was not exchanged for tokens"),
    ] {
        world.authority.behave(manner);
        let ended = world.connected("v", &[], "").await;
        assert!(!ended.is_success && ended.stderr.contains(expected), "{expected}: {}", ended.stderr);
    }
    // And what the operator does.
    world.vault("twice").await;
    world.vault("twice").await;
    world.authority.behave(usual());
    for (vault, words, expected) in [
        ("nobody", &[][..], "no vault has the name `nobody`"),
        ("twice", &[], "2 vaults have the name `twice`"),
        ("vlt_nobody", &[], "Vault not found"),
        ("v", &["--timeout", "1"], "no browser came back within 1 seconds"),
    ] {
        let mut connecting = world.connect(vault, words, "").await;
        connecting.address().await;
        let ended = connecting.end().await;
        assert!(!ended.is_success && ended.stderr.contains(expected), "{expected}: {}", ended.stderr);
    }
    assert_eq!(world.held(&vault).await, 0);
    world.server.stop().await;
}

#[tokio::test]
async fn what_gives_no_refresh_token_or_names_no_metadata_is_connected_all_the_same() {
    let world = World::start().await;
    let vault = world.vault("v").await;
    world.authority.behave(Manner { gives_refresh_token: false, names_metadata: false, ..Manner::default() });
    let ended = world.connected("v", &["--json"], "").await;
    assert!(ended.is_success && ended.stderr.contains("no refresh token"), "{}", ended.stderr);
    let credential: protocol::credential::Credential = serde_json::from_str(&ended.stdout).expect("JSON");
    assert!(matches!(credential.auth, CredentialAuth::McpOauth { refresh: None, expires_at: Some(_), .. }));
    let validation = world.server.client().validate_credential(&vault, credential.id.as_str()).await;
    assert_eq!(validation.expect("tried").status, Verdict::Valid);
    world.server.stop().await;
}

#[tokio::test]
async fn the_listener_waits_for_the_one_answer_whatever_else_comes() {
    let world = World::start().await;
    world.vault("v").await;
    let mut connecting = world.connect("v", &[], "").await;
    let address = connecting.address().await.expect("asks");
    let target = get(&address).await.headers()["location"].to_str().expect("text").to_owned();
    let at = url::Url::parse(&target).expect("an address");
    let place = ("127.0.0.1", at.port().expect("a port"));
    assert_eq!(at.host_str(), Some("127.0.0.1"));

    let _silent = TcpStream::connect(place).await.expect("connects");
    for request in [
        "nonsense\r\n\r\n".to_owned(),
        "GET / HTTP/1.1\r\nhost: a\r\n\r\n".to_owned(),
        "GET /callback HTTP/1.1\r\nhost: a\r\n\r\n".to_owned(),
        "POST /callback?state=x&code=y HTTP/1.1\r\nhost: a\r\n\r\n".to_owned(),
        format!("GET /callback?state={} HTTP/1.1\r\nhost: a\r\n\r\n", "x".repeat(100_000)),
    ] {
        let mut stream = TcpStream::connect(place).await.expect("connects");
        // It may have been refused before it was all sent.
        let _ = stream.write_all(request.as_bytes()).await;
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        assert!(!answer.starts_with(b"HTTP/1.1 200"), "{request}");
    }
    assert_eq!(get(&target).await.status(), 200);
    let ended = connecting.end().await;
    assert!(ended.is_success, "{}", ended.stderr);
    assert!(TcpStream::connect(place).await.is_err(), "the listener is closed");
    world.server.stop().await;
}
