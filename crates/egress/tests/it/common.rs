//! A proxy on a listener of its own, and far sides that remember what they were sent.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use egress::{Edge, Guard, Limits, Pattern, Policy, PrivateHosts, Proxy, Table, Who};
use rustls::RootCertStore;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::{CancellationToken, DropGuard};

pub(crate) const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// A table in which each name has one address, always.
pub(crate) fn table(names: &[(&str, IpAddr)]) -> Table {
    let table = Table::default();
    for (name, address) in names {
        table.set(name, vec![vec![*address]]);
    }
    table
}

pub(crate) fn limited(hosts: &[&str]) -> Policy {
    Policy::Limited {
        allowed_hosts: hosts.iter().map(|host| host.parse().unwrap()).collect(),
        mcp_hosts: Vec::new(),
        allow_package_managers: false,
    }
}

/// A proxy for one sandbox.
pub(crate) struct Way {
    pub(crate) address: SocketAddr,
    pub(crate) shutdown: DropGuard,
    pub(crate) serving: JoinHandle<std::io::Result<()>>,
}

/// What a test's proxy is like.
pub(crate) struct Setup<'a> {
    pub(crate) sandbox: &'a str,
    pub(crate) policy: Policy,
    pub(crate) private: &'a str,
    pub(crate) table: Table,
    pub(crate) limits: Limits,
    pub(crate) tls_ports: Vec<u16>,
    pub(crate) edge: Option<Arc<dyn Edge>>,
    pub(crate) roots: RootCertStore,
    pub(crate) uninspected_hosts: Vec<Pattern>,
}

impl Default for Setup<'_> {
    fn default() -> Self {
        Self {
            sandbox: "sbx_test",
            policy: Policy::Unrestricted {},
            private: "",
            table: Table::default(),
            limits: Limits::default(),
            tls_ports: vec![443],
            edge: None,
            roots: RootCertStore::empty(),
            uninspected_hosts: Vec::new(),
        }
    }
}

impl Setup<'_> {
    pub(crate) fn start(self) -> Way {
        let guard =
            Guard::new(self.private.parse::<PrivateHosts>().unwrap(), []).with_names(self.table.names());
        let proxy = Proxy::new(Arc::new(guard), self.limits)
            .with_tls_ports(self.tls_ports)
            .with_roots(self.roots)
            .with_uninspected_hosts(self.uninspected_hosts);
        let listener = std::net::TcpListener::bind((LOOPBACK, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let shutdown = CancellationToken::new();
        let token = shutdown.clone();
        let who = Who { sandbox: self.sandbox.to_owned(), session: Some("sesn_test".to_owned()) };
        let (policy, edge) = (self.policy, self.edge);
        let serving = tokio::spawn(async move { proxy.serve(listener, who, policy, edge, token).await });
        Way { address, shutdown: shutdown.drop_guard(), serving }
    }
}

impl Way {
    /// Sends bytes and gives everything that comes back.
    pub(crate) async fn ask(&self, request: impl AsRef<[u8]>) -> String {
        let mut stream = self.connect().await;
        stream.write_all(request.as_ref()).await.unwrap();
        read_all(&mut stream).await
    }

    pub(crate) async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    /// A CONNECT; the stream behind it if it was granted, else the answer.
    pub(crate) async fn tunnel(&self, target: &str) -> Result<TcpStream, String> {
        let mut stream = self.connect().await;
        stream.write_all(format!("CONNECT {target} HTTP/1.1\r\n\r\n").as_bytes()).await.unwrap();
        let head = read_head(&mut stream).await;
        if head.starts_with("HTTP/1.1 200 ") {
            return Ok(stream);
        }
        Err(head + &read_all(&mut stream).await)
    }
}

/// Reads to the end, or to the reset that takes its place.
pub(crate) async fn read_all(stream: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    // A test that hangs should fail long before the proxy's own patience ends.
    let reading = tokio::time::timeout(Duration::from_secs(30), stream.read_to_end(&mut bytes));
    let _ = reading.await.expect("the connection ends");
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Reads the head of a message, and not one byte more.
pub(crate) async fn read_head(stream: &mut TcpStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) => break,
        }
    }
    String::from_utf8(head).unwrap()
}

/// A far side that gives the same answer to every connection.
pub(crate) struct Origin {
    pub(crate) port: u16,
    seen: mpsc::UnboundedReceiver<String>,
    _serving: tokio_util::task::AbortOnDropHandle<()>,
}

impl Origin {
    /// Answers once what it was sent has `end` in it.
    pub(crate) async fn start(end: &'static str, answer: &'static str) -> Self {
        let listener = TcpListener::bind((LOOPBACK, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (sender, seen) = mpsc::unbounded_channel();
        let serving = tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let sender = sender.clone();
                tokio::spawn(async move {
                    let mut bytes = Vec::new();
                    while !bytes.windows(end.len()).any(|part| part == end.as_bytes()) {
                        if stream.read_buf(&mut bytes).await.unwrap_or(0) == 0 {
                            break;
                        }
                    }
                    let _ = stream.write_all(answer.as_bytes()).await;
                    let _ = stream.shutdown().await;
                    let _ = stream.read_to_end(&mut bytes).await;
                    let _ = sender.send(String::from_utf8_lossy(&bytes).into_owned());
                });
            }
        });
        let serving = tokio_util::task::AbortOnDropHandle::new(serving);
        Self { port, seen, _serving: serving }
    }

    /// Everything that the next connection sent.
    pub(crate) async fn seen(&mut self) -> String {
        self.seen.recv().await.unwrap()
    }

    /// True if nobody has finished a connection.
    pub(crate) fn saw_nothing(&mut self) -> bool {
        self.seen.try_recv().is_err()
    }
}
