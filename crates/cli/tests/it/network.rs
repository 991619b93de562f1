//! What a sandbox reaches, end to end: the environment's word, the operator's, the proxy and the sandbox's own programs.

use protocol::content::Content;
use protocol::event::Body;
use serde_json::{Value, json};
use testkit::model::{Reply, Server as ModelServer};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use crate::server::Server;

/// A site on this machine: private, unless the operator says otherwise.
struct Site {
    port: u16,
    _serving: tokio::task::JoinSet<()>,
}

impl Site {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let port = listener.local_addr().expect("bound").port();
        let mut serving = tokio::task::JoinSet::new();
        serving.spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let _ = stream.read(&mut [0; 4096]).await;
                let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\nconnection: close\r\n\r\nhello";
                let _ = stream.write_all(answer).await;
            }
        });
        Self { port, _serving: serving }
    }

    /// A command that asks it, by the proxy although its name is the sandbox's own.
    fn ask(&self) -> String {
        format!("curl -sS --noproxy '' http://localhost:{}/", self.port)
    }
}

pub(crate) struct World {
    dir: tempfile::TempDir,
    models: ModelServer,
    variables: Vec<(&'static str, String)>,
    server: Server,
}

impl World {
    /// A server whose operator allows these private hosts, and this port everywhere.
    pub(crate) async fn start(allowed: String, port: u16) -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        let models = ModelServer::start().await;
        let variables = vec![
            ("ANTHROPIC_API_KEY", "sk-ant-test".to_owned()),
            ("ANTHROPIC_BASE_URL", models.url()),
            ("POSTHOUSE_ALLOW_PRIVATE_HOSTS", allowed),
            ("POSTHOUSE_ALLOW_PORTS", port.to_string()),
        ];
        let server = Server::start(dir.path(), &variables).await;
        Self { dir, models, variables, server }
    }

    pub(crate) fn data_dir(&self) -> &std::path::Path {
        self.dir.path()
    }

    async fn session(&self, model: &str, networking: Value, commands: &[&str]) -> String {
        let config = json!({"type": "cloud", "networking": networking});
        self.session_in(model, json!({"name": model, "config": config}), commands).await
    }

    /// A session in this environment whose model asks for these commands, one each turn.
    pub(crate) async fn session_in(&self, model: &str, environment: Value, commands: &[&str]) -> String {
        let call = |command: &&str| Reply::tool("bash", json!({"command": command}));
        let replies: Vec<Reply> =
            commands.iter().flat_map(|command| [call(command), Reply::text("well")]).collect();
        self.models.script(model, replies);
        let client = self.server.client();
        let agent = json!({"name": model, "model": model, "tools": [{"type": "agent_toolset_20260401"}]});
        let agent = client.create_agent(agent).await.expect("made");
        let environment = client.create_environment(environment).await.expect("made");
        let body = json!({"agent": agent.id, "environment_id": environment.id});
        client.create_session(body).await.expect("made").id.to_string()
    }

    /// Lets the session run its next command; gives what it printed.
    pub(crate) async fn next(&self, session: &str) -> String {
        let client = self.server.client();
        let mut stream = client.stream(session, None, &[]).await.expect("opens");
        client.send_message(session, "go").await.expect("accepted");
        let mut printed = String::new();
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
                Body::StatusIdle { .. } | Body::StatusTerminated {} => return printed,
                _ => {}
            }
        }
    }

    async fn play(&self, model: &str, networking: Value, command: &str) -> String {
        let session = self.session(model, networking, &[command]).await;
        self.next(&session).await
    }
}

fn limited(hosts: &[&str]) -> Value {
    json!({"type": "limited", "allowed_hosts": hosts})
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sandbox_reaches_what_its_environment_and_the_operator_allow() {
    let site = Site::start().await;
    let world = World::start("localhost".to_owned(), site.port).await;
    let unrestricted = json!({"type": "unrestricted"});
    assert_eq!(world.play("claude-free", unrestricted, &site.ask()).await, "hello");
    assert_eq!(world.play("claude-listed", limited(&["localhost"]), &site.ask()).await, "hello");
    let refused = world.play("claude-other", limited(&["docs.example"]), &site.ask()).await;
    assert!(refused.contains("localhost") && refused.contains("allowed_hosts"), "{refused}");
    let direct = format!("curl -sS --noproxy '*' http://127.0.0.1:{}/ 2>&1; true", site.port);
    let alone = world.play("claude-direct", limited(&["localhost"]), &direct).await;
    assert!(alone.contains("Failed to connect") || alone.contains("Couldn't connect"), "{alone}");
    let prompt = &world.models.requests("claude-listed")[0].body["system"];
    assert!(prompt.to_string().contains("it reaches only: localhost."), "{prompt}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_private_is_refused_unless_the_operator_names_it() {
    let site = Site::start().await;
    let world = World::start(String::new(), site.port).await;
    let refused = world.play("claude-private", json!({"type": "unrestricted"}), &site.ask()).await;
    assert!(refused.starts_with("egress: localhost") && refused.contains("loopback"), "{refused}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_way_out_outlives_the_server() {
    let site = Site::start().await;
    let mut world = World::start("localhost".to_owned(), site.port).await;
    let twice = [site.ask(), format!("cat /tmp/first; {}", site.ask())];
    let keep = format!("{} | tee /tmp/first", twice[0]);
    let session = world.session("claude-again", limited(&["localhost"]), &[&keep, &twice[1]]).await;
    assert_eq!(world.next(&session).await, "hello");
    world.server.child.kill().await.expect("killed");
    world.server = Server::start(world.dir.path(), &world.variables).await;
    assert_eq!(world.next(&session).await, "hellohello", "the same sandbox, and its exit is served again");
}
