//! The way from a folder to another one below it, without following a link.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags, openat};
use rustix::io::Errno;

/// A folder, and the one below it that was last asked for: files come folder by folder.
pub(super) struct Beneath<'a> {
    root: BorrowedFd<'a>,
    path: Vec<u8>,
    last: Option<OwnedFd>,
}

impl<'a> Beneath<'a> {
    pub(super) fn new(root: BorrowedFd<'a>) -> Self {
        Self { root, path: Vec::new(), last: None }
    }

    /// The folder at `path` below the root; the root itself for the empty path. Not readable, only a place to start from.
    /// An error if anything on the way is not a folder.
    pub(super) fn folder(&mut self, path: &[u8]) -> Result<BorrowedFd<'_>, Errno> {
        if path.is_empty() {
            return Ok(self.root);
        }
        let further = match &self.last {
            Some(_) if self.path == path => None,
            // One step down from the last one is the usual case.
            Some(_) if path.starts_with(&self.path) && path.get(self.path.len()) == Some(&b'/') => {
                Some(&path[self.path.len() + 1..])
            }
            Some(_) | None => {
                self.last = None;
                Some(path)
            }
        };
        for name in further.into_iter().flat_map(|further| further.split(|byte| *byte == b'/')) {
            let from = self.last.as_ref().map_or(self.root, OwnedFd::as_fd);
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            match openat(from, name, flags, Mode::empty()) {
                Ok(folder) => self.last = Some(folder),
                Err(error) => {
                    self.last = None;
                    return Err(error);
                }
            }
        }
        path.clone_into(&mut self.path);
        Ok(self.last.as_ref().map_or(self.root, OwnedFd::as_fd))
    }
}
