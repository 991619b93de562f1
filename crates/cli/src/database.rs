//! `posthouse database`: looking after where sessions last.
//!
//! A session's log is the truth; the state beside it is what the log comes to, kept so that nobody has to read the whole
//! log to know. `check` folds every log again and compares; `rebuild` puts what the log says in the place of a state
//! that says something else. Neither ever changes a log: one that is damaged is reported and left alone.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use clap::{Args, Subcommand};
use protocol::event::Event;
use protocol::id::{EventId, SessionId};
use protocol::position::Position;
use serde_json::json;
use session::State;
use session::state::Queued;
use store::{Order, Slice, Store, Stored, View};

use crate::out;
use crate::server;
use crate::settings::{PlaceOptions, Settings};

/// Look after the database: its format, and whether what it holds fits together.
#[derive(Args, Debug)]
pub(crate) struct DatabaseOptions {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Bring the database to this version's format. A server does so at its start, too.
    Migrate {
        #[command(flatten)]
        place: PlaceOptions,
    },
    /// Check every session: its log has no gap, and the state beside it is what the log says. Changes nothing, and works
    /// while servers run.
    Check {
        #[command(flatten)]
        which: Which,
        #[command(flatten)]
        place: PlaceOptions,
    },
    /// Check every session, and write those states anew that are not what the log says. Stop the servers first.
    Rebuild {
        #[command(flatten)]
        which: Which,
        #[command(flatten)]
        place: PlaceOptions,
    },
}

#[derive(Args, Debug)]
struct Which {
    /// Only this session; may be repeated.
    #[arg(long = "session", value_name = "ID")]
    sessions: Vec<String>,
    /// Print JSON, one object a line: those sessions in which something is wrong, then a summary.
    #[arg(long)]
    json: bool,
}

/// How many sessions are listed at once.
const PAGE: usize = 1_000;
/// How often it is said how far a long check has come.
const TELL_EVERY: Duration = Duration::from_secs(10);

pub(crate) async fn database(options: DatabaseOptions) -> anyhow::Result<()> {
    match options.command {
        Command::Migrate { place } => migrate(&place.settle()?).await,
        Command::Check { which, place } => {
            let settings = place.settle()?;
            check_is_there(&settings)?;
            let store = server::open_beside(&settings).await?;
            let looked = look_at_all(&store, &which, Mend::No).await;
            store.close().await;
            looked
        }
        Command::Rebuild { which, place } => {
            let settings = place.settle()?;
            check_is_there(&settings)?;
            let store = server::open(&settings).await?;
            let looked = look_at_all(&store, &which, Mend::Yes).await;
            store.close().await;
            looked
        }
    }
}

async fn migrate(settings: &Settings) -> anyhow::Result<()> {
    check_is_there(settings)?;
    let (from, to) = server::migrate(settings).await?;
    out::line(&match from {
        0 => format!("made a database of format {to}"),
        from if from == to => format!("the database has format {to} already"),
        from => format!("brought the database from format {from} to format {to}"),
    })
}

/// Who mistypes a directory's name is told so, and does not get an empty database.
fn check_is_there(settings: &Settings) -> anyhow::Result<()> {
    let dir = &settings.data_dir;
    ensure!(
        settings.database.is_some() || dir.join(crate::keys::DATABASE).exists(),
        "{} holds no data of Posthouse: say where it is with --data-dir or --database",
        dir.display()
    );
    Ok(())
}

/// Whether what is wrong is put right.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mend {
    Yes,
    No,
}

/// What was seen so far.
#[derive(Default)]
struct Tally {
    sessions: u64,
    events: u64,
    wrong: u64,
    mended: u64,
}

async fn look_at_all(store: &Store, which: &Which, mend: Mend) -> anyhow::Result<()> {
    let mut tally = Tally::default();
    let mut told = Instant::now();
    let mut after = None;
    loop {
        let page = match which.sessions.is_empty() {
            true => {
                store.sessions_after(after.take(), PAGE).await.context("the sessions cannot be listed")?
            }
            false => which.sessions.iter().map(SessionId::from_text).collect(),
        };
        for id in &page {
            let is_named = !which.sessions.is_empty();
            look_at(store, id, which.json, mend, is_named, &mut tally).await?;
            if told.elapsed() > TELL_EVERY {
                told = Instant::now();
                out::remark(&format!("{} sessions, {} events so far", tally.sessions, tally.events));
            }
        }
        after = page.last().cloned();
        if page.len() < PAGE || !which.sessions.is_empty() {
            break;
        }
    }
    conclude(&tally, which.json)
}

async fn look_at(
    store: &Store,
    id: &SessionId,
    json: bool,
    mend: Mend,
    is_named: bool,
    tally: &mut Tally,
) -> anyhow::Result<()> {
    let Some(Findings { events, log, state }) = check(store, id).await? else {
        // Deleted meanwhile, unless somebody asked for it.
        ensure!(!is_named, "there is no session {id}");
        return Ok(());
    };
    tally.sessions += 1;
    tally.events += events;
    let Some(problem) = log.as_ref().or(state.as_ref()) else { return Ok(()) };
    // What a damaged log comes to is not the truth either.
    let is_mended = mend == Mend::Yes && log.is_none() && store.put_rebuilt(id).await?;
    tally.mended += u64::from(is_mended);
    tally.wrong += u64::from(!is_mended);
    if json {
        return out::line(&json!({"session": id, "problem": problem, "mended": is_mended}).to_string());
    }
    let end = if is_mended { "; written anew" } else { "" };
    out::line(&format!("{id}: {problem}{end}"))
}

fn conclude(tally: &Tally, json: bool) -> anyhow::Result<()> {
    let Tally { sessions, events, wrong, mended } = tally;
    if json {
        let summary = json!({
            "type": "summary", "sessions": sessions, "events": events, "wrong": wrong, "mended": mended,
        });
        out::line(&summary.to_string())?;
    } else if *wrong == 0 {
        let end =
            if *mended > 0 { format!("{mended} written anew, the rest is") } else { "all is".to_owned() };
        out::line(&format!("{sessions} sessions, {events} events: {end} well"))?;
    }
    ensure!(*wrong == 0, "{wrong} of {sessions} sessions are damaged");
    Ok(())
}

/// What is wrong with one session.
#[derive(Debug, Default)]
struct Findings {
    events: u64,
    /// What nobody can put right from here.
    log: Option<String>,
    /// What the log can put right.
    state: Option<String>,
}

/// Checks one session; `None` if there is none.
async fn check(store: &Store, id: &SessionId) -> anyhow::Result<Option<Findings>> {
    let view = match store.look(id).await {
        Ok(Some(view)) => view,
        Ok(None) => return Ok(None),
        Err(error) => {
            let log = Some(damage(error).with_context(|| format!("{id} cannot be looked at"))?);
            return Ok(Some(Findings { log, ..Findings::default() }));
        }
    };
    let mut fold = Fold::new(&view);
    let log = read(store, &view, &mut fold).await?;
    let state = match &log {
        Some(_) => None,
        None => difference(&view.state, &fold.finish(&view))?,
    };
    if (log.is_some() || state.is_some()) && !is_there(store, id).await {
        // Deleted while it was read.
        return Ok(None);
    }
    Ok(Some(Findings { events: fold.events, log, state }))
}

/// Reads the log into the fold, as far as it stood when it was looked at: what came since is for the next check. Gives
/// what is wrong with it.
async fn read(store: &Store, view: &View, fold: &mut Fold) -> anyhow::Result<Option<String>> {
    let id = &view.record.id;
    // The state's word for where the log ends is among what is checked: what lies behind it is either new or forgotten.
    let mut end = Some(view.state.head);
    loop {
        let slice = Slice { after: fold.state.head, order: Order::Asc, private: true, ..Slice::default() };
        let entries = match store.get_events(id, slice).await {
            Ok(entries) => entries,
            Err(error) => return damage(error).with_context(|| format!("{id} cannot be read")).map(Some),
        };
        if entries.is_empty() {
            return Ok(None);
        }
        for entry in entries {
            if end.is_some_and(|end| entry.position > Some(end)) {
                if has_come_to(store, id, entry.position).await {
                    return Ok(None);
                }
                end = None;
            }
            if let Err(problem) = fold.take(&entry) {
                return Ok(Some(problem));
            }
        }
    }
}

/// An error of the store, if it says that what is stored is damaged.
fn damage(error: store::Error) -> anyhow::Result<String> {
    match error {
        store::Error::Corrupt(source) => Ok(format!("damaged: {source}")),
        other => Err(other.into()),
    }
}

async fn is_there(store: &Store, id: &SessionId) -> bool {
    !matches!(store.look(id).await, Ok(None))
}

/// Whether the state has come to this place meanwhile, or the session is gone.
async fn has_come_to(store: &Store, id: &SessionId, place: Option<Position>) -> bool {
    match store.look(id).await {
        Ok(Some(view)) => Some(view.state.head) >= place,
        Ok(None) => true,
        Err(_) => false,
    }
}

/// A log on its way into a state.
struct Fold {
    state: State,
    ids: HashSet<EventId>,
    events: u64,
}

impl Fold {
    fn new(view: &View) -> Self {
        let name = view.record.agent.spec.name.clone();
        let state = State::new(view.state.thread_id.clone(), name, view.record.created_at);
        Self { state, ids: HashSet::new(), events: 0 }
    }

    /// Takes in the next event. What is wrong with it is said without its content.
    fn take(&mut self, entry: &Stored) -> Result<(), String> {
        let expected = self.state.head.next();
        if entry.position != Some(expected) {
            return Err(format!("position {expected} is missing"));
        }
        let event: Event = serde_json::from_slice(&entry.json)
            .map_err(|error| format!("position {expected} cannot be read: {error}"))?;
        let at = event.processed_at.ok_or_else(|| format!("position {expected} has no time"))?;
        if entry.processed_at != Some(at) {
            return Err(format!("position {expected} has two times"));
        }
        if self.events > 0 && at <= self.state.last_at {
            return Err(format!("position {expected} is not later than the one before"));
        }
        self.state.apply(&event.id, &event.body, at);
        if let Some(twice) = self.ids.replace(event.id) {
            return Err(format!("position {expected} repeats {twice}"));
        }
        self.events += 1;
        Ok(())
    }

    /// The state, with what waits in the inbox.
    fn finish(&self, view: &View) -> State {
        let queued = Queued::count(view.inbox.iter().map(|event| &event.body));
        State { queued, ..self.state.clone() }
    }
}

/// In what the state that is kept differs from the log, by the names of its fields.
fn difference(kept: &State, folded: &State) -> anyhow::Result<Option<String>> {
    if kept == folded {
        return Ok(None);
    }
    let (kept, folded) = (serde_json::to_value(kept)?, serde_json::to_value(folded)?);
    let fields = folded.as_object().into_iter().flatten();
    let differing = fields.filter(|(name, value)| kept.get(name.as_str()) != Some(value));
    let names: Vec<&str> = differing.map(|(name, _)| name.as_str()).collect();
    Ok(Some(format!("the state is not what the log says: {}", names.join(", "))))
}
