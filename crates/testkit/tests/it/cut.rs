use std::time::Duration;

use testkit::cut::CutProxy;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

/// A server that says everything back, and a proxy in front of it.
async fn echo() -> (CutProxy, JoinSet<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("bound");
    let mut server = JoinSet::new();
    server.spawn(async move {
        let mut connections = JoinSet::new();
        while let Ok((mut stream, _)) = listener.accept().await {
            connections.spawn(async move {
                let (mut from, mut to) = stream.split();
                let _ = tokio::io::copy(&mut from, &mut to).await;
            });
        }
    });
    (CutProxy::start(address).await.expect("it listens"), server)
}

async fn connect(proxy: &CutProxy) -> TcpStream {
    TcpStream::connect(proxy.address()).await.expect("it listens")
}

async fn says_back(stream: &mut TcpStream) -> bool {
    let mut answer = [0; 4];
    stream.write_all(b"ping").await.is_ok()
        && stream.read_exact(&mut answer).await.is_ok()
        && &answer == b"ping"
}

#[tokio::test]
async fn a_whole_line_carries_both_directions_and_the_end() {
    let (proxy, _server) = echo().await;
    let mut stream = connect(&proxy).await;
    assert!(says_back(&mut stream).await);
    stream.shutdown().await.expect("it is open");
    assert_eq!(stream.read(&mut [0; 4]).await.expect("no reset"), 0);
}

#[tokio::test]
async fn a_cut_line_resets_connections_and_refuses_new_ones_until_it_is_healed() {
    let (proxy, _server) = echo().await;
    let mut stream = connect(&proxy).await;
    assert!(says_back(&mut stream).await);
    proxy.cut().await;
    assert!(!says_back(&mut stream).await);
    assert!(TcpStream::connect(proxy.address()).await.is_err());
    proxy.heal().await;
    assert!(says_back(&mut connect(&proxy).await).await);
}

#[tokio::test]
async fn a_stalled_line_holds_bytes_and_connections_and_passes_them_on_when_healed() {
    let (proxy, _server) = echo().await;
    let mut old = connect(&proxy).await;
    assert!(says_back(&mut old).await);
    proxy.stall().await;
    let mut new = connect(&proxy).await;
    let mut answer = [0; 4];
    for stream in [&mut old, &mut new] {
        stream.write_all(b"late").await.expect("it is taken");
        // A byte that came later than this would be missed here, and found by nobody: the test cannot fail by chance.
        let early = tokio::time::timeout(Duration::from_millis(20), stream.read_exact(&mut answer)).await;
        assert!(early.is_err(), "nothing passes");
    }
    proxy.heal().await;
    for stream in [&mut old, &mut new] {
        stream.read_exact(&mut answer).await.expect("what was held goes on");
        assert_eq!(&answer, b"late");
    }
}

#[tokio::test]
async fn dropping_all_connections_refuses_no_new_one() {
    let (proxy, _server) = echo().await;
    let mut stream = connect(&proxy).await;
    assert!(says_back(&mut stream).await);
    proxy.drop_all().await;
    assert!(!says_back(&mut stream).await);
    assert!(says_back(&mut connect(&proxy).await).await);
}

#[tokio::test]
async fn an_address_leads_through_the_proxy_with_its_user_and_database() {
    let (proxy, _server) = echo().await;
    let through = proxy.url("postgres://posthouse@127.0.0.1:5432/test_1");
    assert_eq!(through, format!("postgres://posthouse@{}/test_1", proxy.address()));
}
