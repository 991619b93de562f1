//! A connection that can be cut: a proxy between a client and a server whose network fails on demand.
//!
//! ```text
//! whole ── cut ──▶ cut: connections are reset, new ones refused ── heal ──▶ whole
//! whole ── stall ▶ stalled: connections are taken and held, no byte passes ── heal ──▶ whole: what was held goes on
//! ```

use std::io;
use std::net::SocketAddr;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::{JoinHandle, JoinSet};

use crate::process::free_port;

const PORT_ATTEMPTS_MAX: u32 = 10;
const BUFFER_BYTES: usize = 16 * 1024;

/// A proxy in front of one address. It ends when it is dropped.
#[derive(Debug)]
pub struct CutProxy {
    address: SocketAddr,
    orders: mpsc::Sender<(Order, oneshot::Sender<()>)>,
    task: JoinHandle<()>,
}

#[derive(Clone, Copy, Debug)]
enum Order {
    Cut,
    Stall,
    Heal,
    DropAll,
}

impl CutProxy {
    /// Listens at a free port of the loopback and passes everything on to `target`.
    pub async fn start(target: SocketAddr) -> io::Result<Self> {
        let mut attempt = 1;
        let listener = loop {
            match TcpListener::bind(("127.0.0.1", free_port())).await {
                Err(error) if error.kind() == io::ErrorKind::AddrInUse && attempt < PORT_ATTEMPTS_MAX => {
                    attempt += 1;
                }
                bound => break bound?,
            }
        };
        let address = listener.local_addr()?;
        let (orders, inbox) = mpsc::channel(1);
        let line = Line {
            address,
            target,
            listener: Some(listener),
            connections: JoinSet::new(),
            stalled: watch::Sender::new(false),
        };
        Ok(Self { address, orders, task: tokio::spawn(line.run(inbox)) })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The same address with this proxy's host and port in place of the server's.
    pub fn url(&self, url: &str) -> String {
        let start = url.find("://").map_or(0, |at| at + 3);
        let end = url[start..].find('/').map_or(url.len(), |at| start + at);
        let host = url[start..end].rfind('@').map_or(start, |at| start + at + 1);
        format!("{}{}{}", &url[..host], self.address, &url[end..])
    }

    /// Resets every connection and refuses new ones, until it is healed.
    pub async fn cut(&self) {
        self.order(Order::Cut).await;
    }

    /// Passes no byte in either direction, until it is healed. Connections stay, and new ones are taken.
    pub async fn stall(&self) {
        self.order(Order::Stall).await;
    }

    /// Passes everything again.
    pub async fn heal(&self) {
        self.order(Order::Heal).await;
    }

    /// Resets every connection once; new ones are welcome.
    pub async fn drop_all(&self) {
        self.order(Order::DropAll).await;
    }

    async fn order(&self, order: Order) {
        let (done, is_done) = oneshot::channel();
        self.orders.send((order, done)).await.expect("the proxy lives as long as its owner");
        is_done.await.expect("the proxy carries out what it is told");
    }
}

impl Drop for CutProxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Line {
    address: SocketAddr,
    target: SocketAddr,
    /// None while it is cut.
    listener: Option<TcpListener>,
    connections: JoinSet<()>,
    stalled: watch::Sender<bool>,
}

enum Input {
    Order(Order, oneshot::Sender<()>),
    Connection(TcpStream),
    Over,
}

impl Line {
    async fn run(mut self, mut inbox: mpsc::Receiver<(Order, oneshot::Sender<()>)>) {
        loop {
            match self.next(&mut inbox).await {
                Input::Order(order, done) => {
                    self.carry_out(order).await;
                    // Whoever asked may have gone.
                    let _ = done.send(());
                }
                Input::Connection(client) => {
                    let stalled = self.stalled.subscribe();
                    self.connections.spawn(connect(client, self.target, stalled));
                }
                Input::Over => return,
            }
        }
    }

    async fn next(&mut self, inbox: &mut mpsc::Receiver<(Order, oneshot::Sender<()>)>) -> Input {
        loop {
            let accept = async {
                match &self.listener {
                    Some(listener) => listener.accept().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                order = inbox.recv() => return match order {
                    Some((order, done)) => Input::Order(order, done),
                    None => Input::Over,
                },
                // A client that went away between its connection and our accept is no concern.
                accepted = accept => if let Ok((client, _)) = accepted {
                    return Input::Connection(client);
                },
                Some(_) = self.connections.join_next() => {}
            }
        }
    }

    async fn carry_out(&mut self, order: Order) {
        match order {
            Order::Cut => {
                self.listener = None;
                self.connections.shutdown().await;
            }
            Order::Stall => {
                self.listen().await;
                self.stalled.send_replace(true);
            }
            Order::Heal => {
                self.listen().await;
                self.stalled.send_replace(false);
            }
            Order::DropAll => self.connections.shutdown().await,
        }
    }

    async fn listen(&mut self) {
        if self.listener.is_none() {
            let listener = TcpListener::bind(self.address).await.expect("no one else wants this port");
            self.listener = Some(listener);
        }
    }
}

/// Carries one connection until either side is done or the task is aborted, which resets it.
async fn connect(client: TcpStream, target: SocketAddr, mut stalled: watch::Receiver<bool>) {
    let mut client = End { stream: client, is_over: false };
    while_whole(&mut stalled).await;
    let Ok(server) = TcpStream::connect(target).await else { return };
    let mut server = End { stream: server, is_over: false };
    let (from_client, to_client) = client.stream.split();
    let (from_server, to_server) = server.stream.split();
    // Half a connection is of no use to a database: the end of one direction ends both.
    tokio::select! {
        () = pass(from_client, to_server, stalled.clone()) => {}
        () = pass(from_server, to_client, stalled) => {}
    }
    client.is_over = true;
    server.is_over = true;
}

async fn pass(mut from: ReadHalf<'_>, mut to: WriteHalf<'_>, mut stalled: watch::Receiver<bool>) {
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        let Ok(count) = from.read(&mut buffer).await else { return };
        while_whole(&mut stalled).await;
        if count == 0 || to.write_all(&buffer[..count]).await.is_err() {
            return;
        }
    }
}

async fn while_whole(stalled: &mut watch::Receiver<bool>) {
    // The sender lives in the task that owns this one.
    let _ = stalled.wait_for(|stalled| !stalled).await;
}

/// One end of a connection, which is reset unless it came to its own end.
struct End {
    stream: TcpStream,
    is_over: bool,
}

impl Drop for End {
    fn drop(&mut self) {
        if !self.is_over {
            // Should it fail, the end is only more polite.
            let _ = self.stream.set_zero_linger();
        }
    }
}
