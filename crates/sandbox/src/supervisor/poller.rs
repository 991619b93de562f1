//! What the loop waits for, each thing under a token that says what it is.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::buffer::spare_capacity;
use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};

/// What became ready. The number tells one of a kind from another and is never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Token {
    Listener,
    Connection(u64),
    /// A sandbox's control socket.
    Control(u64),
    /// The way back of a sandbox that is being built.
    Sync(u64),
    /// The end of a sandbox's process 1.
    Process(u64),
    /// The look for what of the host's is private.
    Masks,
    /// The door of a container that is expected.
    Door(u64),
    /// The first words of one that has come.
    Greeting(u64),
    /// The end of whoever writes a sandbox's snapshot.
    Packer(u64),
}

const KIND_SHIFT: u32 = 56;

impl Token {
    fn number(self) -> u64 {
        let (kind, key) = match self {
            Self::Listener => (0, 0),
            Self::Connection(key) => (1, key),
            Self::Control(key) => (2, key),
            Self::Sync(key) => (3, key),
            Self::Process(key) => (4, key),
            Self::Masks => (5, 0),
            Self::Packer(key) => (6, key),
            Self::Door(key) => (7, key),
            Self::Greeting(key) => (8, key),
        };
        (kind << KIND_SHIFT) | key
    }

    fn from_number(number: u64) -> Self {
        let key = number & ((1 << KIND_SHIFT) - 1);
        match number >> KIND_SHIFT {
            0 => Self::Listener,
            1 => Self::Connection(key),
            2 => Self::Control(key),
            3 => Self::Sync(key),
            4 => Self::Process(key),
            5 => Self::Masks,
            7 => Self::Door(key),
            8 => Self::Greeting(key),
            _ => Self::Packer(key),
        }
    }
}

/// In which directions something is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Interest {
    Read,
    ReadAndWrite,
}

impl Interest {
    fn flags(self) -> EventFlags {
        match self {
            Self::Read => EventFlags::IN,
            Self::ReadAndWrite => EventFlags::IN | EventFlags::OUT,
        }
    }
}

/// Handled at one go.
const EVENTS: usize = 64;

pub(crate) struct Poller(OwnedFd);

impl Poller {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self(epoll::create(CreateFlags::CLOEXEC)?))
    }

    pub(crate) fn add(&self, source: impl AsFd, token: Token) -> io::Result<()> {
        Ok(epoll::add(&self.0, source, EventData::new_u64(token.number()), Interest::Read.flags())?)
    }

    pub(crate) fn change(&self, source: impl AsFd, token: Token, interest: Interest) -> io::Result<()> {
        Ok(epoll::modify(&self.0, source, EventData::new_u64(token.number()), interest.flags())?)
    }

    /// Must come before the descriptor is closed: a copy of it may live on in a child for a moment.
    pub(crate) fn remove(&self, source: impl AsFd) {
        let _ = epoll::delete(&self.0, source);
    }

    /// What is ready, at the latest after `timeout`.
    pub(crate) fn wait(&self, timeout: Option<Duration>) -> io::Result<Vec<Token>> {
        let timeout = timeout.map(|timeout| Timespec {
            tv_sec: i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(timeout.subsec_nanos()),
        });
        let mut events: Vec<Event> = Vec::with_capacity(EVENTS);
        match epoll::wait(&self.0, spare_capacity(&mut events), timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(events.iter().map(|event| Token::from_number(event.data.u64())).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_survives_the_kernel() {
        let tokens = [
            Token::Listener,
            Token::Connection(7),
            Token::Control(1),
            Token::Sync(1 << 40),
            Token::Process(0),
            Token::Door(3),
            Token::Greeting(u64::from(u32::MAX)),
            Token::Packer(3),
        ];
        assert_eq!(tokens.map(|token| Token::from_number(token.number())), tokens);
    }
}
