//! How the server stops.

use reqwest::Method;

use crate::server::{KEY, Server};

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
