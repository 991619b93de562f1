//! `posthouse run`: one task, one session, watched.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
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
use crate::keys;
use crate::out;
use crate::render::{Form, Renderer};
use crate::server::{Server, providers};
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
        return conclude(&summary, form);
    }
    let mut settings = options.server.clone().settle_quiet()?;
    ensure!(
        settings.database.is_none(),
        "`posthouse run` works on a data directory of its own: for a server with a database say where it is, with --url"
    );
    // One's own server takes any free port, and says nothing unless something is wrong.
    settings.listen = ([127, 0, 0, 1], 0).into();
    crate::serve::start_log(&settings)?;
    let model = match &options.model {
        Some(model) => Some(model.clone()),
        None => default_model(&providers(&settings)?).await?,
    };
    let Some(model) = model else { return demo::play(&settings, form).await };
    let server = Server::start(&settings).await?;
    let summary = on_own_server(&server, &settings, &options, &model, form).await;
    tokio::select! {
        () = server.stop() => {}
        _ = tokio::signal::ctrl_c() => bail!("left before the server had stopped; its sessions go on at the next start"),
    }
    conclude(&summary?, form)
}

async fn on_own_server(
    server: &Server,
    settings: &Settings,
    options: &RunOptions,
    model: &str,
    form: Form,
) -> anyhow::Result<Summary> {
    let workspace = server.workspace().await?;
    keys::revoke_leftovers(&server.store, None).await?;
    let key = keys::mint();
    let client = Client::new(&server.url, &key)?;
    // The key lives as long as this run.
    let made = server.store.create_key(&workspace, keys::INTERNAL, store::hash_key(&key)).await?;
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
        ended = watch.until_idle(&mut renderer) => match ended {
            // Nobody watches any more, and nobody is left to answer: the agent is not to work on unseen.
            Err(error) if error.is::<out::Closed>() => {
                client.interrupt(session.id.as_str()).await?;
                return Err(error);
            }
            ended => ended?,
        },
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
    renderer.check()?;
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

/// How often in a row a broken stream is opened again before the watch gives up: about fifteen seconds in all.
const TRIES_MAX: u32 = 10;
const WAIT_FIRST: Duration = Duration::from_millis(100);
const WAIT_MAX: Duration = Duration::from_secs(3);
/// A stream that held for so long had no lasting trouble, though nothing happened in the session.
const HELD: Duration = Duration::from_secs(10);

/// A session that is being watched. Reconnects from where it stood if the stream breaks.
pub(crate) struct Watch<'a> {
    client: &'a Client,
    session: SessionId,
    stream: Stream,
    opened: Instant,
    /// Streams in a row that broke without having shown anything.
    breaks: u32,
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
            opened: began,
            breaks: 0,
            position: Position::START,
            began,
            first_token: None,
        })
    }

    /// Goes on watching on another connection, perhaps to another server.
    pub(crate) async fn resume(&mut self, client: &'a Client) -> Result<(), client::Error> {
        self.client = client;
        self.stream = client.stream(self.session.as_str(), Some(self.position), &PREVIEWS).await?;
        self.opened = Instant::now();
        Ok(())
    }

    /// The next frame; `None` if the stream ended or broke. An error if trying again cannot help.
    pub(crate) async fn next(&mut self) -> anyhow::Result<Option<Item>> {
        let frame = match self.stream.next().await {
            Ok(Some(frame)) => frame,
            Ok(None) => return Ok(None),
            // A server that fails says so in the stream; what comes of another one is seen when it is opened.
            Err(client::Error::Transport(_) | client::Error::Refused { .. }) => return Ok(None),
            Err(error) => return Err(error).context("the server sent what this version cannot read"),
        };
        self.breaks = 0;
        match &frame {
            Item::Event { position: Some(position), .. } => self.position = *position,
            Item::Event { position: None, .. } => {}
            Item::Preview(_) => {
                self.first_token.get_or_insert_with(|| self.began.elapsed());
            }
        }
        Ok(Some(frame))
    }

    /// Opens a broken stream again. Waits ever longer in between, and not for ever.
    async fn reconnect(&mut self) -> anyhow::Result<()> {
        if self.opened.elapsed() > HELD {
            self.breaks = 0;
        }
        loop {
            self.breaks += 1;
            tokio::time::sleep(wait(self.breaks)).await;
            let client = self.client;
            match self.resume(client).await {
                Ok(()) if self.breaks < TRIES_MAX => return Ok(()),
                Ok(()) => bail!("the stream broke {TRIES_MAX} times in a row"),
                Err(error) if self.breaks < TRIES_MAX && may_pass(&error) => {}
                Err(error) => {
                    return Err(error).context("the stream broke and the server cannot be reached again");
                }
            }
        }
    }

    /// Shows everything until the session is idle or over.
    pub(crate) async fn until_idle(&mut self, renderer: &mut Renderer) -> anyhow::Result<Ended> {
        loop {
            let Some(frame) = self.next().await? else {
                self.reconnect().await?;
                continue;
            };
            match frame {
                Item::Preview(preview) => renderer.preview(&preview),
                // The copy on receipt has no time and says nothing new.
                Item::Event { position: None, .. } => {}
                Item::Event { position: Some(_), event } => {
                    renderer.event(&event);
                    renderer.check()?;
                    if let Some(ended) = ended(&event.body) {
                        return Ok(ended);
                    }
                }
            }
        }
    }
}

fn wait(breaks: u32) -> Duration {
    WAIT_FIRST.saturating_mul(2_u32.saturating_pow(breaks.saturating_sub(1))).min(WAIT_MAX)
}

/// Whether the same request may be answered later: the server restarts, or something before it says that it is away.
fn may_pass(error: &client::Error) -> bool {
    match error {
        client::Error::Transport(_) => true,
        client::Error::Refused { status, .. } | client::Error::Foreign { status, .. } => {
            *status >= 500 || *status == 429
        }
        client::Error::Shape(_) | client::Error::Stream(_) | client::Error::Address(_) => false,
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
pub(crate) fn conclude(summary: &Summary, form: Form) -> anyhow::Result<()> {
    let Summary { session, first_token, took, outputs } = summary;
    let usage = &session.usage;
    if form == Form::Json {
        let summary = json!({
            "type": "summary", "session_id": session.id, "usage": usage, "stats": session.stats,
            "first_token_seconds": first_token.map(|time| time.as_secs_f64()),
            "took_seconds": took.as_secs_f64(), "outputs": outputs,
        });
        return out::line(&summary.to_string());
    }
    let first = first_token
        .map_or_else(|| "no text".to_owned(), |time| format!("{:.0} ms", time.as_secs_f64() * 1e3));
    let mut text = format!("\nsession      {}\n", session.id);
    text += &format!("took         {:.1} s, first token after {first}\n", took.as_secs_f64());
    text += &format!(
        "tokens       {} in ({} from the cache), {} out\n",
        usage.input_tokens, usage.cache_read_input_tokens, usage.output_tokens
    );
    text += &match outputs {
        Some(dir) => format!("files        {}\n", dir.display()),
        None => "files        none delivered\n".to_owned(),
    };
    out::print(&text)
}

/// Names that providers serve now, for providers that are known by their names only.
const CURRENT: [&str; 2] = ["claude-sonnet-5-5", "gpt-5.1"];

/// The first model that the configuration names; else a current one of a provider that takes only names like it;
/// else one that a provider which takes any name lists. `None` if only the demonstration is configured.
async fn default_model(models: &Providers) -> anyhow::Result<Option<String>> {
    if let Some(named) = models.list().into_iter().map(|listed| listed.id).find(|id| id != demo::MODEL) {
        return Ok(Some(named));
    }
    let is_known = |name: &&&str| models.resolve(name).is_some_and(|provider| !provider.takes_any_name());
    if let Some(current) = CURRENT.iter().find(is_known) {
        return Ok(Some((*current).to_owned()));
    }
    // Mostly a local server, which says what it serves. Its list begins with what it likes; a gateway's list is long
    // and may hold a name that we know.
    let open: Vec<_> = models.iter().filter(|provider| provider.takes_any_name()).collect();
    for provider in open {
        let listed = provider.models().await.with_context(|| {
            format!("the models of `{}` cannot be listed: name one with --model", provider.name())
        })?;
        let current = CURRENT.iter().find(|name| listed.iter().any(|id| id == *name));
        if let Some(model) = current.map(|name| (*name).to_owned()).or_else(|| listed.into_iter().next()) {
            return Ok(Some(model));
        }
    }
    if demo::is_all(models) {
        return Ok(None);
    }
    bail!("the configuration does not say which model to use: name one with --model")
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;

    #[test]
    fn a_watch_waits_about_fifteen_seconds_before_it_gives_up() {
        let all: Duration = (1..=TRIES_MAX).map(wait).sum();
        assert!((14..20).contains(&all.as_secs()), "{all:?}");
    }

    #[tokio::test]
    async fn a_watch_gives_up_at_once_on_what_it_cannot_read() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let url = format!("http://{}", listener.local_addr().expect("bound"));
        let connections = Arc::new(AtomicU32::new(0));
        let seen = Arc::clone(&connections);
        let answers = tokio::spawn(async move {
            while let Ok((mut connection, _)) = listener.accept().await {
                seen.fetch_add(1, Ordering::Relaxed);
                let mut request = Vec::new();
                while !request.ends_with(b"\r\n\r\n") {
                    request.push(connection.read_u8().await.expect("a request"));
                }
                let answer =
                    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n\
                    event: session.status_idle\ndata: nonsense\n\n";
                connection.write_all(answer).await.expect("sent");
            }
        });
        let client = Client::new(&url, "key").expect("valid");
        let session: SessionId = serde_json::from_value(json!("sesn_1")).expect("an id");
        let mut watch = Watch {
            stream: client.stream(session.as_str(), None, &PREVIEWS).await.expect("opens"),
            client: &client,
            session,
            opened: Instant::now(),
            breaks: 0,
            position: Position::START,
            began: Instant::now(),
            first_token: None,
        };
        let ended = watch.until_idle(&mut Renderer::new(Form::Json)).await;
        let error = ended.err().expect("it cannot be read").to_string();
        assert!(error.contains("cannot read"), "{error}");
        assert_eq!(connections.load(Ordering::Relaxed), 1, "nothing was tried again");
        answers.abort();
    }
}
