//! What a server that means well makes of us.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use mcp::{NoCredentials, Times};
use serde_json::{Value, json};
use testkit::mcp::{McpServer, Reply, event, response, tools};

use crate::common::{PATIENT, called, connect, connect_to, failed, proxy_with, text_of};

#[tokio::test]
async fn tools_are_listed_in_order_and_a_call_gives_what_the_tool_gave() {
    let server = McpServer::usual().await;
    let connection = connect(&server.url()).await.expect("connects");
    let tools = connection.tools().await.expect("lists");
    let shown: Vec<(&str, bool)> = tools.iter().map(|tool| (tool.name.as_str(), tool.repeatable)).collect();
    assert_eq!(shown, [("echo", false), ("flood", false), ("look", true), ("pay", false)]);
    let output = called(&connection, "echo", json!({"x": "hi"})).await.expect("calls");
    assert_eq!((text_of(&output), output.is_error), (r#"echo {"x":"hi"}"#.to_owned(), false));
    connection.close().await;
    let last = server.asked().pop().expect("it was asked");
    assert_eq!(
        (last.http.as_str(), last.session.as_deref()),
        ("DELETE", Some("session-1")),
        "it says goodbye"
    );
}

#[tokio::test]
async fn all_pages_of_a_list_are_read() {
    let server = McpServer::start(|asked| match asked.method.as_str() {
        "tools/list" => {
            let all = tools();
            let page = asked.params["cursor"].as_str().map_or(0, |cursor| cursor.parse().expect("ours"));
            let mut result = json!({"tools": [all[page]]});
            if page < 3 {
                result["nextCursor"] = json!((page + 1).to_string());
            }
            Reply::Result(result)
        }
        _ => Reply::Usual,
    })
    .await;
    let connection = connect(&server.url()).await.expect("connects");
    assert_eq!(connection.tools().await.expect("lists").len(), 4);
    assert_eq!(server.count("tools/list"), 4);
}

#[tokio::test]
async fn an_error_of_a_tool_and_an_error_of_the_protocol_are_told_apart() {
    let server = McpServer::start(|asked| match asked.params["name"].as_str() {
        Some("pay") => {
            Reply::Result(json!({"content": [{"type": "text", "text": "no money"}], "isError": true}))
        }
        Some("echo") => Reply::Error(-32602, "no such tool"),
        _ => Reply::Usual,
    })
    .await;
    let connection = connect(&server.url()).await.expect("connects");
    let output = called(&connection, "pay", json!({})).await.expect("the tool has answered");
    assert_eq!((text_of(&output), output.is_error), ("no money".to_owned(), true));
    let error = failed(called(&connection, "echo", json!({})).await);
    assert_eq!(
        (error.to_string(), error.may_have_happened()),
        ("the server answered: no such tool".to_owned(), false)
    );
}

#[tokio::test]
async fn a_server_that_forgets_the_session_is_greeted_again_and_the_call_made_once() {
    let forgets = Arc::new(AtomicBool::new(true));
    let server = {
        let forgets = Arc::clone(&forgets);
        McpServer::start(move |asked| {
            let is_call = asked.method == "tools/call";
            if is_call && forgets.swap(false, Ordering::Relaxed) {
                return Reply::Http(404, Vec::new(), String::new());
            }
            Reply::Usual
        })
        .await
    };
    let connection = connect(&server.url()).await.expect("connects");
    let output = called(&connection, "pay", json!({})).await.expect("calls");
    assert_eq!(text_of(&output), "pay {}");
    assert_eq!((server.count("initialize"), server.count("tools/call")), (2, 2));
}

#[tokio::test]
async fn progress_keeps_a_call_alive_and_its_end_is_told_to_the_server() {
    // Eight times as long as between two signs of progress, and a third of all of it.
    let quiet_max = Duration::from_secs(2);
    let server = McpServer::start(move |asked| match asked.params["name"].as_str() {
        Some("echo") => {
            let progress = |done: usize| {
                let params =
                    json!({"progressToken": asked.params["_meta"]["progressToken"], "progress": done});
                event(&json!({"jsonrpc": "2.0", "method": "notifications/progress", "params": params}))
            };
            let done = response(&asked.id, &json!({"content": [{"type": "text", "text": "done"}]}));
            Reply::Paced(quiet_max / 8, (1..24).map(progress).chain([event(&done)]).collect())
        }
        Some("pay") => Reply::Open(Vec::new()),
        _ => Reply::Usual,
    })
    .await;
    let times = Times { call_quiet_max: quiet_max, ..PATIENT };
    let connection =
        connect_to(&proxy_with(Arc::new(NoCredentials), times), &server.url()).await.expect("connects");
    let began = Instant::now();
    assert_eq!(text_of(&called(&connection, "echo", json!({})).await.expect("calls")), "done");
    assert!(began.elapsed() > quiet_max * 2, "it took no longer than a call without progress may");
    let error = failed(called(&connection, "pay", json!({})).await);
    assert!(error.may_have_happened() && error.to_string().contains("took longer"), "{error}");
    while server.count("notifications/cancelled") == 0 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_call_that_nobody_waits_for_is_cancelled() {
    let server = McpServer::start(|asked| match asked.params["name"].as_str() {
        Some("pay") => Reply::Open(Vec::new()),
        _ => Reply::Usual,
    })
    .await;
    let connection = connect(&server.url()).await.expect("connects");
    let call = connection.call("pay", serde_json::Map::new()).await.expect("begins");
    while server.count("tools/call") == 0 {
        tokio::task::yield_now().await;
    }
    let id =
        server.asked().iter().find(|asked| asked.method == "tools/call").expect("it is there").id.clone();
    let cancel = call.cancel();
    drop(call);
    cancel.send().await;
    while server.count("notifications/cancelled") == 0 {
        tokio::task::yield_now().await;
    }
    let notice = server.asked().into_iter().find(|asked| asked.method == "notifications/cancelled");
    assert_eq!(notice.expect("it is there").params["requestId"], id);
}

#[tokio::test]
async fn what_the_server_asks_of_us_is_declined() {
    let answers = Arc::new(AtomicUsize::new(0));
    let server = McpServer::start(|asked| match asked.params["name"].as_str() {
        Some("echo") => {
            let ask = |id: usize, method: &str, params: Value| {
                event(&json!({"jsonrpc": "2.0", "id": id, "method": method, "params": params}))
            };
            Reply::Open(vec![
                ask(1, "sampling/createMessage", json!({"messages": [], "maxTokens": 10})),
                ask(2, "elicitation/create", json!({"message": "your password?", "requestedSchema": {"type": "object", "properties": {}}})),
                ask(3, "roots/list", json!({})),
                ask(4, "ping", json!({})),
            ])
        }
        _ => Reply::Usual,
    })
    .await;
    let connection = connect(&server.url()).await.expect("connects");
    let _call = connection.call("echo", serde_json::Map::new()).await.expect("begins");
    let responses =
        || server.asked().into_iter().filter(|asked| asked.http == "POST" && asked.method.is_empty()).count();
    while responses() < 4 {
        tokio::task::yield_now().await;
    }
    answers.store(responses(), Ordering::Relaxed);
    assert_eq!(answers.load(Ordering::Relaxed), 4);
}

#[tokio::test]
async fn a_notice_of_changed_tools_is_noticed() {
    let server = McpServer::start(|asked| match (asked.http.as_str(), asked.method.as_str()) {
        ("GET", _) => {
            let notice = json!({"jsonrpc": "2.0", "method": "notifications/tools/list_changed"});
            Reply::Open(vec![event(&notice)])
        }
        _ => Reply::Usual,
    })
    .await;
    let connection = connect(&server.url()).await.expect("connects");
    while !connection.is_stale() {
        tokio::task::yield_now().await;
    }
    connection.tools().await.expect("lists");
    assert!(!connection.is_stale());
}
