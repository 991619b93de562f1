//! Secrets that a sandbox names and never has: what the host gets, what the sandbox sees, and what becomes of it when the
//! credential changes, or the server dies.

use protocol::content::Content;
use protocol::event::{Body, SessionErrorKind};
use serde_json::{Value, json};
use testkit::model::{Reply, Server as ModelServer};

use crate::server::Server;
use crate::site::Site;

const FIRST: &str = "first-real-secret";
const SECOND: &str = "second-real-secret";

struct World {
    dir: tempfile::TempDir,
    site: Site,
    models: ModelServer,
    variables: Vec<(&'static str, String)>,
    server: Server,
}

impl World {
    async fn start() -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        let site = Site::start().await;
        let models = ModelServer::start().await;
        let trusted = dir.path().join("site.pem");
        std::fs::write(&trusted, &site.certificate).expect("writes");
        let variables = vec![
            ("ANTHROPIC_API_KEY", "sk-ant-test".to_owned()),
            ("ANTHROPIC_BASE_URL", models.url()),
            ("POSTHOUSE_ALLOW_PRIVATE_HOSTS", "localhost".to_owned()),
            ("POSTHOUSE_ALLOW_PORTS", site.port.to_string()),
            ("POSTHOUSE_TLS_PORTS", site.port.to_string()),
            // Whom the server trusts where it speaks TLS for a sandbox.
            ("SSL_CERT_FILE", trusted.display().to_string()),
        ];
        let server = Server::start(&dir.path().join("data"), &variables).await;
        Self { dir, site, models, variables, server }
    }

    /// A vault with one variable in it; gives both ids.
    async fn vault(&self, allowed_hosts: Value) -> (String, String) {
        let client = self.server.client();
        let vault = client.create_vault(json!({"display_name": "v"})).await.expect("made").id.to_string();
        let auth = json!({
            "type": "environment_variable", "secret_name": "SITE_TOKEN", "secret_value": FIRST,
            "networking": {"type": "limited", "allowed_hosts": allowed_hosts},
        });
        let credential = client.create_credential(&vault, json!({"auth": auth})).await.expect("made");
        (vault, credential.id.to_string())
    }

    async fn session(&self, model: &str, networking: Value, vault: &str, commands: &[&str]) -> String {
        let call = |command: &&str| Reply::tool("bash", json!({"command": command}));
        let replies: Vec<Reply> =
            commands.iter().flat_map(|command| [call(command), Reply::text("well")]).collect();
        self.models.script(model, replies);
        let client = self.server.client();
        let agent = json!({"name": model, "model": model, "tools": [{"type": "agent_toolset_20260401"}]});
        let agent = client.create_agent(agent).await.expect("made");
        let environment = json!({"name": model, "config": {"type": "cloud", "networking": networking}});
        let environment = client.create_environment(environment).await.expect("made");
        let body = json!({"agent": agent.id, "environment_id": environment.id, "vault_ids": [vault]});
        client.create_session(body).await.expect("made").id.to_string()
    }

    /// Lets the session run its next command; gives what it printed, and the errors that the client saw.
    async fn next(&self, session: &str) -> (String, Vec<SessionErrorKind>) {
        let client = self.server.client();
        let mut stream = client.stream(session, None, &[]).await.expect("opens");
        client.send_message(session, "go").await.expect("accepted");
        let (mut printed, mut errors) = (String::new(), Vec::new());
        loop {
            let Some(client::Item::Event { event, .. }) = stream.next().await.expect("reads") else {
                panic!("the stream ended");
            };
            match event.body {
                Body::AgentToolResult { content, .. } => {
                    for block in content {
                        if let Content::Text { text } = block {
                            printed.push_str(&text);
                        }
                    }
                }
                Body::Error { error } => errors.push(error.kind),
                Body::StatusIdle { .. } | Body::StatusTerminated {} => return (printed, errors),
                _ => {}
            }
        }
    }

    /// A command that sends the variable in a header and in a body.
    fn send(&self) -> String {
        format!(
            "curl -sS --noproxy '' -H \"x-token: $SITE_TOKEN\" -d \"body=$SITE_TOKEN\" https://localhost:{}/",
            self.site.port
        )
    }

    async fn replaced(self) -> Self {
        let Self { dir, site, models, variables, server } = self;
        server.kill().await;
        let server = Server::start(&dir.path().join("data"), &variables).await;
        Self { dir, site, models, variables, server }
    }
}

fn sent(word: &str) -> impl Fn(&str) -> bool {
    move |request| {
        request.contains(&format!("x-token: {word}\r\n")) && request.ends_with(&format!("body={word}"))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sandbox_spends_a_secret_that_it_never_has() {
    let mut world = World::start().await;
    let (vault, credential) = world.vault(json!(["localhost"])).await;
    let send = world.send();
    let look = "printenv SITE_TOKEN; cat /proc/self/environ | tr '\\0' '\\n' | grep -c first-real-secret";
    let python = format!(
        "python3 - <<'END'\nimport os, urllib.request as u\nproxies = u.ProxyHandler({{'https': os.environ['https_proxy']}})\n\
         u.proxy_bypass = lambda host: False\nrequest = u.Request('https://localhost:{}/', data=b'body=' + os.environ['SITE_TOKEN'].encode(), \
         headers={{'x-token': os.environ['SITE_TOKEN']}})\nprint(u.build_opener(proxies).open(request).read().decode())\nEND",
        world.site.port
    );
    // Without a credential nobody ends TLS for it: it meets the site's own certificate, which it does not know.
    let unknown = send.replace("curl ", "curl -k ");
    let commands = [send.as_str(), look, &python, &send, &unknown];
    let session = world.session("claude-spends", json!({"type": "unrestricted"}), &vault, &commands).await;

    assert_eq!(world.next(&session).await, ("hello".to_owned(), vec![]));
    assert!(sent(FIRST)(&world.site.last()), "{}", world.site.last());
    let (seen, _) = world.next(&session).await;
    assert!(seen.starts_with("phsec_") && seen.trim_end().ends_with('0'), "{seen}");
    let (printed, _) = world.next(&session).await;
    assert_eq!(printed.trim(), "hello");
    assert!(sent(FIRST)(&world.site.last().replace("X-token", "x-token")), "{}", world.site.last());

    // What changes outside takes effect at the next request, also after the server's sudden death.
    let changed = json!({"auth": {"type": "environment_variable", "secret_value": SECOND}});
    world.server.client().update_credential(&vault, &credential, changed).await.expect("changed");
    world = world.replaced().await;
    assert_eq!(world.next(&session).await.0, "hello");
    assert!(sent(SECOND)(&world.site.last()), "{}", world.site.last());
    world.server.client().archive_credential(&vault, &credential).await.expect("archived");
    assert_eq!(world.next(&session).await.0.trim_end(), "hello");
    assert!(world.site.last().contains("x-token: phsec_"), "{}", world.site.last());
    assert!(!world.site.last().contains("real-secret"), "{}", world.site.last());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_placeholder_that_goes_elsewhere_is_worth_nothing() {
    let world = World::start().await;
    let (vault, _) = world.vault(json!(["api.example.com"])).await;
    let send = world.send().replace("curl ", "curl -k ");
    let session = world.session("claude-elsewhere", json!({"type": "unrestricted"}), &vault, &[&send]).await;
    assert_eq!(world.next(&session).await.0, "hello");
    assert!(world.site.last().contains("x-token: phsec_"), "{}", world.site.last());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_stands_for_a_secret_is_worth_nothing_in_another_session() {
    let world = World::start().await;
    let (vault, _) = world.vault(json!(["localhost"])).await;
    let unrestricted = || json!({"type": "unrestricted"});
    let first = world.session("claude-first", unrestricted(), &vault, &["printenv SITE_TOKEN"]).await;
    let others = world.next(&first).await.0.trim().to_owned();
    assert!(others.starts_with("phsec_"), "{others}");
    let send = world.send().replacen("$SITE_TOKEN", &others, 1);
    let second = world.session("claude-second", unrestricted(), &vault, &[&send]).await;
    assert_eq!(world.next(&second).await.0, "hello");
    let request = world.site.last();
    assert!(request.contains(&format!("x-token: {others}\r\n")), "{request}");
    assert!(request.ends_with(&format!("body={FIRST}")), "its own it may spend: {request}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_that_the_environment_forbids_is_said_and_kept_out() {
    let world = World::start().await;
    let (vault, _) = world.vault(json!(["localhost"])).await;
    let networking = json!({"type": "limited", "allowed_hosts": ["docs.example"]});
    let send = format!("{} 2>&1; true", world.send());
    let session = world.session("claude-forbidden", networking, &vault, &[&send]).await;
    let (printed, errors) = world.next(&session).await;
    assert_eq!(errors, [SessionErrorKind::CredentialHostUnreachableError]);
    assert!(printed.contains("403"), "{printed}");
    assert_eq!(world.site.last(), "");
}
