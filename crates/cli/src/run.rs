//! `posthouse run`: one task, one session, watched.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use clap::Args;
use client::{Client, Item, Stream};
use harness::model::Providers;
use protocol::environment::Environment;
use protocol::event::{Body, PreviewKind, StopReason};
use protocol::id::SessionId;
use protocol::position::Position;
use protocol::session::Session;
use serde_json::json;

use crate::demo;
use crate::render::{Form, Renderer};
use crate::server::Server;
use crate::settings::{ServerOptions, Settings};

/// Give an agent a task and watch it work.
#[derive(Args, Debug)]
pub(crate) struct RunOptions {
    /// What the agent is to do.
    task: String,
    /// The model. [default: the first that the configuration names, or a name that its patterns take]
    #[arg(long, env = "POSTHOUSE_MODEL", value_name = "NAME")]
    model: Option<String>,
    /// The agent's system prompt.
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    /// Use a running server instead of one of our own. Needs --api-key.
    #[arg(long, env = "POSTHOUSE_URL", value_name = "URL")]
    url: Option<String>,
    /// Print events as JSON, one a line, and a summary as the last line.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    server: ServerOptions,
}

/// What a run came to.
pub(crate) struct Summary {
    pub(crate) session: Session,
    pub(crate) first_token: Option<Duration>,
    pub(crate) took: Duration,
    pub(crate) outputs: Option<PathBuf>,
}

pub(crate) async fn run(options: RunOptions) -> anyhow::Result<()> {
    let form = if options.json { Form::Json } else { Form::Text };
    if let Some(url) = &options.url {
        let key = options
            .server
            .api_key
            .as_deref()
            .context("--url needs the server's key: --api-key or POSTHOUSE_API_KEY")?;
        let client = Client::new(url, key)?;
        let model =
            options.model.as_deref().context("--url needs --model: the server's models are its own")?;
        let summary = play(&client, &options.task, model, options.system.as_deref(), form).await?;
        conclude(&summary, form);
        return Ok(());
    }
    let mut settings = options.server.clone().settle()?;
    // One's own server takes any free port, and says nothing unless something is wrong.
    settings.listen = ([127, 0, 0, 1], 0).into();
    if std::env::var_os("POSTHOUSE_LOG").is_none() {
        settings.log = "warn".to_owned();
    }
    crate::serve::start_log(&settings)?;
    let server = Server::start(&settings).await?;
    let Some(model) = options.model.clone().or_else(|| default_model(&server.models)) else {
        server.stop().await;
        return demo::play(&settings, form).await;
    };
    let summary = on_own_server(&server, &settings, &options, &model, form).await;
    server.stop().await;
    conclude(&summary?, form);
    Ok(())
}

async fn on_own_server(
    server: &Server,
    settings: &Settings,
    options: &RunOptions,
    model: &str,
    form: Form,
) -> anyhow::Result<Summary> {
    let workspace = server.workspace().await?;
    let key = crate::keys::mint();
    // The key lives as long as this run.
    let made = server.store.create_key(&workspace, "posthouse run", store::hash_key(&key)).await?;
    let client = Client::new(&server.url, &key)?;
    let played = play(&client, &options.task, model, options.system.as_deref(), form).await;
    server.store.revoke_key(&workspace, &made.id).await?;
    let mut summary = played?;
    summary.outputs = outputs(settings, &summary.session.id);
    Ok(summary)
}

/// Where the session's deliverables are, if there are any.
pub(crate) fn outputs(settings: &Settings, session: &SessionId) -> Option<PathBuf> {
    let dir = settings.data_dir.join("outputs").join(session.as_str());
    let has_files = dir.read_dir().is_ok_and(|mut entries| entries.next().is_some());
    has_files.then_some(dir)
}

/// Makes agent, environment and session, sends the task and shows what happens until the session is idle.
async fn play(
    client: &Client,
    task: &str,
    model: &str,
    system: Option<&str>,
    form: Form,
) -> anyhow::Result<Summary> {
    let session = prepare(client, task, model, system).await?;
    let mut renderer = Renderer::new(form);
    renderer.note(&format!("session {} · model {model}", session.id));
    let mut watch = Watch::begin(client, &session.id, task).await?;
    let ended = tokio::select! {
        ended = watch.until_idle(&mut renderer) => ended?,
        _ = tokio::signal::ctrl_c() => {
            renderer.announce("interrupting; press Ctrl-C again to leave at once");
            client.interrupt(session.id.as_str()).await?;
            tokio::select! {
                ended = watch.until_idle(&mut renderer) => ended?,
                _ = tokio::signal::ctrl_c() => bail!("left; the session is {}", session.id),
            }
        }
    };
    renderer.finish();
    if ended == Ended::Over {
        bail!(
            "the session ended with an error; posthouse sessions events {} shows what happened",
            session.id
        );
    }
    let session = client.get_session(session.id.as_str()).await?;
    Ok(Summary { session, first_token: watch.first_token, took: watch.began.elapsed(), outputs: None })
}

/// What the streams preview.
pub(crate) const PREVIEWS: [PreviewKind; 2] = [PreviewKind::Message, PreviewKind::Thinking];

/// The name under which `run` keeps its agent's environment.
const ENVIRONMENT: &str = "posthouse run";

pub(crate) async fn prepare(
    client: &Client,
    task: &str,
    model: &str,
    system: Option<&str>,
) -> anyhow::Result<Session> {
    let agent = client
        .create_agent(json!({
            "name": "posthouse run", "model": model, "system": system, "tools": [{"type": "agent_toolset_20260401"}],
        }))
        .await?;
    let environment = match find_environment(client).await? {
        Some(environment) => environment,
        None => client.create_environment(json!({"name": ENVIRONMENT})).await?,
    };
    let title: String = task.chars().take(80).collect();
    let body = json!({"agent": agent.id, "environment_id": environment.id, "title": title});
    Ok(client.create_session(body).await?)
}

async fn find_environment(client: &Client) -> anyhow::Result<Option<Environment>> {
    let mut page = None;
    loop {
        let cursor: Option<String> = page;
        let query: Vec<(&str, &str)> = cursor.iter().map(|cursor| ("page", cursor.as_str())).collect();
        let environments = client.list_environments(&query).await?;
        if let Some(found) = environments.data.into_iter().find(|environment| environment.name == ENVIRONMENT)
        {
            return Ok(Some(found));
        }
        page = environments.next_page;
        if page.is_none() {
            return Ok(None);
        }
    }
}

/// How a session stopped.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ended {
    Idle,
    Over,
}

/// A session that is being watched. Reconnects from where it stood if the stream breaks.
pub(crate) struct Watch<'a> {
    client: &'a Client,
    session: SessionId,
    stream: Stream,
    pub(crate) position: Position,
    pub(crate) began: Instant,
    pub(crate) first_token: Option<Duration>,
}

impl<'a> Watch<'a> {
    /// Opens the stream, then sends the task.
    pub(crate) async fn begin(client: &'a Client, session: &SessionId, task: &str) -> anyhow::Result<Self> {
        let stream = client.stream(session.as_str(), None, &PREVIEWS).await?;
        let began = Instant::now();
        client.send_message(session.as_str(), task).await?;
        Ok(Self {
            client,
            session: session.clone(),
            stream,
            position: Position::START,
            began,
            first_token: None,
        })
    }

    /// Goes on watching on another connection, perhaps to another server.
    pub(crate) async fn resume(&mut self, client: &'a Client) -> anyhow::Result<()> {
        self.client = client;
        self.stream = client.stream(self.session.as_str(), Some(self.position), &PREVIEWS).await?;
        Ok(())
    }

    /// The next frame; `None` if the stream ended or broke.
    pub(crate) async fn next(&mut self) -> Option<Item> {
        let frame = self.stream.next().await.ok().flatten()?;
        match &frame {
            Item::Event { position: Some(position), .. } => self.position = *position,
            Item::Event { position: None, .. } => {}
            Item::Preview(_) => {
                self.first_token.get_or_insert_with(|| self.began.elapsed());
            }
        }
        Some(frame)
    }

    /// Shows everything until the session is idle or over.
    pub(crate) async fn until_idle(&mut self, renderer: &mut Renderer) -> anyhow::Result<Ended> {
        loop {
            let Some(frame) = self.next().await else {
                self.resume(self.client)
                    .await
                    .context("the stream broke and the server cannot be reached again")?;
                continue;
            };
            match frame {
                Item::Preview(preview) => renderer.preview(&preview),
                // The copy on receipt has no time and says nothing new.
                Item::Event { position: None, .. } => {}
                Item::Event { position: Some(_), event } => {
                    renderer.event(&event);
                    if let Some(ended) = ended(&event.body) {
                        return Ok(ended);
                    }
                }
            }
        }
    }
}

pub(crate) fn ended(body: &Body) -> Option<Ended> {
    match body {
        Body::StatusIdle { stop_reason: StopReason::RetriesExhausted {}, .. } => Some(Ended::Over),
        Body::StatusIdle { .. } => Some(Ended::Idle),
        Body::StatusTerminated {} => Some(Ended::Over),
        _ => None,
    }
}

/// The last lines of a run: what it used, how soon it spoke, where its files are.
pub(crate) fn conclude(summary: &Summary, form: Form) {
    let Summary { session, first_token, took, outputs } = summary;
    let usage = &session.usage;
    if form == Form::Json {
        println!(
            "{}",
            json!({
                "type": "summary", "session_id": session.id, "usage": usage, "stats": session.stats,
                "first_token_seconds": first_token.map(|time| time.as_secs_f64()),
                "took_seconds": took.as_secs_f64(), "outputs": outputs,
            })
        );
        return;
    }
    let first = first_token
        .map_or_else(|| "no text".to_owned(), |time| format!("{:.0} ms", time.as_secs_f64() * 1e3));
    println!();
    println!("session      {}", session.id);
    println!("took         {:.1} s, first token after {first}", took.as_secs_f64());
    println!(
        "tokens       {} in ({} from the cache), {} out",
        usage.input_tokens, usage.cache_read_input_tokens, usage.output_tokens
    );
    match outputs {
        Some(dir) => println!("files        {}", dir.display()),
        None => println!("files        none delivered"),
    }
}

/// The first model that the configuration names, else a current name of a provider that is configured.
fn default_model(models: &Providers) -> Option<String> {
    let named = models.list().into_iter().map(|listed| listed.id).find(|id| id != demo::MODEL);
    let current = ["claude-sonnet-5-5", "gpt-5.1"].into_iter().find(|name| models.resolve(name).is_some());
    named.or_else(|| current.map(str::to_owned))
}
