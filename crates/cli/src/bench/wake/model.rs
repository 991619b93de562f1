//! A model behind real HTTP that says one line and notes when it was asked.

use std::time::Instant;

use anyhow::{Context as _, ensure};
use harness::model::{Kind, ProviderConfig, Providers};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

/// The name of the model.
pub(super) const MODEL: &str = "bench";

/// The stream of a short answer in the Messages format.
const ANSWER: &str = "\
event: message_start\n\
data: {\"type\":\"message_start\",\"message\":{\"id\":\"msg_1\",\"type\":\"message\",\"role\":\"assistant\",\"model\":\"bench\",\
\"content\":[],\"stop_reason\":null,\"usage\":{\"input_tokens\":1,\"output_tokens\":1}}}\n\n\
event: content_block_start\n\
data: {\"type\":\"content_block_start\",\"index\":0,\"content_block\":{\"type\":\"text\",\"text\":\"\"}}\n\n\
event: content_block_delta\n\
data: {\"type\":\"content_block_delta\",\"index\":0,\"delta\":{\"type\":\"text_delta\",\"text\":\"Done.\"}}\n\n\
event: content_block_stop\n\
data: {\"type\":\"content_block_stop\",\"index\":0}\n\n\
event: message_delta\n\
data: {\"type\":\"message_delta\",\"delta\":{\"stop_reason\":\"end_turn\",\"stop_sequence\":null},\"usage\":{\"output_tokens\":1}}\n\n\
event: message_stop\n\
data: {\"type\":\"message_stop\"}\n\n";

/// What is read of a request at once.
const READ_BYTES: usize = 256 << 10;
/// The longest head of a request.
const HEAD_BYTES_MAX: usize = 64 << 10;

/// A request, as the model saw it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asked {
    /// When its first bytes were there.
    pub(super) begun: Instant,
    /// When all of it was.
    pub(super) whole: Instant,
    /// The size of its body.
    pub(super) body_bytes: usize,
}

/// The model, until it is dropped.
pub(super) struct Model {
    address: std::net::SocketAddr,
    asked: mpsc::UnboundedReceiver<Asked>,
    _serving: JoinSet<()>,
}

impl Model {
    pub(super) async fn start() -> anyhow::Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let address = listener.local_addr()?;
        let (tell, asked) = mpsc::unbounded_channel();
        let mut serving = JoinSet::new();
        serving.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((connection, _)) = listener.accept().await {
                let tell = tell.clone();
                // A connection that breaks off shows in the session that asked.
                connections.spawn(async move { serve(connection, &tell).await.is_ok() });
            }
        });
        Ok(Self { address, asked, _serving: serving })
    }

    /// A configuration with this model and nothing else.
    pub(super) fn providers(&self) -> anyhow::Result<Providers> {
        let mut config = ProviderConfig::new(MODEL, Kind::Anthropic, [MODEL]);
        config.base_url = Some(format!("http://{}", self.address));
        Ok(Providers::build(vec![config], |_| None)?)
    }

    /// The next request that was not looked at yet.
    pub(super) async fn asked(&mut self) -> anyhow::Result<Asked> {
        self.asked.recv().await.context("the model serves as long as it lives")
    }

    /// Sends a body of that size with nothing in between: what a request takes at the least.
    pub(super) async fn ask_bare(&mut self, body_bytes: usize) -> anyhow::Result<Asked> {
        let mut connection = TcpStream::connect(self.address).await?;
        connection.set_nodelay(true)?;
        let head = format!("POST /v1/messages HTTP/1.1\r\ncontent-length: {body_bytes}\r\n\r\n");
        let body = vec![b' '; body_bytes];
        let sent = Instant::now();
        connection.write_all(head.as_bytes()).await?;
        connection.write_all(&body).await?;
        Ok(Asked { begun: sent, ..self.asked().await? })
    }
}

/// Answers the requests of one connection.
async fn serve(mut connection: TcpStream, tell: &mpsc::UnboundedSender<Asked>) -> anyhow::Result<()> {
    connection.set_nodelay(true)?;
    let mut buffer = vec![0; READ_BYTES];
    loop {
        let mut filled = connection.read(&mut buffer).await?;
        if filled == 0 {
            return Ok(());
        }
        let begun = Instant::now();
        let head_bytes = loop {
            if let Some(end) = buffer[..filled].windows(4).position(|window| window == b"\r\n\r\n") {
                break end + 4;
            }
            ensure!(filled < HEAD_BYTES_MAX, "the head of a request is too long");
            filled += connection.read(&mut buffer[filled..]).await?;
        };
        let head = std::str::from_utf8(&buffer[..head_bytes])?.to_ascii_lowercase();
        let length = head.lines().find_map(|line| line.strip_prefix("content-length:"));
        let body_bytes: usize = length.context("a request says how long it is")?.trim().parse()?;
        let mut left = (head_bytes + body_bytes).saturating_sub(filled);
        while left > 0 {
            let read = connection.read(&mut buffer).await?;
            ensure!(read > 0, "a request broke off");
            left = left.saturating_sub(read);
        }
        // Nobody listens once the bench has failed elsewhere.
        let _ = tell.send(Asked { begun, whole: Instant::now(), body_bytes });
        let head = format!(
            "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: {}\r\n\r\n",
            ANSWER.len()
        );
        connection.write_all((head + ANSWER).as_bytes()).await?;
    }
}
