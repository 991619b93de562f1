//! Sending and listing events.

use client::Client;
use protocol::event::Body;
use protocol::id::SessionId;
use serde_json::{Value, json};
use session::Act;

use crate::brain::{Brain, run, run_into_a_call, says};
use crate::server::{KEY, Server, events_of, id, ids, kinds, message};

#[tokio::test]
async fn what_is_sent_is_echoed_in_order_and_queued() {
    let server = Server::start().await;
    let session = server.session().await;
    let system = json!({"type": "system.message", "content": [{"type": "text", "text": "be brief"}]});
    let sent = server.post(&events_of(&session), json!({"events": [message("one"), system]})).await.ok();
    assert_eq!(kinds(&sent), ["user.message", "system.message"]);
    for echo in sent["data"].as_array().expect("a list") {
        assert_eq!(echo["processed_at"], Value::Null);
        assert!(id(echo).starts_with("sevt_"));
    }
    assert_eq!(server.get(&events_of(&session)).await.ok()["data"], sent["data"]);
    assert_eq!(server.get(&format!("/v1/sessions/{session}")).await.ok()["status"], "running");
}

#[tokio::test]
async fn a_turn_reads_as_the_reference_has_it() {
    let server = Server::start().await;
    let session = server.session().await;
    server.say(&session, &["hello"]).await;
    run(&server.store, &session, "hi").await;
    let events = server.get(&events_of(&session)).await.ok();
    assert_eq!(
        kinds(&events),
        [
            "session.status_running",
            "session.thread_status_running",
            "user.message",
            "span.model_request_start",
            "agent.message",
            "span.model_request_end",
            "session.thread_status_idle",
            "session.usage",
            "session.status_idle",
        ],
        "private kinds stay behind the door"
    );
    let session = server.get(&format!("/v1/sessions/{session}")).await.ok();
    assert_eq!((&session["status"], &session["usage"]["output_tokens"]), (&json!("idle"), &json!(5)));
}

#[tokio::test]
async fn one_bad_event_refuses_the_request() {
    let server = Server::start().await;
    let session = server.session().await;
    let before = server.everything(&session).await;
    let bad = json!({"type": "user.custom_tool_result", "custom_tool_use_id": "sevt_none"});
    let refused = server.post(&events_of(&session), json!({"events": [message("one"), bad]})).await;
    assert_eq!(refused.refusal().0, 400);
    assert!(refused.refusal().2.contains("events[1].custom_tool_use_id"), "{}", refused.body);
    assert_eq!(server.everything(&session).await, before);
}

#[tokio::test]
async fn a_session_that_waits_for_answers_takes_only_answers() {
    let server = Server::start().await;
    let session = server.session().await;
    server.say(&session, &["hello"]).await;
    run_into_a_call(&server.store, &session).await;
    let refused = server.post(&events_of(&session), json!({"events": [message("more")]})).await;
    assert_eq!(refused.refusal().0, 400);
    assert!(refused.refusal().2.contains("waiting on responses to events"), "{}", refused.body);

    let idle = server.get(&format!("{}?types[]=session.status_idle", events_of(&session))).await.ok();
    let call = idle["data"][0]["stop_reason"]["event_ids"][0].as_str().expect("an id").to_owned();
    let result = json!({"type": "user.custom_tool_result", "custom_tool_use_id": call, "content": [{"type": "text", "text": "sun"}]});
    let sent = server.post(&events_of(&session), json!({"events": [result]})).await.ok();
    assert!(sent["data"][0]["processed_at"].is_string(), "results are processed on receipt");
    assert_eq!(server.get(&format!("/v1/sessions/{session}")).await.ok()["status"], "running");
}

#[tokio::test]
async fn a_model_without_mid_conversation_system_messages_refuses_them() {
    let server = Server::start().await;
    let agent = id(&server.post("/v1/agents", json!({"name": "a", "model": "m-plain"})).await.ok());
    let body = json!({"agent": agent, "environment_id": server.environment().await});
    let session = SessionId::from_text(id(&server.post("/v1/sessions", body).await.ok()));
    let system = json!({"type": "system.message", "content": [{"type": "text", "text": "x"}]});
    let refused = server.post(&events_of(&session), json!({"events": [message("one"), system]})).await;
    assert_eq!(
        (refused.refusal().0, refused.code()),
        (400, Some("model_does_not_support_mid_conversation_system"))
    );
    assert_eq!(ids(&server.get(&events_of(&session)).await.ok()), Vec::<String>::new());
}

#[tokio::test]
async fn events_are_filtered_by_kind_and_time() {
    let server = Server::start().await;
    let session = server.session().await;
    server.say(&session, &["hello"]).await;
    run(&server.store, &session, "hi").await;
    server.say(&session, &["queued"]).await;
    let path = events_of(&session);
    let two = server.get(&format!("{path}?types[]=agent.message&types%5B%5D=user.message")).await.ok();
    assert_eq!(kinds(&two), ["user.message", "agent.message", "user.message"]);
    let none = server.get(&format!("{path}?types[]=workflow_run.created")).await.ok();
    assert_eq!(none, json!({"data": [], "next_page": null}));
    let at = two["data"][1]["processed_at"].as_str().expect("a time").to_owned();
    let before = server.get(&format!("{path}?created_at[lt]={at}")).await.ok();
    assert_eq!(kinds(&before).last().map(String::as_str), Some("span.model_request_start"));
    let after = server.get(&format!("{path}?created_at[gte]={at}&order=desc")).await.ok();
    assert_eq!(kinds(&after).last().map(String::as_str), Some("agent.message"));
    assert_eq!(kinds(&after)[0], "session.status_idle", "what has no time yet is in no range of time");
    for query in [
        "types[]=session.deleted",
        "types[]=event_start",
        "types[]=posthouse.answer",
        "types[]=x",
        "limit=0",
        "limit=1001",
        "order=x",
        "colour=red",
        "page=page_x",
    ] {
        assert_eq!(server.get(&format!("{path}?{query}")).await.refusal().0, 400, "{query}");
    }
}

#[tokio::test]
async fn queued_events_come_last_or_with_the_youngest_first_come_first() {
    let server = Server::start().await;
    let session = server.session().await;
    server.say(&session, &["one"]).await;
    run(&server.store, &session, "hi").await;
    let queued = server.say(&session, &["two", "three"]).await;
    let path = events_of(&session);
    let ascending = ids(&server.get(&path).await.ok());
    assert_eq!(ascending[9..], queued);
    let mut descending = ids(&server.get(&format!("{path}?order=desc")).await.ok());
    descending.reverse();
    assert_eq!(descending, ascending);
}

/// Walks all pages; `between` is called after each.
async fn walk(server: &Server, path: &str, query: &str, mut between: impl AsyncFnMut(usize)) -> Vec<String> {
    let mut seen = Vec::new();
    let mut page = server.get(&format!("{path}?{query}")).await.ok();
    for number in 0.. {
        seen.extend(ids(&page));
        let Some(next) = page["next_page"].as_str().map(str::to_owned) else { break };
        between(number).await;
        page = server.get(&format!("{path}?{query}&page={next}")).await.ok();
    }
    seen
}

#[tokio::test]
async fn a_walk_in_either_order_gives_every_event_once() {
    let server = Server::start().await;
    let session = server.session().await;
    server.say(&session, &["one"]).await;
    run(&server.store, &session, "hi").await;
    server.say(&session, &["two", "three", "four"]).await;
    let path = events_of(&session);
    let all = ids(&server.get(&path).await.ok());
    assert_eq!(all.len(), 12);
    for limit in [1, 2, 3, 5, 9, 11, 12, 1000] {
        assert_eq!(walk(&server, &path, &format!("limit={limit}"), async |_| {}).await, all, "limit {limit}");
        let mut back = walk(&server, &path, &format!("order=desc&limit={limit}"), async |_| {}).await;
        back.reverse();
        assert_eq!(back, all, "descending, limit {limit}");
        let messages =
            walk(&server, &path, &format!("types[]=user.message&limit={limit}"), async |_| {}).await;
        assert_eq!(messages.len(), 4);
    }
}

#[tokio::test]
async fn a_cursor_holds_for_its_session_its_order_and_its_range_only() {
    let server = Server::start().await;
    let session = server.session().await;
    let other = server.session().await;
    for session in [&session, &other] {
        server.say(session, &["one"]).await;
        run(&server.store, session, "hi").await;
    }
    let path = events_of(&session);
    let page = server.get(&format!("{path}?limit=3")).await.ok();
    let next = page["next_page"].as_str().expect("more").to_owned();
    let at = page["data"][2]["processed_at"].as_str().expect("a time").to_owned();
    for path in [
        format!("{}?page={next}", events_of(&other)),
        format!("{path}?order=desc&page={next}"),
        format!("{path}?created_at[gt]={at}&page={next}"),
        format!("/v1/sessions?page={next}"),
    ] {
        assert_eq!(server.get(&path).await.refusal().0, 400, "{path}");
    }
    let rest =
        server.get(&format!("{path}?limit=9&types[]=agent.message&created_at[gte]={at}&page={next}")).await;
    assert_eq!(kinds(&rest.ok()), ["agent.message"], "filters and the limit may change between pages");
}

#[tokio::test]
async fn a_walk_shows_nothing_twice_while_queued_events_are_taken_up() {
    let server = Server::start().await;
    for limit in [1, 2, 3, 4] {
        for (order, turn) in [
            ("asc", 0),
            ("asc", 4),
            ("asc", 9),
            ("asc", 10),
            ("desc", 0),
            ("desc", 1),
            ("desc", 2),
            ("desc", 5),
        ] {
            let session = server.session().await;
            server.say(&session, &["one"]).await;
            run(&server.store, &session, "hi").await;
            server.say(&session, &["two", "three", "four"]).await;
            let path = events_of(&session);
            let before = ids(&server.get(&path).await.ok());
            let query = format!("order={order}&limit={limit}");
            let seen = walk(&server, &path, &query, async |number| {
                // Each walk meets a turn, and one more message, at another place.
                if number == turn {
                    run(&server.store, &session, "again").await;
                    server.say(&session, &["five"]).await;
                }
            })
            .await;
            let mut once = seen.clone();
            once.sort();
            once.dedup();
            assert_eq!(once.len(), seen.len(), "twice: {order} {limit} {turn}");
            for id in &before {
                assert!(seen.contains(id), "lost: {order} {limit} {turn}");
            }
        }
    }
}

#[tokio::test]
async fn paging_ends_while_events_are_appended() {
    let server = Server::start().await;
    let session = server.session().await;
    server.say(&session, &["one"]).await;
    let mut brain = Brain::wake(&server.store, &session).await;
    let Act::CallModel { request } = brain.step(Vec::new()).await else {
        panic!("there is something to say")
    };
    let path = events_of(&session);
    let seen = walk(&server, &path, "limit=2", async |number| {
        if number < 5 {
            brain.step(vec![Body::AgentThinking {}]).await;
        }
    })
    .await;
    assert_eq!(brain.step(says(&request, "done")).await, Act::Rest);
    let all = ids(&server.get(&path).await.ok());
    assert_eq!(seen, all[..seen.len()]);
    brain.rest().await;
}

#[tokio::test]
async fn the_typed_client_reads_what_the_door_writes() {
    let server = Server::start().await;
    let client = &server.client;
    let agent = client.create_agent(json!({"name": "a", "model": "m-1"})).await.expect("made");
    let environment = client.create_environment(json!({"name": "e"})).await.expect("made");
    let session = client
        .create_session(json!({"agent": agent.id, "environment_id": environment.id}))
        .await
        .expect("made");
    let echoes = client.send_message(session.id.as_str(), "hello").await.expect("sent");
    run(&server.store, &session.id, "hi").await;
    let events = client.all_events(session.id.as_str()).await.expect("listed");
    assert_eq!(events.len(), 9);
    assert_eq!((&events[2].id, &events[2].body), (&echoes[0].id, &echoes[0].body));
    assert_eq!(client.list_threads(session.id.as_str()).await.expect("listed").data.len(), 1);
    assert_eq!(client.list_sessions(&[("limit", "1")]).await.expect("listed").data[0].id, session.id);
    let missing = client.get_session("sesn_none").await.expect_err("nothing is there");
    assert_eq!(
        (missing.status(), missing.to_string().as_str()),
        (Some(404), "Session not found: sesn_none (404)")
    );
    let stranger = Client::new(&server.base, &format!("{KEY}x")).expect("a client");
    assert_eq!(stranger.list_agents(&[]).await.expect_err("no key").status(), Some(401));
}
