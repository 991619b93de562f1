//! Where nobody can hand over a socket: `tools` dials one itself.
//!
//! An engine of containers starts `tools` as process 1 with `--connect FOLDER`. In that folder lie the supervisor's
//! socket and the system call filter. Before anything else runs, `tools` connects, makes the exit if it was told to and
//! passes it over, sets `no_new_privs`, puts on the filter, and says that it is ready; or it says what failed. The
//! first byte tells the supervisor which of these it is:
//!
//! ```text
//! connect ──▶ [EXIT + descriptor] ──▶ [files of a snapshot] ──▶ GO ──▶ frames as ever (`wire`)
//!                     └───────────────────────┴─────────────▶ a sentence, and the end
//! ```

use std::ffi::OsString;
use std::fs;
use std::io::{self, IoSlice, Write};
use std::mem::MaybeUninit;
use std::net::{Ipv4Addr, TcpListener};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

use crate::luggage::Luggage;
use crate::sys;
use crate::wire::dial::{CARGO, CONTROL, EXIT, FILTER, GO, UNRESTORABLE};

/// A filter is some hundreds of instructions of eight bytes; the kernel takes 4,096.
const FILTER_BYTES_MAX: u64 = 8 * 4096;

/// What the command line says about whom to call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Summons {
    /// The folder with the socket and the filter.
    pub folder: PathBuf,
    /// The port of the loopback address at which the exit listens, if there is to be one.
    pub exit: Option<u16>,
    /// Whether a snapshot comes on the line for files, before anything runs.
    pub restore: bool,
    /// Folders whose files are this sandbox's own, and go into its snapshots. Absolute.
    pub places: Vec<PathBuf>,
}

impl Summons {
    /// Takes `--connect FOLDER`, `--exit PORT`, `--restore` and any number of `--place FOLDER` from the head of the command
    /// line, in this order; the rest is for [`crate::config`].
    pub fn parse(
        arguments: impl IntoIterator<Item = OsString>,
    ) -> Result<(Option<Summons>, Vec<OsString>), String> {
        let arguments: Vec<OsString> = arguments.into_iter().collect();
        let [first, folder, rest @ ..] = arguments.as_slice() else { return Ok((None, arguments)) };
        if first != "--connect" {
            return Ok((None, arguments));
        }
        let folder = PathBuf::from(folder);
        if !folder.is_absolute() {
            return Err("--connect needs an absolute path".into());
        }
        let (exit, rest) = match rest {
            [name, port, rest @ ..] if name == "--exit" => {
                let port = port.to_str().and_then(|port| port.parse().ok()).filter(|port| *port > 0);
                (Some(port.ok_or("--exit needs a port")?), rest)
            }
            rest => (None, rest),
        };
        let (restore, mut rest) = match rest {
            [name, rest @ ..] if name == "--restore" => (true, rest),
            rest => (false, rest),
        };
        let mut places = Vec::new();
        while let [name, place, after @ ..] = rest
            && name == "--place"
        {
            places.push(PathBuf::from(place));
            rest = after;
        }
        if !places.iter().all(|place| place.is_absolute()) {
            return Err("--place needs an absolute path".into());
        }
        let rest = rest.to_vec();
        Ok((Some(Summons { folder, exit, restore, places }), rest))
    }
}

/// A connection to the supervisor on which nothing has been said that is final.
pub struct Line(UnixStream);

impl Line {
    /// Connects, on both lines: the one for files first, because with the other one the supervisor looks for both.
    pub fn dial(summons: &Summons) -> Result<(Line, Luggage), String> {
        let connect = |name: &str| {
            let path = summons.folder.join(name);
            UnixStream::connect(&path)
                .map_err(|cause| format!("cannot connect to {}: {cause}", path.display()))
        };
        let cargo = connect(CARGO)?;
        Ok((Line(connect(CONTROL)?), Luggage::new(cargo, summons.places.clone())))
    }

    /// Makes and passes over the exit, and gives up what this process does not need. What has been given up does not
    /// come back, so this is done once.
    pub fn prepare(&self, summons: &Summons) -> Result<(), String> {
        if let Some(port) = summons.exit {
            self.open_exit(port).map_err(|cause| format!("cannot open the exit: {cause}"))?;
        }
        rustix::thread::set_no_new_privs(true)
            .map_err(|cause| format!("cannot set no_new_privs: {cause}"))?;
        let path = summons.folder.join(FILTER);
        let filter = fs::metadata(&path)
            .and_then(|found| match found.len() <= FILTER_BYTES_MAX {
                true => fs::read(&path),
                false => Err(io::Error::other("it is too long")),
            })
            .map_err(|cause| format!("cannot read the system call filter: {cause}"))?;
        sys::load_filter(&filter).map_err(|cause| format!("cannot apply the system call filter: {cause}"))
    }

    fn open_exit(&self, port: u16) -> io::Result<()> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port))?;
        listener.set_nonblocking(true)?;
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        let descriptors = [listener.as_fd()];
        if !ancillary.push(SendAncillaryMessage::ScmRights(&descriptors)) {
            return Err(io::Error::other("no room for a descriptor"));
        }
        sendmsg(&self.0, &[IoSlice::new(&[EXIT])], &mut ancillary, SendFlags::NOSIGNAL)?;
        Ok(())
    }

    /// Says that what follows are frames, and gives the socket for them.
    pub fn ready(self) -> Result<UnixStream, String> {
        (&self.0).write_all(&[GO]).map_err(|cause| format!("cannot say that it is ready: {cause}"))?;
        Ok(self.0)
    }

    /// Says that there will be none because of the snapshot.
    pub fn complain_of_snapshot(self, complaint: &str) {
        let _ = (&self.0).write_all(&[UNRESTORABLE]);
        self.complain(complaint);
    }

    /// Says why there will be none.
    pub fn complain(self, complaint: &str) {
        // Nobody else is there to be told.
        let _ = (&self.0).write_all(complaint.as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(arguments: &[&str]) -> Result<(Option<Summons>, Vec<OsString>), String> {
        Summons::parse(arguments.iter().map(OsString::from))
    }

    #[test]
    fn the_head_of_the_command_line_says_whom_to_call() {
        let summons = |exit| Some(Summons { folder: "/x".into(), exit, restore: false, places: Vec::new() });
        let rest = || vec![OsString::from("--workdir"), OsString::from("/w")];
        assert_eq!(parsed(&["--workdir", "/w"]), Ok((None, rest())));
        assert_eq!(parsed(&["--connect", "/x", "--workdir", "/w"]), Ok((summons(None), rest())));
        assert_eq!(
            parsed(&["--connect", "/x", "--exit", "3128", "--workdir", "/w"]),
            Ok((summons(Some(3128)), rest()))
        );
        let restoring =
            parsed(&["--connect", "/x", "--restore", "--place", "/a", "--place", "/b", "--workdir", "/w"]);
        let places = vec!["/a".into(), "/b".into()];
        let expected = Summons { folder: "/x".into(), exit: None, restore: true, places };
        assert_eq!(restoring, Ok((Some(expected), rest())));
        for wrong in [
            &["--connect", "x"][..],
            &["--connect", "/x", "--exit", "0"],
            &["--connect", "/x", "--place", "a"],
        ] {
            assert!(parsed(wrong).is_err(), "{wrong:?}");
        }
    }
}
