//! `posthouse bench mcp`: what our way to an MCP server adds to a call.
//!
//! The same server is asked for the same tool in turns: over a bare connection that stays open and knows what it will read,
//! and as a brain does it, through the guard, the proxy that puts a credential into each request, and the protocol's
//! client. The bare connection is what nobody can do without.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use clap::Args;
use egress::{Guard, PrivateHosts};
use mcp::proxy::{Bearer, CredentialError, Credentials, Used};
use mcp::{Proxy, Times};
use protocol::agent::{McpServer, McpServerTag};
use protocol::id::{AgentId, CredentialId, SessionId, VaultId};
use serde_json::{Map, Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use super::machine::Machine;
use super::place::Place;
use super::progress::Progress;
use super::report::{Report, Table};
use super::samples::Samples;
use super::{Common, runtime};

/// The time that a call of an MCP server's tool takes on our way, beside a bare connection to the same server.
#[derive(Args, Debug)]
pub(crate) struct McpOptions {
    #[command(flatten)]
    pub(super) common: Common,
    /// How many calls are made each way. [default: 5000; 200 with --quick]
    #[arg(long, value_name = "N")]
    calls: Option<usize>,
}

const CALLS: usize = 5_000;
const CALLS_QUICK: usize = 200;
/// How much text a call gives: little, and what a page may have.
const SIZES: [usize; 2] = [100, 50_000];
/// How many calls come before those that count.
const WARM_UP: usize = 20;

pub(super) fn measure(options: &McpOptions) -> anyhow::Result<Report> {
    let place = Place::make(&options.common)?;
    let machine = Machine::look(place.path());
    runtime()?.block_on(async {
        tokio::select! {
            report = all(options, machine) => report,
            _ = tokio::signal::ctrl_c() => anyhow::bail!("interrupted"),
        }
    })
}

async fn all(options: &McpOptions, machine: Machine) -> anyhow::Result<Report> {
    let quick = options.common.quick;
    let calls = options.calls.unwrap_or(if quick { CALLS_QUICK } else { CALLS }).max(1);
    let progress = Progress::new(SIZES.len());
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let mut served = JoinSet::new();
    served.spawn(serve(listener));

    let private: PrivateHosts = format!("127.0.0.1:{}", address.port()).parse()?;
    let proxy = Proxy::new(Arc::new(Guard::new(private, [])), Arc::new(OneToken), Times::default())?;
    let server =
        McpServer { tag: McpServerTag::Url, name: "bench".to_owned(), url: format!("http://{address}/mcp") };
    let (session, agent) = (SessionId::from_text("sesn_bench"), AgentId::from_text("agent_bench"));
    let until = tokio::time::Instant::now() + Duration::from_secs(3_600);
    let token = proxy.issue(&session, &agent, std::slice::from_ref(&server), until);
    let connecting = Instant::now();
    let connection = proxy.connect(&token, &session, &server).await?;
    connection.tools().await?;
    let connected = connecting.elapsed();
    let mut bare = Bare::connect(address.port()).await?;

    let mut table = Table::new(
        "calls",
        "Time of one call, in milliseconds",
        [
            ("result_bytes", "result, bytes"),
            ("way", "way"),
            ("p50_ms", "p50"),
            ("p99_ms", "p99"),
            ("added_p50_ms", "added at p50"),
        ],
    );
    for size in SIZES {
        progress.step(format!("calling for {size} bytes"));
        let (mut ours, mut floor) = (Vec::with_capacity(calls), Vec::with_capacity(calls));
        for number in 0..WARM_UP + calls {
            let arguments = Map::from_iter([("size".to_owned(), json!(size))]);
            // In turns, so that what the machine does meanwhile befalls both.
            let begun = Instant::now();
            let bytes = bare.call(size).await?;
            let bare_time = begun.elapsed();
            ensure!(bytes >= size, "the bare call gave {bytes} bytes");
            let begun = Instant::now();
            let output = connection.call("text", arguments).await?.output().await?;
            let our_time = begun.elapsed();
            ensure!(!output.is_error, "a call failed: {:?}", output.content);
            if number >= WARM_UP {
                ours.push(our_time);
                floor.push(bare_time);
            }
        }
        let (ours, floor): (Samples, Samples) = (ours.into_iter().collect(), floor.into_iter().collect());
        table.row([size.into(), "bare HTTP".into(), floor.p50().into(), floor.p99().into(), 0.0.into()]);
        let added = ours.p50() - floor.p50();
        table.row([size.into(), "posthouse".into(), ours.p50().into(), ours.p99().into(), added.into()]);
    }
    drop(progress);
    connection.close().await;
    Ok(Report {
        bench: "mcp",
        machine,
        settings: vec![("calls", json!(calls)), ("quick", json!(quick))],
        tables: vec![table],
        aims: Vec::new(),
        notes: vec![
            format!(
                "Connecting, the handshake and the list of tools took {:.2} ms.",
                connected.as_secs_f64() * 1e3
            ),
            "The server answers at once and on this machine; a real one adds the same to both ways."
                .to_owned(),
        ],
    })
}

/// A vault with one credential for everybody.
struct OneToken;

#[async_trait::async_trait]
impl Credentials for OneToken {
    async fn bearer(&self, _: &SessionId, _: &str) -> Result<Option<Bearer>, CredentialError> {
        Ok(Bearer::new(
            "a-token-of-the-bench",
            VaultId::from_text("vlt_bench"),
            CredentialId::from_text("vcrd_bench"),
        ))
    }

    async fn after_401(&self, _: &SessionId, _: &str, _: &Bearer) -> Result<Option<Bearer>, CredentialError> {
        Ok(None)
    }

    fn used(&self, _: Used<'_>) {}
}

/// An MCP server without anything that takes time.
async fn serve(listener: TcpListener) {
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        connections.spawn(async move {
            // Whoever asked sees what is wrong.
            let _ = answer_all(stream).await;
        });
    }
}

async fn answer_all(stream: TcpStream) -> anyhow::Result<()> {
    stream.set_nodelay(true)?;
    let mut stream = BufReader::new(stream);
    loop {
        let (first, body) = read_message(&mut stream).await?;
        if !first.starts_with("POST") {
            stream.write_all(b"HTTP/1.1 405 Method Not Allowed\r\ncontent-length: 0\r\n\r\n").await?;
            continue;
        }
        let asked: Value = serde_json::from_slice(&body)?;
        let result = match asked["method"].as_str().unwrap_or_default() {
            "initialize" => json!({"protocolVersion": "2025-11-25", "capabilities": {"tools": {}},
                                   "serverInfo": {"name": "bench", "version": "1"}}),
            "tools/list" => json!({"tools": [{"name": "text", "inputSchema": {"type": "object"}}]}),
            "tools/call" => {
                let size = asked["params"]["arguments"]["size"].as_u64().unwrap_or_default();
                let text = "x".repeat(usize::try_from(size)?);
                json!({"content": [{"type": "text", "text": text}]})
            }
            _ => {
                stream.write_all(b"HTTP/1.1 202 Accepted\r\ncontent-length: 0\r\n\r\n").await?;
                continue;
            }
        };
        let body = json!({"jsonrpc": "2.0", "id": asked["id"], "result": result}).to_string();
        let head = format!(
            "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all(&[head.as_bytes(), body.as_bytes()].concat()).await?;
    }
}

/// A connection that knows nothing but what it will read.
struct Bare {
    stream: BufReader<TcpStream>,
}

impl Bare {
    async fn connect(port: u16) -> anyhow::Result<Self> {
        let stream = TcpStream::connect(("127.0.0.1", port)).await?;
        stream.set_nodelay(true)?;
        Ok(Self { stream: BufReader::new(stream) })
    }

    /// Calls the tool; gives the size of the answer.
    async fn call(&mut self, size: usize) -> anyhow::Result<usize> {
        let body = json!({"jsonrpc": "2.0", "id": 1, "method": "tools/call",
                          "params": {"name": "text", "arguments": {"size": size}}})
        .to_string();
        let head = format!(
            "POST /mcp HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        self.stream.write_all(&[head.as_bytes(), body.as_bytes()].concat()).await?;
        let (_, answer) = read_message(&mut self.stream).await?;
        Ok(answer.len())
    }
}

/// The first line and the body of a request or a response.
async fn read_message(stream: &mut BufReader<TcpStream>) -> anyhow::Result<(String, Vec<u8>)> {
    let (mut first, mut length) = (None, 0);
    loop {
        let mut line = String::new();
        ensure!(stream.read_line(&mut line).await? > 0, "the connection ended");
        let line = line.trim_end();
        if line.is_empty() {
            break;
        }
        if let Some((name, value)) = line.split_once(':')
            && name.eq_ignore_ascii_case("content-length")
        {
            length = value.trim().parse().context("a length")?;
        }
        first.get_or_insert_with(|| line.to_owned());
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await?;
    Ok((first.unwrap_or_default(), body))
}
