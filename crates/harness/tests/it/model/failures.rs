//! What comes of a bad answer, or none.

use std::time::Duration;

use harness::model::{Delta, FailureKind, Kind, Providers};
use testkit::model::{Raw, Reply, Server};
use tokio::net::TcpListener;

use super::{WIRES, ask, build, config, prompt, providers, watch};

#[tokio::test]
async fn every_documented_error_has_its_kind() {
    use FailureKind::{
        Authentication, Billing, InvalidRequest, NotFound, Overloaded, RateLimited, Server as Fault, Timeout,
        TooLarge,
    };
    for wire in WIRES {
        for (status, kind, expected, retryable) in [
            (400, "invalid_request_error", InvalidRequest, false),
            (401, "authentication_error", Authentication, false),
            (402, "billing_error", Billing, false),
            (403, "permission_error", Authentication, false),
            (404, "not_found_error", NotFound, false),
            (413, "request_too_large", TooLarge, false),
            (429, "rate_limit_error", RateLimited, true),
            (500, "api_error", Fault, true),
            (504, "timeout_error", Timeout, true),
            (529, "overloaded_error", Overloaded, true),
        ] {
            let server = Server::start().await;
            let reply = Reply::error(status, kind).with_error(|error| error.retry_after = Some(3));
            server.script("m", [reply]);
            let failure = ask(&providers(&server, wire), &prompt("m", "hi")).await.expect_err("a failure");
            assert_eq!(
                (failure.kind, failure.retryable, failure.status),
                (expected, retryable, Some(status))
            );
            assert_eq!(failure.retry_after, Some(Duration::from_secs(3)));
            assert!(failure.message.ends_with(&format!("scripted {kind}")), "{}", failure.message);
        }
    }
}

#[tokio::test]
async fn an_error_in_the_stream_ends_the_answer_and_tells_what_was_used() {
    for wire in WIRES {
        let server = Server::start().await;
        server.script("m", [Reply::error_in_stream("overloaded_error").and_text("so far")]);
        let (words, failure) = watch(providers(&server, wire).ask(&prompt("m", "hi"))).await;
        let failure = failure.expect_err("a failure");
        assert_eq!(words[..3], ["text 0", "\"so \"", "\"far\""]);
        assert_eq!((failure.kind, failure.retryable, failure.status), (FailureKind::Overloaded, true, None));
        if wire == Kind::Anthropic {
            assert_eq!(failure.usage.input_tokens, 10);
        }
    }
}

#[tokio::test]
async fn a_connection_that_breaks_at_any_event_is_a_broken_stream() {
    for wire in WIRES {
        let server = Server::start().await;
        let providers = providers(&server, wire);
        // Both wires tell this in more than seven events; what comes after the reason to stop is not needed.
        for events in 0..7 {
            server.script("m", [Reply::thinking("hm").and_text("one two three").cut_after(events)]);
            let failure = ask(&providers, &prompt("m", "hi")).await.expect_err("a failure");
            assert_eq!(
                (failure.kind, failure.retryable),
                (FailureKind::Stream, true),
                "after {events}: {failure:?}"
            );
        }
    }
}

#[tokio::test]
async fn a_stream_that_ends_early_but_cleanly_is_a_broken_stream_too() {
    let server = Server::start().await;
    let start =
        r#"{"type":"message_start","message":{"model":"m","usage":{"input_tokens":3,"output_tokens":1}}}"#;
    server.script("m", [Reply::raw(format!("event: message_start\ndata: {start}\n\n"))]);
    let failure = ask(&providers(&server, Kind::Anthropic), &prompt("m", "hi")).await.expect_err("a failure");
    assert_eq!((failure.kind, failure.usage.input_tokens), (FailureKind::Stream, 3));
    server.script("m", [Reply::raw("data: {\"choices\":[{\"delta\":{\"content\":\"so far\"}}]}\n\n")]);
    let failure = ask(&providers(&server, Kind::OpenAi), &prompt("m", "hi")).await.expect_err("a failure");
    assert_eq!(failure.kind, FailureKind::Stream);
}

#[tokio::test]
async fn silence_ends_in_a_timeout_before_the_first_byte_and_after_it() {
    for wire in WIRES {
        let server = Server::start().await;
        server.script("m", [Reply::text("x").hold("never"), Reply::text("one two").hold_after("never", 1)]);
        let mut config = config(&server, wire);
        config.idle_timeout = Some(Duration::from_millis(50));
        let providers = build(config);
        for _ in 0..2 {
            let failure = ask(&providers, &prompt("m", "hi")).await.expect_err("a failure");
            assert_eq!((failure.kind, failure.retryable), (FailureKind::Timeout, true));
            assert_eq!(failure.message, "model: the provider did not answer in time: silence for 0.05 s");
        }
    }
}

#[tokio::test]
async fn a_server_that_accepts_and_says_nothing_is_a_timeout() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let server = Server::start().await;
    let mut config = config(&server, Kind::Anthropic);
    config.base_url = Some(format!("http://{}", listener.local_addr().expect("an address")));
    config.idle_timeout = Some(Duration::from_millis(50));
    let failure = ask(&build(config), &prompt("m", "hi")).await.expect_err("a failure");
    assert_eq!(failure.kind, FailureKind::Timeout);
}

#[tokio::test]
async fn a_refused_connection_is_told_without_the_address() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    drop(listener);
    let server = Server::start().await;
    for wire in WIRES {
        let mut config = config(&server, wire);
        config.base_url = Some(format!("http://{address}"));
        let failure = ask(&build(config), &prompt("m", "hi")).await.expect_err("a failure");
        assert_eq!((failure.kind, failure.retryable), (FailureKind::Connection, true));
        assert!(
            failure.message.starts_with("model: the provider cannot be reached: Connection refused"),
            "{}",
            failure.message
        );
        assert!(!failure.message.contains(&address.port().to_string()));
    }
}

#[tokio::test]
async fn a_server_without_tls_where_tls_is_configured_cannot_be_reached() {
    let server = Server::start().await;
    let mut config = config(&server, Kind::Anthropic);
    config.base_url = Some(format!("https://{}", server.address()));
    let failure = ask(&build(config), &prompt("m", "hi")).await.expect_err("a failure");
    assert_eq!((failure.kind, failure.retryable), (FailureKind::Connection, true), "{}", failure.message);
}

#[tokio::test]
async fn what_is_no_stream_of_the_wire_is_malformed() {
    let raw = |status, content_type: &str, body: &str| {
        let content_type = content_type.to_owned();
        Reply {
            raw: Some(Raw { status, content_type, headers: Default::default(), body: body.to_owned() }),
            ..Reply::default()
        }
    };
    for wire in WIRES {
        for reply in [
            Reply::raw("data: {not json}\n\n"),
            Reply::raw("data: [1, 2]\n\n"),
            raw(200, "text/html", "<html>Please log in</html>"),
            raw(200, "application/json", "{}"),
            raw(302, "text/html", ""),
        ] {
            let server = Server::start().await;
            server.script("m", [reply]);
            let failure = ask(&providers(&server, wire), &prompt("m", "hi")).await.expect_err("a failure");
            assert_eq!(failure.kind, FailureKind::Malformed, "{}", failure.message);
        }
        let server = Server::start().await;
        server.script(
            "m",
            [raw(200, "application/json", r#"{"error":{"type":"overloaded_error","message":"busy"}}"#)],
        );
        let failure = ask(&providers(&server, wire), &prompt("m", "hi")).await.expect_err("a failure");
        assert_eq!(failure.kind, FailureKind::Overloaded);
    }
}

#[tokio::test]
async fn a_delta_for_a_block_that_never_started_is_malformed() {
    let server = Server::start().await;
    let delta =
        r#"{"type":"content_block_delta","index":3,"delta":{"type":"text_delta","text":"secret content"}}"#;
    server.script("m", [Reply::raw(format!("data: {delta}\n\n"))]);
    let failure = ask(&providers(&server, Kind::Anthropic), &prompt("m", "hi")).await.expect_err("a failure");
    assert_eq!(failure.kind, FailureKind::Malformed);
    assert!(!failure.message.contains("secret content"));
}

#[tokio::test]
async fn a_key_that_the_provider_echoes_does_not_show() {
    for wire in WIRES {
        let server = Server::start().await;
        let reply = Reply::error(401, "authentication_error").with_error(|error| error.echo_headers = true);
        server.script("m", [reply]);
        let mut config = config(&server, wire);
        config.extra_headers.insert("x-gateway-token".into(), "another-secret".into());
        let providers = build(config.clone());
        let failure = ask(&providers, &prompt("m", "hi")).await.expect_err("a failure");
        let sent = &server.requests("m")[0].headers;
        assert!(sent.values().any(|value| value.contains("secret-test-key")), "the key was sent");
        assert!(failure.message.contains("your headers were"), "{}", failure.message);
        for shown in
            [failure.message.clone(), format!("{failure:?}"), format!("{config:?}"), format!("{providers:?}")]
        {
            assert!(!shown.contains("secret"), "{shown}");
        }
    }
}

#[tokio::test]
async fn a_model_that_nobody_answers_for_is_unconfigured() {
    let failure = ask(&Providers::default(), &prompt("nobody", "hi")).await.expect_err("a failure");
    assert_eq!((failure.kind, failure.retryable), (FailureKind::Unconfigured, false));
    assert_eq!(failure.message, "model: no provider is configured for the model: nobody");
}

#[tokio::test]
async fn a_failure_is_told_once_and_nothing_after_it() {
    let server = Server::start().await;
    server.script("m", [Reply::error(500, "api_error")]);
    let mut asking = providers(&server, Kind::Anthropic).ask(&prompt("m", "hi"));
    assert!(matches!(asking.next().await, Some(Err(_))));
    assert!(!matches!(asking.next().await, Some(Ok(Delta::Done(_)) | Err(_))));
}
