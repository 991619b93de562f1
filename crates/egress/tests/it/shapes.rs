//! Requests of a shape that is refused, and what a hostile client may try with those that are not.

use std::time::Duration;

use egress::Limits;
use tokio::io::AsyncWriteExt as _;

use crate::common::{LOOPBACK, Origin, Setup, read_all, table};

const HELLO: &str = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello";

#[tokio::test]
async fn a_request_that_could_be_read_in_two_ways_is_refused_and_reaches_nobody() {
    let mut origin = Origin::start("\r\n\r\n", HELLO).await;
    let way = Setup {
        private: &format!("web.test:{}", origin.port),
        table: table(&[("web.test", LOOPBACK)]),
        ..Setup::default()
    }
    .start();
    let at = format!("web.test:{}", origin.port);
    let url = format!("http://{at}/");
    let post = |headers: &str| format!("POST {url} HTTP/1.1\r\n{headers}\r\n\r\n");
    let cases = [
        // Where the body ends.
        post("Content-Length: 5\r\nTransfer-Encoding: chunked") + "0\r\n\r\n",
        post("Transfer-Encoding: chunked\r\nContent-Length: 5") + "0\r\n\r\n",
        post("Content-Length: 5\r\nContent-Length: 6") + "hello!",
        post("Content-Length: 5\r\nContent-Length: 5") + "hello",
        post("Content-Length: 5, 5") + "hello",
        post("Content-Length: +5") + "hello",
        post("Content-Length: -1"),
        post("Content-Length: 0x5") + "hello",
        post("Content-Length:"),
        post("Content-Length: 99999999999999999999999"),
        post("Transfer-Encoding: chunked, identity"),
        post("Transfer-Encoding: gzip, chunked"),
        post("Transfer-Encoding: xchunked"),
        post("Transfer-Encoding: \"chunked\""),
        post("Transfer-Encoding: chunked\r\nTransfer-Encoding: identity"),
        post("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked"),
        post("Transfer-Encoding: \u{b}chunked"),
        format!("POST {url} HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
        // Where a header ends.
        post("Transfer-Encoding : chunked"),
        post("X: a\r\n folded"),
        post("X: a\r\n\tfolded"),
        post("X: a\nTransfer-Encoding: chunked"),
        post("X: a\rTransfer-Encoding: chunked"),
        post("X: a\0b"),
        post("X\0: a"),
        post(": a"),
        post("no colon"),
        post(" X: a"),
        post("X Y: a"),
        post("Host: a\r\nHost: b"),
        format!("GET {url} HTTP/1.1\n\n"),
        format!("GET {url} HTTP/1.1\nHost: x\r\n\r\n"),
        format!("\r\nGET {url} HTTP/1.1\r\n\r\n"),
        format!("\nGET {url} HTTP/1.1\r\n\r\n"),
        // Where the target ends, and what it is.
        format!("GET  {url} HTTP/1.1\r\n\r\n"),
        format!("GET\t{url} HTTP/1.1\r\n\r\n"),
        format!("GET {url}a b HTTP/1.1\r\n\r\n"),
        format!("GET {url} HTTP/1.1 x\r\n\r\n"),
        format!("GET {url}\r\n\r\n"),
        format!("GET {url} HTTP/2.0\r\n\r\n"),
        format!("GET {url} HTTP/1.2\r\n\r\n"),
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_owned(),
        format!("G(T {url} HTTP/1.1\r\n\r\n"),
        format!("GET {url}#fragment HTTP/1.1\r\n\r\n"),
        format!("GET http://user:pass@{at}/ HTTP/1.1\r\n\r\n"),
        format!("GET http://example.com@{at}/ HTTP/1.1\r\n\r\n"),
        format!("GET http://@{at}/ HTTP/1.1\r\n\r\n"),
        format!("GET http://{at}\\@example.com/ HTTP/1.1\r\n\r\n"),
        format!("GET https://{at}/ HTTP/1.1\r\n\r\n"),
        format!("GET ftp://{at}/ HTTP/1.1\r\n\r\n"),
        format!("GET file:///etc/passwd HTTP/1.1\r\nHost: {at}\r\n\r\n"),
        format!("GET / HTTP/1.1\r\nHost: {at}\r\n\r\n"),
        format!("GET //{at}/ HTTP/1.1\r\n\r\n"),
        format!("GET {at} HTTP/1.1\r\n\r\n"),
        format!("OPTIONS * HTTP/1.1\r\nHost: {at}\r\n\r\n"),
        "GET http:///path HTTP/1.1\r\n\r\n".to_owned(),
        "GET http://web.test:/ HTTP/1.1\r\n\r\n".to_owned(),
        "GET http://web.test:0/ HTTP/1.1\r\n\r\n".to_owned(),
        "GET http://web.test:65536/ HTTP/1.1\r\n\r\n".to_owned(),
        "GET http://web.test:80:80/ HTTP/1.1\r\n\r\n".to_owned(),
        "GET http://web.test:8e1/ HTTP/1.1\r\n\r\n".to_owned(),
        "GET http://[::1/ HTTP/1.1\r\n\r\n".to_owned(),
        "GET http://::1/ HTTP/1.1\r\n\r\n".to_owned(),
        "GET http://[::1%25lo]/ HTTP/1.1\r\n\r\n".to_owned(),
        "GET http://[::1]x/ HTTP/1.1\r\n\r\n".to_owned(),
        "GET http://web.test%00.example/ HTTP/1.1\r\n\r\n".to_owned(),
        "GET http://web%2etest/ HTTP/1.1\r\n\r\n".to_owned(),
        "GET http://web..test/ HTTP/1.1\r\n\r\n".to_owned(),
        "GET http://w\u{e9}b.test/ HTTP/1.1\r\n\r\n".to_owned(),
        "GET http://web.test/\u{7f} HTTP/1.1\r\n\r\n".to_owned(),
        "\u{16}\u{3}\u{1}\r\n\r\n".to_owned(),
        // CONNECT.
        format!("CONNECT {at} HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello"),
        format!("CONNECT {at} HTTP/1.1\r\nContent-Length: 0\r\n\r\n"),
        format!("CONNECT {at} HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
        format!("CONNECT {url} HTTP/1.1\r\n\r\n"),
        format!("CONNECT /{at} HTTP/1.1\r\n\r\n"),
        format!("CONNECT {at}/path HTTP/1.1\r\n\r\n"),
        format!("CONNECT user@{at} HTTP/1.1\r\n\r\n"),
        "CONNECT web.test HTTP/1.1\r\n\r\n".to_owned(),
        "CONNECT web.test: HTTP/1.1\r\n\r\n".to_owned(),
        "CONNECT :443 HTTP/1.1\r\n\r\n".to_owned(),
        "CONNECT * HTTP/1.1\r\n\r\n".to_owned(),
    ];
    for request in cases {
        let answer = way.ask(&request).await;
        assert!(answer.starts_with("HTTP/1.1 400 "), "{request:?}: {answer}");
        assert_eq!(answer.matches("HTTP/1.1 400").count(), 1, "{request:?}: {answer}");
    }
    assert!(origin.saw_nothing());
}

#[tokio::test]
async fn nothing_behind_a_request_is_taken_for_another() {
    let mut origin = Origin::start("\r\n\r\n", HELLO).await;
    let at = format!("127.0.0.1:{}", origin.port);
    let way = Setup { private: &at, ..Setup::default() }.start();
    let second = format!("GET http://{at}/smuggled HTTP/1.1\r\n\r\n");
    let firsts = [
        format!("GET http://{at}/ HTTP/1.1\r\nConnection: keep-alive\r\n\r\n"),
        format!("GET http://{at}/ HTTP/1.1\r\nContent-Length: 0\r\n\r\n"),
        format!(
            "GET http://{at}/ HTTP/1.1\r\nUpgrade: h2c\r\nConnection: upgrade, host, content-length\r\n\r\n"
        ),
        format!("GET http://{at}/ HTTP/1.0\r\n\r\n"),
        // To somebody who answers at once, the request that never ends has ended.
        format!("POST http://{at}/ HTTP/1.1\r\nContent-Length: 4\r\n\r\nabcd"),
        format!("POST http://{at}/ HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nabcd\r\n0\r\n\r\n"),
    ];
    for first in firsts {
        let answer = way.ask(format!("{first}{second}")).await;
        assert!(answer.starts_with("HTTP/1.") && answer.ends_with("hello"), "{first:?}: {answer}");
        assert_eq!(answer.matches(" 200 OK").count(), 1, "{first:?}: {answer}");
        let seen = origin.seen().await;
        assert!(!seen.contains("smuggled"), "{first:?}: {seen}");
        assert!(seen.contains(&format!("host: {at}\r\n")), "{seen}");
    }
    assert!(origin.saw_nothing());
}

#[tokio::test]
async fn a_chunk_that_could_be_read_in_two_ways_never_arrives_as_it_was_sent() {
    let mut origin = Origin::start("0\r\n\r\n", HELLO).await;
    let at = format!("127.0.0.1:{}", origin.port);
    let way = Setup { private: &at, ..Setup::default() }.start();
    let cases = [
        "4;ext=\"a\nb\"\r\nabcd\r\n0\r\n\r\n",
        "4\nabcd\n0\n\n",
        "0x4\r\nabcd\r\n0\r\n\r\n",
        "+4\r\nabcd\r\n0\r\n\r\n",
        "-4\r\nabcd\r\n0\r\n\r\n",
        "fffffffffffffffff\r\nabcd\r\n0\r\n\r\n",
        "4\r\nabcdGET /smuggled\r\n0\r\n\r\n",
        "4\r\nabcd\r\n0\r\nHost: evil\r\nContent-Length: 7\r\n\r\nGET /smuggled",
        "4 ;x\r\nabcd\r\n0\r\n\r\nGET /smuggled",
    ];
    for body in cases {
        let head = format!("POST http://{at}/ HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n");
        let mut near = way.connect().await;
        near.write_all(format!("{head}{body}").as_bytes()).await.unwrap();
        near.shutdown().await.unwrap();
        let answer = read_all(&mut near).await;
        let seen = origin.seen().await;
        let (_, passed_on) = seen.split_once("\r\n\r\n").unwrap_or_default();
        // Written anew: whole chunks of ours, no extension, no trailer, nothing behind the end.
        let is_clean = ["", "4\r\nabcd\r\n", "4\r\nabcd\r\n0\r\n\r\n"].contains(&passed_on);
        assert!(is_clean, "{body:?}: {passed_on:?}: {answer}");
    }
}

#[tokio::test]
async fn a_head_that_is_too_large_or_too_slow_is_refused() {
    let way = Setup {
        limits: Limits { head_time_max: Duration::from_millis(200), ..Limits::default() },
        ..Setup::default()
    }
    .start();
    let large = format!("GET http://web.test/ HTTP/1.1\r\nX: {}\r\n\r\n", "a".repeat(40_000));
    assert!(way.ask(large).await.starts_with("HTTP/1.1 431 "));
    let endless = format!("GET http://web.test/{}", "a".repeat(40_000));
    assert!(way.ask(endless).await.starts_with("HTTP/1.1 431 "));
    let many = format!("GET http://web.test/ HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(1_000));
    assert!(way.ask(many).await.starts_with("HTTP/1.1 431 "));
    for slow in ["", "C", "CONNECT web.test:443 HTTP/1.1\r\n", "GET http://web.test/ HTTP/1.1\r\nX: a"] {
        let answer = way.ask(slow).await;
        assert!(answer.starts_with("HTTP/1.1 408 "), "{slow}: {answer}");
    }
    // A byte at a time does not buy more time.
    let mut near = way.connect().await;
    let (mut read, mut write) = near.split();
    let dripping = async {
        loop {
            if write.write_all(b"A").await.is_err() {
                break;
            }
            tokio::task::yield_now().await;
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let mut head = [0; 13];
    tokio::select! {
        () = dripping => panic!("the answer comes before the reset"),
        read = tokio::io::AsyncReadExt::read_exact(&mut read, &mut head) => {
            read.unwrap();
        }
    }
    assert_eq!(&head, b"HTTP/1.1 408 ");
}
