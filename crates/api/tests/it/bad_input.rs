//! Bad input of every kind to every request type: refused in the standard form, with nothing changed.

use protocol::id::SessionId;
use reqwest::Method;
use serde_json::{Value, json};

use crate::server::{Answer, Server, events_of, id, message, send, session_path};

/// A request type: where it goes, a body that it takes, and the fields it cannot do without.
struct Kind {
    path: String,
    good: Value,
    required: &'static [&'static str],
}

async fn kinds(server: &Server, session: &SessionId) -> Vec<Kind> {
    let agent = server.agent().await;
    let environment = server.environment().await;
    vec![
        Kind {
            path: "/v1/agents".to_owned(),
            good: json!({"name": "a", "description": "d", "model": {"id": "m-1", "effort": "low", "speed": "fast"},
                "system": "s", "metadata": {"k": "v"}, "mcp_servers": [], "skills": [], "multiagent": null,
                "execution_identity": {"type": "service_account"},
                "tools": [{"type": "agent_toolset_20260401", "default_config": {"enabled": true, "permission_policy": {"type": "auto"}},
                           "configs": [{"name": "bash", "enabled": true, "permission_policy": {"type": "always_ask"}}]}]}),
            required: &["name", "model"],
        },
        Kind {
            path: format!("/v1/agents/{agent}"),
            good: json!({"version": 1, "name": "b", "description": "d", "model": "m-2", "system": "s", "tools": [],
                "metadata": {"k": "v"}, "mcp_servers": [], "skills": []}),
            required: &[],
        },
        Kind {
            path: "/v1/environments".to_owned(),
            good: json!({"name": "e", "description": "d", "metadata": {"k": "v"}, "scope": "organization",
                "config": {"type": "cloud", "packages": {"pip": ["x"], "apt": []},
                           "networking": {"type": "limited", "allowed_hosts": ["a.example"], "allow_mcp_servers": true,
                                          "allow_package_managers": true}}}),
            required: &["name"],
        },
        Kind {
            path: format!("/v1/environments/{environment}"),
            good: json!({"name": "f", "description": "d", "metadata": {"k": "v"}, "scope": "organization",
                "config": {"type": "cloud", "networking": {"type": "unrestricted"}}}),
            required: &[],
        },
        Kind {
            path: "/v1/sessions".to_owned(),
            good: json!({"agent": {"type": "agent_with_overrides", "id": agent, "version": 1, "model": "m-1", "system": "s", "tools": []},
                "environment_id": environment, "title": "t", "metadata": {"k": "v"}, "resources": [], "vault_ids": [],
                "initial_events": [message("x")]}),
            required: &["agent", "environment_id"],
        },
        Kind {
            path: session_path(session),
            good: json!({"title": "t", "metadata": {"k": "v"}, "agent": {"tools": [], "mcp_servers": []}}),
            required: &[],
        },
        Kind {
            path: events_of(session),
            good: json!({"events": [
                {"type": "user.message", "content": [
                    {"type": "text", "text": "x"},
                    {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "aGk="}},
                    {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "x"}, "title": "t"}]},
                {"type": "user.interrupt", "session_thread_id": null}]}),
            required: &["events"],
        },
    ]
}

/// Every place in a JSON value, as the keys and indices that lead there.
fn places(value: &Value, here: &str, found: &mut Vec<String>) {
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                let place = format!("{here}/{key}");
                found.push(place.clone());
                places(value, &place, found);
            }
        }
        Value::Array(items) => {
            for (index, value) in items.iter().enumerate() {
                let place = format!("{here}/{index}");
                found.push(place.clone());
                places(value, &place, found);
            }
        }
        _ => {}
    }
}

/// The body with something else at one place.
fn replaced(good: &Value, place: &str, with: Value) -> Value {
    let mut body = good.clone();
    *body.pointer_mut(place).expect("the place is there") = with;
    body
}

#[track_caller]
fn assert_refused(answer: &Answer, what: &str) {
    let (status, _, _) = answer.refusal();
    assert!((400..500).contains(&status), "{status} for {what}");
}

#[tokio::test]
async fn each_field_that_is_missing_wrong_unknown_or_oversized_is_refused_and_changes_nothing() {
    let server = Server::start().await;
    let session = server.session().await;
    for Kind { path, good, required } in kinds(&server, &session).await {
        let before = server.everything(&session).await;
        let mut bad: Vec<Value> = vec![json!(null), json!([]), json!("x"), json!(7), json!(true)];
        for name in required {
            let mut body = good.clone();
            body.as_object_mut().expect("object").remove(*name);
            bad.push(body);
            bad.push(replaced(&good, &format!("/{name}"), Value::Null));
        }
        let mut all = Vec::new();
        places(&good, "", &mut all);
        for place in &all {
            let current = good.pointer(place).expect("the place is there");
            // A number is of the wrong kind everywhere but where a number stands.
            let wrong = if current.is_number() { json!("x") } else { json!(7) };
            bad.push(replaced(&good, place, wrong));
            if current.is_object() && !place.ends_with("/metadata") {
                let mut body = good.clone();
                let object = body.pointer_mut(place).and_then(Value::as_object_mut).expect("an object");
                object.insert("colour".to_owned(), json!("red"));
                bad.push(body);
            }
        }
        let mut unknown = good.clone();
        unknown["colour"] = json!("red");
        bad.push(unknown);
        for (place, chars) in [
            ("/name", 257),
            ("/description", 2_049),
            ("/system", 100_001),
            ("/title", 501),
            ("/metadata/k", 513),
            ("/model/id", 257),
            ("/environment_id", 129),
            ("/agent/id", 129),
            ("/agent/system", 100_001),
        ] {
            if good.pointer(place).is_some() {
                bad.push(replaced(&good, place, json!("x".repeat(chars))));
            }
        }
        if good.get("events").is_some() {
            bad.push(json!({"events": vec![message("x"); 51]}));
            bad.push(json!({"events": [{"type": "agent.message", "content": []}]}));
            bad.push(json!({"events": [{"type": "posthouse.answer"}]}));
        }
        for body in bad {
            let answer = server.post(&path, body.clone()).await;
            let text = body.to_string();
            assert_refused(&answer, &format!("{path} {}", &text[..text.len().min(500)]));
        }
        assert_eq!(server.everything(&session).await, before, "{path}");
        server.post(&path, good).await.ok();
    }
}

#[tokio::test]
async fn a_body_that_is_not_json_is_refused_and_changes_nothing() {
    let server = Server::start().await;
    let session = server.session().await;
    let deep = [vec![b'['; 200_000], vec![b']'; 200_000]].concat();
    let deep_value = [br#"{"name":"#.to_vec(), vec![b'['; 100_000]].concat();
    let bodies: Vec<(&str, Vec<u8>)> = vec![
        ("empty", Vec::new()),
        ("spaces", b"   ".to_vec()),
        ("cut", br#"{"name": "a", "mod"#.to_vec()),
        ("two values", br#"{} {}"#.to_vec()),
        ("not UTF-8", b"{\"name\": \"\xff\xfe\"}".to_vec()),
        ("UTF-16", b"\xff\xfe{\0}\0".to_vec()),
        ("deep", deep),
        ("deep and cut", deep_value),
        ("a lone surrogate", br#"{"name": "\ud800"}"#.to_vec()),
        ("not a number", br#"{"version": NaN}"#.to_vec()),
        ("a huge number", br#"{"version": 1e999}"#.to_vec()),
        ("a trailing comma", br#"{"name": "a",}"#.to_vec()),
        ("form", b"name=a&model=m".to_vec()),
    ];
    for Kind { path, .. } in kinds(&server, &session).await {
        let before = server.everything(&session).await;
        for (what, body) in &bodies {
            let request = server.request(Method::POST, &path).header("content-type", "application/json");
            let answer = send(request.body(body.clone())).await;
            assert_eq!(answer.refusal().0, 400, "{path}: {what}");
        }
        assert_eq!(server.everything(&session).await, before, "{path}");
    }
}

#[tokio::test]
async fn a_body_in_another_form_is_refused() {
    let server = Server::start().await;
    let body = json!({"name": "a", "model": "m"}).to_string();
    let post = || server.request(Method::POST, "/v1/agents").body(body.clone());
    for (name, value) in [
        ("content-encoding", "gzip"),
        ("content-encoding", "br"),
        ("content-type", "text/plain"),
        ("content-type", "application/x-www-form-urlencoded"),
    ] {
        let answer = send(post().header(name, value)).await;
        assert_eq!(answer.refusal().0, 400, "{name}: {value}");
        assert!(answer.refusal().2.starts_with(name), "{}", answer.body);
    }
    for (name, value) in [
        ("content-type", "application/json; charset=utf-8"),
        ("content-type", "Application/JSON"),
        ("content-encoding", "identity"),
        ("x-other", "x"),
    ] {
        send(post().header(name, value)).await.ok();
    }
}

#[tokio::test]
async fn a_body_over_the_limit_is_refused_whatever_it_says_of_its_length() {
    let server = Server::start().await;
    let session = server.session().await;
    let before = server.everything(&session).await;
    let body = json!({"events": [message(&"x".repeat(32 * 1024 * 1024))]}).to_string();
    let post =
        || server.request(Method::POST, &events_of(&session)).header("content-type", "application/json");
    let sized = send(post().body(body.clone())).await;
    assert_eq!((sized.refusal().0, sized.refusal().1.as_str()), (413, "request_too_large"));
    let pieces: Vec<Result<Vec<u8>, std::io::Error>> =
        body.into_bytes().chunks(1 << 20).map(|piece| Ok(piece.to_vec())).collect();
    let chunked = send(post().body(reqwest::Body::wrap_stream(futures_util::stream::iter(pieces)))).await;
    assert_eq!(chunked.refusal().0, 413);
    assert_eq!(server.everything(&session).await, before);
}

#[tokio::test]
async fn requests_that_take_no_body_take_none_an_empty_one_or_an_empty_object() {
    let server = Server::start().await;
    for body in ["", "{}", "null"] {
        let agent = server.agent().await;
        let request = server.request(Method::POST, &format!("/v1/agents/{agent}/archive"));
        send(request.header("content-type", "application/json").body(body)).await.ok();
    }
    let agent = server.agent().await;
    let session = server.session().await;
    for path in [
        format!("/v1/agents/{agent}/archive"),
        format!("{}/archive", session_path(&session)),
        format!("/v1/environments/{}/archive", server.environment().await),
    ] {
        for body in ["[]", "{\"force\": true}", "{", "7"] {
            let answer = send(server.request(Method::POST, &path).body(body)).await;
            assert_eq!(answer.refusal().0, 400, "{path} {body}");
        }
        assert_eq!(server.empty(Method::POST, &format!("{path}?colour=red")).await.refusal().0, 400);
    }
    assert_eq!(server.get(&format!("/v1/agents/{agent}")).await.ok()["archived_at"], Value::Null);
}

#[tokio::test]
async fn paths_and_queries_that_cannot_be_read_are_refused() {
    let server = Server::start().await;
    let long = "x".repeat(2_000);
    for path in [
        "/v1/sessions/%ff".to_owned(),
        "/v1/sessions/%ff/threads/%fe/events".to_owned(),
        format!("/v1/sessions/{long}"),
        "/v1/sessions/%00".to_owned(),
        "/v1/sessions/'%20OR%201=1--".to_owned(),
        "/v1/sessions//events".to_owned(),
        "/v1/sessions/".to_owned(),
        "/v1/sessions?limit=%zz".to_owned(),
        "/v1/sessions?%ff=1".to_owned(),
        format!("/v1/sessions?agent_id={long}"),
        format!("/v1/sessions?page=page_{long}"),
        format!("/v1/sessions?{}", "a&".repeat(1_001)),
        "/v1/agents?created_at[gte]=2026-13-01T00:00:00Z".to_owned(),
        "/v1/agents?limit=99999999999999999999".to_owned(),
    ] {
        assert_refused(&server.get(&path).await, &path);
    }
}

#[tokio::test]
async fn what_another_workspace_has_is_not_there() {
    let server = Server::start().await;
    let session = server.session().await;
    assert_eq!(id(&server.get(&session_path(&session)).await.ok()), session.to_string());
    for path in ["/v1/sessions/sesn_other", "/v1/agents/agent_other", "/v1/environments/env_other"] {
        assert_eq!(server.get(path).await.refusal().0, 404);
    }
}
