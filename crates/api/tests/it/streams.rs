//! Following a session.

use client::Item;
use protocol::event::{Preview, PreviewDelta, PreviewEvent, PreviewKind, PreviewText};
use protocol::id::{EventId, SessionId};
use protocol::position::Position;
use reqwest::Method;
use serde_json::{Value, json};
use session::Act;

use crate::brain::{Brain, run, says};
use crate::server::{Frames, Server, events_of, ids, send, session_path};

fn stream_of(session: &SessionId) -> String {
    format!("/v1/sessions/{session}/events/stream")
}

const TURN: [&str; 9] = [
    "1 session.status_running",
    "2 session.thread_status_running",
    "3 user.message",
    "4 span.model_request_start",
    "5 agent.message",
    "7 span.model_request_end",
    "8 session.thread_status_idle",
    "9 session.usage",
    "10 session.status_idle",
];

#[tokio::test]
async fn a_stream_shows_a_turn_from_the_queued_copy_to_its_end() {
    let server = Server::start().await;
    let session = server.session().await;
    let mut stream = server.stream(&stream_of(&session)).await;
    let mut other = server.stream(&stream_of(&session)).await;
    server.say(&session, &["hello"]).await;
    run(&server.store, &session, "hi").await;
    for stream in [&mut stream, &mut other] {
        let frames = stream.take(10).await;
        assert_eq!(frames[0], "- user.message", "the queued copy has no place to resume from");
        assert_eq!(frames[1..], TURN);
    }
}

#[tokio::test]
async fn the_data_of_a_frame_is_the_event_of_the_list() {
    let server = Server::start().await;
    let session = server.session().await;
    let mut stream = server.stream(&stream_of(&session)).await;
    // A text that is passed on in pieces, one that could be mistaken for lines, and one that is copied.
    let large = format!("a\n\nb{}", "x".repeat(100_000));
    server.say(&session, &["hello", &large]).await;
    run(&server.store, &session, "hi").await;
    let mut seen: Vec<Value> = Vec::new();
    while seen.last().is_none_or(|event| event["type"] != "session.status_idle") {
        let frame = stream.next().await.expect("goes on");
        let event: Value = serde_json::from_str(&frame.data).expect("JSON");
        assert_eq!(frame.event.as_deref(), event["type"].as_str());
        assert_eq!(frame.id.is_none(), event["processed_at"].is_null());
        if frame.id.is_some() {
            seen.push(event);
        }
    }
    assert_eq!(server.get(&events_of(&session)).await.ok()["data"], json!(seen));
}

#[tokio::test]
async fn a_resumed_stream_misses_nothing_and_repeats_nothing() {
    let server = Server::start().await;
    let session = server.session().await;
    server.say(&session, &["hello"]).await;
    run(&server.store, &session, "hi").await;
    let queued = server.say(&session, &["more"]).await;
    for position in [0_usize, 1, 3, 5, 6, 9, 10] {
        let resume =
            server.request(Method::GET, &stream_of(&session)).header("last-event-id", position.to_string());
        let mut by_header = Frames::new(resume.send().await.expect("an answer"));
        let mut by_address = server.stream(&format!("{}?after={position}", stream_of(&session))).await;
        let mut expected: Vec<&str> = TURN
            .into_iter()
            .filter(|frame| frame.split(' ').next().and_then(|id| id.parse().ok()) > Some(position))
            .collect();
        expected.push("- user.message");
        for stream in [&mut by_header, &mut by_address] {
            assert_eq!(stream.take(expected.len()).await, expected, "after {position}");
        }
    }
    let both =
        server.request(Method::GET, &format!("{}?after=1", stream_of(&session))).header("last-event-id", "9");
    let mut both = Frames::new(both.send().await.expect("an answer"));
    assert_eq!(both.take(1).await, ["10 session.status_idle"], "the header wins");
    let pending: Value = serde_json::from_str(&both.next().await.expect("goes on").data).expect("JSON");
    assert_eq!(pending["id"], json!(queued[0]), "what is still pending is shown again");
}

#[tokio::test]
async fn a_resumed_stream_goes_on_live() {
    let server = Server::start().await;
    let session = server.session().await;
    server.say(&session, &["one"]).await;
    run(&server.store, &session, "hi").await;
    let mut stream = server.stream(&format!("{}?after=9", stream_of(&session))).await;
    assert_eq!(stream.take(1).await, ["10 session.status_idle"]);
    server.say(&session, &["two"]).await;
    assert_eq!(stream.take(1).await, ["- user.message"]);
    run(&server.store, &session, "hi").await;
    assert_eq!(stream.take(2).await, ["11 session.status_running", "12 session.thread_status_running"]);
}

#[tokio::test]
async fn a_place_that_no_event_has_is_refused() {
    let server = Server::start().await;
    let session = server.session().await;
    for place in ["x", "-1", "+1", "1.5", "1", "99999999999999999999"] {
        let path = format!("{}?after={}", stream_of(&session), place.replace('+', "%2B"));
        assert_eq!(server.get(&path).await.refusal().0, 400, "{place}");
        let header = server.request(Method::GET, &stream_of(&session)).header("last-event-id", place);
        assert_eq!(send(header).await.refusal().0, 400, "{place}");
    }
}

fn start(kind: PreviewKind, id: &str) -> Preview {
    Preview::EventStart { event: PreviewEvent { kind, id: EventId::from_text(id) } }
}

fn delta(id: &str, text: &str) -> Preview {
    let content = PreviewText::Text { text: text.to_owned() };
    Preview::EventDelta {
        event_id: EventId::from_text(id),
        delta: PreviewDelta::ContentDelta { index: 0, content },
    }
}

#[tokio::test]
async fn previews_go_to_those_who_asked_for_their_kind() {
    let server = Server::start().await;
    let session = server.session().await;
    let path = stream_of(&session);
    let mut plain = server.stream(&path).await;
    let mut both =
        server.stream(&format!("{path}?event_deltas[]=agent.message&event_deltas[]=agent.thinking")).await;
    let mut thinking = server.stream(&format!("{path}?event_deltas%5B%5D=agent.thinking")).await;
    server.say(&session, &["hello"]).await;
    let mut brain = Brain::wake(&server.store, &session).await;
    let Act::CallModel { request } = brain.step(Vec::new()).await else {
        panic!("there is something to say")
    };
    let previews = server.store.previews();
    for preview in [
        // Of a block that began before anybody looked.
        delta("sevt_x", "lost"),
        start(PreviewKind::Thinking, "sevt_t"),
        start(PreviewKind::Message, "sevt_m"),
        delta("sevt_m", "h"),
        delta("sevt_m", "i"),
    ] {
        previews.publish(&session, Position(4), preview);
    }
    let first = ["- user.message", TURN[0], TURN[1], TURN[2], TURN[3]];
    assert_eq!(both.take(5).await, first);
    assert_eq!(both.take(4).await, ["- event_start", "- event_start", "- event_delta", "- event_delta"]);
    assert_eq!(thinking.take(6).await[4..], [TURN[3], "- event_start"]);
    brain.step(says(&request, "hi")).await;
    for stream in [&mut both, &mut thinking] {
        assert_eq!(stream.take(5).await, TURN[4..]);
    }
    assert_eq!(plain.take(10).await[1..], TURN);
    brain.rest().await;
}

#[tokio::test]
async fn previews_of_other_kinds_or_too_many_are_refused() {
    let server = Server::start().await;
    let session = server.session().await;
    let path = stream_of(&session);
    assert_eq!(server.get(&format!("{path}?event_deltas[]=agent.tool_use")).await.refusal().0, 400);
    let many = |count: usize| vec!["event_deltas[]=agent.message"; count].join("&");
    assert_eq!(server.get(&format!("{path}?{}", many(101))).await.refusal().0, 400);
    drop(server.stream(&format!("{path}?{}", many(100))).await);
    assert_eq!(server.get(&format!("{path}?colour=red")).await.refusal().0, 400);
    assert_eq!(server.get("/v1/sessions/sesn_none/events/stream").await.refusal().0, 404);
}

#[tokio::test]
async fn a_stream_ends_after_the_session_is_deleted() {
    let server = Server::start().await;
    let session = server.session().await;
    let mut stream = server.stream(&stream_of(&session)).await;
    server.empty(Method::DELETE, &session_path(&session)).await.ok();
    assert_eq!(stream.take(1).await, ["- session.deleted"]);
    assert!(stream.ends().await);
}

#[tokio::test]
async fn the_stream_of_an_archived_session_opens_and_can_be_resumed() {
    let server = Server::start().await;
    let session = server.session().await;
    let mut live = server.stream(&stream_of(&session)).await;
    server.empty(Method::POST, &format!("{}/archive", session_path(&session))).await.ok();
    let ended = ["1 session.thread_status_terminated", "2 session.status_terminated"];
    assert_eq!(live.take(2).await, ended);
    let mut late = server.stream(&format!("{}?after=0", stream_of(&session))).await;
    assert_eq!(late.take(2).await, ended);
    assert_eq!(server.stream(&stream_of(&session)).await.answer.status(), 200);
}

#[tokio::test]
async fn accept_does_not_choose_the_kind_of_answer() {
    let server = Server::start().await;
    let session = server.session().await;
    let request = server.request(Method::GET, &stream_of(&session)).header("accept", "application/json");
    assert_eq!(request.send().await.expect("an answer").headers()["content-type"], "text/event-stream");
}

#[tokio::test]
async fn one_who_does_not_read_holds_up_nobody() {
    let server = Server::start().await;
    let session = server.session().await;
    let mut slow = server.stream(&stream_of(&session)).await;
    let mut quick = server.stream(&stream_of(&session)).await;
    // Far more than the buffers between the two ends hold.
    let large = "x".repeat(2_000_000);
    for _ in 0..10 {
        server.say(&session, &[&large]).await;
        assert_eq!(quick.take(1).await, ["- user.message"]);
    }
    run(&server.store, &session, "hi").await;
    let last = |frames: Vec<String>| frames.last().cloned();
    assert_eq!(last(quick.take(18).await).as_deref(), Some("19 session.status_idle"));
    let seen = slow.take(28).await;
    assert_eq!(seen.iter().filter(|frame| *frame == "- user.message").count(), 10, "events are never shed");
    assert_eq!(last(seen).as_deref(), Some("19 session.status_idle"));
}

#[tokio::test]
async fn the_typed_client_follows_and_knows_where_it_is() {
    let server = Server::start().await;
    let session = server.session().await;
    let client = &server.client;
    let mut stream = client.stream(session.as_str(), None, &[PreviewKind::Message]).await.expect("opens");
    client.send_message(session.as_str(), "hello").await.expect("sent");
    run(&server.store, &session, "hi").await;
    let mut seen = Vec::new();
    while seen.len() < 10 {
        match stream.next().await.expect("reads").expect("goes on") {
            Item::Event { event, .. } => seen.push(event.id.to_string()),
            Item::Preview(preview) => panic!("nobody publishes {preview:?}"),
        }
    }
    assert_eq!(stream.position(), Some(Position(10)));
    assert_eq!(seen[1..], ids(&server.get(&events_of(&session)).await.ok()));
    let mut resumed = client.stream(session.as_str(), Some(Position(9)), &[]).await.expect("opens");
    let Item::Event { position, .. } = resumed.next().await.expect("reads").expect("goes on") else {
        panic!("an event comes first")
    };
    assert_eq!(position, Some(Position(10)));
}
