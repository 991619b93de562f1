//! A site on this machine, as hostile as a test wants it: it answers with raw bytes.

use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::JoinHandle;

/// What the site does with a request.
#[derive(Clone)]
pub(super) enum Reply {
    /// Sends these bytes and closes.
    Bytes(Vec<u8>),
    /// Sends these bytes and then nothing, for as long as somebody listens.
    Hold(Vec<u8>),
    /// Sends the first bytes and then the second, over and over.
    Endless(Vec<u8>, Vec<u8>),
}

/// The site. Ends when it is dropped.
pub(super) struct Origin {
    port: u16,
    seen: Arc<Seen>,
    serving: JoinHandle<()>,
}

#[derive(Default)]
struct Seen {
    /// The head of each request.
    heads: Mutex<Vec<String>>,
    arrived: Notify,
    /// Somebody stopped listening to a reply that was held.
    left: Notify,
}

impl Origin {
    /// Starts a site that answers a request by its path.
    pub(super) async fn start(answer: impl Fn(&str) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let port = listener.local_addr().expect("an address").port();
        let seen = Arc::new(Seen::default());
        let serving = tokio::spawn({
            let (seen, answer) = (Arc::clone(&seen), Arc::new(answer));
            async move {
                let mut serving = tokio::task::JoinSet::new();
                while let Ok((stream, _)) = listener.accept().await {
                    let (seen, answer) = (Arc::clone(&seen), Arc::clone(&answer));
                    serving.spawn(async move {
                        // Who goes away in the middle is no failure of the site.
                        let _ = serve(stream, &seen, &*answer).await;
                    });
                }
            }
        });
        Self { port, seen, serving }
    }

    pub(super) fn port(&self) -> u16 {
        self.port
    }

    pub(super) fn url(&self, host: &str, path: &str) -> String {
        format!("http://{host}:{}{path}", self.port)
    }

    /// The heads of the requests so far.
    pub(super) fn heads(&self) -> Vec<String> {
        self.seen.heads.lock().expect("not poisoned").clone()
    }

    pub(super) async fn until_asked(&self) {
        loop {
            let arrived = self.seen.arrived.notified();
            if !self.heads().is_empty() {
                return;
            }
            arrived.await;
        }
    }

    /// Waits until somebody stopped listening to a reply that was held.
    pub(super) async fn until_left(&self) {
        self.seen.left.notified().await;
    }
}

impl Drop for Origin {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

async fn serve(
    mut stream: TcpStream,
    seen: &Seen,
    answer: &(impl Fn(&str) -> Reply + Sync),
) -> std::io::Result<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await?);
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
    seen.heads.lock().expect("not poisoned").push(head);
    seen.arrived.notify_waiters();
    match answer(&path) {
        Reply::Bytes(bytes) => {
            stream.write_all(&bytes).await?;
            stream.shutdown().await
        }
        Reply::Hold(bytes) => {
            stream.write_all(&bytes).await?;
            let mut rest = [0; 1];
            // Nothing more is sent, so this ends when the other side goes.
            let _ = stream.read(&mut rest).await;
            seen.left.notify_one();
            Ok(())
        }
        Reply::Endless(head, piece) => {
            stream.write_all(&head).await?;
            loop {
                stream.write_all(&piece).await?;
            }
        }
    }
}

/// A response with this body; more header lines may be given.
pub(super) fn ok(content_type: &str, body: impl AsRef<[u8]>, more: &str) -> Reply {
    let body = body.as_ref();
    let mut bytes = format!(
        "HTTP/1.1 200 OK\r\ncontent-type: {content_type}\r\ncontent-length: {}\r\nconnection: close\r\n{more}\r\n",
        body.len()
    )
    .into_bytes();
    bytes.extend_from_slice(body);
    Reply::Bytes(bytes)
}

pub(super) fn html(body: &str) -> Reply {
    ok("text/html; charset=utf-8", body, "")
}

pub(super) fn status(line: &str, more: &str) -> Reply {
    Reply::Bytes(
        format!("HTTP/1.1 {line}\r\ncontent-length: 0\r\nconnection: close\r\n{more}\r\n").into_bytes(),
    )
}

pub(super) fn redirect(to: &str) -> Reply {
    status("302 Found", &format!("location: {to}\r\n"))
}
