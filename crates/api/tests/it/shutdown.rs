//! How the server stops.

use reqwest::Method;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::server::{BETA, KEY, Server};

#[tokio::test]
async fn streams_end_at_once_and_the_server_with_them() {
    let server = Server::start().await;
    let session = server.session().await;
    let mut stream = server.stream(&format!("/v1/sessions/{session}/events/stream")).await;
    server.stop.cancel();
    assert!(stream.ends().await);
    server.serving.await.expect("no panic").expect("no error");
    let late = server.http.get(&server.base).header("x-api-key", KEY).send().await;
    assert!(late.is_err(), "nobody listens any more");
}

#[tokio::test]
async fn the_body_of_a_stream_is_ended_and_not_broken_off() {
    let server = Server::start().await;
    let session = server.session().await;
    let address = server.base.strip_prefix("http://").expect("plain HTTP");
    let mut connection = TcpStream::connect(address).await.expect("connects");
    let request = format!(
        "GET /v1/sessions/{session}/events/stream?after=0 HTTP/1.1\r\nhost: {address}\r\nx-api-key: {KEY}\r\n\
         anthropic-beta: {BETA}\r\n\r\n"
    );
    connection.write_all(request.as_bytes()).await.expect("sent");
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        answer.push(connection.read_u8().await.expect("the head of an answer"));
    }
    server.say(&session, &["hello"]).await;
    server.stop.cancel();
    connection.read_to_end(&mut answer).await.expect("closed in order");
    let answer = String::from_utf8(answer).expect("text");
    assert!(answer.contains("transfer-encoding: chunked"), "{answer}");
    assert!(answer.ends_with("\r\n0\r\n\r\n"), "{answer}");
    server.serving.await.expect("no panic").expect("no error");
}

#[tokio::test]
async fn a_request_that_has_begun_is_finished() {
    let server = Server::start().await;
    let (sender, receiver) = tokio::sync::mpsc::channel::<Result<&'static [u8], std::io::Error>>(1);
    let body = reqwest::Body::wrap_stream(tokio_stream::wrappers::ReceiverStream::new(receiver));
    let request =
        server.request(Method::POST, "/v1/agents").header("content-type", "application/json").body(body);
    sender.send(Ok(br#"{"name":"a","#)).await.expect("the request is on its way");
    let answer = tokio::spawn(crate::server::send(request));
    // The channel holds one piece: when it takes the second, the first has left for the server.
    sender.send(Ok(br#""model":"#)).await.expect("the request is on its way");
    server.get("/health").await.ok();
    server.stop.cancel();
    sender.send(Ok(br#""m-1"}"#)).await.expect("the request is on its way");
    drop(sender);
    answer.await.expect("no panic").ok();
    server.serving.await.expect("no panic").expect("no error");
}
