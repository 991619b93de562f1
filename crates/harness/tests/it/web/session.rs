//! The web tools in the course of a session: what may be fetched, crashes, interrupts, permissions.

use std::sync::Arc;

use harness::faults::Faults;
use harness::web::{SearchConfig, SearchKind, SearchProvider};
use protocol::content::Content;
use protocol::event::{Body, Permission, Verdict};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::origin::{Origin, Reply, html, ok};
use super::{PATIENT, error_text, page_text, results, session, wake, web, world};
use crate::crash::{DieAt, check_log};
use crate::world::{World, message, scripted};

fn fetch(url: &str) -> Value {
    json!({"tool": "web_fetch", "input": {"url": url}})
}

const DONE: &str = "done";

fn done() -> Value {
    json!({"blocks": [{"text": DONE}]})
}

/// A site with a page that links to another.
async fn linked() -> Origin {
    Origin::start(|path| match path {
        "/start" => html("<p><a href='/next'>next</a> and <a href='http://other.example/far'>far</a>"),
        path => ok("text/plain", format!("this is {path}"), ""),
    })
    .await
}

#[tokio::test]
async fn only_addresses_that_the_session_has_shown_are_fetched() {
    let origin = linked().await;
    let url = |path: &str| origin.url("site.example", path);
    let dir = tempfile::tempdir().expect("a folder");
    let world = world(
        &dir,
        json!([
            {"blocks": [fetch(&url("/next"))]},
            {"blocks": [fetch(&url("/start"))]},
            {"blocks": [fetch(&url("/next"))]},
            {"blocks": [fetch(&url("/start?secret=1"))]},
            {"blocks": [{"tool": "lookup", "input": {}}]},
            {"blocks": [fetch(&url("/custom"))]},
            done(),
        ]),
    )
    .await;
    let session = session(&world, json!([]), &format!("begin at {}", url("/start"))).await;
    wake(&world, &session, web(&origin, None, PATIENT)).await;
    let waiting = world.state(&session).await.calls.remove(0).id;
    let content = vec![Content::text(format!("it is at {}", url("/custom")))];
    let answer = Body::UserCustomToolResult { custom_tool_use_id: waiting, content, is_error: None };
    world.send(&session, vec![answer]).await;
    wake(&world, &session, web(&origin, None, PATIENT)).await;
    let results = results(&world, &session).await;
    assert!(error_text(&results[0]).starts_with("web_fetch: url_not_in_prior_context: "), "{results:?}");
    assert!(page_text(&results[1]).contains(&url("/next")));
    assert_eq!(page_text(&results[2]), "this is /next");
    assert!(error_text(&results[3]).starts_with("web_fetch: url_not_in_prior_context: "), "{results:?}");
    assert_eq!(page_text(&results[4]), "this is /custom");
    assert_eq!(results.len(), 5);
    assert_eq!(origin.heads().len(), 3, "what is refused is not asked for");
}

#[tokio::test]
async fn sources_and_lists_of_the_agent_hold() {
    let origin = linked().await;
    let url = |path: &str| origin.url("site.example", path);
    let dir = tempfile::tempdir().expect("a folder");
    let world = world(
        &dir,
        json!([
            {"blocks": [fetch(&url("/start")), fetch(&url("/next")), fetch(&origin.url("other.example", "/far"))]},
            done(),
        ]),
    )
    .await;
    let settings = json!([{"name": "web_fetch", "allowed_domains": ["site.example"],
                           "url_sources": {"server_tool_results": "none"}}]);
    let text = format!("begin at {} or {}", url("/start"), origin.url("other.example", "/far"));
    let session = session(&world, settings, &text).await;
    wake(&world, &session, web(&origin, None, PATIENT)).await;
    let results = results(&world, &session).await;
    assert!(!results[0].1);
    assert!(error_text(&results[1]).starts_with("web_fetch: url_not_in_prior_context: "), "{results:?}");
    assert!(error_text(&results[2]).starts_with("web_fetch: url_not_allowed: "), "{results:?}");
}

#[tokio::test]
async fn what_is_found_by_a_search_may_be_fetched() {
    let origin = Origin::start(|path| match path.split('?').next() {
        Some("/search") => {
            let port = path.rsplit('+').next().and_then(|rest| rest.split('&').next()).unwrap_or_default();
            let url = format!("http://site.example:{port}/found");
            ok(
                "application/json",
                json!({"results": [{"url": url, "title": "Found", "content": "x"}]}).to_string(),
                "",
            )
        }
        _ => ok("text/plain", "found", ""),
    })
    .await;
    let config = SearchConfig::new(SearchKind::Searxng, Some(format!("http://127.0.0.1:{}", origin.port())));
    let provider = SearchProvider::build(config, &|_| None).expect("valid");
    let dir = tempfile::tempdir().expect("a folder");
    let query = format!("horses {}", origin.port());
    let world = world(
        &dir,
        json!([
            {"blocks": [{"tool": "web_search", "input": {"query": query}}]},
            {"blocks": [fetch(&origin.url("site.example", "/found"))]},
            {"blocks": [{"tool": "web_search", "input": {"query": "q".repeat(401)}}, {"tool": "web_search", "input": {}}]},
            done(),
        ]),
    )
    .await;
    let session = session(&world, json!([]), "find it").await;
    wake(&world, &session, web(&origin, Some(provider), PATIENT)).await;
    let results = results(&world, &session).await;
    assert_eq!(page_text(&results[1]), "found");
    assert!(error_text(&results[2]).starts_with("web_search: query_too_long: "), "{results:?}");
    assert!(error_text(&results[3]).starts_with("web_search: invalid_tool_input: "), "{results:?}");
    let used = world.state(&session).await.usage_at(world.store.now()).server_tool_use;
    assert_eq!((used.web_search_requests, used.web_fetch_requests), (1, 0), "only what gave results counts");
}

#[tokio::test]
async fn without_a_search_provider_a_search_is_a_call_of_a_tool_that_is_not_there() {
    let origin = linked().await;
    let dir = tempfile::tempdir().expect("a folder");
    let search = json!({"blocks": [{"tool": "web_search", "input": {"query": "q"}}]});
    let world = world(&dir, json!([search, done()])).await;
    let session = session(&world, json!([{"name": "web_search", "enabled": true}]), "go").await;
    wake(&world, &session, web(&origin, None, PATIENT)).await;
    let log = world.log(&session).await;
    let permission = log.iter().find_map(|event| match &event.body {
        Body::AgentToolUse { evaluated_permission, .. } => Some(*evaluated_permission),
        _ => None,
    });
    assert_eq!(permission, Some(Permission::Deny));
    assert_eq!(
        error_text(&results(&world, &session).await[0]),
        "Permission to use web_search has been denied."
    );
}

#[tokio::test]
async fn bad_input_is_explained_to_the_model() {
    let origin = linked().await;
    let inputs = [
        (json!({}), "invalid_tool_input: `url` is required"),
        (json!({"url": 7}), "invalid_tool_input: `url` is required"),
        (json!({"url": "example.com"}), "invalid_tool_input: `url` must be a whole URL"),
        (json!({"url": "file:///etc/passwd"}), "invalid_tool_input: the URL must begin with http"),
        (
            json!({"url": "http://me:secret@site.example/"}),
            "invalid_tool_input: the URL must not hold credentials",
        ),
        (json!({"url": format!("http://site.example/{}", "x".repeat(3000))}), "url_too_long: "),
        (json!({"url": "http://127.0.0.1/"}), "url_not_allowed: "),
    ];
    let calls: Vec<Value> =
        inputs.iter().map(|(input, _)| json!({"tool": "web_fetch", "input": input})).collect();
    let dir = tempfile::tempdir().expect("a folder");
    let world = world(&dir, json!([{ "blocks": calls }, done()])).await;
    let session = session(&world, json!([]), "http://127.0.0.1/").await;
    wake(&world, &session, web(&origin, None, PATIENT)).await;
    for (result, (input, error)) in results(&world, &session).await.iter().zip(inputs) {
        assert!(error_text(result).starts_with(&format!("web_fetch: {error}")), "{input}: {result:?}");
    }
    assert_eq!(origin.heads().len(), 0);
}

#[tokio::test]
async fn an_interrupt_ends_a_fetch_at_once() {
    let origin =
        Origin::start(|_| Reply::Hold(b"HTTP/1.1 200 OK\r\ncontent-type: text/html\r\n\r\n".to_vec())).await;
    let url = origin.url("site.example", "/page");
    let dir = tempfile::tempdir().expect("a folder");
    let world = world(&dir, json!([{"blocks": [fetch(&url)]}, done()])).await;
    let session = session(&world, json!([]), &url).await;
    let waking = wake(&world, &session, web(&origin, None, PATIENT));
    let interrupting = async {
        origin.until_asked().await;
        world.send(&session, vec![Body::UserInterrupt { session_thread_id: None }]).await;
        origin.until_left().await;
    };
    tokio::join!(waking, interrupting);
    let told = world.told(&session).await;
    let expected = "error: Tool execution was interrupted before completion. Please retry.\nidle: end_turn";
    assert!(told.ends_with(expected), "{told}");
    check_log(&world, &session).await;
}

#[tokio::test]
async fn a_fetch_that_the_client_is_asked_about_runs_when_it_is_allowed() {
    let origin = linked().await;
    let url = origin.url("site.example", "/page");
    let dir = tempfile::tempdir().expect("a folder");
    let world = world(&dir, json!([{"blocks": [fetch(&url)]}, done()])).await;
    let ask = json!([{"name": "web_fetch", "permission_policy": {"type": "always_ask"}}]);
    let session = session(&world, ask, &url).await;
    wake(&world, &session, web(&origin, None, PATIENT)).await;
    assert_eq!(origin.heads().len(), 0);
    let call = world.state(&session).await.calls.remove(0).id;
    let confirmation =
        Body::UserToolConfirmation { tool_use_id: call, result: Verdict::Allow, deny_message: None };
    world.send(&session, vec![confirmation]).await;
    wake(&world, &session, web(&origin, None, PATIENT)).await;
    assert_eq!(page_text(&results(&world, &session).await[0]), "this is /page");
}

/// Runs a fetch with a brain that dies at the n-th point, then with one that lives. `false` if the first came to the end.
async fn dies_at(n: usize) -> bool {
    let origin = linked().await;
    let url = origin.url("site.example", "/page");
    let dir = tempfile::tempdir().expect("a folder");
    let models = scripted(json!([{"blocks": [fetch(&url)]}, done()]));
    let world = World::open(dir.path(), Arc::clone(&models), Arc::default()).await;
    let session = session(&world, json!([]), &url).await;
    let faults = DieAt::new(n);
    let brain = world.brain_with(|options| {
        options.web = Some(web(&origin, None, PATIENT));
        options.faults = Arc::clone(&faults) as Arc<dyn Faults>;
    });
    let shutdown = CancellationToken::new();
    let has_died = tokio::select! {
        woken = brain.wake(&session, &shutdown) => { woken.expect("the store works"); false }
        () = faults.died.notified() => true,
    };
    drop(brain);
    world.store.clone().close().await;
    drop(world);

    let world = World::open(dir.path(), models, Arc::default()).await;
    wake(&world, &session, web(&origin, None, PATIENT)).await;
    let results = results(&world, &session).await;
    assert_eq!(results.len(), 1, "death at point {n}");
    assert_eq!(page_text(&results[0]), "this is /page", "death at point {n}");
    let told = world.told(&session).await;
    assert!(told.ends_with("agent: done\nidle: end_turn"), "death at point {n}: {told}");
    assert!((1..=2).contains(&origin.heads().len()), "a fetch that was cut off is made again, and only that");
    check_log(&world, &session).await;
    has_died
}

#[tokio::test]
async fn a_brain_may_die_around_a_fetch_and_the_next_one_fetches_again() {
    let mut n = 0;
    while dies_at(n).await {
        n += 1;
    }
    assert!(n > 8, "the scenario has only {n} points");
}

#[tokio::test]
async fn an_address_far_back_in_a_long_session_is_still_known() {
    let origin = linked().await;
    let url = origin.url("site.example", "/page");
    let dir = tempfile::tempdir().expect("a folder");
    let mut replies: Vec<Value> = (0..100).map(|_| done()).collect();
    replies.extend([json!({"blocks": [fetch(&url)]}), done()]);
    let world = world(&dir, json!(replies)).await;
    let session = session(&world, json!([]), &url).await;
    wake(&world, &session, web(&origin, None, PATIENT)).await;
    for _ in 0..100 {
        world.send(&session, vec![message("go on")]).await;
        wake(&world, &session, web(&origin, None, PATIENT)).await;
    }
    assert_eq!(page_text(&results(&world, &session).await[0]), "this is /page");
}
