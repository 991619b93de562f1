//! Descriptors over a Unix socket: how the exit of a sandbox gets from the inside to whoever serves it.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};

/// Descriptors taken at once. Whoever speaks to us sends one at a time; what is over is closed by the kernel.
const DESCRIPTORS_MAX: usize = 4;

/// Sends these bytes, and the descriptor with the first of them. Gives how many bytes the socket took: none without the
/// descriptor.
pub(crate) fn send(socket: impl AsFd, bytes: &[u8], descriptor: BorrowedFd<'_>) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let descriptors = [descriptor];
    if !ancillary.push(SendAncillaryMessage::ScmRights(&descriptors)) {
        return Err(io::Error::other("no room for a descriptor"));
    }
    Ok(sendmsg(socket, &[IoSlice::new(bytes)], &mut ancillary, SendFlags::NOSIGNAL)?)
}

/// Reads what is there, and the descriptors that came with it. No bytes: the end.
pub(crate) fn receive(
    socket: impl AsFd,
    bytes: &mut [u8],
    descriptors: &mut VecDeque<OwnedFd>,
) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut slices = [IoSliceMut::new(bytes)];
    let received = loop {
        match recvmsg(&socket, &mut slices, &mut ancillary, RecvFlags::CMSG_CLOEXEC) {
            Err(rustix::io::Errno::INTR) => {}
            other => break other?,
        }
    };
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = message {
            descriptors.extend(received);
        }
    }
    Ok(received.bytes)
}

/// Messages, with a descriptor or without, that wait for a socket.
#[derive(Default)]
pub(crate) struct Outgoing {
    /// What is left of a message that has begun; its descriptor is on its way.
    rest: Vec<u8>,
    waiting: VecDeque<(Vec<u8>, Option<OwnedFd>)>,
}

/// Exits that wait for one server: more than there can be sandboxes, so it is reached only by one that does not read.
const WAITING_MAX: usize = 8192;

impl Outgoing {
    /// Queues a message and writes what the socket takes.
    pub(crate) fn send(
        &mut self,
        socket: impl AsFd,
        message: Vec<u8>,
        descriptor: Option<OwnedFd>,
    ) -> io::Result<()> {
        if self.waiting.len() >= WAITING_MAX {
            return Err(io::Error::other("the peer does not read"));
        }
        self.waiting.push_back((message, descriptor));
        self.flush(socket)
    }

    /// Writes what waits, as far as the socket takes it.
    pub(crate) fn flush(&mut self, socket: impl AsFd) -> io::Result<()> {
        loop {
            let written = match self.waiting.front() {
                _ if !self.rest.is_empty() => match rustix::io::write(&socket, &self.rest) {
                    Ok(count) => {
                        self.rest.drain(..count);
                        Ok(())
                    }
                    Err(error) => Err(io::Error::from(error)),
                },
                None => return Ok(()),
                Some((message, descriptor)) => {
                    let count = match descriptor {
                        Some(descriptor) => send(&socket, message, descriptor.as_fd()),
                        None => rustix::io::write(&socket, message).map_err(io::Error::from),
                    };
                    count.map(|count| {
                        let (mut message, _) = self.waiting.pop_front().expect("it was there");
                        self.rest = message.split_off(count);
                    })
                }
            };
            match written {
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Whether nothing waits for the socket.
    pub(crate) fn is_empty(&self) -> bool {
        self.rest.is_empty() && self.waiting.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn a_descriptor_arrives_with_its_message_however_slowly_it_is_read() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let mut outgoing = Outgoing::default();
        let mut writers = Vec::new();
        for _ in 0..300 {
            let (reader, writer) = io::pipe().unwrap();
            writers.push(writer);
            outgoing.send(&ours, vec![b'x'; 1000], Some(reader.into())).unwrap();
        }
        assert!(!outgoing.is_empty(), "the socket is full");
        let (mut bytes, mut descriptors, mut count) = ([0; 700], VecDeque::new(), 0);
        while count < 300_000 {
            count += receive(&theirs, &mut bytes, &mut descriptors).unwrap();
            outgoing.flush(&ours).unwrap();
        }
        assert_eq!(descriptors.len(), 300);
        writers[299].write_all(b"hello").unwrap();
        drop(writers);
        let mut text = String::new();
        io::PipeReader::from(descriptors.pop_back().unwrap()).read_to_string(&mut text).unwrap();
        assert_eq!(text, "hello");
        drop(ours);
        assert_eq!(theirs.read(&mut bytes).unwrap(), 0);
    }
}
