//! Sessions spend every kind of credential, and then each secret is looked for everywhere. A planted one proves that it would
//! be found.

use std::fs::File;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use protocol::event::Body;
use protocol::time::Timestamp;
use serde_json::{Value, json};
use testkit::git::{Right, Server as GitServer};
use testkit::mcp::{McpServer, Reply as Answer};
use testkit::model::{Reply, Server as ModelServer};

use crate::hunt::{Hunt, Needle, own_folders, sandboxed};
use crate::server::{KEY, Server, posthouse};
use crate::site::Site;

const MODEL: &str = "claude-secrets";
const VARIABLE: &str = "variable/secret+of the sandbox=17";
const BEARER: &str = "bearer.secret.of-the-server_18";
const REPOSITORY: &str = "repository_secret_of_the_host_19";
/// What an OAuth credential has at first, and what it is renewed to.
const OAUTH: [(&str, &str); 5] = [
    ("access token", "oauth.first-access-token.of-the-server_20"),
    ("refresh token", "oauth.first-refresh-token.of-the-server_21"),
    ("client secret", "oauth.client-secret.of-the-server_22"),
    ("renewed access token", "oauth.renewed-access-token.of-the-server_24"),
    ("renewed refresh token", "oauth.renewed-refresh-token.of-the-server_25"),
];
/// Not secret: it goes everywhere that a secret must not.
const PLANTED: &str = "planted/secret+for all to see=23";

/// Everything that is looked through, and where the planted one is to be found at least.
const PLACES: [&str; 7] = [
    "sandbox files",
    "sandbox memory",
    "sandbox environ",
    "data directory",
    "data directory (unpacked)",
    "answers of the API",
    "requests to the model",
];

async fn turn(client: &client::Client, session: &str, text: &str) {
    let mut stream = client.stream(session, None, &[]).await.expect("opens");
    client.send_message(session, text).await.expect("accepted");
    loop {
        let Some(client::Item::Event { event, .. }) = stream.next().await.expect("reads") else {
            panic!("the stream ended");
        };
        if matches!(event.body, Body::StatusIdle { .. } | Body::StatusTerminated {}) {
            return;
        }
    }
}

/// What the API says about everything there is, as it says it.
async fn answers(url: &str, session: &str, vault: &str) -> String {
    let http = reqwest::Client::new();
    let mut all = String::new();
    for path in [
        format!("/v1/sessions/{session}"),
        format!("/v1/sessions/{session}/events?limit=1000"),
        format!("/v1/sessions/{session}/snapshots"),
        format!("/v1/sessions/{session}/resources"),
        "/v1/sessions".to_owned(),
        "/v1/agents".to_owned(),
        "/v1/environments".to_owned(),
        "/v1/vaults?include_archived=true".to_owned(),
        format!("/v1/vaults/{vault}"),
        format!("/v1/vaults/{vault}/credentials?include_archived=true"),
    ] {
        let request = http.get(format!("{url}{path}")).header("x-api-key", KEY);
        let request = request.header("anthropic-beta", "managed-agents-2026-04-01");
        all.push_str(&request.send().await.expect("answers").text().await.expect("is text"));
    }
    all
}

/// Waits until what is in the sandbox has been saved.
async fn save(client: &client::Client, session: &str) {
    client.take_snapshot(session).await.expect("accepted");
    let saved = async {
        let mut between = tokio::time::interval(Duration::from_millis(50));
        loop {
            between.tick().await;
            let listed = client.list_snapshots(session).await.expect("lists");
            let is_saved = |snapshot: &Value| snapshot["size_bytes"].as_u64().is_some_and(|size| size > 0);
            if listed["data"].as_array().is_some_and(|all| all.iter().any(is_saved)) {
                return;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(60), saved).await.expect("it is never saved");
}

/// An MCP server that renews tokens, too.
async fn renewing() -> McpServer {
    McpServer::start(|asked| match asked.path.as_str() {
        "/token" => {
            let token = json!({
                "access_token": OAUTH[3].1, "refresh_token": OAUTH[4].1, "token_type": "Bearer", "expires_in": 3600,
            });
            Answer::Http(200, vec![("content-type", "application/json".to_owned())], token.to_string())
        }
        _ => Answer::Usual,
    })
    .await
}

fn port_of(server: &McpServer) -> String {
    server.url().trim_start_matches("http://127.0.0.1:").split('/').next().map(str::to_owned).expect("a port")
}

fn was_spent(server: &McpServer, token: &str) -> bool {
    server.asked().iter().any(|asked| asked.authorization.as_deref() == Some(&format!("Bearer {token}")))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_secret_in_use_is_anywhere_that_it_could_be_read() {
    if !rustix::process::geteuid().is_root() {
        println!("LEFT OUT: only root sees into the memory of sandboxes");
        return;
    }
    let dir = tempfile::tempdir().expect("a folder");
    let data = dir.path().join("data");
    let site = Site::start().await;
    let models = ModelServer::start().await;
    let (git, mcp, oauth) = (GitServer::start().await, McpServer::usual().await, renewing().await);
    git.commit("team/project", "main", &[("README.md", b"hello\n")]);
    git.allow(REPOSITORY, "team/project", Right::Write);
    let (trusted, authority) = (dir.path().join("trusted.pem"), dir.path().join("authority.pem"));
    std::fs::write(&trusted, &site.certificate).expect("writes");
    std::fs::write(&authority, git.authority()).expect("writes");
    let log = dir.path().join("log");
    let mut command = posthouse();
    command
        .args(["serve", "--listen", "127.0.0.1:0", "--log", "trace", "--data-dir"])
        .arg(&data)
        .env("POSTHOUSE_API_KEY", KEY)
        .env("ANTHROPIC_API_KEY", "sk-ant-test")
        .env("ANTHROPIC_BASE_URL", models.url())
        .env("POSTHOUSE_ALLOW_PRIVATE_HOSTS", format!("localhost,127.0.0.1,{}", git.host()))
        .env("POSTHOUSE_ALLOW_PORTS", format!("{},{},{}", site.port, port_of(&mcp), port_of(&oauth)))
        .env("POSTHOUSE_GIT_ALLOW_HOSTS", git.host())
        .env("POSTHOUSE_GIT_CA_FILE", &authority)
        .env("POSTHOUSE_TLS_PORTS", site.port.to_string())
        .env("SSL_CERT_FILE", &trusted)
        .stderr(Stdio::from(File::create(&log).expect("made")));
    let (server, _lines) = Server::greet(command).await;
    let client = server.client();

    let vault = client.create_vault(json!({"display_name": "v"})).await.expect("made").id.to_string();
    let variable = json!({
        "type": "environment_variable", "secret_name": "SITE_TOKEN", "secret_value": VARIABLE,
        "networking": {"type": "limited", "allowed_hosts": ["localhost"]},
    });
    let variable = client.create_credential(&vault, json!({"auth": variable})).await.expect("made").id;
    let bearer = json!({"type": "static_bearer", "token": BEARER, "mcp_server_url": mcp.url()});
    let bearer = client.create_credential(&vault, json!({"auth": bearer})).await.expect("made");
    let (now, bearer) = (bearer.created_at, bearer.id);
    let [(_, access), (_, refresh), (_, client_secret), ..] = OAUTH;
    // It ends so soon that it is renewed before it is spent.
    let expires_at = Timestamp::from_micros(now.as_micros() + 30_000_000);
    let renewal = json!({
        "refresh_token": refresh, "client_id": "c", "token_endpoint": oauth.url().replace("/mcp", "/token"),
        "token_endpoint_auth": {"type": "client_secret_basic", "client_secret": client_secret},
    });
    let auth = json!({
        "type": "mcp_oauth", "mcp_server_url": oauth.url(), "access_token": access,
        "expires_at": expires_at, "refresh": renewal,
    });
    let renewed = client.create_credential(&vault, json!({"auth": auth})).await.expect("made").id;
    let send = format!(
        "curl -sS --noproxy '' -H \"x-token: $SITE_TOKEN\" -u \"user:$SITE_TOKEN\" -d \"$SITE_TOKEN\" https://localhost:{}/",
        site.port
    );
    let plant =
        format!("export PLANTED='{PLANTED}'; echo \"$PLANTED\" > /tmp/planted; (exec sleep 600) & echo well");
    let push = "cd /workspace/project && git config user.name a && git config user.email a@b && echo more >> README.md && \
                git commit -qam more && git push -q && git pull -q && git config --list && cat README.md";
    let snoop = "env; history; cat ~/.bash_history /run/session/* 2>&1";
    let calls = [send.as_str(), push, snoop, &plant];
    let calls = calls.map(|command| Reply::tool("bash", json!({"command": command})));
    let echo = |server: &str| Reply::tool(format!("mcp__{server}__echo"), json!({"x": "1"}));
    models.script(MODEL, calls.into_iter().chain([echo("m"), echo("o"), Reply::text("done")]));
    let allow = json!({"permission_policy": {"type": "always_allow"}});
    let tools = json!([
        {"type": "agent_toolset_20260401"},
        {"type": "mcp_toolset", "mcp_server_name": "m", "default_config": allow},
        {"type": "mcp_toolset", "mcp_server_name": "o", "default_config": allow},
    ]);
    let servers = json!([
        {"type": "url", "name": "m", "url": mcp.url()},
        {"type": "url", "name": "o", "url": oauth.url()},
    ]);
    let agent = json!({"name": "a", "model": MODEL, "tools": tools, "mcp_servers": servers});
    let agent = client.create_agent(agent).await.expect("made");
    let environment =
        json!({"name": "e", "config": {"type": "cloud", "networking": {"type": "unrestricted"}}});
    let environment = client.create_environment(environment).await.expect("made");
    let body = json!({"agent": agent.id, "environment_id": environment.id, "vault_ids": [vault], "resources": [
        {"type": "github_repository", "url": git.url("team/project"), "authorization_token": REPOSITORY},
    ]});
    let session = client.create_session(body).await.expect("made").id.to_string();
    turn(&client, &session, "go").await;
    assert!(site.last().contains(VARIABLE), "the secret was spent: {}", site.last());
    assert!(was_spent(&mcp, BEARER), "the bearer was spent: {:?}", mcp.asked());
    assert!(was_spent(&oauth, OAUTH[3].1), "the renewed token was spent: {:?}", oauth.asked());
    assert_eq!(
        git.git("team/project", &["log", "--format=%s", "-1", "main"]).trim(),
        "more",
        "the token was spent"
    );
    save(&client, &session).await;

    let needles = [("variable", VARIABLE), ("bearer", BEARER), ("repository", REPOSITORY)];
    let needles: Vec<Needle> =
        needles.into_iter().chain(OAUTH).map(|(name, secret)| Needle::new(name, secret)).collect();
    let secrets = look(&needles, &data, &log, &server.url, &session, &vault, &models).await;
    assert_eq!(secrets.found, Default::default(), "a secret lies about");
    assert!(secrets.bytes > 4 << 20, "only {} bytes were looked through", secrets.bytes);
    let planted = [Needle::new("planted", PLANTED)];
    let found = look(&planted, &data, &log, &server.url, &session, &vault, &models).await.found;
    for place in PLACES {
        assert!(found.iter().any(|one| one.starts_with(place)), "nothing was found in {place}: {found:?}");
    }
    let log = std::fs::read_to_string(&log).expect("readable");
    let audit: Vec<&str> = log.lines().filter(|line| line.contains(" audit: ")).collect();
    for (who, which, outcome) in [
        (session.as_str(), variable.as_str(), "spent"),
        (&session, bearer.as_str(), "spent"),
        (&session, renewed.as_str(), "spent"),
        (&session, "resource.id=sesrsc_", "spent"),
        (&session, renewed.as_str(), "renewed"),
    ] {
        let is_it = |line: &&&str| [who, which, outcome].iter().all(|word| line.contains(word));
        assert!(audit.iter().any(|line| is_it(&line)), "{which} {outcome}: {audit:#?}");
    }
}

async fn look<'a>(
    needles: &'a [Needle],
    data: &Path,
    log: &Path,
    url: &str,
    session: &str,
    vault: &str,
    models: &ModelServer,
) -> Hunt<'a> {
    let mut hunt = Hunt::new(needles);
    let inside = sandboxed(data);
    assert!(!inside.is_empty(), "the sandbox lives");
    for pid in &inside {
        hunt.process("sandbox", *pid);
    }
    for folder in own_folders(inside[0]) {
        hunt.files("sandbox files", &folder);
    }
    hunt.files("data directory", data);
    hunt.file("log", log);
    hunt.bytes("answers of the API", answers(url, session, vault).await.as_bytes());
    for request in models.requests(MODEL) {
        hunt.bytes("requests to the model", format!("{:?} {}", request.headers, request.raw).as_bytes());
    }
    hunt
}
