//! The server's side of [`Ask::Exits`]: a connection of its own on which the supervisor brings the exits of sandboxes.
//!
//! It never starts a supervisor: without one there is no sandbox that could have an exit. When the supervisor ends, it
//! waits for the next one.

use std::collections::{HashSet, VecDeque};
use std::io::{self, ErrorKind, Write};
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::time::Duration;

use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;
use tools::wire::{HEADER_BYTES, encode, frame_len};

use super::passing;
use super::place::Place;
use super::protocol::{Answer, Ask, PROTOCOL, REQUEST_BYTES_MAX, RESPONSE_BYTES_MAX, Request, Response};
use crate::provider::{Exit, ExitNews, SandboxId};

/// How often it is looked for a supervisor that somebody else may have started.
const LOOK: Duration = Duration::from_secs(1);

/// Brings exits until nobody takes them. `connected` changes when this server has found or started a supervisor.
pub(crate) async fn feed(
    place: impl Fn() -> io::Result<Place>,
    mut connected: watch::Receiver<()>,
    into: mpsc::Sender<ExitNews>,
) {
    while !into.is_closed() {
        // Looked at before the try, so that no change falls in between.
        connected.mark_unchanged();
        let mut open = HashSet::new();
        let brought = bring(&place, &into, &mut open).await;
        // Whatever lives on comes again.
        for sandbox in open {
            let _ = into.send(ExitNews::Ended(sandbox)).await;
        }
        match brought {
            Ok(()) => {}
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused) => {}
            Err(error) => tracing::debug!(%error, "the exits of sandboxes cannot be had at the moment"),
        }
        // An error of `changed` is the end of the provider, and soon of this task.
        let _ = timeout(LOOK, connected.changed()).await;
    }
}

/// Brings exits from the supervisor that is there now, to its end.
async fn bring(
    place: impl Fn() -> io::Result<Place>,
    into: &mpsc::Sender<ExitNews>,
    open: &mut HashSet<SandboxId>,
) -> io::Result<()> {
    let place = place()?;
    let mut stream =
        tokio::task::spawn_blocking(move || place.connect()).await.map_err(io::Error::other)??;
    // A few bytes, which a fresh socket takes at once.
    for (id, ask) in [(1, Ask::Hello { protocol: PROTOCOL, idle_exit_ms: None }), (2, Ask::Exits {})] {
        stream.write_all(&encode(&Request { id, ask }, REQUEST_BYTES_MAX).map_err(io::Error::other)?)?;
    }
    stream.set_nonblocking(true)?;
    let stream = UnixStream::from_std(stream)?;
    let (mut input, mut descriptors) = (Vec::new(), VecDeque::new());
    let mut chunk = vec![0; 16 << 10];
    loop {
        let received =
            stream.async_io(Interest::READABLE, || passing::receive(&stream, &mut chunk, &mut descriptors));
        match received.await? {
            0 => return Ok(()),
            count => input.extend_from_slice(&chunk[..count]),
        }
        while let Some(answer) = take_answer(&mut input)? {
            let Some(news) = news_of(answer, &mut descriptors)? else { continue };
            match &news {
                ExitNews::Opened(exit) => open.insert(exit.sandbox.clone()),
                ExitNews::Ended(sandbox) => open.remove(sandbox),
            };
            if into.send(news).await.is_err() {
                return Ok(());
            }
        }
    }
}

fn take_answer(input: &mut Vec<u8>) -> io::Result<Option<Answer>> {
    let Some(header) = input.first_chunk::<HEADER_BYTES>() else { return Ok(None) };
    let end = HEADER_BYTES + frame_len(*header, RESPONSE_BYTES_MAX).map_err(io::Error::other)?;
    if input.len() < end {
        return Ok(None);
    }
    let Response { id: _, answer } = serde_json::from_slice(&input[HEADER_BYTES..end])?;
    input.drain(..end);
    Ok(Some(answer))
}

fn news_of(answer: Answer, descriptors: &mut VecDeque<OwnedFd>) -> io::Result<Option<ExitNews>> {
    match answer {
        Answer::Exit { sandbox, network } => {
            let socket = descriptors.pop_front();
            let socket = socket.ok_or_else(|| io::Error::other("an exit came without its socket"))?;
            Ok(Some(ExitNews::Opened(Exit { sandbox, network, listener: TcpListener::from(socket) })))
        }
        Answer::ExitEnded { sandbox } => Ok(Some(ExitNews::Ended(sandbox))),
        Answer::Hello { protocol: PROTOCOL, .. } => Ok(None),
        Answer::Hello { .. } => Err(io::Error::other("the supervisor is of another version")),
        Answer::Failed(error) => Err(io::Error::other(error)),
        Answer::Done {}
        | Answer::Report(_)
        | Answer::Relayed(_)
        | Answer::List(_)
        | Answer::Occupancy(_)
        | Answer::Door { .. }
        | Answer::Saved(_) => Ok(None),
    }
}
