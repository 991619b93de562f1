//! Servers that mean ill cost no more than a clear error.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use mcp::limits::{MESSAGE_BYTES_MAX, STREAM_PAUSE};
use mcp::{Error, NoCredentials, Times};
use serde_json::{Value, json};
use testkit::mcp::{McpServer, Reply, event, response};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use crate::common::{PATIENT, called, connect, connect_to, failed, proxy_with, text_of};

fn large(id: &Value) -> Value {
    let text = "x".repeat(MESSAGE_BYTES_MAX);
    response(id, &json!({"content": [{"type": "text", "text": text}]}))
}

async fn answering_calls(reply: impl Fn(&testkit::mcp::Asked) -> Reply + Send + Sync + 'static) -> McpServer {
    McpServer::start(move |asked| if asked.method == "tools/call" { reply(asked) } else { Reply::Usual })
        .await
}

async fn call_error(server: &McpServer, times: Times) -> Error {
    let proxy = proxy_with(Arc::new(NoCredentials), times);
    let connection = connect_to(&proxy, &server.url()).await.expect("connects");
    failed(called(&connection, "pay", json!({})).await)
}

#[tokio::test]
async fn an_answer_that_is_too_large_is_an_error_whichever_way_it_comes() {
    let as_json = answering_calls(|asked| {
        let headers = vec![("content-type", "application/json".to_owned())];
        Reply::Http(200, headers, large(&asked.id).to_string())
    })
    .await;
    let error = call_error(&as_json, PATIENT).await;
    assert!(error.may_have_happened() && error.to_string().contains("larger than"), "{error}");
    let as_event = answering_calls(|asked| Reply::Events(vec![event(&large(&asked.id))])).await;
    let error = call_error(&as_event, PATIENT).await;
    assert!(error.may_have_happened(), "{error}");
}

#[tokio::test]
async fn an_endless_answer_ends() {
    let comments =
        answering_calls(|_| Reply::Endless(Vec::new(), format!(": {}\n", "x".repeat(64_000)))).await;
    assert!(call_error(&comments, PATIENT).await.may_have_happened());
    let notices = answering_calls(|_| {
        let notice = json!({"jsonrpc": "2.0", "method": "notifications/message",
                            "params": {"level": "info", "data": "x".repeat(60_000)}});
        Reply::Endless(Vec::new(), event(&notice))
    })
    .await;
    assert!(call_error(&notices, PATIENT).await.may_have_happened());
}

#[tokio::test]
async fn progress_without_an_end_ends() {
    let server = answering_calls(|asked| {
        let params = json!({"progressToken": asked.params["_meta"]["progressToken"], "progress": 1});
        let progress =
            event(&json!({"jsonrpc": "2.0", "method": "notifications/progress", "params": params}));
        Reply::Endless(Vec::new(), progress)
    })
    .await;
    let times = Times { call_max: Duration::from_millis(500), ..PATIENT };
    let error = call_error(&server, times).await;
    assert!(error.may_have_happened(), "{error}");
}

/// A server that begins every answer with this and then falls silent. Gives its address, how many connections it has taken,
/// and how many of them are open.
async fn silent(beginning: &'static str) -> (String, Arc<AtomicUsize>, Arc<AtomicUsize>) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a free port");
    let url = format!("http://127.0.0.1:{}/mcp", listener.local_addr().expect("it is bound").port());
    let (taken, open) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (taking, opening) = (Arc::clone(&taken), Arc::clone(&open));
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            taking.fetch_add(1, Ordering::Relaxed);
            opening.fetch_add(1, Ordering::Relaxed);
            let open = Arc::clone(&opening);
            tokio::spawn(async move {
                let mut buffer = [0; 4_096];
                while socket.read(&mut buffer).await.is_ok_and(|bytes| bytes > 0) {
                    let _ = socket.write_all(beginning.as_bytes()).await;
                }
                open.fetch_sub(1, Ordering::Relaxed);
            });
        }
    });
    (url, taken, open)
}

#[tokio::test]
async fn a_server_that_never_answers_is_not_waited_for() {
    let soon = Duration::from_millis(200);
    for beginning in [
        "",
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n{",
        "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\ndata: ",
        "HTTP/1.1 400 Bad Request\r\ncontent-length: 100\r\n\r\nno",
    ] {
        let (url, taken, open) = silent(beginning).await;
        let proxy = proxy_with(Arc::new(NoCredentials), Times { connect_max: soon, ..PATIENT });
        let error = failed(connect_to(&proxy, &url).await);
        assert_eq!(
            error,
            Error::Unreachable("the server was not ready within 0.2 s".to_owned()),
            "{beginning}"
        );
        let closing = async {
            while taken.load(Ordering::Relaxed) == 0 || open.load(Ordering::Relaxed) > 0 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let closed = tokio::time::timeout(Duration::from_secs(30), closing).await;
        assert!(closed.is_ok(), "{} connections stay after {beginning:?}", open.load(Ordering::Relaxed));
    }

    let server = McpServer::start(|asked| match asked.method.as_str() {
        "tools/list" => Reply::Never,
        _ => Reply::Usual,
    })
    .await;
    let proxy = proxy_with(Arc::new(NoCredentials), Times { list_max: soon, ..PATIENT });
    let connection = connect_to(&proxy, &server.url()).await.expect("connects");
    assert!(failed(connection.tools().await).to_string().contains("the list of tools took longer"));
}

#[tokio::test]
async fn a_list_without_an_end_is_refused() {
    let server = McpServer::start(|asked| match asked.method.as_str() {
        "tools/list" => Reply::Result(json!({"tools": [], "nextCursor": "again"})),
        _ => Reply::Usual,
    })
    .await;
    let connection = connect(&server.url()).await.expect("connects");
    assert!(failed(connection.tools().await).to_string().contains("more than 64 pages"));
}

#[tokio::test]
async fn what_cannot_be_read_is_an_error() {
    for body in ["", "{", "[]", "null", "{\"jsonrpc\": \"2.0\"}", "<html>"] {
        let server = answering_calls(move |_| {
            Reply::Http(200, vec![("content-type", "application/json".to_owned())], body.to_owned())
        })
        .await;
        let error = call_error(&server, PATIENT).await;
        assert!(error.may_have_happened(), "{body}: {error}");
    }
    let server = answering_calls(|_| Reply::Events(Vec::new())).await;
    assert!(call_error(&server, PATIENT).await.may_have_happened(), "a stream that ends at once");
    let server = answering_calls(|_| Reply::Result(json!({"resultType": "input_required"}))).await;
    let _ = call_error(&server, PATIENT).await;
}

#[tokio::test]
async fn a_server_that_greets_with_nonsense_is_not_connected() {
    for (status, kind, body) in [
        (200, "application/json", "{}"),
        (200, "text/html", "<html>"),
        (500, "text/plain", "down"),
        (418, "text/plain", "a teapot"),
        (200, "text/event-stream", ""),
    ] {
        let server = McpServer::start(move |_| {
            Reply::Http(status, vec![("content-type", kind.to_owned())], body.to_owned())
        })
        .await;
        let error = failed(connect(&server.url()).await);
        assert!(error.to_string().len() < 600, "{error}");
    }
}

#[tokio::test]
async fn nothing_listens_there() {
    let server = McpServer::usual().await;
    let url = server.url();
    drop(server);
    // The port may be somebody else's by now, so only that it is an error counts.
    let _ = failed(connect(&url.replace("/mcp", "/nobody")).await);
}

#[tokio::test]
async fn a_flood_of_words_in_an_error_is_cut() {
    let server = answering_calls(|_| Reply::Http(400, Vec::new(), "no ".repeat(100_000))).await;
    let error = call_error(&server, PATIENT).await;
    assert!(error.to_string().len() < 600 && !error.may_have_happened(), "{error}");
}

#[tokio::test]
async fn streams_that_end_at_once_are_not_begun_for_ever() {
    let server = McpServer::start(|asked| match asked.http.as_str() {
        "GET" => Reply::Events(vec!["retry: 0\n\n".to_owned()]),
        _ => Reply::Usual,
    })
    .await;
    let began = Instant::now();
    let connection = connect(&server.url()).await.expect("connects");
    called(&connection, "echo", json!({})).await.expect("calls");
    while server.asked().iter().filter(|asked| asked.http == "GET").count() < 3 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let elapsed = began.elapsed();
    assert!(elapsed >= STREAM_PAUSE * 2, "three streams within {elapsed:?}");
}

#[tokio::test]
async fn an_answer_to_somebody_else_is_not_taken_for_ours() {
    let server = answering_calls(|asked| {
        let stolen = response(&json!(9_999), &json!({"content": [{"type": "text", "text": "stolen"}]}));
        let ours = response(&asked.id, &json!({"content": [{"type": "text", "text": "ours"}]}));
        Reply::Events(vec![event(&stolen), event(&ours)])
    })
    .await;
    let connection = connect(&server.url()).await.expect("connects");
    let output = called(&connection, "echo", json!({})).await;
    if let Ok(output) = output {
        assert_eq!(text_of(&output), "ours");
    }
}
