//! Requests for `http://` URLs.

use std::time::Duration;

use egress::{Limits, Policy, Table};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket};

use crate::common::{LOOPBACK, Origin, Setup, limited, read_all, read_head, table};

const HELLO: &str = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello";

#[tokio::test]
async fn an_allowed_request_reaches_the_host_as_the_url_names_it() {
    let mut origin = Origin::start("\r\n\r\n", HELLO).await;
    let port = origin.port;
    let way = Setup {
        policy: limited(&["web.test"]),
        private: &format!("web.test:{port}"),
        table: table(&[("web.test", LOOPBACK)]),
        ..Setup::default()
    }
    .start();
    let answer = way
        .ask(format!(
            "GET http://WEB.test.:{port}/a/b?c=d HTTP/1.1\r\nHost: evil.example\r\nProxy-Authorization: Basic eDp5\r\n\
             Proxy-Connection: keep-alive\r\nConnection: keep-alive, X-Hop\r\nX-Hop: 1\r\nX-End: 2\r\nTE: trailers\r\n\
             Keep-Alive: 5\r\nUpgrade: websocket\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\nTrailer: X-T\r\nExpect: 100-continue\r\n\r\n"
        ))
        .await;
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    assert!(answer.ends_with("\r\n\r\nhello"), "{answer}");
    let seen = origin.seen().await;
    assert_eq!(seen, format!("GET /a/b?c=d HTTP/1.1\r\nhost: web.test:{port}\r\nx-end: 2\r\n\r\n"));
}

#[tokio::test]
async fn a_body_streams_both_ways() {
    let listener = TcpListener::bind((LOOPBACK, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let way = Setup {
        private: &format!("web.test:{port}"),
        table: table(&[("web.test", LOOPBACK)]),
        ..Setup::default()
    }
    .start();
    let mut near = way.connect().await;
    let head =
        format!("POST http://web.test:{port}/ HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nping\r\n");
    near.write_all(head.as_bytes()).await.unwrap();
    let (mut far, _) = listener.accept().await.unwrap();
    let head = read_head(&mut far).await;
    assert!(head.contains("transfer-encoding: chunked\r\n"), "{head}");
    // What was sent so far arrives before the rest is there, and the answer before the request is over.
    let mut chunk = [0; 9];
    far.read_exact(&mut chunk).await.unwrap();
    assert_eq!(&chunk, b"4\r\nping\r\n");
    far.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nKeep-Alive: 9\r\nX-Posthouse-Egress: forged\r\n\r\n4\r\npong\r\n").await.unwrap();
    let head = read_head(&mut near).await;
    assert!(!head.contains("forged") && !head.contains("keep-alive"), "{head}");
    near.read_exact(&mut chunk).await.unwrap();
    assert_eq!(&chunk, b"4\r\npong\r\n");
    near.write_all(b"4\r\nmore\r\n0\r\n\r\n").await.unwrap();
    let mut rest = [0; 14];
    far.read_exact(&mut rest).await.unwrap();
    assert_eq!(&rest, b"4\r\nmore\r\n0\r\n\r\n");
    far.write_all(b"0\r\n\r\n").await.unwrap();
    assert_eq!(read_all(&mut near).await, "0\r\n\r\n");
}

#[tokio::test]
async fn what_is_refused_is_a_403_that_says_what_would_allow_it() {
    let way = Setup {
        policy: limited(&["private.test", "meta.test", "169.254.169.254"]),
        table: table(&[
            ("private.test", "10.0.0.7".parse().unwrap()),
            ("meta.test", "169.254.169.254".parse().unwrap()),
        ]),
        ..Setup::default()
    }
    .start();
    let cases = [
        (
            "other.test",
            "not_allowed; other.test is not among the hosts",
            "Add `other.test` to `allowed_hosts`",
        ),
        ("127.0.0.1", "not_allowed; 127.0.0.1 is not", "by its name"),
        ("private.test:8080", "port; port 8080 of private.test is not open", "open the port"),
        ("private.test", "address; private.test leads to a private address", "list `private.test` among"),
        ("meta.test", "address; meta.test leads to a cloud's metadata service", ""),
        ("169.254.169.254", "address; 169.254.169.254 leads to a cloud's metadata service", ""),
    ];
    for (host, reason, remedy) in cases {
        let answer = way.ask(format!("GET http://{host}/latest/secret-path HTTP/1.1\r\n\r\n")).await;
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 403 egress: "), "{answer}");
        assert!(head.contains(&format!("x-posthouse-egress: {reason}")), "{answer}");
        assert!(body.starts_with("egress: ") && body.contains(remedy), "{answer}");
        assert!(!answer.contains("10.0.0.7") && !answer.contains("secret-path"), "{answer}");
    }
}

#[tokio::test]
async fn unrestricted_is_not_private() {
    let way = Setup { table: table(&[("in.test", "::1".parse().unwrap())]), ..Setup::default() }.start();
    for host in [
        "in.test",
        "localhost",
        "127.1",
        "2130706433",
        "[::1]",
        "[::ffff:127.0.0.1]",
        "[fd00:ec2::254]",
        "0.0.0.0",
        "[64:ff9b::a00:1]",
    ] {
        let answer = way.ask(format!("GET http://{host}/ HTTP/1.1\r\n\r\n")).await;
        assert!(answer.starts_with("HTTP/1.1 403 "), "{host}: {answer}");
    }
}

#[tokio::test]
async fn a_name_that_changes_its_mind_is_looked_up_once_and_reached_where_it_was_judged() {
    let mut origin = Origin::start("\r\n\r\n", HELLO).await;
    let names = Table::default();
    // Judged good at first, then private: a second lookup would find what is forbidden.
    names.set("rebind.test", vec![vec![LOOPBACK], vec!["10.0.0.1".parse().unwrap()]]);
    let private = format!("127.0.0.1:{}", origin.port);
    let way = Setup { private: &private, table: names.clone(), ..Setup::default() }.start();
    let request = format!("GET http://rebind.test:{}/ HTTP/1.1\r\n\r\n", origin.port);
    assert!(way.ask(&request).await.ends_with("hello"));
    origin.seen().await;
    assert_eq!(names.lookups("rebind.test"), 1);
    assert!(way.ask(&request).await.starts_with("HTTP/1.1 403 "));
    assert_eq!(names.lookups("rebind.test"), 2);
}

#[tokio::test]
async fn a_redirect_is_passed_back_and_not_followed() {
    let mut origin = Origin::start(
        "\r\n\r\n",
        "HTTP/1.1 302 Found\r\nLocation: http://169.254.169.254/\r\nContent-Length: 0\r\n\r\n",
    )
    .await;
    let private = format!("web.test:{}", origin.port);
    let way =
        Setup { private: &private, table: table(&[("web.test", LOOPBACK)]), ..Setup::default() }.start();
    let answer = way.ask(format!("GET http://web.test:{}/ HTTP/1.1\r\n\r\n", origin.port)).await;
    assert!(answer.starts_with("HTTP/1.1 302 Found\r\n"), "{answer}");
    assert!(answer.contains("location: http://169.254.169.254/\r\n"), "{answer}");
    origin.seen().await;
    assert!(origin.saw_nothing());
}

#[tokio::test]
async fn what_cannot_be_reached_says_so_with_the_status_of_a_gateway() {
    let closed = TcpListener::bind((LOOPBACK, 0)).await.unwrap().local_addr().unwrap().port();
    let broken = Origin::start("\r\n\r\n", "SSH-2.0-nonsense\r\n").await;
    let switching = Origin::start("\r\n\r\n", "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n").await;
    let silent = TcpListener::bind((LOOPBACK, 0)).await.unwrap();
    let quiet = silent.local_addr().unwrap().port();
    let way = Setup {
        private: &format!(
            "127.0.0.1:{closed},127.0.0.1:{},127.0.0.1:{},127.0.0.1:{quiet}",
            broken.port, switching.port
        ),
        limits: Limits { idle_time_max: Duration::from_millis(100), ..Limits::default() },
        ..Setup::default()
    }
    .start();
    let cases = [
        ("nowhere.test".to_owned(), "502", "unresolved; "),
        (format!("127.0.0.1:{closed}"), "502", "unreachable; "),
        (format!("127.0.0.1:{}", broken.port), "502", "broken; "),
        (format!("127.0.0.1:{}", switching.port), "502", "broken; "),
        (format!("127.0.0.1:{quiet}"), "504", "idle; "),
    ];
    for (host, status, rule) in cases {
        let answer = way.ask(format!("GET http://{host}/ HTTP/1.1\r\n\r\n")).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{host}: {answer}");
        assert!(answer.contains(&format!("x-posthouse-egress: {rule}")), "{host}: {answer}");
    }
}

#[tokio::test]
async fn a_large_upload_that_is_refused_still_reads_its_answer() {
    let way = Setup { policy: limited(&[]), ..Setup::default() }.start();
    // More than the sockets hold, so that the client still writes when it is answered.
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_send_buffer_size(4 * 1024).unwrap();
    let mut near = socket.connect(way.address).await.unwrap();
    let body = "x".repeat(1_000_000);
    let request = format!("PUT http://no.test/ HTTP/1.1\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    near.write_all(request.as_bytes()).await.unwrap();
    assert!(read_all(&mut near).await.starts_with("HTTP/1.1 403 "));
}

#[tokio::test]
async fn connections_beyond_the_bound_wait_until_one_ends() {
    let mut origin = Origin::start("\r\n\r\n", HELLO).await;
    let way = Setup {
        policy: Policy::Unrestricted {},
        private: &format!("127.0.0.1:{}", origin.port),
        limits: Limits { connections_max: 2, ..Limits::default() },
        ..Setup::default()
    }
    .start();
    // Two that never say what they want, served: each is known to be when the proxy answers a later bad byte.
    let mut first = way.connect().await;
    let _second = way.connect().await;
    let request = format!("GET http://127.0.0.1:{}/ HTTP/1.1\r\n\r\n", origin.port);
    let mut flood = Vec::new();
    for _ in 0..50 {
        let mut stream = way.connect().await;
        stream.write_all(request.as_bytes()).await.unwrap();
        flood.push(stream);
    }
    // The first is served and may still go on; that it is answered shows that the two places are taken.
    first.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    let before = origin.saw_nothing();
    assert!(read_all(&mut first).await.starts_with("HTTP/1.1 400 "));
    assert!(before, "a connection beyond the bound was served");
    drop(first);
    for mut stream in flood {
        assert!(read_all(&mut stream).await.ends_with("hello"));
    }
    origin.seen().await;
}

#[tokio::test]
async fn a_proxy_that_is_shut_down_cuts_off_what_is_open() {
    let way = Setup::default().start();
    let mut open = way.connect().await;
    open.write_all(b"GET http").await.unwrap();
    drop(way.shutdown);
    way.serving.await.unwrap().unwrap();
    assert_eq!(read_all(&mut open).await, "");
}
