//! What the pure core costs: replaying a log, naming the next step, admitting, and an event's way to text and back.
//!
//! These are the parts of an append that are ours; the rest is the store's. `cargo bench --package session`.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use protocol::content::Content;
use protocol::event::{Answer, AnswerCall, Body, Evaluation, Event, Finish, ModelUsage, Permission};
use protocol::id::{EventId, FromBits, ThreadId};
use protocol::time::Timestamp;
use serde_json::json;
use session::admit::{Admitted, admit};
use session::state::State;
use session::step::{Draft, Ready, next_step};

/// Events of a log that is replayed: a session of some hours.
const LOG_EVENTS: u64 = 1_000;

fn replay(criterion: &mut Criterion) {
    let (state, log) = session();
    let mut group = criterion.benchmark_group("replay");
    group.throughput(Throughput::Elements(log.len() as u64));
    group.bench_function("a log of 1,000 events", |bencher| {
        bencher.iter(|| {
            let mut replayed = empty();
            for event in black_box(&log) {
                replayed.apply(&event.id, &event.body, event.processed_at.expect("it is in the log"));
            }
            replayed
        });
    });
    group.finish();
    criterion.bench_function("state to JSON", |bencher| {
        bencher.iter(|| serde_json::to_vec(black_box(&state)).expect("states are JSON"));
    });
}

fn steps(criterion: &mut Criterion) {
    let (idle, _) = session();
    let message = vec![Event { body: message(), id: EventId::from_bits(1), processed_at: None }];
    let mut queued = idle.clone();
    queued.queued.add(&message[0].body);
    criterion.bench_function("next_step, a message waits", |bencher| {
        let mut ids = Ids(1 << 64);
        bencher.iter(|| next_step(black_box(&queued), &message, Vec::new(), Ready::Wait, || ids.next()));
    });

    let (running, request) = running(&idle);
    criterion.bench_function("next_step, an answer has come", |bencher| {
        let mut ids = Ids(1 << 64);
        bencher.iter(|| {
            let facts = answer(&request, None, &mut ids);
            next_step(black_box(&running), &[], facts, Ready::Wait, || ids.next())
        });
    });

    criterion.bench_function("admit, a message to an idle session", |bencher| {
        bencher.iter(|| {
            let admitted = admit(black_box(&idle), &[], vec![self::message()]).expect("admitted");
            assert!(matches!(admitted[..], [Admitted::Queue(_)]));
            admitted
        });
    });
}

fn texts(criterion: &mut Criterion) {
    let body = Body::AgentMessage { content: vec![Content::text("a word or two ".repeat(64))] };
    let event = Event { body, id: EventId::from_bits(7), processed_at: Some(Timestamp::from_micros(1)) };
    let text = serde_json::to_string(&event).expect("events are JSON");
    let mut group = criterion.benchmark_group("an event of a kilobyte");
    group.throughput(Throughput::Bytes(text.len() as u64));
    group.bench_function("to JSON", |bencher| {
        bencher.iter(|| serde_json::to_string(black_box(&event)).expect("events are JSON"));
    });
    group.bench_function("from JSON", |bencher| {
        bencher.iter(|| serde_json::from_str::<Event>(black_box(&text)).expect("reads"));
    });
    group.finish();
}

struct Ids(u128);

impl Ids {
    fn next(&mut self) -> EventId {
        self.0 += 1;
        EventId::from_bits(self.0)
    }
}

fn empty() -> State {
    State::new(ThreadId::from_text("sthr_1"), "bench".to_owned(), Timestamp::from_micros(0))
}

fn message() -> Body {
    Body::UserMessage { content: vec![Content::text("What is in the log?")] }
}

/// A session at rest, and its log: turns of a message, a call of a tool and an answer.
fn session() -> (State, Vec<Event>) {
    let (mut state, mut log, mut ids) = (empty(), Vec::new(), Ids(0));
    while (log.len() as u64) < LOG_EVENTS {
        turn(&mut state, &mut log, &mut ids);
    }
    (state, log)
}

fn turn(state: &mut State, log: &mut Vec<Event>, ids: &mut Ids) {
    let waiting = Event { body: message(), id: ids.next(), processed_at: None };
    state.queued.add(&waiting.body);
    let inbox = [waiting.clone()];
    let step = next_step(state, &inbox, Vec::new(), Ready::Wait, || ids.next());
    append(state, log, step.drafts, &inbox);
    let request = state.request.clone().expect("the model is asked");
    let call = ids.next();
    let facts = answer(&request, Some(&call), ids);
    let step = next_step(state, &[], facts, Ready::Wait, || ids.next());
    append(state, log, step.drafts, &[]);
    let content = vec![Content::text("hello")];
    let result = Body::AgentToolResult { tool_use_id: call, content, is_error: false };
    let facts = vec![Draft::New { id: ids.next(), body: result }];
    let step = next_step(state, &[], facts, Ready::Wait, || ids.next());
    append(state, log, step.drafts, &[]);
    let request = state.request.clone().expect("the model is asked again");
    let facts = answer(&request, None, ids);
    let step = next_step(state, &[], facts, Ready::Wait, || ids.next());
    append(state, log, step.drafts, &[]);
}

/// The session with its model asked.
fn running(idle: &State) -> (State, EventId) {
    let (mut state, mut log, mut ids) = (idle.clone(), Vec::new(), Ids(1 << 32));
    let waiting = Event { body: message(), id: ids.next(), processed_at: None };
    state.queued.add(&waiting.body);
    let inbox = [waiting];
    let step = next_step(&state, &inbox, Vec::new(), Ready::Wait, || ids.next());
    append(&mut state, &mut log, step.drafts, &inbox);
    let request = state.request.clone().expect("the model is asked");
    (state, request)
}

/// A model's answer as the harness records it, with or without a call.
fn answer(request: &EventId, call: Option<&EventId>, ids: &mut Ids) -> Vec<Draft> {
    let mut new = |body| Draft::New { id: ids.next(), body };
    let calls = call.map(|call| AnswerCall { provider_id: "toolu_1".to_owned(), event_id: call.clone() });
    let private = Answer {
        model_request_start_id: request.clone(),
        blocks: vec![r#"{"type":"text","text":"I will look."}"#.to_owned()],
        finish: Finish::Complete,
        calls: calls.into_iter().collect(),
    };
    let mut drafts = vec![
        new(Body::Answer(private)),
        new(Body::AgentMessage { content: vec![Content::text("I will look.")] }),
    ];
    drafts.extend(call.map(|call| Draft::New { id: call.clone(), body: tool_use() }));
    let model_usage = ModelUsage { input_tokens: 900, output_tokens: 40, ..ModelUsage::default() };
    drafts.push(new(Body::ModelRequestEnd {
        model_request_start_id: request.clone(),
        is_error: false,
        model_usage,
    }));
    drafts
}

fn tool_use() -> Body {
    let input = json!({"command": "ls -l"}).as_object().expect("an object").clone();
    let (evaluated_permission, evaluation) = (Permission::Allow, Some(Evaluation::AlwaysAllow {}));
    Body::AgentToolUse { name: "bash".to_owned(), input, evaluated_permission, evaluation }
}

/// Appends as a store does.
fn append(state: &mut State, log: &mut Vec<Event>, drafts: Vec<Draft>, inbox: &[Event]) {
    for draft in drafts {
        let (id, body) = match draft {
            Draft::New { id, body } => (id, body),
            Draft::Take(id) => {
                let taken = inbox.iter().find(|event| event.id == id).expect("it waits");
                state.queued.remove(&taken.body);
                (id, taken.body.clone())
            }
        };
        let at = state.next_time(Timestamp::from_micros(0));
        state.apply(&id, &body, at);
        log.push(Event { body, id, processed_at: Some(at) });
    }
}

criterion_group!(benches, replay, steps, texts);
criterion_main!(benches);
