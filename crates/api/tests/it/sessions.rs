//! `/v1/sessions`.

use reqwest::Method;
use serde_json::{Value, json};

use crate::brain::{Brain, run};
use crate::server::{Server, events_of, id, ids, kinds, message, session_path};

#[tokio::test]
async fn a_new_session_is_idle_and_shows_every_key() {
    let server = Server::start().await;
    let (agent, environment) = (server.agent().await, server.environment().await);
    let body = json!({"agent": agent, "environment_id": environment, "title": "t", "metadata": {"k": "v"}});
    let mut made = server.post("/v1/sessions", body).await.ok();
    let path = format!("/v1/sessions/{}", id(&made));
    for name in ["created_at", "updated_at"] {
        assert!(made[name].as_str().expect("a time").ends_with('Z'));
    }
    assert!(made["stats"]["duration_seconds"].is_number());
    let mut read = server.get(&path).await.ok();
    for session in [&mut made, &mut read] {
        session["stats"]["duration_seconds"] = json!(0.0);
    }
    assert_eq!(read, made);
    let snapshot = server.get(&format!("/v1/agents/{agent}")).await.ok();
    assert_eq!(
        made,
        json!({
            "type": "session", "id": id(&made), "status": "idle", "title": "t", "metadata": {"k": "v"},
            "environment_id": environment, "deployment_id": null, "vault_ids": [], "resources": [],
            "agent": {
                "type": "agent", "id": agent, "version": 1, "name": "a", "description": null,
                "model": snapshot["model"], "system": null, "tools": snapshot["tools"], "mcp_servers": [],
                "skills": [], "multiagent": null, "execution_identity": {"type": "service_account"},
            },
            "budget": null, "outcome_evaluations": [],
            "usage": {
                "input_tokens": 0, "output_tokens": 0, "cache_read_input_tokens": 0, "active_seconds": 0.0,
                "cache_creation": {"ephemeral_5m_input_tokens": 0, "ephemeral_1h_input_tokens": 0},
                "server_tool_use": {"web_search_requests": 0, "web_fetch_requests": 0},
            },
            "stats": {"active_seconds": 0.0, "duration_seconds": 0.0},
            "created_at": made["created_at"], "updated_at": made["updated_at"], "archived_at": null,
        })
    );
    assert_eq!(server.get(&format!("{path}/events")).await.ok(), json!({"data": [], "next_page": null}));
}

#[tokio::test]
async fn a_session_with_initial_events_runs_at_once() {
    let server = Server::start().await;
    let body = json!({"agent": server.agent().await, "environment_id": server.environment().await,
                      "initial_events": [message("one"), message("two")]});
    let made = server.post("/v1/sessions", body).await.ok();
    assert_eq!(made["status"], "running");
    let events = server.get(&format!("/v1/sessions/{}/events", id(&made))).await.ok();
    assert_eq!(
        kinds(&events),
        ["session.status_running", "session.thread_status_running", "user.message", "user.message"]
    );
    assert_eq!(events["data"][2]["content"][0]["text"], "one");
    assert_eq!(events["data"][2]["processed_at"], Value::Null);
}

#[tokio::test]
async fn a_session_keeps_the_agent_it_was_made_with() {
    let server = Server::start().await;
    let agent = server.agent().await;
    server.post(&format!("/v1/agents/{agent}"), json!({"name": "b"})).await.ok();
    let environment = server.environment().await;
    let make = |agent: Value| json!({"agent": agent, "environment_id": environment});

    let pinned =
        server.post("/v1/sessions", make(json!({"type": "agent", "id": agent, "version": 1}))).await.ok();
    assert_eq!((&pinned["agent"]["name"], &pinned["agent"]["version"]), (&json!("a"), &json!(1)));
    let overridden =
        json!({"type": "agent_with_overrides", "id": agent, "model": "m-2", "system": "s", "tools": []});
    let overridden = server.post("/v1/sessions", make(overridden)).await.ok();
    assert_eq!((&overridden["agent"]["name"], &overridden["agent"]["version"]), (&json!("b"), &json!(2)));
    assert_eq!(overridden["agent"]["model"]["id"], "m-2");
    assert_eq!((&overridden["agent"]["system"], &overridden["agent"]["tools"]), (&json!("s"), &json!([])));

    server.post(&format!("/v1/agents/{agent}"), json!({"name": "c"})).await.ok();
    assert_eq!(server.get(&format!("/v1/sessions/{}", id(&pinned))).await.ok()["agent"]["name"], "a");
}

#[tokio::test]
async fn a_session_needs_a_live_agent_a_served_model_and_a_fit_environment() {
    let server = Server::start().await;
    let (agent, environment) = (server.agent().await, server.environment().await);
    let make = |agent: Value, environment: &str| json!({"agent": agent, "environment_id": environment});
    let environment_of = |config: Value| {
        let name = config.to_string();
        json!({"name": name, "config": config})
    };
    let unserved = id(&server.post("/v1/agents", json!({"name": "a", "model": "gpt-none"})).await.ok());
    let archived_agent = server.agent().await;
    server.empty(Method::POST, &format!("/v1/agents/{archived_agent}/archive")).await.ok();
    let archived = server.environment().await;
    server.empty(Method::POST, &format!("/v1/environments/{archived}/archive")).await.ok();
    let self_hosted =
        id(&server.post("/v1/environments", environment_of(json!({"type": "self_hosted"}))).await.ok());

    for (body, status, code, word) in [
        (make(json!("agent_none"), &environment), 404, None, "Agent not found: agent_none"),
        (make(json!({"type": "agent", "id": agent, "version": 7}), &environment), 404, None, "version 7"),
        (
            make(json!(agent), "env_none"),
            404,
            Some("environment_not_found"),
            "Environment not found: env_none",
        ),
        (make(json!(unserved), &environment), 400, None, "gpt-none"),
        (
            make(json!({"type": "agent_with_overrides", "id": agent, "model": "gpt-none"}), &environment),
            400,
            None,
            "gpt-none",
        ),
        (
            make(json!({"type": "agent_with_overrides", "id": agent, "model": null}), &environment),
            400,
            Some("agent_model_required"),
            "agent.model",
        ),
        (make(json!(archived_agent), &environment), 400, None, "archived"),
        (make(json!(agent), &archived), 400, Some("environment_archived"), "archived"),
        (make(json!(agent), &self_hosted), 400, None, "self_hosted"),
    ] {
        let answer = server.post("/v1/sessions", body).await;
        assert_eq!((answer.refusal().0, answer.code()), (status, code), "{}", answer.body);
        assert!(answer.refusal().2.contains(word), "{}", answer.body);
    }
    assert_eq!(ids(&server.get("/v1/sessions").await.ok()), Vec::<String>::new(), "nothing was made");

    let packages = json!({"type": "cloud", "packages": {"pip": ["x"]}});
    let packages = id(&server.post("/v1/environments", environment_of(packages)).await.ok());
    server.post("/v1/sessions", make(json!(agent), &packages)).await.ok();
}

#[tokio::test]
async fn an_update_changes_the_session_and_says_so_in_its_log() {
    let server = Server::start().await;
    let session = server.session().await;
    let path = session_path(&session);
    let changed = server.post(&path, json!({"title": "t", "metadata": {"a": "1", "b": "2"}})).await.ok();
    assert_eq!((&changed["title"], &changed["metadata"]), (&json!("t"), &json!({"a": "1", "b": "2"})));
    server.post(&path, json!({"title": "t", "metadata": {"c": null}, "budget": null})).await.ok();
    server.post(&path, json!({"metadata": {"a": null}, "agent": {"tools": []}})).await.ok();
    let events = server.get(&events_of(&session)).await.ok();
    assert_eq!(kinds(&events), ["session.updated", "session.updated"], "what changes nothing is not said");
    assert_eq!(events["data"][0]["title"], "t");
    assert!(events["data"][0].get("agent").is_none());
    assert_eq!(
        (&events["data"][1]["metadata"], &events["data"][1]["agent"]["tools"]),
        (&json!({"b": "2"}), &json!([]))
    );
}

#[tokio::test]
async fn a_session_at_work_is_not_archived_nor_deleted_nor_given_other_tools() {
    let server = Server::start().await;
    let session = server.session().await;
    let path = session_path(&session);
    server.say(&session, &["hello"]).await;
    let before = server.everything(&session).await;
    for answer in [
        server.empty(Method::POST, &format!("{path}/archive")).await,
        server.empty(Method::DELETE, &path).await,
        server.post(&path, json!({"agent": {"tools": []}})).await,
    ] {
        let (status, kind, message) = answer.refusal();
        assert_eq!((status, kind.as_str()), (400, "invalid_request_error"));
        assert!(message.contains("user.interrupt"), "{message}");
    }
    assert_eq!(server.everything(&session).await, before);
}

#[tokio::test]
async fn an_archived_session_stays_readable_and_takes_nothing_more() {
    let server = Server::start().await;
    let session = server.session().await;
    let path = session_path(&session);
    server.say(&session, &["hello"]).await;
    run(&server.store, &session, "hi").await;
    let archived = server.empty(Method::POST, &format!("{path}/archive")).await.ok();
    assert_eq!(archived["status"], "terminated");
    assert!(archived["archived_at"].is_string());
    let again = server.empty(Method::POST, &format!("{path}/archive")).await.ok();
    assert_eq!(
        (&again["archived_at"], &again["updated_at"]),
        (&archived["archived_at"], &archived["updated_at"])
    );

    for answer in [
        server.post(&events_of(&session), json!({"events": [message("more")]})).await,
        server.post(&path, json!({"title": "t"})).await,
    ] {
        assert_eq!((answer.refusal().0, answer.refusal().1.as_str()), (409, "invalid_request_error"));
        assert_eq!(answer.header("x-should-retry"), Some("false"));
    }
    let events = server.get(&events_of(&session)).await.ok();
    assert_eq!(kinds(&events).last().map(String::as_str), Some("session.status_terminated"));
    assert_eq!(ids(&server.get("/v1/sessions").await.ok()), Vec::<String>::new());
    assert_eq!(ids(&server.get("/v1/sessions?include_archived=true").await.ok()), [session.to_string()]);
}

#[tokio::test]
async fn a_deleted_session_is_gone_with_all_its_paths() {
    let server = Server::start().await;
    let session = server.session().await;
    let path = session_path(&session);
    let deleted = server.empty(Method::DELETE, &path).await.ok();
    assert_eq!(deleted, json!({"id": session, "type": "session_deleted"}));
    for path in
        [path.clone(), format!("{path}/events"), format!("{path}/events/stream"), format!("{path}/threads")]
    {
        let (status, kind, message) = server.get(&path).await.refusal();
        assert_eq!((status, kind.as_str()), (404, "not_found_error"), "{path}");
        assert_eq!(message, format!("Session not found: {session}"));
    }
    assert_eq!(server.post(&path, json!({"title": "t"})).await.refusal().0, 404);
    assert_eq!(server.post(&events_of(&session), json!({"events": [message("x")]})).await.refusal().0, 404);
    assert_eq!(server.empty(Method::DELETE, &path).await.refusal().0, 404);
}

/// Pages from the front to the end and back again; gives both walks.
async fn there_and_back(server: &Server, query: &str) -> (Vec<Vec<String>>, Vec<Vec<String>>) {
    let mut there = Vec::new();
    let mut page = server.get(&format!("/v1/sessions?{query}")).await.ok();
    assert_eq!(page["prev_page"], Value::Null, "nothing is before the first page");
    there.push(ids(&page));
    while let Some(next) = page["next_page"].as_str() {
        page = server.get(&format!("/v1/sessions?{query}&page={next}")).await.ok();
        there.push(ids(&page));
    }
    let mut back = vec![ids(&page)];
    while let Some(previous) = page["prev_page"].as_str() {
        page = server.get(&format!("/v1/sessions?{query}&page={previous}")).await.ok();
        back.push(ids(&page));
    }
    assert_eq!(page["next_page"].is_string(), there.len() > 1, "what comes after the first page is known");
    (there, back)
}

#[tokio::test]
async fn sessions_page_forwards_and_back_to_the_same_rows() {
    let server = Server::start().await;
    let mut made = Vec::new();
    for _ in 0..7 {
        made.push(server.session().await.to_string());
    }
    for (order, limit) in [("asc", 3), ("desc", 3), ("desc", 7), ("asc", 2), ("desc", 1)] {
        let (there, mut back) = there_and_back(&server, &format!("order={order}&limit={limit}")).await;
        let mut expected = made.clone();
        if order == "desc" {
            expected.reverse();
        }
        assert_eq!(there.concat(), expected);
        back.reverse();
        assert_eq!(back.concat(), expected);
    }
}

#[tokio::test]
async fn a_page_before_rows_that_are_gone_leads_on_again() {
    let server = Server::start().await;
    let mut made = Vec::new();
    for _ in 0..4 {
        made.push(server.session().await.to_string());
    }
    let first = server.get("/v1/sessions?order=asc&limit=2").await.ok();
    let next = first["next_page"].as_str().expect("more").to_owned();
    let second = server.get(&format!("/v1/sessions?order=asc&limit=2&page={next}")).await.ok();
    let previous = second["prev_page"].as_str().expect("a page before").to_owned();
    for id in &made[..2] {
        server.empty(Method::DELETE, &format!("/v1/sessions/{id}")).await.ok();
    }
    let before = server.get(&format!("/v1/sessions?order=asc&limit=2&page={previous}")).await.ok();
    assert_eq!((ids(&before), &before["prev_page"]), (Vec::new(), &Value::Null));
    let next = before["next_page"].as_str().expect("it leads on").to_owned();
    let after = server.get(&format!("/v1/sessions?order=asc&limit=2&page={next}")).await.ok();
    assert_eq!(ids(&after), &made[2..]);
}

#[tokio::test]
async fn a_cursor_holds_for_its_order_and_its_range_only() {
    let server = Server::start().await;
    for _ in 0..3 {
        server.session().await;
    }
    let page = server.get("/v1/sessions?limit=1").await.ok();
    let next = page["next_page"].as_str().expect("more").to_owned();
    let at = page["data"][0]["created_at"].as_str().expect("a time").to_owned();
    for query in [
        format!("order=asc&page={next}"),
        format!("created_at[lt]={at}&page={next}"),
        "page=page_nonsense".to_owned(),
        "page=".to_owned(),
        format!("page={next}&page={next}"),
    ] {
        assert_eq!(server.get(&format!("/v1/sessions?{query}")).await.refusal().0, 400, "{query}");
    }
    let other_filters = format!("/v1/sessions?limit=5&statuses[]=idle&created_at[lte]={at}&page={next}");
    assert_eq!(ids(&server.get(&other_filters).await.ok()).len(), 2);
    assert_eq!(server.get(&format!("/v1/agents?page={next}")).await.refusal().0, 400, "nor for another list");
}

#[tokio::test]
async fn sessions_are_filtered() {
    let server = Server::start().await;
    let idle = server.session().await;
    let waiting = server.session().await;
    server.say(&waiting, &["hello"]).await;
    let brain = Brain::wake(&server.store, &waiting).await;
    let of = |session: &Value| session["agent"]["id"].as_str().expect("an id").to_owned();
    let agent = of(&server.get(&session_path(&idle)).await.ok());
    let at =
        server.get(&session_path(&waiting)).await.ok()["created_at"].as_str().expect("a time").to_owned();
    let (idle, waiting) = (idle.to_string(), waiting.to_string());
    for (query, expected) in [
        ("statuses[]=idle".to_owned(), vec![&idle]),
        ("statuses=running".to_owned(), vec![&waiting]),
        ("statuses%5B%5D=running&statuses[]=idle".to_owned(), vec![&waiting, &idle]),
        ("statuses[]=terminated".to_owned(), vec![]),
        (format!("agent_id={agent}"), vec![&idle]),
        (format!("agent_id={agent}&agent_version=2"), vec![]),
        ("agent_version=2".to_owned(), vec![&waiting, &idle]),
        (format!("created_at[gte]={at}"), vec![&waiting]),
        (format!("created_at[lt]={at}"), vec![&idle]),
        (format!("created_at[gt]={at}&beta=true"), vec![]),
        ("deployment_id=depl_1".to_owned(), vec![]),
        ("memory_store_id=memstore_1".to_owned(), vec![]),
    ] {
        let page = server.get(&format!("/v1/sessions?{query}")).await.ok();
        assert_eq!(ids(&page).iter().collect::<Vec<_>>(), expected, "{query}");
    }
    for query in [
        "statuses[]=asleep",
        "limit=0",
        "limit=1001",
        "order=up",
        "include_archived=1",
        "agent_version=0",
        "colour=red",
        "created_at[gt]=now",
    ] {
        assert_eq!(server.get(&format!("/v1/sessions?{query}")).await.refusal().0, 400, "{query}");
    }
    brain.rest().await;
}
