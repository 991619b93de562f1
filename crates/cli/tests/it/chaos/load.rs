//! The clients: each talks to one session and follows it, whatever door is open.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use client::{Client, Error};
use protocol::event::Event;
use protocol::session::Status;
use protocol::sse::Parser;
use rand::rngs::SmallRng;
use rand::{Rng as _, SeedableRng as _};
use serde_json::{Value, json};
use testkit::invariants;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::chaos::fleet::{Doors, Fleet};
use crate::chaos::model::{MODEL, READ_BACK};
use crate::chaos::verdict::{self, Tally, calls_of};
use crate::server::KEY;

/// How long a client waits for an answer before it takes the request for lost.
const ANSWER_MAX: Duration = Duration::from_secs(20);
/// How long a session may take to rest while there is trouble.
const REST_MAX: Duration = Duration::from_secs(400);
/// How long it may take once all is right again.
const REST_MAX_AT_PEACE: Duration = Duration::from_secs(100);
/// How long a stream may be silent. A live one says something every fifteen seconds.
const SILENCE_MAX: Duration = Duration::from_secs(25);
/// The pause before something is tried again, unless the server says how long.
const AGAIN_PAUSE: Duration = Duration::from_millis(300);
/// How often a file is asked for whose sandbox was lost meanwhile.
const READ_BACK_ATTEMPTS_MAX: u32 = 3;

/// What is wrong, from whoever finds it.
#[derive(Default)]
pub(super) struct Findings(Mutex<Vec<String>>);

impl Findings {
    pub(super) fn add(&self, text: String) {
        println!("chaos: FOUND {text}");
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(text);
    }

    pub(super) fn take(&self) -> Vec<String> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Makes the sessions and begins all conversations.
pub(super) async fn begin(
    fleet: &Fleet,
    sessions: usize,
    seed: u64,
    over: &CancellationToken,
    findings: &Arc<Findings>,
) -> JoinSet<Tally> {
    let mut random = SmallRng::seed_from_u64(seed);
    let client = fleet.doors().pick(&mut random, None).await.client;
    let agent = json!({"name": "chaos", "model": MODEL, "tools": [{"type": "agent_toolset_20260401"}]});
    let agent = client.create_agent(agent).await.expect("made");
    let environment = client.create_environment(json!({"name": "chaos"})).await.expect("made");
    let body = json!({"agent": agent.id, "environment_id": environment.id});
    let mut made = Vec::new();
    for _ in 0..sessions {
        made.push(client.create_session(body.clone()).await.expect("made").id.to_string());
    }
    let mut talks = JoinSet::new();
    for (index, session) in made.into_iter().enumerate() {
        let talk = Talk {
            session,
            doors: fleet.doors(),
            random: SmallRng::seed_from_u64(seed.wrapping_add(1 + u64::try_from(index).expect("few"))),
            said: 0,
            acknowledged: Vec::new(),
            attempts: Vec::new(),
            shown: watch::Sender::new(Shown::default()),
            tally: Tally { sessions: 1, ..Tally::default() },
            over: over.clone(),
        };
        talks.spawn(talk.run(Arc::clone(findings)));
    }
    talks
}

/// One client and its session.
struct Talk {
    session: String,
    doors: Doors,
    random: SmallRng,
    said: u32,
    /// The ids of the events that the server took.
    acknowledged: Vec<String>,
    /// What was said, and how often it may have been taken.
    attempts: Vec<(String, usize)>,
    shown: watch::Sender<Shown>,
    tally: Tally,
    /// All is right again, and it is time to come to an end.
    over: CancellationToken,
}

/// What streams have shown, put together.
#[derive(Default)]
struct Shown {
    events: Vec<Value>,
    ids: HashSet<String>,
    resumed: usize,
}

impl Shown {
    fn rests_after(&self, sent: &[String]) -> bool {
        invariants::is_at_rest(&self.events) && sent.iter().all(|id| self.ids.contains(id))
    }
}

impl Talk {
    async fn run(mut self, findings: Arc<Findings>) -> Tally {
        let follower = Follower {
            session: self.session.clone(),
            doors: self.doors.clone(),
            random: SmallRng::seed_from_u64(self.random.random()),
            shown: self.shown.clone(),
            position: 0,
        };
        let result = tokio::select! {
            result = self.talk() => result,
            wrong = follower.run() => Err(wrong),
        };
        if let Err(wrong) = result {
            findings.add(format!("{}: {wrong}", self.session));
        }
        self.tally
    }

    async fn talk(&mut self) -> Result<(), String> {
        while !self.over.is_cancelled() {
            self.turn().await?;
            let pause = Duration::from_millis(self.random.random_range(1000..12_000));
            let _ = timeout(pause, self.over.cancelled()).await;
        }
        for _ in 0..READ_BACK_ATTEMPTS_MAX {
            let sent = vec![self.ask_for(READ_BACK).await?];
            self.until_rest(&sent).await?;
            let last = calls_of(&self.shown.borrow().events).pop();
            if last.is_some_and(|call| call.has_read_back()) {
                break;
            }
        }
        self.conclude().await
    }

    /// Says something, now and then more than one thing or an interrupt behind it, and waits for the session to rest.
    async fn turn(&mut self) -> Result<(), String> {
        let mut sent = Vec::new();
        for _ in 0..if self.random.random_bool(0.15) { 2 } else { 1 } {
            let what = if self.random.random_bool(0.15) { READ_BACK } else { "Do some work" };
            sent.push(self.ask_for(what).await?);
        }
        let interrupts = self.random.random_bool(0.05);
        if interrupts {
            sleep(Duration::from_millis(self.random.random_range(0..600))).await;
            let door = self.doors.pick(&mut self.random, None).await;
            // One that got lost is nobody's loss.
            if let Ok(Ok(echoes)) = timeout(ANSWER_MAX, door.client.interrupt(&self.session)).await {
                sent.extend(echoes.into_iter().map(|event| event.id.to_string()));
                self.acknowledged.extend(sent.last().cloned());
                self.tally.interrupts += 1;
            }
        }
        self.until_rest(&sent).await?;
        // An interrupt without an answer may come at any time, and begin something.
        if interrupts { Ok(()) } else { self.check_rest().await }
    }

    async fn ask_for(&mut self, what: &str) -> Result<String, String> {
        self.said += 1;
        // With a number, so that each can be told from the others.
        self.say(format!("{what} ({}).", self.said)).await
    }

    /// Sends a message until it is there; gives its id.
    async fn say(&mut self, text: String) -> Result<String, String> {
        self.attempts.push((text.clone(), 1));
        loop {
            let door = self.doors.pick(&mut self.random, None).await;
            match timeout(ANSWER_MAX, door.client.send_message(&self.session, &text)).await {
                Ok(Ok(echoes)) => {
                    let id = echoes.first().ok_or("a message without an echo")?.id.to_string();
                    self.acknowledged.push(id.clone());
                    return Ok(id);
                }
                // Not taken, and it says so.
                Ok(Err(Error::Refused { status: 429 | 503, .. })) => {
                    self.tally.turned_away += 1;
                    sleep(AGAIN_PAUSE).await;
                }
                Ok(Err(Error::Refused { status, body })) if status < 500 => {
                    return Err(format!("a message was refused with {status}: {body:?}"));
                }
                // It may have been taken.
                Ok(Err(_)) | Err(_) => {
                    self.tally.without_answer += 1;
                    if let Some(id) = self.find(&text).await? {
                        return Ok(id);
                    }
                    // It is not there, and may still be on its way.
                    self.attempts.last_mut().expect("there is one").1 += 1;
                }
            }
        }
    }

    /// The id of a message with this text that is in the history.
    async fn find(&mut self, text: &str) -> Result<Option<String>, String> {
        let list = self.list().await?;
        let found = list.iter().rfind(|event| said(event) == Some(text));
        Ok(found.and_then(|event| event["id"].as_str()).map(str::to_owned))
    }

    /// The whole history, from whichever door gives it.
    async fn list(&mut self) -> Result<Vec<Value>, String> {
        let session = self.session.clone();
        let events = self.ask(|client| all_events(client, session.clone())).await?;
        events.iter().map(|event| serde_json::to_value(event).map_err(|error| error.to_string())).collect()
    }

    /// Asks what can be asked again, until there is an answer.
    async fn ask<T, Answer>(&mut self, question: impl Fn(Client) -> Answer) -> Result<T, String>
    where
        Answer: Future<Output = Result<T, Error>>,
    {
        loop {
            let door = self.doors.pick(&mut self.random, None).await;
            match timeout(ANSWER_MAX, question(door.client)).await {
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(Error::Refused { status, body })) if status < 500 && status != 429 => {
                    return Err(format!("a question was refused with {status}: {body:?}"));
                }
                Ok(Err(_)) | Err(_) => sleep(AGAIN_PAUSE).await,
            }
        }
    }

    /// Waits until the stream has shown what was sent and the rest behind it.
    async fn until_rest(&mut self, sent: &[String]) -> Result<(), String> {
        let began = Instant::now();
        let mut shown = self.shown.subscribe();
        let rests = shown.wait_for(|shown| shown.rests_after(sent));
        let too_late = async {
            let _ = timeout(REST_MAX, self.over.cancelled()).await;
            sleep(REST_MAX_AT_PEACE).await;
        };
        let is_at_rest = tokio::select! {
            rests = rests => rests.is_ok(),
            () = too_late => false,
        };
        if is_at_rest {
            self.tally.turns.push(began.elapsed());
            return Ok(());
        }
        let kinds: Vec<String> =
            shown.borrow().events.iter().map(|event| event["type"].to_string()).collect();
        let last = kinds[kinds.len().saturating_sub(12)..].join(" ");
        let list = self.list().await?;
        let listed = list.iter().rev().take(5).map(|event| event["type"].to_string()).collect::<Vec<_>>();
        let session = self.session.clone();
        let status = self.ask(|client| status(client, session.clone())).await?;
        Err(format!(
            "it did not come to rest: it is {status:?}, the stream showed {last}, the list ends (backwards) with {listed:?}"
        ))
    }

    /// G10 and G12, at any door: it reads idle, and what the stream showed is in the list.
    async fn check_rest(&mut self) -> Result<(), String> {
        let session = self.session.clone();
        let status = self.ask(|client| status(client, session.clone())).await?;
        if status != Status::Idle {
            return Err(format!("G10: the stream showed its idle event, and it reads {status:?}"));
        }
        let listed = self.list().await?.len();
        let shown = self.shown.borrow().events.len();
        if listed < shown {
            return Err(format!("G12: the stream showed {shown} events, and the list has {listed}"));
        }
        Ok(())
    }

    async fn conclude(&mut self) -> Result<(), String> {
        let list = self.list().await?;
        for (text, attempts) in &self.attempts {
            let count = list.iter().filter(|event| said(event) == Some(text)).count();
            if count == 0 || count > *attempts {
                return Err(format!(
                    "`{text}` is there {count} times; it was sent, and not turned away, at most {attempts} times"
                ));
            }
        }
        let shown = self.shown.borrow();
        self.tally.resumed += shown.resumed;
        verdict::check(&list, &shown.events, &self.acknowledged, &mut self.tally)
    }
}

async fn all_events(client: Client, session: String) -> Result<Vec<Event>, Error> {
    client.all_events(&session).await
}

async fn status(client: Client, session: String) -> Result<Status, Error> {
    Ok(client.get_session(&session).await?.status)
}

/// What a client said, if the event is that.
fn said(event: &Value) -> Option<&str> {
    (event["type"] == "user.message").then(|| event["content"][0]["text"].as_str()).flatten()
}

/// Follows one session for ever, from its first event on, through as many doors as it takes.
struct Follower {
    session: String,
    doors: Doors,
    random: SmallRng,
    shown: watch::Sender<Shown>,
    /// Of the last event that was shown.
    position: u64,
}

impl Follower {
    /// Returns only what is wrong.
    async fn run(mut self) -> String {
        let http = reqwest::Client::builder().no_proxy().read_timeout(SILENCE_MAX).build().expect("builds");
        let mut last = None;
        loop {
            let door = self.doors.pick(&mut self.random, last.as_deref()).await;
            if let Err(wrong) = self.follow(&http, &door.url).await {
                return wrong;
            }
            self.shown.send_modify(|shown| shown.resumed += 1);
            last = Some(door.url);
            sleep(AGAIN_PAUSE).await;
        }
    }

    /// Follows through one door until it closes.
    async fn follow(&mut self, http: &reqwest::Client, url: &str) -> Result<(), String> {
        let request = http
            .get(format!("{url}/v1/sessions/{}/events/stream?event_deltas[]=agent.message", self.session))
            .header("authorization", format!("Bearer {KEY}"))
            .header("anthropic-version", "2026-10-21")
            .header("anthropic-beta", "managed-agents-2026-04-01")
            .header("last-event-id", self.position.to_string());
        let mut answer = match timeout(ANSWER_MAX, request.send()).await {
            Ok(Ok(answer)) if answer.status().is_success() => answer,
            Ok(Ok(answer)) if answer.status().is_client_error() && answer.status().as_u16() != 429 => {
                return Err(format!("a stream was refused with {}", answer.status()));
            }
            _ => return Ok(()),
        };
        let mut parser = Parser::new();
        // What this connection has shown of answers that are being made.
        let mut previews: Vec<(String, String)> = Vec::new();
        while let Ok(Some(bytes)) = answer.chunk().await {
            parser.push(&bytes);
            while let Some(frame) =
                parser.next_frame().map_err(|error| format!("a stream cannot be read: {error}"))?
            {
                let value: Value = serde_json::from_str(&frame.data).unwrap_or_default();
                match frame.event.as_deref() {
                    // The door says why it closes.
                    Some("error") => return Ok(()),
                    Some("event_delta") => preview(&mut previews, &value)?,
                    _ => {}
                }
                if let Some(id) = frame.id {
                    self.take(&id, value, &previews)?;
                }
            }
        }
        Ok(())
    }

    fn take(&mut self, id: &str, event: Value, previews: &[(String, String)]) -> Result<(), String> {
        let position: u64 = id.parse().map_err(|_| format!("`{id}` is no position"))?;
        if position <= self.position {
            return Err(format!("the stream went from position {} to {position}", self.position));
        }
        self.position = position;
        let id = event["id"].as_str().unwrap_or_default().to_owned();
        if let Some((_, text)) = previews.iter().find(|(previewed, _)| *previewed == id) {
            let whole = event["content"][0]["text"].as_str().unwrap_or_default();
            if !whole.starts_with(text.as_str()) {
                return Err(format!("`{text}` was previewed of {id}, which says `{whole}`"));
            }
        }
        self.shown.send_modify(|shown| {
            shown.ids.insert(id);
            shown.events.push(event);
        });
        Ok(())
    }
}

fn preview(previews: &mut Vec<(String, String)>, delta: &Value) -> Result<(), String> {
    let id = delta["event_id"].as_str().ok_or("a delta of no event")?;
    let text = delta["delta"]["content"]["text"].as_str().ok_or("a delta without text")?;
    match previews.iter_mut().find(|(previewed, _)| previewed == id) {
        Some((_, whole)) => whole.push_str(text),
        None => previews.push((id.to_owned(), text.to_owned())),
    }
    Ok(())
}
