//! Frames over a socket that never blocks, for a loop that serves many.
//!
//! Both directions are bounded: a frame longer than its bound ends the connection, and so does a peer that lets more pile up
//! than it was allowed. Memory follows what a peer has really sent, not what it announced.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

use tools::wire::{HEADER_BYTES, frame_len};

/// Read at one go, so that no peer keeps the loop to itself.
const READ_BYTES: usize = 256 << 10;
/// Buffers larger than this are given back when they are empty.
const KEPT_BYTES: usize = 64 << 10;

pub(crate) struct Frames {
    stream: UnixStream,
    input: Vec<u8>,
    output: VecDeque<u8>,
    frame_bytes_max: usize,
    output_bytes_max: usize,
}

/// Whether the peer may say more.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Flow {
    Open,
    Ended,
}

impl Frames {
    /// Takes over a socket; `frame_bytes_max` bounds what comes in, `output_bytes_max` what may wait to go out.
    pub(crate) fn new(
        stream: UnixStream,
        frame_bytes_max: usize,
        output_bytes_max: usize,
    ) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        Ok(Self { stream, input: Vec::new(), output: VecDeque::new(), frame_bytes_max, output_bytes_max })
    }

    pub(crate) fn descriptor(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }

    /// Reads what is there.
    pub(crate) fn fill(&mut self) -> io::Result<Flow> {
        let mut chunk = [0; 16 << 10];
        let mut left = READ_BYTES;
        while left > 0 {
            match self.stream.read(&mut chunk) {
                Ok(0) => return Ok(Flow::Ended),
                Ok(count) => {
                    self.input.extend_from_slice(&chunk[..count]);
                    left = left.saturating_sub(count);
                    if count < chunk.len() {
                        break;
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(Flow::Open)
    }

    /// Takes the next whole frame's JSON.
    pub(crate) fn next(&mut self) -> io::Result<Option<Vec<u8>>> {
        let Some(header) = self.input.first_chunk::<HEADER_BYTES>() else { return Ok(None) };
        let length = frame_len(*header, self.frame_bytes_max).map_err(io::Error::other)?;
        if self.input.len() < HEADER_BYTES + length {
            return Ok(None);
        }
        let rest = self.input.split_off(HEADER_BYTES + length);
        let mut frame = std::mem::replace(&mut self.input, rest);
        if self.input.is_empty() && self.input.capacity() > KEPT_BYTES {
            self.input = Vec::new();
        }
        frame.drain(..HEADER_BYTES);
        Ok(Some(frame))
    }

    /// Whether this many more bytes may wait.
    pub(crate) fn has_room(&self, bytes: usize) -> bool {
        self.output.len() + bytes <= self.output_bytes_max
    }

    /// Queues a whole frame and writes what goes out at once.
    pub(crate) fn send(&mut self, frame: &[u8]) -> io::Result<()> {
        if !self.has_room(frame.len()) {
            return Err(io::Error::other("the peer does not read"));
        }
        let mut frame = frame;
        // The usual case needs no copy: nothing waits and the socket takes it all.
        while self.output.is_empty() && !frame.is_empty() {
            match self.stream.write(frame) {
                Ok(count) => frame = &frame[count..],
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.output.extend(frame);
        Ok(())
    }

    /// Writes what waits, as far as the socket takes it.
    pub(crate) fn flush(&mut self) -> io::Result<()> {
        while !self.output.is_empty() {
            match self.stream.write(self.output.as_slices().0) {
                Ok(count) => drop(self.output.drain(..count)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        if self.output.capacity() > KEPT_BYTES {
            self.output = VecDeque::new();
        }
        Ok(())
    }

    /// Whether something waits for the socket.
    pub(crate) fn has_output(&self) -> bool {
        !self.output.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use tools::wire::encode;

    use super::*;

    fn pair(output_bytes_max: usize) -> (Frames, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        (Frames::new(ours, 100, output_bytes_max).unwrap(), theirs)
    }

    #[test]
    fn frames_come_out_whole_however_they_were_cut() {
        let (mut frames, mut peer) = pair(0);
        let bytes = [encode(&"one", 100).unwrap(), encode(&"two", 100).unwrap()].concat();
        let mut seen = Vec::new();
        for byte in bytes {
            peer.write_all(&[byte]).unwrap();
            assert_eq!(frames.fill().unwrap(), Flow::Open);
            while let Some(frame) = frames.next().unwrap() {
                seen.push(String::from_utf8(frame).unwrap());
            }
        }
        assert_eq!(seen, ["\"one\"", "\"two\""]);
        drop(peer);
        assert_eq!(frames.fill().unwrap(), Flow::Ended);
    }

    #[test]
    fn a_frame_over_its_bound_is_an_error_before_it_arrives() {
        let (mut frames, mut peer) = pair(0);
        peer.write_all(&101_u32.to_le_bytes()).unwrap();
        frames.fill().unwrap();
        assert!(frames.next().is_err());
    }

    #[test]
    fn a_peer_that_does_not_read_is_cut_off_at_the_bound() {
        let (mut frames, _peer) = pair(1 << 20);
        let frame = vec![0; 512 << 10];
        let sent = (0..100).take_while(|_| frames.send(&frame).is_ok()).count();
        assert!((2..10).contains(&sent), "{sent}");
    }
}
