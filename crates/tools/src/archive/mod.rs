//! A tree of files as one stream, and back: what a snapshot of a sandbox is made of.
//!
//! The stream is a POSIX tar archive with the usual extended headers, so any `tar` can list it. [`pack`] writes one from a
//! folder, with symbolic and hard links, FIFOs, sparse files, times to the nanosecond, owners, `user.*` attributes and the
//! marks that an overlay leaves in its upper layer. [`unpack`] reads one into a folder, and trusts nothing in it: each entry
//! is checked by itself, every step below the folder is taken without following a link, and the first entry that breaks a
//! rule ends it.
//!
//! It refuses to carry what has no meaning or too much of it in another place: sockets, devices other than the whiteout of
//! an overlay, set-user-id bits, capabilities. It knows nothing of compression or digests, and it does not clean up after a
//! failure: a folder that was half unpacked is for the caller to throw away.
//!
//! [`pack_places`] and [`unpack_places`] do the same for several folders that are one user's, without any privilege: so a
//! container packs and unpacks itself.
//!
//! In reading order: the tar format ([`tar`]), the way to a folder below another one (`beneath`), the two directions, and how
//! an archive travels between two processes ([`freight`]).

mod beneath;
pub mod freight;
mod pack;
pub mod tar;
mod unpack;

use std::io;

pub use pack::{Packed, pack, pack_places};
pub use unpack::{Bounds, Unpacked, unpack, unpack_places};

/// Which part of a tree an archive holds. Both directions keep to it.
#[derive(Clone, Copy, Debug)]
pub struct Scope {
    /// The top folders that belong to it; empty: all of them.
    pub tops: &'static [&'static str],
    /// Paths below them that do not, with everything in them.
    pub except: &'static [&'static str],
}

impl Scope {
    /// The whole tree.
    pub const ALL: Self = Self { tops: &[], except: &[] };

    fn holds(&self, path: &[u8]) -> bool {
        let top = path.split(|byte| *byte == b'/').next().unwrap_or_default();
        let within = |folder: &&str| {
            path.strip_prefix(folder.as_bytes()).is_some_and(|rest| rest.is_empty() || rest[0] == b'/')
        };
        (self.tops.is_empty() || self.tops.iter().any(|name| name.as_bytes() == top))
            && !self.except.iter().any(within)
    }
}

/// One of several folders in an archive.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    /// The path of its files in the archive: plain names with `/` between them.
    pub name: &'a [u8],
    /// Where they are.
    pub root: std::os::fd::BorrowedFd<'a>,
}

/// Whose the files are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Owners {
    /// Several users', as the archive says.
    Recorded,
    /// The caller's alone, who has no privilege over them: 0 in the archive, and not looked at when it is unpacked.
    Caller,
}

/// The longest path, in bytes: what the kernel takes in one go.
pub const PATH_BYTES_MAX: usize = 4095;
/// The longest name of one file.
pub const NAME_BYTES_MAX: usize = 255;
/// All attributes of one file with their names: more than file systems keep.
pub const XATTR_BYTES_MAX: usize = 128 << 10;
/// Pieces of a sparse file: a gigabyte in which every other page is a hole has half as many.
pub const EXTENTS_MAX: usize = 1 << 18;
/// Ids go from 0 to below this: what one sandbox has at most.
pub const IDS_MAX: u32 = 0x1_0000;

/// Why an archive could not be written or read.
#[derive(Debug)]
pub enum Error {
    /// Reading or writing failed: a full disk, a broken stream.
    Io {
        /// What was being done, and to which entry.
        doing: String,
        /// What the kernel said.
        cause: io::Error,
    },
    /// An entry breaks a rule; nothing after it was looked at.
    Refused {
        /// Its path, as text.
        path: String,
        /// Which rule.
        reason: &'static str,
    },
    /// The stream is not what [`pack`] writes.
    Corrupt(&'static str),
}

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Error::Io { doing, cause } => write!(f, "cannot {doing}: {cause}"),
            Error::Refused { path, reason } => write!(f, "entry \"{path}\" is refused: {reason}"),
            Error::Corrupt(what) => write!(f, "the archive is corrupt: {what}"),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Error::Io { cause, .. } => Some(cause),
            Error::Refused { .. } | Error::Corrupt(_) => None,
        }
    }
}

/// Names what was done when it failed, and to what.
trait Doing<T> {
    fn doing(self, what: &str, path: &[u8]) -> Result<T, Error>;
}

impl<T, E: Into<io::Error>> Doing<T> for Result<T, E> {
    fn doing(self, what: &str, path: &[u8]) -> Result<T, Error> {
        self.map_err(|cause| Error::Io {
            doing: match path {
                [] => what.to_owned(),
                _ => format!("{what} \"{}\"", readable(path)),
            },
            cause: cause.into(),
        })
    }
}

/// A path for people: what is not text is escaped, and it is not too long.
fn readable(path: &[u8]) -> String {
    const SHOWN_MAX: usize = 200;
    path[..path.len().min(SHOWN_MAX)].escape_ascii().to_string()
}

/// Whether an attribute may be carried: plain `user.*` ones, and of an overlay's marks only the one that says that a folder
/// hides what lies below it. The others point into the layer below, or make the kernel follow a path.
fn carries_attribute(name: &[u8], value: &[u8]) -> bool {
    let plain = name.starts_with(b"user.") && name.len() > 5 && name.len() <= NAME_BYTES_MAX;
    let overlay = name.starts_with(b"user.overlay.") || name.starts_with(b"user.fuseoverlayfs.");
    plain && (!overlay || (name == b"user.overlay.opaque" && matches!(value, b"y" | b"x")))
}

/// The bits of a mode that may be carried. Set-user-id and set-group-id do nothing in a sandbox, and shall do nothing
/// anywhere else; on a folder the second only says whose group its files get.
fn carried_mode(mode: u32, is_folder: bool) -> u32 {
    mode & if is_folder { 0o3777 } else { 0o1777 }
}

fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(slash) => (&path[..slash], &path[slash + 1..]),
        None => (b"", path),
    }
}
