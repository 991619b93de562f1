//! Servers that speak chat completions in a dialect.

use harness::model::{Block, Kind, Message, Stop};
use serde_json::{Value, json};
use testkit::model::{Reply, Server};

use super::{ask, prompt, providers, watch};

/// A stream of these chunks, without the closing marker.
fn stream(chunks: &[Value]) -> String {
    chunks.iter().map(|chunk| format!("data: {chunk}\n\n")).collect()
}

fn delta(delta: Value) -> Value {
    json!({"choices": [{"delta": delta}]})
}

fn end(reason: &str) -> Value {
    json!({"choices": [{"delta": {}, "finish_reason": reason}]})
}

async fn blocks(body: String) -> Vec<Block> {
    let server = Server::start().await;
    server.script("m", [Reply::raw(body)]);
    ask(&providers(&server, Kind::OpenAi), &prompt("m", "hi")).await.expect("an answer").blocks
}

fn call(id: &str, input: Value) -> Block {
    let Value::Object(input) = input else { panic!("an object") };
    Block::ToolUse { provider_id: id.into(), name: "bash".into(), input, input_error: None }
}

fn function(arguments: &str) -> Value {
    json!({"name": "bash", "arguments": arguments})
}

#[tokio::test]
async fn nulls_missing_usage_and_a_missing_marker_are_understood() {
    let nulls = json!({"role": "assistant", "content": null, "tool_calls": null, "reasoning_content": null, "refusal": null});
    let body = stream(&[
        delta(nulls),
        delta(json!({"content": "hi"})),
        json!({"choices": [{"delta": null, "finish_reason": "stop"}], "usage": null}),
    ]);
    assert_eq!(blocks(body).await, [Block::Text("hi".into())]);
}

#[tokio::test]
async fn a_missing_reason_to_stop_is_made_up_for_by_the_marker() {
    let body = stream(&[delta(json!({"content": "hi"}))]) + "data: [DONE]\n\n";
    assert_eq!(blocks(body).await, [Block::Text("hi".into())]);
}

#[tokio::test]
async fn calls_are_told_apart_by_index_by_id_or_by_name() {
    let two = |first: Value, second: Value| {
        stream(&[
            delta(json!({"tool_calls": [first]})),
            delta(json!({"tool_calls": [second]})),
            end("tool_calls"),
        ])
    };
    let expected = [call("a", json!({"n": 1})), call("b", json!({"n": 2}))];

    let interleaved = stream(&[
        delta(
            json!({"tool_calls": [{"index": 0, "id": "a", "function": function("")}, {"index": 1, "id": "b", "function": function("")}]}),
        ),
        delta(
            json!({"tool_calls": [{"index": 1, "function": {"arguments": "{\"n\":"}}, {"index": 0, "function": {"arguments": "{\"n\":"}}]}),
        ),
        delta(
            json!({"tool_calls": [{"index": 0, "function": {"arguments": "1}"}}, {"index": 1, "function": {"arguments": "2}"}}]}),
        ),
        end("tool_calls"),
    ]);
    assert_eq!(blocks(interleaved).await, expected);

    let always_zero = two(
        json!({"index": 0, "id": "a", "function": function("{\"n\":1}")}),
        json!({"index": 0, "id": "b", "function": function("{\"n\":2}")}),
    );
    assert_eq!(blocks(always_zero).await, expected);

    let no_index = two(
        json!({"id": "a", "function": function("{\"n\":1}")}),
        json!({"id": "b", "function": function("{\"n\":2}")}),
    );
    assert_eq!(blocks(no_index).await, expected);

    let nothing_but_names =
        two(json!({"function": function("{\"n\":1}")}), json!({"function": function("{\"n\":2}")}));
    assert_eq!(
        blocks(nothing_but_names).await,
        [call("call_0_0_0", json!({"n": 1})), call("call_0_1_0", json!({"n": 2}))]
    );

    let repeated_id = stream(&[
        delta(json!({"tool_calls": [{"index": 0, "id": "a", "function": function("{\"n\"")}]})),
        delta(
            json!({"tool_calls": [{"index": 0, "id": "a", "function": {"name": "bash", "arguments": ":1}"}}]}),
        ),
        end("tool_calls"),
    ]);
    assert_eq!(blocks(repeated_id).await, [call("a", json!({"n": 1}))]);
}

#[tokio::test]
async fn arguments_may_be_an_object_and_ids_may_hold_anything() {
    let whole = json!({"tool_calls": [{"index": 0, "id": "functions.bash:0", "function": {"name": "bash", "arguments": {"n": 1}}}]});
    assert_eq!(
        blocks(stream(&[delta(whole), end("stop")])).await,
        [call("functions_bash_0", json!({"n": 1}))]
    );
}

#[tokio::test]
async fn an_id_that_the_conversation_has_used_is_replaced() {
    let server = Server::start().await;
    let again = json!({"tool_calls": [{"index": 0, "id": "0", "function": function("{}")}]});
    server.script("m", [Reply::raw(stream(&[delta(again), end("stop")]))]);
    let mut prompt = prompt("m", "hi");
    let before = r#"{"type":"tool_use","id":"0","name":"bash","input":{}}"#;
    prompt.messages.push(Message::assistant([before]).expect("JSON"));
    prompt.messages.push(Message::User(vec![super::result("0", Vec::new(), false)]));
    let answer = ask(&providers(&server, Kind::OpenAi), &prompt).await.expect("an answer");
    assert_eq!(answer.blocks, [call("call_1_0_0", json!({}))]);
}

#[tokio::test]
async fn reasoning_has_two_names_and_may_come_between_texts() {
    let server = Server::start().await;
    let body = stream(&[
        delta(json!({"reasoning": "hm"})),
        delta(json!({"reasoning_content": "hm", "content": ""})),
        delta(json!({"content": "one"})),
        delta(json!({"reasoning": "hm", "content": null})),
        delta(json!({"content": "\n"})),
        delta(json!({"content": "two"})),
        end("stop"),
    ]);
    server.script("m", [Reply::raw(body)]);
    let (words, answer) = watch(providers(&server, Kind::OpenAi).ask(&prompt("m", "hi"))).await;
    let expected = [
        "thinking",
        "/thinking",
        "text 1",
        "\"one\"",
        "/text",
        "thinking",
        "/thinking",
        "text 3",
        "\"\\ntwo\"",
        "/text",
    ];
    assert_eq!(words, expected);
    assert_eq!(answer.expect("an answer").raw.len(), 2);
}

#[tokio::test]
async fn a_refusal_told_in_words_is_a_refusal() {
    let server = Server::start().await;
    server.script(
        "m",
        [Reply::raw(stream(&[
            delta(json!({"refusal": "I "})),
            delta(json!({"refusal": "won't."})),
            end("stop"),
        ]))],
    );
    let answer = ask(&providers(&server, Kind::OpenAi), &prompt("m", "hi")).await.expect("an answer");
    assert_eq!(answer.stop, Stop::Refusal { category: None, explanation: Some("I won't.".into()) });
    assert!(answer.blocks.is_empty());
}

#[tokio::test]
async fn blocks_and_fields_that_nobody_here_knows_survive_in_messages() {
    let server = Server::start().await;
    let frame =
        |event: Value| format!("event: {}\ndata: {event}\n\n", event["type"].as_str().unwrap_or_default());
    let body = [
        json!({"type": "message_start", "message": {"model": "m"}}),
        json!({"type": "content_block_start", "index": 0, "content_block": {"type": "server_tool_use", "id": "s", "name": "web_search", "input": {}}}),
        json!({"type": "content_block_delta", "index": 0, "delta": {"type": "input_json_delta", "partial_json": "{\"query\": \"q\"}"}}),
        json!({"type": "content_block_stop", "index": 0}),
        json!({"type": "content_block_start", "index": 1, "content_block": {"type": "tool_use", "id": "t", "name": "bash", "input": {}, "caller": {"type": "direct"}}}),
        json!({"type": "content_block_delta", "index": 1, "delta": {"type": "invented_later", "x": 1}}),
        json!({"type": "content_block_stop", "index": 1}),
        json!({"type": "invented_later"}),
        json!({"type": "message_delta", "delta": {"stop_reason": "tool_use"}, "usage": {"output_tokens": 9}}),
        json!({"type": "message_stop"}),
    ];
    server.script("m", [Reply::raw(body.map(frame).concat())]);
    let answer = ask(&providers(&server, Kind::Anthropic), &prompt("m", "hi")).await.expect("an answer");
    assert_eq!(answer.blocks, [call("t", json!({}))]);
    let raw: Vec<&str> = answer.raw.iter().map(|block| block.get()).collect();
    assert_eq!(
        raw,
        [
            r#"{"id":"s","input":{"query": "q"},"name":"web_search","type":"server_tool_use"}"#,
            r#"{"caller":{"type":"direct"},"id":"t","input":{},"name":"bash","type":"tool_use"}"#,
        ]
    );
    assert_eq!(answer.usage.output_tokens, 9);
}
