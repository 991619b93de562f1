//! Searching, with providers that speak as the real ones do.

use harness::web::{SearchConfig, SearchKind, SearchProvider};
use protocol::content::Content;
use serde_json::{Value, json};

use super::origin::{Origin, Reply, ok, status};
use super::{PATIENT, error_text, results, session, wake, web, world};

const SEARXNG: &str = r#"{"query": "q", "number_of_results": 0, "results": [
    {"url": "https://one.example/a", "title": "One", "content": "About <b>one</b>.", "engine": "x", "engines": ["x"],
     "parsed_url": ["https", "one.example", "/a", "", "", ""], "template": "default.html", "positions": [1],
     "publishedDate": null, "score": 1.0, "category": "general"},
    {"url": "https://two.example/b", "title": "Two", "content": "", "publishedDate": "2026-01-02T00:00:00"}],
    "answers": [], "corrections": [], "infoboxes": [], "suggestions": [], "unresponsive_engines": [["y", "timeout"]]}"#;

const BRAVE: &str = r#"{"type": "search", "query": {"original": "q", "more_results_available": true},
    "mixed": {"type": "mixed"}, "web": {"type": "search", "results": [
    {"type": "search_result", "title": "One &amp; only", "url": "https://one.example/a", "is_source_local": false,
     "description": "It&#x27;s one.", "extra_snippets": ["More of it."], "page_age": "2026-01-02T00:00:00",
     "profile": {"name": "One"}, "language": "en", "family_friendly": true}]}}"#;

fn provider(kind: SearchKind, origin: &Origin) -> SearchProvider {
    let mut config = SearchConfig::new(kind, Some(format!("http://127.0.0.1:{}", origin.port())));
    if kind == SearchKind::Brave {
        config.api_key_env = Some("BRAVE".to_owned());
    }
    SearchProvider::build(config, &|name| (name == "BRAVE").then(|| "brave-secret-key".to_owned()))
        .expect("valid")
}

/// Searches once, and gives what the model is told.
async fn searched(kind: SearchKind, origin: &Origin, settings: Value) -> (Vec<Content>, bool) {
    let dir = tempfile::tempdir().expect("a folder");
    let replies = json!([{"blocks": [{"tool": "web_search", "input": {"query": "horses & posts"}}]}, {"blocks": [{"text": "done"}]}]);
    let world = world(&dir, replies).await;
    let mut config = json!({"name": "web_search"});
    config.as_object_mut().expect("object").extend(settings.as_object().expect("object").clone());
    let session = session(&world, json!([config]), "search").await;
    wake(&world, &session, web(origin, Some(provider(kind, origin)), PATIENT)).await;
    let result = results(&world, &session).await.remove(0);
    let used = world.state(&session).await.usage_at(world.store.now()).server_tool_use;
    assert_eq!((used.web_search_requests, used.web_fetch_requests), (u64::from(!result.1), 0));
    assert_eq!(world.hands.living(), 0);
    let log = serde_json::to_string(&world.log(&session).await).expect("JSON");
    assert!(!log.contains("brave-secret-key"));
    result
}

/// The hits as source, title and text.
fn hits(result: &(Vec<Content>, bool)) -> Vec<(String, String, String)> {
    let hit = |content: &Content| match content {
        Content::SearchResult { source, title, content, citations: _ } => {
            (source.clone(), title.clone(), content[0].text.clone())
        }
        other => panic!("{other:?}"),
    };
    assert!(!result.1, "{result:?}");
    result.0.iter().map(hit).collect()
}

fn hit(source: &str, title: &str, text: &str) -> (String, String, String) {
    (source.to_owned(), title.to_owned(), text.to_owned())
}

#[tokio::test]
async fn a_searxng_server_is_asked_for_json() {
    let origin = Origin::start(|_| ok("application/json", SEARXNG, "")).await;
    let result = searched(SearchKind::Searxng, &origin, json!({})).await;
    assert_eq!(
        hits(&result),
        [
            hit("https://one.example/a", "One", "About one."),
            hit("https://two.example/b", "Two", "Published: 2026-01-02T00:00:00"),
        ]
    );
    let head = origin.heads().remove(0);
    assert!(head.starts_with("GET /search?q=horses+%26+posts&format=json HTTP/1.1"), "{head}");
}

#[tokio::test]
async fn brave_is_asked_with_its_key_and_the_users_place() {
    let origin = Origin::start(|_| ok("application/json", BRAVE, "")).await;
    let place = json!({"user_location": {"type": "approximate", "city": "Berlin", "country": "DE", "timezone": "Europe/Berlin"}});
    let result = searched(SearchKind::Brave, &origin, place).await;
    let expected =
        hit("https://one.example/a", "One & only", "It's one.\nMore of it.\nPublished: 2026-01-02T00:00:00");
    assert_eq!(hits(&result), [expected]);
    let head = origin.heads().remove(0);
    assert!(head.starts_with("GET /web/search?q=horses+%26+posts&count=20&"), "{head}");
    for part in [
        "&country=DE",
        "x-subscription-token: brave-secret-key",
        "x-loc-city: Berlin",
        "x-loc-timezone: Europe/Berlin",
    ] {
        assert!(head.contains(part), "{part}: {head}");
    }
}

#[tokio::test]
async fn results_that_the_lists_do_not_let_through_are_dropped_in_silence() {
    for (settings, left) in [
        (json!({"allowed_domains": ["two.example"]}), vec!["https://two.example/b"]),
        (json!({"blocked_domains": ["two.example"]}), vec!["https://one.example/a"]),
        (json!({"allowed_domains": ["one.example/a", "example.org"]}), vec!["https://one.example/a"]),
    ] {
        let origin = Origin::start(|_| ok("application/json", SEARXNG, "")).await;
        let result = searched(SearchKind::Searxng, &origin, settings).await;
        assert_eq!(hits(&result).into_iter().map(|(source, ..)| source).collect::<Vec<_>>(), left);
    }
    let origin = Origin::start(|_| ok("application/json", SEARXNG, "")).await;
    let none = searched(SearchKind::Searxng, &origin, json!({"allowed_domains": ["three.example"]})).await;
    assert_eq!(none, (vec![Content::text("no results")], false));
}

#[tokio::test]
async fn what_a_provider_refuses_is_said_without_its_address_or_key() {
    let cases: [(Reply, &str); 6] = [
        (
            status("429 Too Many Requests", ""),
            "too_many_requests: the search provider limits our rate; try again later",
        ),
        (status("401 Unauthorized", ""), "unavailable: the search provider answered 401"),
        (
            status("422 Unprocessable Entity", ""),
            "invalid_tool_input: the search provider refuses this query",
        ),
        (
            status("302 Found", "location: https://elsewhere.example/\r\n"),
            "unavailable: the search provider answered 302",
        ),
        (ok("text/html", "<html>", ""), "unavailable: the search provider's answer cannot be read"),
        (Reply::Bytes(Vec::new()), "unavailable: the search provider cannot be reached"),
    ];
    for (reply, error) in cases {
        let origin = Origin::start(move |_| reply.clone()).await;
        let result = searched(SearchKind::Brave, &origin, json!({})).await;
        assert_eq!(error_text(&result), format!("web_search: {error}"));
    }
}
