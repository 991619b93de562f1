//! What comes of a good answer, however it is cut.

use harness::model::{Answer, Block, Delta, Kind, Stop};
use protocol::event::ModelUsage;
use serde_json::{Value, json};
use testkit::model::{Chunks, Outcome, Reply, Server, Usage};

use super::{WIRES, ask, build, config, prompt, providers, texts, watch};

#[tokio::test]
async fn an_answer_of_messages_comes_in_pieces_and_then_as_a_whole() {
    let server = Server::start().await;
    let usage = Usage {
        input_tokens: 12,
        output_tokens: 34,
        cache_read_input_tokens: 5,
        cache_creation_input_tokens: 6,
    };
    let reply = Reply::thinking("hm hm")
        .and_redacted_thinking("sealed")
        .and_text("Grüße dich")
        .and_tool("bash", json!({"command": "ls -l", "n": 1.0}))
        .usage(usage);
    server.script("claude-x", [reply]);
    let (words, answer) = watch(providers(&server, Kind::Anthropic).ask(&prompt("claude-x", "hi"))).await;
    let answer = answer.expect("an answer");
    let expected = [
        "thinking",
        "/thinking",
        "thinking",
        "/thinking",
        "text 2",
        "\"Grüße \"",
        "\"dich\"",
        "/text",
        "tool 3 bash",
        "/tool",
    ];
    assert_eq!(words, expected);
    let Block::ToolUse { provider_id, name, input, input_error } = &answer.blocks[3] else {
        panic!("a call")
    };
    assert_eq!((name.as_str(), input_error), ("bash", &None));
    assert_eq!(json!(input), json!({"command": "ls -l", "n": 1.0}));
    assert_eq!(answer.blocks[..3], [Block::Thinking, Block::Thinking, Block::Text("Grüße dich".into())]);
    assert_eq!(
        texts(&answer),
        [
            r#"{"signature":"sigd62b668b92c38c71","thinking":"hm hm","type":"thinking"}"#,
            r#"{"data":"sealed","type":"redacted_thinking"}"#,
            r#"{"text":"Grüße dich","type":"text"}"#,
            &format!(
                r#"{{"id":"{provider_id}","input":{{"command":"ls -l","n":1.0}},"name":"bash","type":"tool_use"}}"#
            ),
        ]
    );
    assert_eq!(answer.stop, Stop::ToolUse);
    assert_eq!(answer.model, "claude-x");
    let expected = ModelUsage {
        input_tokens: 12,
        output_tokens: 34,
        cache_creation_input_tokens: 6,
        cache_read_input_tokens: 5,
    };
    assert_eq!(answer.usage, expected);
}

#[tokio::test]
async fn an_answer_of_chat_completions_is_the_same_in_our_words() {
    let server = Server::start().await;
    let usage = Usage {
        input_tokens: 12,
        output_tokens: 34,
        cache_read_input_tokens: 5,
        cache_creation_input_tokens: 0,
    };
    let reply = Reply::thinking("hm hm")
        .and_text("Grüße dich")
        .and_tool("bash", json!({"command": "ls"}))
        .usage(usage);
    server.script("qwen", [reply]);
    let (words, answer) = watch(providers(&server, Kind::OpenAi).ask(&prompt("qwen", "hi"))).await;
    let answer = answer.expect("an answer");
    let expected =
        ["thinking", "/thinking", "text 1", "\"Grüße \"", "\"dich\"", "/text", "tool 2 bash", "/tool"];
    assert_eq!(words, expected);
    let raw = [
        r#"{"text":"Grüße dich","type":"text"}"#,
        r#"{"type":"tool_use","id":"toolu_qwen_0_2","name":"bash","input":{"command":"ls"}}"#,
    ];
    assert_eq!(texts(&answer), raw);
    assert_eq!(answer.stop, Stop::ToolUse);
    let expected = ModelUsage {
        input_tokens: 12,
        output_tokens: 34,
        cache_creation_input_tokens: 0,
        cache_read_input_tokens: 5,
    };
    assert_eq!(answer.usage, expected);
}

#[tokio::test]
async fn no_cutting_and_no_ping_changes_an_answer() {
    for wire in WIRES {
        let server = Server::start().await;
        let reply = || {
            Reply::thinking("日本語 hm")
                .and_text("Grüße, 世界 🐎!\n\nend")
                .and_tool("bash", json!({"command": "echo \"ü\"\n"}))
        };
        let variants = [
            reply(),
            reply().pings(),
            reply().chunks(Chunks::Bytes),
            reply().chunks(Chunks::Bytes).pings(),
            reply().chunks(Chunks::Whole),
        ];
        let count = variants.len();
        server.script("m", variants);
        let providers = providers(&server, wire);
        let mut answers = Vec::new();
        for _ in 0..count {
            answers.push(ask(&providers, &prompt("m", "hi")).await.expect("an answer"));
        }
        let without_the_calls_id = |answer: &Answer| {
            let mut raw: Vec<Value> =
                texts(answer).iter().map(|text| serde_json::from_str(text).expect("JSON")).collect();
            raw.last_mut().expect("a call")["id"].take();
            raw
        };
        for answer in &answers[1..] {
            assert_eq!(without_the_calls_id(answer), without_the_calls_id(&answers[0]));
        }
    }
}

#[tokio::test]
async fn the_start_of_a_text_is_told_with_its_first_word() {
    for wire in WIRES {
        let server = Server::start().await;
        server.script("m", [Reply::text("one two").hold_after("h", 1)]);
        let mut asking = providers(&server, wire).ask(&prompt("m", "hi"));
        assert!(matches!(asking.next().await, Some(Ok(Delta::TextStart { index: 0 }))));
        assert!(matches!(asking.next().await, Some(Ok(Delta::Text(text))) if text == "one "));
        server.release("h");
        assert_eq!(asking.answer().await.expect("an answer").blocks, [Block::Text("one two".into())]);
    }
}

#[tokio::test]
async fn a_slow_first_token_is_waited_for() {
    for wire in WIRES {
        let server = Server::start().await;
        server.script("m", [Reply::text("at last").hold("h")]);
        let asking = providers(&server, wire).ask(&prompt("m", "hi"));
        let (answer, ()) = tokio::join!(asking.answer(), async {
            server.until_waiting("h").await;
            server.release("h");
        });
        assert_eq!(answer.expect("an answer").blocks, [Block::Text("at last".into())]);
    }
}

#[tokio::test]
async fn dropping_an_answer_closes_the_connection() {
    for wire in WIRES {
        let server = Server::start().await;
        server.script("m", [Reply::text("one two").hold_after("h", 1), Reply::text("x").hold("h")]);
        let providers = providers(&server, wire);
        let mut asking = providers.ask(&prompt("m", "hi"));
        assert!(asking.next().await.is_some());
        drop(asking);
        server.until_outcome("m", 0, Outcome::Aborted).await;

        let mut asking = providers.ask(&prompt("m", "hi"));
        tokio::select! {
            _ = asking.next() => panic!("nothing comes before the release"),
            () = server.until_waiting("h") => {}
        }
        drop(asking);
        server.until_outcome("m", 1, Outcome::Aborted).await;
    }
}

#[tokio::test]
async fn waiting_for_the_next_piece_may_be_broken_off_and_taken_up_again() {
    for wire in WIRES {
        let server = Server::start().await;
        server.script("m", [Reply::text("one two three").chunks(Chunks::Bytes).pings()]);
        let mut asking = providers(&server, wire).ask(&prompt("m", "hi"));
        let answer = loop {
            let next = tokio::select! {
                biased;
                next = asking.next() => next,
                () = std::future::ready(()) => {
                    tokio::task::yield_now().await;
                    continue;
                }
            };
            if let Delta::Done(answer) = next.expect("a piece").expect("no failure") {
                break answer;
            }
        };
        assert_eq!(answer.blocks, [Block::Text("one two three".into())]);
    }
}

#[tokio::test]
async fn every_way_to_stop_is_told_apart() {
    let refusal = Stop::Refusal { category: Some("cyber".into()), explanation: Some("no".into()) };
    for (reply, expected) in [
        (Reply::text("a"), Stop::EndTurn),
        (Reply::tool("bash", json!({})), Stop::ToolUse),
        (Reply::text("a").stop("max_tokens"), Stop::MaxTokens),
        (Reply::text("a").stop("model_context_window_exceeded"), Stop::ContextExceeded),
        (Reply::text("a").stop("pause_turn"), Stop::PauseTurn),
        (Reply::text("a").stop("stop_sequence"), Stop::StopSequence),
        (Reply::refusal(Some("cyber"), Some("no")), refusal),
        (Reply::refusal(None, None), Stop::Refusal { category: None, explanation: None }),
        (Reply::text("a").stop("invented_later"), Stop::EndTurn),
        (Reply::tool("bash", json!({})).stop("invented_later"), Stop::ToolUse),
    ] {
        let server = Server::start().await;
        server.script("m", [reply]);
        let answer = ask(&providers(&server, Kind::Anthropic), &prompt("m", "hi")).await.expect("an answer");
        assert_eq!(answer.stop, expected);
    }
    for (reply, expected) in [
        (Reply::text("a"), Stop::EndTurn),
        (Reply::tool("bash", json!({})), Stop::ToolUse),
        // Many local servers say `stop` after tool calls.
        (Reply::tool("bash", json!({})).stop("end_turn"), Stop::ToolUse),
        (Reply::text("a").stop("max_tokens"), Stop::MaxTokens),
        (Reply::text("a").stop("refusal"), Stop::Refusal { category: None, explanation: None }),
    ] {
        let server = Server::start().await;
        server.script("m", [reply]);
        let answer = ask(&providers(&server, Kind::OpenAi), &prompt("m", "hi")).await.expect("an answer");
        assert_eq!(answer.stop, expected);
    }
}

#[tokio::test]
async fn a_call_whose_input_cannot_be_read_says_so_and_can_still_be_sent_back() {
    for wire in WIRES {
        for (input, expected) in [
            (r#"{"command": "ls"#, "the input was cut off before its end"),
            (r#"{"command": ls}"#, "the input is not valid JSON"),
            ("[1]", "the input is not a JSON object"),
        ] {
            let server = Server::start().await;
            server.script("m", [Reply::default().and_tool_text("bash", input).stop("max_tokens")]);
            let answer = ask(&providers(&server, wire), &prompt("m", "hi")).await.expect("an answer");
            let Block::ToolUse { input, input_error, .. } = &answer.blocks[0] else { panic!("a call") };
            assert!(input.is_empty());
            assert!(input_error.as_ref().is_some_and(|error| error.starts_with(expected)), "{input_error:?}");
            assert!(texts(&answer)[0].contains(r#""input":{}"#));
        }
    }
}

#[tokio::test]
async fn a_call_without_input_has_an_empty_one() {
    for wire in WIRES {
        let server = Server::start().await;
        server.script("m", [Reply::default().and_tool_text("bash", "")]);
        let answer = ask(&providers(&server, wire), &prompt("m", "hi")).await.expect("an answer");
        let Block::ToolUse { input, input_error, .. } = &answer.blocks[0] else { panic!("a call") };
        assert_eq!((input.len(), input_error), (0, &None));
        assert!(texts(&answer)[0].contains(r#""input":{}"#));
    }
}

#[tokio::test]
async fn the_input_of_a_call_keeps_its_bytes() {
    let input = r#"{ "b": 1e3,  "a": 12345678901234567890123, "u": "\u00e9" }"#;
    for wire in WIRES {
        let server = Server::start().await;
        server.script("m", [Reply::default().and_tool_text("bash", input)]);
        let answer = ask(&providers(&server, wire), &prompt("m", "hi")).await.expect("an answer");
        assert!(texts(&answer)[0].contains(&format!(r#""input":{input}"#)), "{}", texts(&answer)[0]);
    }
}

#[tokio::test]
async fn a_text_of_white_space_is_none() {
    for wire in WIRES {
        let server = Server::start().await;
        server.script("m", [Reply::text("\n\n").and_tool("bash", json!({}))]);
        let (words, answer) = watch(providers(&server, wire).ask(&prompt("m", "hi"))).await;
        assert_eq!(words, ["tool 0 bash", "/tool"]);
        assert_eq!(answer.expect("an answer").raw.len(), 1);
    }
}

#[tokio::test]
async fn a_connection_is_used_again() {
    for wire in WIRES {
        let server = Server::start().await;
        server.script("m", (0..4).map(|_| Reply::text("hi").chunks(Chunks::Bytes)));
        let providers = build(config(&server, wire));
        for _ in 0..4 {
            ask(&providers, &prompt("m", "hi")).await.expect("an answer");
        }
        assert_eq!(server.connections(), 1);
    }
}
