//! What is sent: the shape on each wire, and that it only ever grows at its end.

use harness::model::{Block, Kind, Message, Prompt, Thinking, UserBlock};
use protocol::agent::{EffortLevel, Speed};
use protocol::content::{Citations, Content, Source, TextBlock, TextTag};
use serde_json::{Value, json};
use testkit::model::{Reply, Server};

use super::{WIRES, ask, build, config, prompt, providers, result};

/// The body that a prompt gives on a wire.
async fn body(
    kind: Kind,
    change: impl FnOnce(&mut harness::model::ProviderConfig),
    prompt: &Prompt,
) -> Value {
    let server = Server::start().await;
    server.script(&prompt.model, [Reply::text("ok")]);
    let mut config = config(&server, kind);
    change(&mut config);
    ask(&build(config), prompt).await.expect("an answer");
    assert_eq!(server.violations(), Vec::<String>::new());
    server.requests(&prompt.model)[0].body.clone()
}

fn picture() -> Content {
    Content::Image { source: Source::Base64 { media_type: "image/png".into(), data: "aGk=".into() } }
}

fn document() -> Content {
    let source = Source::Text { media_type: "text/plain".into(), data: "the text".into() };
    Content::Document { source, title: Some("A title".into()), context: None }
}

fn search_result() -> Content {
    Content::SearchResult {
        source: "https://example.test".into(),
        title: "A page".into(),
        content: vec![TextBlock { kind: TextTag::Text, text: "found".into() }],
        citations: Citations { enabled: true },
    }
}

#[tokio::test]
async fn a_request_of_messages_has_its_headers_and_breakpoints() {
    let server = Server::start().await;
    server.script("claude-opus-5", [Reply::text("ok")]);
    ask(&providers(&server, Kind::Anthropic), &prompt("claude-opus-5", "hi")).await.expect("an answer");
    let request = &server.requests("claude-opus-5")[0];
    assert_eq!(request.path, "/v1/messages");
    assert_eq!(request.headers["x-api-key"], "secret-test-key");
    assert_eq!(request.headers["anthropic-version"], "2023-06-01");
    assert!(!request.headers.contains_key("authorization"));
    let breakpoint = json!({"type": "ephemeral"});
    let expected = json!({
        "model": "claude-opus-5",
        "max_tokens": 32000,
        "stream": true,
        "cache_control": breakpoint,
        "tools": [{
            "name": "bash",
            "description": "Runs a command.",
            "input_schema": {"type": "object", "properties": {"command": {"type": "string"}}, "required": ["command"]},
            "cache_control": breakpoint,
        }],
        "system": [{"type": "text", "text": "You are a test.", "cache_control": breakpoint}],
        "messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}],
    });
    assert_eq!(request.body, expected);
}

#[tokio::test]
async fn a_request_for_a_completion_has_its_headers() {
    let server = Server::start().await;
    server.script("gpt-5", [Reply::text("ok")]);
    ask(&providers(&server, Kind::OpenAi), &prompt("gpt-5", "hi")).await.expect("an answer");
    let request = &server.requests("gpt-5")[0];
    assert_eq!(request.path, "/v1/chat/completions");
    assert_eq!(request.headers["authorization"], "Bearer secret-test-key");
    assert!(!request.headers.contains_key("x-api-key"));
    let expected = json!({
        "model": "gpt-5",
        "stream": true,
        "stream_options": {"include_usage": true},
        "tools": [{"type": "function", "function": {
            "name": "bash",
            "description": "Runs a command.",
            "parameters": {"type": "object", "properties": {"command": {"type": "string"}}, "required": ["command"]},
        }}],
        "messages": [{"role": "system", "content": "You are a test."}, {"role": "user", "content": "hi"}],
    });
    assert_eq!(request.body, expected);
}

#[tokio::test]
async fn settings_change_the_request() {
    let mut prompt = prompt("claude-opus-5", "hi");
    prompt.effort = Some(EffortLevel::High);
    let plain = body(Kind::Anthropic, |_| {}, &prompt).await;
    assert_eq!(
        (&plain["thinking"], &plain["output_config"], &plain["speed"]),
        (&Value::Null, &Value::Null, &Value::Null)
    );

    prompt.effort = Some(EffortLevel::Xhigh);
    prompt.speed = Speed::Fast;
    prompt.inference_geo = Some("eu".into());
    let change = |config: &mut harness::model::ProviderConfig| {
        config.thinking = Some(Thinking::Adaptive);
        config.max_output_tokens = Some(5000);
        config.prompt_caching = Some(false);
        config.model_map.insert("claude-opus-5".into(), "claude-opus-5".into());
    };
    let changed = body(Kind::Anthropic, change, &prompt).await;
    assert_eq!(changed["thinking"], json!({"type": "adaptive"}));
    assert_eq!(changed["output_config"], json!({"effort": "xhigh"}));
    assert_eq!((&changed["speed"], &changed["inference_geo"]), (&json!("fast"), &json!("eu")));
    assert_eq!(changed["max_tokens"], 5000);
    assert!(!changed.to_string().contains("cache_control"));

    let budget = |config: &mut harness::model::ProviderConfig| {
        config.thinking = Some(Thinking::Budget { budget_tokens: 2048 })
    };
    let thinking = body(Kind::Anthropic, budget, &prompt).await["thinking"].clone();
    assert_eq!(thinking, json!({"type": "enabled", "budget_tokens": 2048}));
    let off = |config: &mut harness::model::ProviderConfig| config.thinking = Some(Thinking::Off);
    assert_eq!(body(Kind::Anthropic, off, &prompt).await["thinking"], json!({"type": "disabled"}));

    let change = |config: &mut harness::model::ProviderConfig| {
        config.effort = Some(true);
        config.max_output_tokens = Some(5000);
    };
    let changed = body(Kind::OpenAi, change, &prompt).await;
    assert_eq!((&changed["reasoning_effort"], &changed["max_tokens"]), (&json!("xhigh"), &json!(5000)));
}

#[tokio::test]
async fn an_alias_is_sent_as_the_real_name() {
    for wire in WIRES {
        let server = Server::start().await;
        server.script("real-name", [Reply::text("ok")]);
        let mut config = config(&server, wire);
        config.model_map.insert("alias".into(), "real-name".into());
        let answer = ask(&build(config), &prompt("alias", "hi")).await.expect("an answer");
        assert_eq!(answer.model, "real-name");
    }
}

/// Plays three rounds with tools on a wire and gives the raw bodies.
async fn rounds(kind: Kind) -> Vec<String> {
    let server = Server::start().await;
    let call = |text: &str| {
        Reply::thinking(format!("about {text}")).and_text(text).and_tool("bash", json!({"command": text}))
    };
    server.script("claude-opus-5", [call("one"), call("two"), Reply::text("done"), Reply::text("bye")]);
    let providers = providers(&server, kind);
    let mut prompt = prompt("claude-opus-5", "hi");
    for round in 0..4 {
        let answer = ask(&providers, &prompt).await.expect("an answer");
        prompt.messages.push(Message::Assistant(answer.raw.clone()));
        let calls = answer.blocks.iter().filter_map(|block| match block {
            Block::ToolUse { provider_id, .. } => Some(provider_id),
            Block::Thinking | Block::Text(_) => None,
        });
        let results: Vec<UserBlock> =
            calls.map(|call| result(call, vec![Content::text(format!("out {round}"))], false)).collect();
        match round {
            0 => prompt.messages.extend([Message::System("be brief".into()), Message::User(results)]),
            1 => prompt.messages.extend([Message::User(results), Message::user("and more")]),
            _ => prompt.messages.push(Message::user("again")),
        }
    }
    assert_eq!(server.violations(), Vec::<String>::new());
    server.requests("claude-opus-5").into_iter().map(|request| request.raw).collect()
}

#[tokio::test]
async fn each_request_of_a_conversation_begins_with_the_bytes_of_the_one_before() {
    for wire in WIRES {
        let bodies = rounds(wire).await;
        assert_eq!(bodies.len(), 4);
        for pair in bodies.windows(2) {
            let before = pair[0].strip_suffix("]}").expect("messages come last");
            assert!(pair[1].starts_with(before), "{wire:?}:\n{}\n{}", pair[0], pair[1]);
        }
        assert_eq!(bodies, rounds(wire).await, "the same conversation gives the same bytes");
    }
}

#[tokio::test]
async fn calls_and_results_travel_through_messages() {
    let server = Server::start().await;
    server.script(
        "claude-opus-5",
        [Reply::thinking("hm").and_tool("bash", json!({"command": "ls"})), Reply::text("ok")],
    );
    let providers = providers(&server, Kind::Anthropic);
    let mut prompt = prompt("claude-opus-5", "hi");
    let answer = ask(&providers, &prompt).await.expect("an answer");
    let call = "toolu_claude_opus_5_0_1";
    let answered: Vec<Value> =
        answer.raw.iter().map(|block| serde_json::from_str(block.get()).expect("JSON")).collect();
    prompt.messages.extend([
        Message::Assistant(answer.raw),
        Message::System("be brief".into()),
        Message::user("what do you see?"),
        Message::User(vec![result(
            call,
            vec![Content::text("out"), picture(), document(), search_result()],
            false,
        )]),
    ]);
    ask(&providers, &prompt).await.expect("an answer");
    assert_eq!(server.violations(), Vec::<String>::new());
    let messages = server.requests("claude-opus-5")[1].body["messages"].clone();
    let expected = json!([
        {"role": "user", "content": [{"type": "text", "text": "hi"}]},
        {"role": "assistant", "content": answered},
        {"role": "user", "content": [
            {"type": "tool_result", "tool_use_id": call, "content": [
                {"type": "text", "text": "out"},
                {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "aGk="}},
                {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "the text"}, "title": "A title"},
                {"type": "search_result", "source": "https://example.test", "title": "A page",
                 "content": [{"type": "text", "text": "found"}], "citations": {"enabled": true}},
            ]},
            {"type": "text", "text": "what do you see?"},
        ]},
        {"role": "system", "content": [{"type": "text", "text": "be brief"}]},
    ]);
    assert_eq!(messages, expected);
}

/// The messages after an answer with one call for each of these results, all of them errors.
async fn failed_calls(kind: Kind, results: &[Vec<Content>]) -> Vec<Value> {
    let server = Server::start().await;
    let calls = results.iter().fold(Reply::text("look"), |reply, _| reply.and_tool("bash", json!({})));
    server.script("m", [calls, Reply::text("ok")]);
    let providers = providers(&server, kind);
    let mut prompt = prompt("m", "hi");
    let answer = ask(&providers, &prompt).await.expect("an answer");
    let calls = answer.blocks.iter().filter_map(|block| match block {
        Block::ToolUse { provider_id, .. } => Some(provider_id.clone()),
        Block::Thinking | Block::Text(_) => None,
    });
    let results = calls.zip(results).map(|(call, content)| result(&call, content.clone(), true)).collect();
    prompt.messages.extend([
        Message::Assistant(answer.raw),
        Message::User(results),
        Message::user("what do you see?"),
    ]);
    ask(&providers, &prompt).await.expect("an answer");
    assert_eq!(server.violations(), Vec::<String>::new());
    let messages = server.requests("m")[1].body["messages"].as_array().expect("messages").clone();
    let answer = messages.iter().rposition(|message| message["role"] == "assistant").expect("an answer");
    messages[answer + 1..].to_vec()
}

#[tokio::test]
async fn what_an_error_cannot_hold_stands_beside_it() {
    let file = Content::Image { source: Source::File { file_id: "file_1".into() } };
    let results = [
        vec![Content::text("half done"), picture(), file],
        vec![document(), search_result()],
        vec![Content::text(" ")],
        vec![],
    ];
    let messages = failed_calls(Kind::Anthropic, &results).await;
    let text = |text: &str| json!({"type": "text", "text": text});
    let error = |call: &str, content: &[Value]| json!({"type": "tool_result", "tool_use_id": call, "is_error": true, "content": content});
    let expected = json!([{"role": "user", "content": [
        error("toolu_m_0_1", &[text("half done"), text("[file file_1 is not available]")]),
        error("toolu_m_0_2", &[text("[see below]")]),
        error("toolu_m_0_3", &[text("Error")]),
        error("toolu_m_0_4", &[text("Error")]),
        text("What the call toolu_m_0_1 gave:"),
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "aGk="}},
        text("What the call toolu_m_0_2 gave:"),
        {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "the text"}, "title": "A title"},
        {"type": "search_result", "source": "https://example.test", "title": "A page",
         "content": [{"type": "text", "text": "found"}], "citations": {"enabled": true}},
        text("what do you see?"),
    ]}]);
    assert_eq!(json!(messages), expected);

    let messages = failed_calls(Kind::OpenAi, &results).await;
    let told: Vec<&str> = messages.iter().filter_map(|message| message["content"].as_str()).collect();
    let expected = [
        "Error: half done\n\n[see the next message]\n\n[file file_1 is not available]",
        "Error: <document>\nA title\nthe text\n</document>\n\n\
         <search_result>\nA page\nhttps://example.test\nfound\n</search_result>",
        "Error",
        "Error",
    ];
    assert_eq!(told, expected);
    assert_eq!(messages[4]["content"][1]["type"], "image_url");
}

#[tokio::test]
async fn calls_and_results_travel_through_chat_completions() {
    let server = Server::start().await;
    let reply = Reply::thinking("hm")
        .and_text("look")
        .and_tool("bash", json!({"command": "ls"}))
        .and_tool("bash", json!({}));
    server.script("qwen", [reply, Reply::text("ok")]);
    let providers = providers(&server, Kind::OpenAi);
    let mut prompt = prompt("qwen", "hi");
    let answer = ask(&providers, &prompt).await.expect("an answer");
    prompt.messages.extend([
        Message::Assistant(answer.raw),
        Message::User(vec![result("toolu_qwen_0_2", vec![Content::text("out"), picture()], false)]),
        Message::User(vec![result("toolu_qwen_0_3", vec![Content::text("no such file")], true)]),
        Message::user("what do you see?"),
        Message::System("be brief".into()),
    ]);
    ask(&providers, &prompt).await.expect("an answer");
    assert_eq!(server.violations(), Vec::<String>::new());
    let expected = json!([
        {"role": "system", "content": "You are a test."},
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "look", "tool_calls": [
            {"id": "toolu_qwen_0_2", "type": "function", "function": {"name": "bash", "arguments": "{\"command\":\"ls\"}"}},
            {"id": "toolu_qwen_0_3", "type": "function", "function": {"name": "bash", "arguments": "{}"}},
        ]},
        {"role": "tool", "tool_call_id": "toolu_qwen_0_2", "content": "out\n\n[see the next message]"},
        {"role": "tool", "tool_call_id": "toolu_qwen_0_3", "content": "Error: no such file"},
        {"role": "user", "content": [
            {"type": "text", "text": "What the call toolu_qwen_0_2 gave:"},
            {"type": "image_url", "image_url": {"url": "data:image/png;base64,aGk="}},
            {"type": "text", "text": "what do you see?"},
            {"type": "text", "text": "<system-message>\nbe brief\n</system-message>"},
        ]},
    ]);
    assert_eq!(server.requests("qwen")[1].body["messages"], expected);
}

#[tokio::test]
async fn an_answer_of_one_wire_continues_on_the_other() {
    for (first, second) in [(Kind::Anthropic, Kind::OpenAi), (Kind::OpenAi, Kind::Anthropic)] {
        let server = Server::start().await;
        server
            .script("m", [Reply::text("look").and_tool("bash", json!({"command": "ls"})), Reply::text("ok")]);
        let mut prompt = prompt("m", "hi");
        let answer = ask(&providers(&server, first), &prompt).await.expect("an answer");
        let results = Message::User(vec![result("toolu_m_0_1", vec![Content::text("out")], false)]);
        prompt.messages.extend([Message::Assistant(answer.raw), results]);
        ask(&providers(&server, second), &prompt).await.expect("an answer");
        assert_eq!(server.violations(), Vec::<String>::new());
    }
}

#[tokio::test]
async fn the_operators_words_are_marked_text_for_models_without_a_place_for_them() {
    let mut prompt = prompt("claude-haiku-4-5", "hi");
    prompt.messages.push(Message::System("be brief".into()));
    let old = body(Kind::Anthropic, |_| {}, &prompt).await;
    let wrapped = json!({"type": "text", "text": "<system-message>\nbe brief\n</system-message>"});
    assert_eq!(
        old["messages"],
        json!([{"role": "user", "content": [{"type": "text", "text": "hi"}, wrapped]}])
    );
    let told = body(Kind::Anthropic, |config| config.mid_conversation_system = Some(true), &prompt).await;
    assert_eq!(told["messages"][1]["role"], "system");
    let told = body(Kind::OpenAi, |config| config.mid_conversation_system = Some(true), &prompt).await;
    assert_eq!(told["messages"][2], json!({"role": "system", "content": "be brief"}));

    // Alone it cannot stand as a system message: that must follow the user.
    let mut alone = Prompt::new("claude-opus-5");
    alone.messages = vec![Message::System("be brief".into())];
    assert_eq!(
        body(Kind::Anthropic, |_| {}, &alone).await["messages"],
        json!([{"role": "user", "content": [wrapped]}])
    );
}

#[tokio::test]
async fn what_providers_refuse_is_never_sent() {
    let thinking = r#"{"type":"thinking","thinking":"hm","signature":"sig08be9b07b4f70cc5"}"#;
    for wire in WIRES {
        let mut prompt = prompt("claude-opus-5", "  ");
        prompt.system = Some(" ".into());
        prompt.messages.extend([
            Message::Assistant(Vec::new()),
            Message::User(vec![UserBlock::Content(Content::Redacted {})]),
            Message::assistant([thinking]).expect("JSON"),
            Message::User(vec![UserBlock::Content(Content::Image {
                source: Source::File { file_id: "file_1".into() },
            })]),
        ]);
        let sent = body(wire, |_| {}, &prompt).await;
        assert!(sent["system"].is_null());
        assert!(!sent.to_string().contains("signature"));
        assert!(sent.to_string().contains("[file file_1 is not available]"));
    }
}
