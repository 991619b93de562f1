//! Repositories end to end: a client, a server, real sandboxes, real git on both sides, and a host with tokens.

use protocol::content::Content;
use protocol::event::Body;
use serde_json::{Value, json};
use testkit::git::{Right, Server as GitServer};
use testkit::model::{Reply, Server as ModelServer};

use crate::server::Server;

const TOKEN: &str = "ghp_token_of_the_session";
const REPOSITORY: &str = "team/project";
const NOTHING: &str = "limited";

struct World {
    dir: tempfile::TempDir,
    git: GitServer,
    models: ModelServer,
    variables: Vec<(&'static str, String)>,
    server: Server,
}

impl World {
    async fn start() -> Self {
        Self::start_with(&[]).await
    }

    async fn start_with(more: &[(&'static str, String)]) -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        let (git, models) = (GitServer::start().await, ModelServer::start().await);
        git.commit(REPOSITORY, "main", &[("README.md", b"hello\n")]);
        git.allow(TOKEN, REPOSITORY, Right::Write);
        let authority = dir.path().join("authority.pem");
        std::fs::write(&authority, git.authority()).expect("written");
        let mut variables = vec![
            ("ANTHROPIC_API_KEY", "sk-ant-test".to_owned()),
            ("ANTHROPIC_BASE_URL", models.url()),
            ("POSTHOUSE_ALLOW_PRIVATE_HOSTS", git.host()),
            ("POSTHOUSE_GIT_ALLOW_HOSTS", git.host()),
            ("POSTHOUSE_GIT_CA_FILE", authority.to_str().expect("text").to_owned()),
        ];
        variables.extend_from_slice(more);
        let server = Server::start(&dir.path().join("data"), &variables).await;
        Self { dir, git, models, variables, server }
    }

    fn resource(&self, repository: &str, token: &str) -> Value {
        json!({"type": "github_repository", "url": self.git.url(repository), "authorization_token": token})
    }

    /// A session whose agent will run these commands, one for each message, where nothing may be reached.
    async fn session(&self, model: &str, metadata: Value, resources: Value, commands: &[&str]) -> String {
        let call = |command: &&str| Reply::tool("bash", json!({"command": command}));
        let replies: Vec<Reply> =
            commands.iter().flat_map(|command| [call(command), Reply::text("well")]).collect();
        self.models.script(model, replies);
        let client = self.server.client();
        let agent = json!({"name": model, "model": model, "tools": [{"type": "agent_toolset_20260401"}]});
        let agent = client.create_agent(agent).await.expect("made");
        let config = json!({"type": "cloud", "networking": {"type": NOTHING}});
        let environment = json!({"name": model, "config": config, "metadata": metadata});
        let environment = client.create_environment(environment).await.expect("made");
        let body = json!({"agent": agent.id, "environment_id": environment.id, "resources": resources});
        client.create_session(body).await.expect("made").id.to_string()
    }

    /// Lets the session run its next command; gives what it printed, and the errors that the client was shown.
    async fn next(&self, session: &str) -> (String, Vec<Value>) {
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
                Body::Error { error } => errors.push(serde_json::to_value(error).expect("JSON")),
                Body::StatusIdle { .. } | Body::StatusTerminated {} => return (printed, errors),
                _ => {}
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_finds_its_repository_and_works_with_its_host_without_a_token() {
    let world = World::start().await;
    let look = "cd /workspace/project && cat README.md && git status --short --branch && git log --oneline | wc -l && \
                stat -c %u . README.md .git/config | sort -u | tr '\\n' ' ' && id -u";
    let work = "cd /workspace/project && git config user.name a && git config user.email a@b && git pull -q && cat theirs && \
                git checkout -q -b feature && echo ours > ours && git add -A && git commit -q -m ours && \
                git push -q -u origin feature && git ls-remote origin feature | cut -f 2 && git fetch -q && git remote get-url origin";
    // What the search itself says is not what it finds.
    let pattern = TOKEN.replace("ghp", "gh[p]");
    let search = format!(
        "cd /; for place in /proc/*/environ /proc/*/cmdline /workspace /root /tmp /run /etc /var /mnt; do \
         grep -rslaE '{pattern}' $place 2>/dev/null; done; env | grep -c 'gh[p]_'; \
         git -C /workspace/project config --list | grep -ci authoriz"
    );
    let resources = json!([world.resource(REPOSITORY, TOKEN)]);
    let session = world.session("claude-git", json!({}), resources, &[look, work, &search]).await;
    let (seen, errors) = world.next(&session).await;
    let told = world.models.requests("claude-git")[0].body["system"].to_string();
    assert!(told.contains("- /workspace/project: https://"), "{told}");
    assert_eq!((seen.as_str(), errors), ("hello\n## main...origin/main\n1\n0 0", Vec::new()));
    world.git.commit(REPOSITORY, "main", &[("theirs", b"theirs\n")]);
    let (seen, _) = world.next(&session).await;
    assert!(seen.starts_with("theirs\nrefs/heads/feature\nhttp://127.0.0.1:3128/git/sesrsc_"), "{seen}");
    assert_eq!(world.git.git(REPOSITORY, &["show", "feature:ours"]), "ours\n");
    let (seen, _) = world.next(&session).await;
    assert_eq!(seen, "0\n0");
    // Nowhere on the server's disk either, nor in what clients see.
    let found = std::process::Command::new("grep").args(["-rlaF", TOKEN]).arg(world.dir.path()).output();
    assert_eq!(String::from_utf8_lossy(&found.expect("grep").stdout), "");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_had_is_said_and_the_session_goes_on_without_it() {
    let world = World::start().await;
    let mut elsewhere = world.resource("team/nothing", TOKEN);
    elsewhere["mount_path"] = json!("/workspace/other");
    let resources = json!([world.resource(REPOSITORY, TOKEN), elsewhere]);
    let session = world.session("claude-missing", json!({}), resources, &["ls /workspace"]).await;
    let (seen, errors) = world.next(&session).await;
    assert_eq!(seen, "project");
    let [error] = errors.as_slice() else { panic!("{errors:?}") };
    assert_eq!(error["type"], "repository_not_found_error");
    assert_eq!(error["repository_url"], world.git.url("team/nothing"));
    assert_eq!(error["retry_status"], json!({"type": "retrying"}));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lazy_sandboxes_and_those_of_a_pool_get_it_as_well() {
    let world = World::start().await;
    for (model, metadata) in [
        ("claude-lazy", json!({"posthouse.policy": "lazy"})),
        ("claude-pool", json!({"posthouse.policy": "pool"})),
    ] {
        let resources = json!([world.resource(REPOSITORY, TOKEN)]);
        let session =
            world.session(model, metadata, resources, &["git -C /workspace/project log --format=%s"]).await;
        let (seen, errors) = world.next(&session).await;
        assert_eq!((seen.as_str(), errors), ("change", Vec::new()), "{model}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_repository_that_does_not_fit_a_sandbox_is_said_and_leaves_nothing() {
    let disk = ("POSTHOUSE_SANDBOX_DISK_BYTES", (32_u64 << 20).to_string());
    let world = World::start_with(&[disk]).await;
    let noise: Vec<u8> =
        (0..12_u32 << 20).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    world.git.commit("team/huge", "main", &[("noise", &noise)]);
    world.git.allow(TOKEN, "team/huge", Right::Read);
    let resources = json!([world.resource("team/huge", TOKEN)]);
    let session = world.session("claude-huge", json!({}), resources, &["ls -A /workspace; echo $?"]).await;
    let (seen, errors) = world.next(&session).await;
    assert_eq!(seen, "0");
    let [error] = errors.as_slice() else { panic!("{errors:?}") };
    assert_eq!(error["type"], "repository_clone_error");
    let message = error["message"].as_str().expect("text");
    assert!(
        message.contains("could not be put into the sandbox") && message.contains("No space left"),
        "{message}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_answer_waits_for_a_repository_that_no_call_needs() {
    let world = World::start().await;
    world.git.fall_silent();
    let resources = json!([world.resource(REPOSITORY, TOKEN)]);
    let session = world.session("claude-talk", json!({}), resources, &[]).await;
    world.models.script("claude-talk", vec![Reply::text("hello")]);
    // The host answers nobody, so whoever waited for it would be told of that.
    let (seen, errors) = world.next(&session).await;
    assert_eq!((seen.as_str(), errors), ("", Vec::new()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_dies_while_it_fetches_is_followed_by_one_that_fetches_again() {
    let mut world = World::start().await;
    world.git.fall_silent();
    let resources = json!([world.resource(REPOSITORY, TOKEN)]);
    let session =
        world.session("claude-death", json!({}), resources, &["cat /workspace/project/README.md"]).await;
    world.server.client().send_message(&session, "go").await.expect("accepted");
    while world.git.seen().is_empty() {
        tokio::task::yield_now().await;
    }
    world.server.child.kill().await.expect("killed");
    world.git.speak_again();
    world.server = Server::start(&world.dir.path().join("data"), &world.variables).await;
    let client = world.server.client();
    let mut stream =
        client.stream(&session, Some(protocol::position::Position::START), &[]).await.expect("opens");
    let told = loop {
        let Some(client::Item::Event { event, .. }) = stream.next().await.expect("reads") else {
            panic!("ended")
        };
        match event.body {
            Body::AgentToolResult { content, is_error, .. } => break (content, is_error),
            Body::Error { error } => panic!("{error:?}"),
            _ => {}
        }
    };
    assert_eq!(told, (vec![Content::text("hello")], false));
}
