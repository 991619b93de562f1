//! Pages, honest and hostile.

use std::io::Write as _;
use std::time::Duration;

use flate2::Compression;
use flate2::write::GzEncoder;
use harness::web::Times;
use protocol::content::{Content, Source};
use serde_json::json;

use super::origin::{Origin, Reply, html, ok, redirect, status};
use super::{PATIENT, error_text, fetched, page_text};

const CUT: &str = "[The page goes on; the rest was cut off.]";

fn gzip(body: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(body).expect("memory takes it");
    encoder.finish().expect("memory takes it")
}

/// What the model is told of one page.
async fn told_of(reply: impl Fn(&str) -> Reply + Send + Sync + 'static) -> (Vec<Content>, bool) {
    let origin = Origin::start(reply).await;
    fetched(&origin, "/page", json!([]), PATIENT).await
}

#[tokio::test]
async fn a_page_is_given_as_a_document_of_readable_text() {
    let origin =
        Origin::start(|_| html("<title>News</title><h1>Today</h1><p>Read <a href='/more'>more</a>.")).await;
    let result = fetched(&origin, "/page", json!([]), PATIENT).await;
    let [Content::Document { source: Source::Text { media_type, data }, title, context }] =
        result.0.as_slice()
    else {
        panic!("{result:?}")
    };
    let more = origin.url("site.example", "/more");
    assert_eq!(data, &format!("# Today\n\nRead [more]({more})."));
    assert_eq!((media_type.as_str(), title.as_deref()), ("text/plain", Some("News")));
    assert_eq!(
        context.as_deref(),
        Some(format!("Fetched from {}", origin.url("site.example", "/page")).as_str())
    );
    let head = origin.heads().remove(0);
    assert!(head.contains(concat!("user-agent: Posthouse/", env!("CARGO_PKG_VERSION"))), "{head}");
}

#[tokio::test]
async fn a_page_without_end_is_cut_off() {
    let head = b"HTTP/1.1 200 OK\r\ncontent-type: text/html\r\n\r\n".to_vec();
    let result = told_of(move |_| Reply::Endless(head.clone(), b"<p>and on ".repeat(1000))).await;
    let text = page_text(&result);
    assert!(text.ends_with(CUT) && text.len() < 101_000, "{} bytes", text.len());
}

#[tokio::test]
async fn the_agents_limit_cuts_text() {
    let origin = Origin::start(|_| ok("text/plain", "0123456789".repeat(10), "")).await;
    let limit = json!([{"name": "web_fetch", "max_content_tokens": 3}]);
    let result = fetched(&origin, "/page", limit, PATIENT).await;
    assert_eq!(page_text(&result), format!("012345678901\n\n{CUT}"));
}

#[tokio::test]
async fn a_page_that_never_comes_ends_with_the_time() {
    let times = Times { fetch_max: Duration::from_millis(300), ..PATIENT };
    for start in ["", "HTTP/1.1 200 OK\r\ncontent-type: text/html\r\ncontent-length: 100\r\n\r\n<p>half"] {
        let origin = Origin::start(move |_| Reply::Hold(start.as_bytes().to_vec())).await;
        let result = fetched(&origin, "/page", json!([]), times).await;
        assert_eq!(error_text(&result), "web_fetch: url_not_accessible: it took longer than 0.3 s");
    }
}

#[tokio::test]
async fn packed_pages_are_unpacked_within_bounds() {
    let small = told_of(|_| ok("text/plain", gzip(b"hello"), "content-encoding: gzip\r\n")).await;
    assert_eq!(page_text(&small), "hello");
    let bomb = gzip(&vec![b'a'; 20 << 20]);
    let bomb = told_of(move |_| ok("text/plain", &bomb, "content-encoding: gzip\r\n")).await;
    assert!(page_text(&bomb).ends_with(CUT));
    let damaged = told_of(|_| ok("text/plain", b"no gzip", "content-encoding: gzip\r\n")).await;
    assert_eq!(error_text(&damaged), "web_fetch: url_not_accessible: its packing is damaged");
    let unknown = told_of(|_| ok("text/plain", b"x", "content-encoding: br\r\n")).await;
    assert!(error_text(&unknown).starts_with("web_fetch: unsupported_content_type: it is packed as `br`"));
}

#[tokio::test]
async fn what_is_no_text_is_refused_and_a_pdf_is_given_whole() {
    let pdf = b"%PDF-1.4 and so on %%EOF".to_vec();
    let whole = told_of(move |_| ok("application/pdf", &pdf, "")).await;
    let [Content::Document { source: Source::Base64 { media_type, data }, .. }] = whole.0.as_slice() else {
        panic!("{whole:?}")
    };
    assert_eq!((media_type.as_str(), data.as_str()), ("application/pdf", "JVBERi0xLjQgYW5kIHNvIG9uICUlRU9G"));
    for (content_type, body) in [
        ("image/png", b"\x89PNG\r\n".as_slice()),
        ("application/zip", b"PK\x03\x04"),
        ("text/plain", b"\x7fELF\0\0\0"),
        ("application/octet-stream", b"\0\x01\x02"),
        ("application/pdf", b"<html>not a PDF</html>"),
    ] {
        let result = told_of(move |_| ok(content_type, body, "")).await;
        assert!(
            error_text(&result).starts_with("web_fetch: unsupported_content_type: "),
            "{content_type}: {result:?}"
        );
    }
}

#[tokio::test]
async fn odd_encodings_and_deep_pages_are_read() {
    let latin = told_of(|_| ok("text/html; charset=latin1", b"<p>caf\xe9", "")).await;
    assert_eq!(page_text(&latin), "café");
    let lying = told_of(|_| ok("text/html; charset=utf-8", b"<p>caf\xe9", "")).await;
    assert_eq!(page_text(&lying), "caf\u{fffd}");
    let deep = told_of(|_| html(&format!("{}deep", "<blockquote><div>".repeat(100_000)))).await;
    assert!(page_text(&deep).ends_with("deep"));
    let empty = told_of(|_| status("204 No Content", "")).await;
    assert_eq!(page_text(&empty), "(the page has no text)");
}

#[tokio::test]
async fn what_a_site_refuses_is_said() {
    for (line, error) in [
        ("404 Not Found", "url_not_accessible: the site answered 404 Not Found"),
        ("500 Internal Server Error", "url_not_accessible: the site answered 500 Internal Server Error"),
        ("429 Too Many Requests", "too_many_requests: the site answered 429 Too Many Requests"),
        ("302 Found", "url_not_accessible: the site answered 302 Found"),
    ] {
        let result = told_of(move |_| status(line, "")).await;
        assert_eq!(error_text(&result), format!("web_fetch: {error}"));
    }
    let nothing = told_of(|_| Reply::Bytes(Vec::new())).await;
    assert!(error_text(&nothing).starts_with("web_fetch: url_not_accessible: "), "{nothing:?}");
}

#[tokio::test]
async fn redirects_are_followed_and_checked_one_by_one() {
    let origin = Origin::start(|path| match path {
        "/page" => redirect("/two"),
        "/two" => redirect("end"),
        _ => ok("text/plain", "arrived", ""),
    })
    .await;
    let result = fetched(&origin, "/page", json!([]), PATIENT).await;
    assert_eq!(page_text(&result), "arrived");
    let Content::Document { context, .. } = &result.0[0] else { panic!("{result:?}") };
    assert_eq!(
        context.as_deref(),
        Some(format!("Fetched from {}", origin.url("site.example", "/end")).as_str())
    );

    let endless = told_of(|_| redirect("/page")).await;
    assert_eq!(error_text(&endless), "web_fetch: url_not_accessible: it redirects more than 10 times");
    let file = told_of(|_| redirect("file:///etc/passwd")).await;
    assert!(
        error_text(&file).starts_with("web_fetch: url_not_accessible: it redirects to an unusable URL"),
        "{file:?}"
    );
}

#[tokio::test]
async fn a_redirect_does_not_lead_past_the_agents_lists() {
    for lists in [
        json!([{"name": "web_fetch", "blocked_domains": ["other.example"]}]),
        json!([{"name": "web_fetch", "allowed_domains": ["site.example"]}]),
    ] {
        let origin = Origin::start(|path| match path {
            "/page" => redirect("http://other.example/secret"),
            _ => ok("text/plain", "secret", ""),
        })
        .await;
        let result = fetched(&origin, "/page", lists, PATIENT).await;
        let expected =
            "web_fetch: url_not_allowed: the agent's settings do not allow fetching from other.example";
        assert_eq!(error_text(&result), expected);
        assert_eq!(origin.heads().len(), 1, "the other host is not asked");
    }
}

#[tokio::test]
async fn a_redirect_does_not_lead_into_the_operators_network() {
    for to in
        ["http://127.0.0.1/", "http://169.254.169.254/latest/meta-data/", "http://[::1]/", "http://0x7f.1/"]
    {
        let result = told_of(move |_| redirect(to)).await;
        let text = error_text(&result);
        assert!(text.starts_with("web_fetch: url_not_allowed: "), "{to}: {text}");
    }
}
