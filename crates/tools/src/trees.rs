//! Trees of files that a session brings: each comes as an archive, piece by piece, and is a folder when all of it is there.
//!
//! A thread unpacks beside the main loop, into a folder of another name, which gets its own when it is whole. A tree that is
//! broken off, or cannot be unpacked, leaves nothing. Whoever begins anew need not wait for that: no two attempts share a folder.

use std::fs;
use std::io::{self, Read};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::archive::{Bounds, Place, unpack_places};
use crate::desk::Desk;
use crate::wire::{Refusal, Reply, TREE, TREE_PIECE_BYTES_MAX};

/// Files and folders of one tree: more than any repository has that fits a sandbox.
const ENTRIES_MAX: u64 = 1 << 20;

/// [`crate::wire::Op::Unpack`].
pub(crate) struct Piece {
    pub(crate) at: String,
    pub(crate) offset: u64,
    pub(crate) data: String,
    pub(crate) last: bool,
}

/// The tree that is being unpacked, if one is. There is one at a time.
#[derive(Default)]
pub(crate) struct Trees {
    current: Option<Current>,
}

struct Current {
    at: String,
    /// Where the next piece stands.
    offset: u64,
    sender: SyncSender<Received>,
}

struct Received {
    request: u64,
    bytes: Vec<u8>,
    last: bool,
}

impl Trees {
    /// Takes a piece. It is answered by the thread that unpacks, once it wants the next.
    pub(crate) fn take(&mut self, desk: &Arc<Desk>, request: u64, piece: Piece) {
        if let Err(message) = self.pass_on(desk, request, piece) {
            self.current = None;
            desk.reply(request, Reply::Refused { reason: Refusal::Invalid, message });
        }
    }

    fn pass_on(&mut self, desk: &Arc<Desk>, request: u64, piece: Piece) -> Result<(), String> {
        let Piece { at, offset, data, last } = piece;
        let bytes = STANDARD.decode(data).map_err(|cause| format!("the piece is no base64: {cause}"))?;
        if bytes.len() > TREE_PIECE_BYTES_MAX {
            return Err(format!("the piece has more than {TREE_PIECE_BYTES_MAX} bytes"));
        }
        if offset == 0 {
            self.current = Some(begin(desk, &at)?);
        }
        let current = self.current.as_mut().filter(|current| current.at == at && current.offset == offset);
        let current = current.ok_or("the pieces of the tree do not follow one another")?;
        current.offset += bytes.len() as u64;
        // There is room: the piece before has been answered, so it has been taken out.
        let sent = current.sender.try_send(Received { request, bytes, last });
        sent.map_err(|_| "the tree could not be unpacked".to_owned())
    }
}

fn begin(desk: &Arc<Desk>, at: &str) -> Result<Current, String> {
    let place = PathBuf::from(at);
    let name = place.file_name().filter(|_| place.is_absolute()).ok_or("the tree has no place")?;
    static ATTEMPT: AtomicU64 = AtomicU64::new(0);
    let mut partial = std::ffi::OsString::from(".");
    partial.push(name);
    partial.push(format!(".partial-{}", ATTEMPT.fetch_add(1, Ordering::Relaxed)));
    let partial = place.with_file_name(partial);
    let (sender, receiver) = sync_channel(1);
    let desk = Arc::clone(desk);
    let unpack = move || {
        let mut pieces = Pieces { desk, receiver, current: None, position: 0 };
        let unpacked = unpack(&mut pieces, &place, &partial);
        pieces.finish(unpacked);
    };
    thread::Builder::new().spawn(unpack).map_err(|cause| format!("no thread for the tree: {cause}"))?;
    Ok(Current { at: at.to_owned(), offset: 0, sender })
}

fn unpack(pieces: &mut Pieces, place: &Path, partial: &Path) -> Result<(), String> {
    if fs::read_dir(place).is_ok_and(|mut entries| entries.next().is_some()) {
        // It was brought before, and the answer did not arrive.
        return io::copy(pieces, &mut io::sink()).map(drop).map_err(|cause| cause.to_string());
    }
    let unpacked = make(pieces, place, partial);
    if unpacked.is_err() {
        let _ = fs::remove_dir_all(partial);
    }
    unpacked
}

fn make(pieces: &mut Pieces, place: &Path, partial: &Path) -> Result<(), String> {
    let told = |cause: io::Error| format!("the folder cannot be made: {cause}");
    match fs::remove_dir_all(partial) {
        Err(cause) if cause.kind() != io::ErrorKind::NotFound => return Err(told(cause)),
        Ok(()) | Err(_) => {}
    }
    fs::create_dir_all(partial).map_err(told)?;
    let root = fs::File::open(partial).map_err(told)?;
    // What it may take in all is for the limits of the sandbox.
    let bounds = Bounds { bytes_max: u64::MAX, file_bytes_max: u64::MAX, entries_max: ENTRIES_MAX };
    let place_of_all = Place { name: TREE, root: root.as_fd() };
    unpack_places(&mut *pieces, &[place_of_all], &bounds).map_err(|cause| cause.to_string())?;
    fs::rename(partial, place).map_err(told)
}

/// The archive, as it comes.
struct Pieces {
    desk: Arc<Desk>,
    receiver: Receiver<Received>,
    current: Option<Received>,
    /// In the current piece.
    position: usize,
}

impl Pieces {
    fn finish(self, unpacked: Result<(), String>) {
        // Nobody waits for one that was broken off.
        let current = self.current.or_else(|| self.receiver.try_recv().ok());
        let Some(Received { request, last, .. }) = current else { return };
        let reply = match unpacked {
            Ok(()) if last => Reply::Unpacked,
            Ok(()) => refused("the archive ends before its last piece".to_owned()),
            Err(message) => refused(message),
        };
        self.desk.reply(request, reply);
    }
}

fn refused(message: String) -> Reply {
    Reply::Refused { reason: Refusal::Invalid, message }
}

impl Read for Pieces {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        loop {
            if let Some(Received { request, bytes, last }) = &self.current {
                let rest = &bytes[self.position..];
                if !rest.is_empty() || *last {
                    let count = rest.len().min(into.len());
                    into[..count].copy_from_slice(&rest[..count]);
                    self.position += count;
                    return Ok(count);
                }
                self.desk.reply(*request, Reply::Unpacked);
            }
            self.current = None;
            self.position = 0;
            let next = self.receiver.recv();
            self.current = Some(next.map_err(|_| io::Error::other("the tree was broken off"))?);
        }
    }
}
