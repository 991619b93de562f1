//! What the server answers and what it refuses.

use protocol::sse::Parser;
use serde_json::{Value, json};
use testkit::model::{Chunks, Outcome, Reply, Server, Usage};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// A response, decoded from chunked encoding. `cut` if the connection broke before the last chunk.
struct Response {
    status: u16,
    head: String,
    body: Vec<u8>,
    cut: bool,
}

impl Response {
    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).expect("a JSON body")
    }

    fn frames(&self) -> Vec<(Option<String>, String)> {
        let mut parser = Parser::new();
        parser.push(&self.body);
        std::iter::from_fn(|| parser.next_frame().expect("small frames"))
            .map(|frame| (frame.event, frame.data))
            .collect()
    }

    fn events(&self) -> Vec<Value> {
        self.frames().iter().map(|(_, data)| serde_json::from_str(data).unwrap_or(json!(data))).collect()
    }
}

async fn open(server: &Server, method: &str, path: &str, body: &str) -> TcpStream {
    let mut connection = TcpStream::connect(server.address()).await.expect("the server listens");
    let head = format!(
        "{method} {path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\nx-api-key: secret\r\nanthropic-version: 2023-06-01\r\n\
         content-length: {}\r\n\r\n",
        body.len()
    );
    connection.write_all(head.as_bytes()).await.expect("sent");
    connection.write_all(body.as_bytes()).await.expect("sent");
    connection
}

async fn read(mut connection: TcpStream) -> Response {
    let mut bytes = Vec::new();
    let broken = connection.read_to_end(&mut bytes).await.is_err();
    let end = bytes.windows(4).position(|window| window == b"\r\n\r\n").expect("a head") + 4;
    let head = String::from_utf8_lossy(&bytes[..end]).to_lowercase();
    let status = head[9..12].parse().expect("a status");
    let mut rest = &bytes[end..];
    if !head.contains("transfer-encoding: chunked") {
        return Response { status, head, body: rest.to_vec(), cut: broken };
    }
    let mut body = Vec::new();
    loop {
        let Some(line) = rest.windows(2).position(|window| window == b"\r\n") else {
            return Response { status, head, body, cut: true };
        };
        let size = usize::from_str_radix(std::str::from_utf8(&rest[..line]).expect("hex"), 16).expect("hex");
        if size == 0 {
            return Response { status, head, body, cut: broken };
        }
        body.extend_from_slice(&rest[line + 2..line + 2 + size]);
        rest = &rest[line + 2 + size + 2..];
    }
}

async fn request(server: &Server, method: &str, path: &str, body: Value) -> Response {
    read(open(server, method, path, &body.to_string()).await).await
}

fn ask(model: &str) -> Value {
    json!({"model": model, "max_tokens": 100, "stream": true, "messages": [{"role": "user", "content": "hello"}]})
}

#[tokio::test]
async fn a_reply_is_streamed_as_the_messages_api_does() {
    let server = Server::start().await;
    let reply = Reply::thinking("hm hm").and_text("Grüße dich").and_tool("bash", json!({"command": "ls"}));
    server.script("m", [reply]);
    let response = request(&server, "POST", "/v1/messages", ask("m")).await;
    assert_eq!(response.status, 200);
    assert!(response.head.contains("content-type: text/event-stream"));
    let events = response.events();
    let names: Vec<&str> = events.iter().map(|event| event["type"].as_str().unwrap_or_default()).collect();
    let expected = "message_start content_block_start content_block_delta content_block_delta content_block_delta content_block_stop \
        content_block_start content_block_delta content_block_delta content_block_stop content_block_start content_block_delta \
        content_block_delta content_block_delta content_block_delta content_block_stop message_delta message_stop";
    assert_eq!(names.join(" "), expected);
    assert_eq!(events[7]["delta"]["text"], "Grüße ");
    assert_eq!(events[16]["delta"]["stop_reason"], "tool_use");
    assert_eq!(server.requests("m")[0].outcome, Outcome::Complete);
}

#[tokio::test]
async fn a_reply_is_streamed_as_chat_completions_are() {
    let server = Server::start().await;
    let usage = Usage {
        input_tokens: 3,
        output_tokens: 4,
        cache_read_input_tokens: 2,
        cache_creation_input_tokens: 0,
    };
    server
        .script("m", [Reply::thinking("hm").and_text("Hello you").and_tool("bash", json!({})).usage(usage)]);
    let mut body = ask("m");
    body["stream_options"] = json!({"include_usage": true});
    let response = request(&server, "POST", "/v1/chat/completions", body).await;
    let events = response.events();
    assert_eq!(events[1]["choices"][0]["delta"]["reasoning_content"], "hm");
    assert_eq!(events[2]["choices"][0]["delta"]["content"], "Hello ");
    assert_eq!(events[4]["choices"][0]["delta"]["tool_calls"][0]["function"]["name"], "bash");
    assert_eq!(events[6]["choices"][0]["finish_reason"], "tool_calls");
    assert_eq!(events[7]["usage"]["prompt_tokens"], 5);
    assert_eq!(events[8], json!("[DONE]"));
}

#[tokio::test]
async fn a_reply_comes_whole_when_no_stream_is_asked_for() {
    let server = Server::start().await;
    server.script("m", [Reply::text("one"), Reply::text("two").and_tool("bash", json!({"a": 1}))]);
    let mut body = ask("m");
    body["stream"] = json!(false);
    let message = request(&server, "POST", "/v1/messages", body.clone()).await.json();
    assert_eq!(message["content"], json!([{"type": "text", "text": "one"}]));
    let completion = request(&server, "POST", "/v1/chat/completions", body).await.json();
    assert_eq!(completion["choices"][0]["message"]["content"], "two");
    assert_eq!(completion["choices"][0]["message"]["tool_calls"][0]["function"]["arguments"], "{\"a\":1}");
}

#[tokio::test]
async fn bytes_and_pings_change_the_cutting_and_not_the_answer() {
    let server = Server::start().await;
    let reply = || Reply::thinking("überlegt").and_text("Grüße, 世界");
    server.script("m", [reply(), reply().chunks(Chunks::Bytes).pings()]);
    let plain = request(&server, "POST", "/v1/messages", ask("m")).await.events();
    let cut = request(&server, "POST", "/v1/messages", ask("m")).await.events();
    let without_ids = |events: Vec<Value>| -> Vec<Value> {
        events
            .into_iter()
            .filter(|event| event["type"] != "ping" && event["type"] != "message_start")
            .collect()
    };
    assert_eq!(without_ids(cut), without_ids(plain));
}

#[tokio::test]
async fn a_held_answer_waits_for_its_release_and_notices_a_client_that_leaves() {
    let server = Server::start().await;
    server.script("m", [Reply::text("one two three").hold_after("h", 2), Reply::text("never").hold("other")]);
    let connection = open(&server, "POST", "/v1/messages", &ask("m").to_string()).await;
    server.until_waiting("h").await;
    assert_eq!(request(&server, "GET", "/_waiting?hold=h", json!(null)).await.json(), json!({"waiting": 1}));
    request(&server, "POST", "/_release", json!({"hold": "h"})).await;
    assert_eq!(read(connection).await.events().len(), 8);
    assert_eq!(server.waiting("h"), 0);

    let connection = open(&server, "POST", "/v1/messages", &ask("m").to_string()).await;
    server.until_waiting("other").await;
    drop(connection);
    server.until_outcome("m", 1, Outcome::Aborted).await;
    assert_eq!(server.waiting("other"), 0);
}

#[tokio::test]
async fn a_cut_answer_breaks_the_connection() {
    let server = Server::start().await;
    server.script("m", [Reply::text("one two").cut_after(3)]);
    let response = request(&server, "POST", "/v1/messages", ask("m")).await;
    assert!(response.cut);
    assert_eq!(response.events().len(), 3);
    server.until_outcome("m", 0, Outcome::Cut).await;
}

#[tokio::test]
async fn errors_come_as_statuses_or_as_events() {
    let server = Server::start().await;
    let busy = Reply::error(529, "overloaded_error").with_error(|error| error.retry_after = Some(7));
    server.script("m", [busy, Reply::error_in_stream("api_error").and_text("so far")]);
    let response = request(&server, "POST", "/v1/messages", ask("m")).await;
    assert_eq!((response.status, response.json()["error"]["type"].clone()), (529, json!("overloaded_error")));
    assert!(response.head.contains("retry-after: 7"));
    let frames = request(&server, "POST", "/v1/messages", ask("m")).await.frames();
    assert_eq!(frames.last().expect("frames").0.as_deref(), Some("error"));
    let empty = request(&server, "POST", "/v1/messages", ask("m")).await;
    assert_eq!((empty.status, empty.json()["error"]["message"].clone()), (500, json!("script is empty")));
}

#[tokio::test]
async fn other_languages_script_the_server_and_read_what_it_saw() {
    let server = Server::start().await;
    let script = json!({"model": "m", "replies": [{"blocks": [{"text": "hi"}]}]});
    assert_eq!(request(&server, "POST", "/_script", script).await.status, 200);
    assert_eq!(
        request(&server, "POST", "/_script", json!({"model": "m", "replies": [{"bloks": []}]})).await.status,
        422
    );
    request(&server, "POST", "/v1/messages", ask("m")).await;
    let seen = request(&server, "GET", "/_requests?model=m", json!(null)).await.json();
    let request_seen = &seen["requests"][0];
    assert_eq!(request_seen["path"], "/v1/messages");
    assert_eq!(request_seen["headers"]["x-api-key"], "secret");
    assert_eq!(request_seen["body"], ask("m"));
    assert_eq!(request_seen["raw"], json!(ask("m").to_string()));
    let models = request(&server, "GET", "/v1/models", json!(null)).await.json();
    assert_eq!(models["data"][0]["id"], "m");
}

/// Sends these messages and gives the refusal, if there is one.
async fn verdict(path: &str, messages: Value) -> Option<String> {
    let server = Server::start().await;
    server.script("m", [Reply::text("fine")]);
    let mut body = ask("m");
    body["messages"] = messages;
    let response = request(&server, "POST", path, body).await;
    assert_eq!(response.status == 400, !server.violations().is_empty());
    (response.status == 400)
        .then(|| response.json()["error"]["message"].as_str().expect("a message").to_owned())
}

#[tokio::test]
async fn a_broken_history_is_refused_as_the_messages_api_refuses_it() {
    let user = json!({"role": "user", "content": "hi"});
    let call = json!({"role": "assistant", "content": [{"type": "tool_use", "id": "t1", "name": "bash", "input": {}}]});
    let result = |id: &str| json!({"type": "tool_result", "tool_use_id": id});
    let error = |content: Value| json!({"type": "tool_result", "tool_use_id": "t1", "is_error": true, "content": content});
    let image = json!({"type": "image", "source": {"type": "url", "url": "https://example.test"}});
    let answer = |blocks: Value| json!({"role": "user", "content": blocks});
    let system = json!({"role": "system", "content": "be brief"});
    let text = json!({"type": "text", "text": "and"});
    let unsigned = json!({"role": "assistant", "content": [{"type": "thinking", "thinking": "hm", "signature": "forged"}]});
    for (messages, expected) in [
        (json!([user, call, answer(json!([result("t1"), text]))]), None),
        (json!([user, system]), None),
        (json!([user, user]), None),
        (json!([call]), Some("first message must use the user role")),
        (json!([user, call]), Some("without `tool_result`")),
        (json!([user, call, user]), Some("without `tool_result`")),
        (json!([user, call, answer(json!([text, result("t1")]))]), Some("must come first")),
        (json!([user, call, answer(json!([result("t2")]))]), Some("unexpected `tool_use_id`")),
        (json!([user, call, answer(json!([result("t1"), result("t1")]))]), Some("single result")),
        (
            json!([user, call, answer(json!([result("t1")])), call, answer(json!([result("t1")]))]),
            Some("must be unique"),
        ),
        (json!([user, call, answer(json!([error(json!([text])), image]))]), None),
        (json!([user, call, answer(json!([error(json!("no"))]))]), None),
        (
            json!([user, call, answer(json!([error(json!([text, image]))]))]),
            Some("all content must be type \"text\""),
        ),
        (json!([user, call, answer(json!([error(json!([]))]))]), Some("content cannot be empty")),
        (json!([user, system, user]), Some("followed by an assistant message")),
        (json!([user, unsigned, user]), Some("Invalid `signature`")),
        (json!([{"role": "user", "content": " "}]), Some("non-whitespace")),
        (json!([]), Some("at least one message")),
    ] {
        let refusal = verdict("/v1/messages", messages.clone()).await;
        match expected {
            None => assert_eq!(refusal, None, "{messages}"),
            Some(expected) => {
                assert!(
                    refusal.as_ref().is_some_and(|message| message.contains(expected)),
                    "{messages}: {refusal:?}"
                )
            }
        }
    }
}

#[tokio::test]
async fn a_broken_history_is_refused_as_chat_completions_refuse_it() {
    let user = json!({"role": "user", "content": "hi"});
    let function = json!({"name": "bash", "arguments": "{}"});
    let call = json!({"role": "assistant", "content": null, "tool_calls": [{"id": "t1", "type": "function", "function": function}]});
    let result = |id: &str| json!({"role": "tool", "tool_call_id": id, "content": "ok"});
    for (messages, expected) in [
        (json!([user, call, result("t1"), user]), None),
        (json!([user, call, user]), Some("did not have response messages: t1")),
        (json!([user, result("t1")]), Some("must be a response to a preceding message")),
        (json!([user, call, result("t2")]), Some("must be a response to a preceding message")),
        (json!([user, {"role": "assistant", "content": null}]), Some("expected a string")),
    ] {
        let refusal = verdict("/v1/chat/completions", messages.clone()).await;
        match expected {
            None => assert_eq!(refusal, None, "{messages}"),
            Some(expected) => {
                assert!(
                    refusal.as_ref().is_some_and(|message| message.contains(expected)),
                    "{messages}: {refusal:?}"
                )
            }
        }
    }
}

#[tokio::test]
async fn thinking_has_to_come_back_with_the_call_it_led_to() {
    let server = Server::start().await;
    server.script("m", [Reply::thinking("hm").and_tool("bash", json!({})), Reply::text("fine")]);
    let mut body = ask("m");
    body["stream"] = json!(false);
    let answered = request(&server, "POST", "/v1/messages", body.clone()).await.json();
    let result = json!({"role": "user", "content": [{"type": "tool_result", "tool_use_id": answered["content"][1]["id"]}]});
    let mut without = body.clone();
    without["messages"] =
        json!([body["messages"][0], {"role": "assistant", "content": [answered["content"][1]]}, result]);
    assert_eq!(request(&server, "POST", "/v1/messages", without).await.status, 400);
    body["messages"] =
        json!([body["messages"][0], {"role": "assistant", "content": answered["content"]}, result]);
    assert_eq!(request(&server, "POST", "/v1/messages", body).await.status, 200);
}
