//! How a container is saved and restored: by itself, because nobody outside can see its files.
//!
//! Beside the control socket `tools` has a second line to the supervisor. On it come the files of a snapshot before anything
//! else runs in here, and on it they leave when the supervisor asks for them. A thread packs, so that questions are answered
//! meanwhile; it ends as soon as it is told to, with whatever it has sent.
//!
//! Nothing in here needs to be believed: who reads what this sends counts bytes, and who made what this unpacks can have made
//! nothing that a command could not make as well.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::thread::{self, JoinHandle};

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};

use crate::archive::freight::{Mark, Receiver, Sender, Word};
use crate::archive::{self, Bounds, Packed, Place};

/// Before the line, so that small files travel together.
const BUFFER_BYTES: usize = 128 << 10;
/// Packing recurses nowhere and keeps its buffers on the heap.
const STACK_BYTES: usize = 512 << 10;

/// The line, and the folders whose files are this sandbox's own.
pub struct Luggage {
    line: UnixStream,
    places: Vec<PathBuf>,
    packing: Option<Packing>,
}

struct Packing {
    stop: OwnedFd,
    thread: JoinHandle<()>,
}

impl Luggage {
    /// Takes the line over.
    pub fn new(line: UnixStream, places: Vec<PathBuf>) -> Self {
        Self { line, places, packing: None }
    }

    /// Makes the files that come on the line.
    pub fn unpack(&self) -> Result<(), String> {
        let roots = open(&self.places)?;
        let mut receiver = Receiver::new(&self.line, u64::MAX);
        // The kernel keeps the bounds: what may be written is of a fixed size, and so is a file.
        let bounds = Bounds { bytes_max: u64::MAX, file_bytes_max: u64::MAX, entries_max: u64::MAX };
        archive::unpack_places(&mut receiver, &placed(&self.places, &roots), &bounds)
            .map_err(|error| error.to_string())?;
        match receiver.word() {
            Some(Word::Whole { .. }) => Ok(()),
            Some(Word::Broken(_)) | None => Err("the snapshot has no end".to_owned()),
        }
    }

    /// Begins to send the files. Whatever was being sent is not any more.
    pub fn pack(&mut self, mark: Mark) -> io::Result<()> {
        self.stop();
        let stop = eventfd(0, EventfdFlags::CLOEXEC)?;
        let line = Stoppable { line: self.line.try_clone()?, stop: stop.try_clone()? };
        line.line.set_nonblocking(true)?;
        let places = self.places.clone();
        let thread =
            thread::Builder::new().stack_size(STACK_BYTES).spawn(move || send(line, mark, &places))?;
        self.packing = Some(Packing { stop, thread });
        Ok(())
    }

    /// Ends what is being sent, and returns when it has ended.
    pub fn stop(&mut self) {
        let Some(Packing { stop, thread }) = self.packing.take() else { return };
        let _ = rustix::io::write(&stop, &1_u64.to_ne_bytes());
        let _ = thread.join();
    }
}

fn send(mut line: Stoppable, mark: Mark, places: &[PathBuf]) {
    let sent = line.write_all(&mark).map_err(|error| error.to_string()).and_then(|()| {
        let roots = open(places)?;
        let mut stream = BufWriter::with_capacity(BUFFER_BYTES, Sender(&mut line));
        let packed =
            archive::pack_places(&placed(places, &roots), &mut stream).map_err(|error| error.to_string());
        match packed.and_then(|packed| stream.flush().map(|()| packed).map_err(|error| error.to_string())) {
            Ok(packed) => Ok(packed),
            Err(why) => {
                // Or what is buffered would follow.
                drop(stream.into_parts());
                Err(why)
            }
        }
    });
    let word = match sent {
        Ok(Packed { entries, bytes, left_out }) => Word::Whole { entries, bytes, left_out },
        Err(why) => Word::Broken(why),
    };
    // Nobody is left to be told.
    let _ = Sender(&mut line).finish(&word);
}

/// The folders. One that is not there any more has no files.
fn open(places: &[PathBuf]) -> Result<Vec<File>, String> {
    places
        .iter()
        .map(|path| File::open(path).map_err(|error| format!("cannot open {}: {error}", path.display())))
        .collect()
}

fn placed<'a>(places: &'a [PathBuf], roots: &'a [File]) -> Vec<Place<'a>> {
    let name = |path: &'a Path| path.strip_prefix("/").unwrap_or(path).as_os_str().as_bytes();
    places.iter().zip(roots).map(|(path, root)| Place { name: name(path), root: root.as_fd() }).collect()
}

/// The line, as long as nobody says stop.
struct Stoppable {
    line: UnixStream,
    stop: OwnedFd,
}

impl Write for Stoppable {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            let mut polled =
                [PollFd::new(&self.stop, PollFlags::IN), PollFd::new(&self.line, PollFlags::OUT)];
            match poll(&mut polled, None) {
                Ok(_) => {}
                Err(rustix::io::Errno::INTR) => continue,
                Err(error) => return Err(error.into()),
            }
            if !polled[0].revents().is_empty() {
                return Err(io::Error::other("it was broken off"));
            }
            match (&self.line).write(bytes) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                written => return written,
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
