//! From an archive to a folder, entry by entry, each one checked before anything is made of it.

use std::io::{BufRead, BufReader, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, Timespec, Timestamps, chmodat, chownat, fsetxattr, ftruncate, futimens,
    linkat, mkdirat, mknodat, openat, statat, symlinkat, utimensat,
};
use rustix::io::Errno;
use rustix::process::{Gid, Uid};

use super::beneath::Beneath;
use super::tar::{self, Entry, Extent, Kind, Time};
use super::{
    Doing, Error, IDS_MAX, NAME_BYTES_MAX, Owners, PATH_BYTES_MAX, Place, Scope, XATTR_BYTES_MAX,
    carried_mode, carries_attribute, readable, split,
};

/// How much an archive may hold.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Bytes of all files together, holes not counted.
    pub bytes_max: u64,
    /// The length of one file, holes counted.
    pub file_bytes_max: u64,
    /// Entries.
    pub entries_max: u64,
}

/// What was made of an archive.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Unpacked {
    /// Entries of every kind.
    pub entries: u64,
    /// Bytes of files.
    pub bytes: u64,
}

/// How much is read ahead.
const BUFFER_BYTES: usize = 128 << 10;

/// Makes in `root` what `from` says, up to the end of the archive. The caller's file mode mask must be 0.
///
/// Folders that are there already are taken over, any other file that is there already is an error. What is made belongs to
/// its recorded owner, or to the caller if this user namespace has no such id.
pub fn unpack(
    from: impl Read,
    root: BorrowedFd<'_>,
    scope: &Scope,
    bounds: &Bounds,
) -> Result<Unpacked, Error> {
    run(from, &[Place { name: b"", root }], scope, Owners::Recorded, bounds)
}

/// Makes in these folders what `from` says, up to the end of the archive: a `from` that [`super::pack_places`] wrote of
/// folders of the same names. Everything is the caller's.
pub fn unpack_places(from: impl Read, places: &[Place<'_>], bounds: &Bounds) -> Result<Unpacked, Error> {
    run(from, places, &Scope::ALL, Owners::Caller, bounds)
}

fn run(
    from: impl Read,
    places: &[Place<'_>],
    scope: &Scope,
    owners: Owners,
    bounds: &Bounds,
) -> Result<Unpacked, Error> {
    let mut unpacker = Unpacker {
        from: BufReader::with_capacity(BUFFER_BYTES, from),
        places: places.iter().map(|place| (place.name, Beneath::new(place.root))).collect(),
        owners,
        unpacked: Unpacked::default(),
        folders: Vec::new(),
    };
    while let Some(entry) = tar::read(&mut unpacker.from)? {
        check(&entry, scope, bounds, &unpacker.unpacked)
            .map_err(|reason| Error::Refused { path: readable(&entry.path), reason })?;
        unpacker.unpacked.entries += 1;
        unpacker.entry(entry)?;
    }
    // Whoever made the stream may want to see its end.
    let mut rest = [0; 1];
    if unpacker.from.read(&mut rest).doing("read the archive", b"")? != 0 {
        return Err(Error::Corrupt("something follows its end"));
    }
    unpacker.finish_folders()?;
    Ok(unpacker.unpacked)
}

/// Whether an entry may be made, by what it says alone.
fn check(entry: &Entry, scope: &Scope, bounds: &Bounds, so_far: &Unpacked) -> Result<(), &'static str> {
    check_path(&entry.path)?;
    if !scope.holds(&entry.path) {
        return Err("it lies where nothing is unpacked");
    }
    if so_far.entries >= bounds.entries_max {
        return Err("there are too many entries");
    }
    let length = match &entry.kind {
        Kind::File { size } => *size,
        Kind::Sparse { extents, .. } => extents.iter().map(|extent| extent.length).sum(),
        _ => 0,
    };
    if length > bounds.bytes_max.saturating_sub(so_far.bytes) {
        return Err("there are too many bytes");
    }
    match &entry.kind {
        Kind::File { size } | Kind::Sparse { size, .. } if *size > bounds.file_bytes_max => {
            return Err("the file is too long");
        }
        Kind::File { .. } | Kind::Sparse { .. } | Kind::Folder | Kind::Pipe => {}
        Kind::Link { to } if to.is_empty() || to.len() > PATH_BYTES_MAX || to.contains(&0) => {
            return Err("the link points nowhere");
        }
        Kind::Link { .. } => {}
        Kind::HardLink { to } => {
            check_path(to)?;
            if !scope.holds(to) {
                return Err("it is a link to where nothing is unpacked");
            }
        }
        Kind::Device { major: 0, minor: 0 } => {}
        Kind::Device { .. } => return Err("it is a device"),
        Kind::Other(_) => return Err("it is of a kind that is not unpacked"),
    }
    if entry.mode != carried_mode(entry.mode, matches!(entry.kind, Kind::Folder)) {
        return Err("its mode says more than permissions");
    }
    if entry.uid >= IDS_MAX || entry.gid >= IDS_MAX {
        return Err("its owner is none of a sandbox");
    }
    if !entry.attributes.iter().all(|(name, value)| !name.contains(&0) && carries_attribute(name, value)) {
        return Err("it has an attribute that is not unpacked");
    }
    let attribute_bytes: usize = entry.attributes.iter().map(|(name, value)| name.len() + value.len()).sum();
    if attribute_bytes > XATTR_BYTES_MAX {
        return Err("its attributes are too large");
    }
    match entry.kind {
        Kind::File { .. } | Kind::Sparse { .. } | Kind::Folder => Ok(()),
        _ if entry.attributes.is_empty() => Ok(()),
        _ => Err("only files and folders have attributes"),
    }
}

fn check_path(path: &[u8]) -> Result<(), &'static str> {
    if path.first() == Some(&b'/') {
        return Err("its path is absolute");
    }
    if path.len() > PATH_BYTES_MAX || path.contains(&0) {
        return Err("its path is none");
    }
    path.split(|byte| *byte == b'/').try_for_each(|name| match name {
        b"" | b"." | b".." => Err("its path is not plain"),
        _ if name.len() > NAME_BYTES_MAX => Err("its path is none"),
        _ => Ok(()),
    })
}

struct Unpacker<'a, R> {
    from: BufReader<R>,
    places: Vec<(&'a [u8], Beneath<'a>)>,
    owners: Owners,
    unpacked: Unpacked,
    /// Finished last: what is put into a folder changes its time, and may not be allowed by its mode.
    folders: Vec<Entry>,
}

impl<R: Read> Unpacker<'_, R> {
    /// In which place a path lies, and its way from there: the innermost, where one lies in another.
    fn locate<'p>(&self, path: &'p [u8]) -> Result<(usize, &'p [u8]), Error> {
        let below = |name: &[u8]| match name {
            b"" => Some(path),
            name => match path.strip_prefix(name)? {
                b"" => Some(&[][..]),
                rest => rest.strip_prefix(b"/"),
            },
        };
        let places = self.places.iter().enumerate();
        let within = places.filter_map(|(number, (name, _))| Some((number, below(name)?)));
        within.min_by_key(|(_, rest)| rest.len()).ok_or_else(|| Error::Refused {
            path: readable(path),
            reason: "it lies where nothing is unpacked",
        })
    }

    fn entry(&mut self, entry: Entry) -> Result<(), Error> {
        let (place, below) = self.locate(&entry.path)?;
        let (parent, name) = split(below);
        let path = entry.path.as_slice();
        let owners = self.owners;
        if name.is_empty() {
            return match &entry.kind {
                // The place itself is there.
                Kind::Folder => {
                    self.folders.push(entry);
                    Ok(())
                }
                _ => Err(Error::Refused { path: readable(path), reason: "a folder is there" }),
            };
        }
        // Whatever leads through a link fails here.
        let folder = self.places[place].1.folder(parent).doing("enter the folder of", path)?;
        match &entry.kind {
            Kind::File { size } => {
                let file = create(folder, name).doing("make", path)?;
                let size = *size;
                self.copy(&file, path, Extent { offset: 0, length: size })?;
                tar::skip_padding(size, &mut self.from)?;
                finish_file(&file, &entry, owners)
            }
            Kind::Sparse { size, extents } => {
                let file = create(folder, name).doing("make", path)?;
                ftruncate(&file, *size).doing("make", path)?;
                for extent in extents {
                    self.copy(&file, path, *extent)?;
                }
                tar::skip_padding(extents.iter().map(|extent| extent.length).sum(), &mut self.from)?;
                finish_file(&file, &entry, owners)
            }
            Kind::Folder => {
                match mkdirat(folder, name, Mode::RWXU) {
                    Ok(()) => {}
                    Err(Errno::EXIST) if is_folder(folder, name) => {}
                    Err(error) => return Err(error).doing("make the folder", path),
                }
                self.folders.push(entry);
                Ok(())
            }
            Kind::Link { to } => {
                symlinkat(to, folder, name).doing("make the link", path)?;
                finish(folder, name, &entry, owners, Permissions::None)
            }
            Kind::HardLink { to } => {
                let (to_place, to_below) = self.locate(to)?;
                let (to_parent, to_name) = split(to_below);
                // The other folder is looked up by itself: the descriptor of this one must stay.
                let folder = self.places[place].1.folder(parent).doing("enter the folder of", path)?;
                let folder = rustix::io::fcntl_dupfd_cloexec(folder, 0).doing("make the link", path)?;
                let to_folder = self.places[to_place].1.folder(to_parent).doing("enter the folder of", to)?;
                linkat(to_folder, to_name, &folder, name, AtFlags::empty()).doing("make the link", path)
            }
            Kind::Pipe => {
                mknodat(folder, name, FileType::Fifo, Mode::RUSR, 0).doing("make", path)?;
                finish(folder, name, &entry, owners, Permissions::Set)
            }
            Kind::Device { .. } => {
                mknodat(folder, name, FileType::CharacterDevice, Mode::empty(), 0).doing("make", path)?;
                finish(folder, name, &entry, owners, Permissions::Set)
            }
            Kind::Other(_) => Err(Error::Corrupt("an entry was not checked")),
        }
    }

    /// Copies the next bytes of the archive into a file.
    fn copy(&mut self, file: &OwnedFd, path: &[u8], piece: Extent) -> Result<(), Error> {
        let (mut offset, end) = (piece.offset, piece.offset + piece.length);
        while offset < end {
            let buffer = match self.from.fill_buf() {
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                other => other.doing("read the archive", b"")?,
            };
            if buffer.is_empty() {
                return Err(Error::Corrupt("it ends too early"));
            }
            let wanted = usize::try_from(end - offset).unwrap_or(usize::MAX).min(buffer.len());
            let count = match rustix::io::pwrite(file, &buffer[..wanted], offset) {
                Err(Errno::INTR) => continue,
                other => other.doing("write", path)?,
            };
            self.from.consume(count);
            self.unpacked.bytes += count as u64;
            offset += count as u64;
        }
        Ok(())
    }

    fn finish_folders(&mut self) -> Result<(), Error> {
        while let Some(entry) = self.folders.pop() {
            let (place, below) = self.locate(&entry.path)?;
            let (parent, name) = split(below);
            let owners = self.owners;
            let folder = self.places[place].1.folder(parent).doing("enter the folder of", &entry.path)?;
            let name = if name.is_empty() { b"." } else { name };
            if !entry.attributes.is_empty() {
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let opened = openat(folder, name, flags, Mode::empty()).doing("open", &entry.path)?;
                set_attributes(opened.as_fd(), &entry)?;
            }
            finish(folder, name, &entry, owners, Permissions::Set)?;
        }
        Ok(())
    }
}

fn create(folder: BorrowedFd<'_>, name: &[u8]) -> Result<OwnedFd, Errno> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(folder, name, flags, Mode::RUSR | Mode::WUSR)
}

fn is_folder(folder: BorrowedFd<'_>, name: &[u8]) -> bool {
    statat(folder, name, AtFlags::SYMLINK_NOFOLLOW)
        .is_ok_and(|found| FileType::from_raw_mode(found.st_mode) == FileType::Directory)
}

fn finish_file(file: &OwnedFd, entry: &Entry, owners: Owners) -> Result<(), Error> {
    set_attributes(file.as_fd(), entry)?;
    let path = entry.path.as_slice();
    match owner(entry, owners) {
        None => {}
        Some((uid, gid)) => match rustix::fs::fchown(file, Some(uid), Some(gid)) {
            Ok(()) | Err(Errno::INVAL) => {}
            Err(error) => return Err(error).doing("give away", path),
        },
    }
    rustix::fs::fchmod(file, Mode::from_raw_mode(entry.mode)).doing("set the mode of", path)?;
    futimens(file, &times(entry.modified)).doing("set the time of", path)
}

/// Whether a file has permissions of its own; a symbolic link has not.
#[derive(Clone, Copy)]
enum Permissions {
    Set,
    None,
}

/// Owner, mode and time of what has no descriptor. No link is followed: `name` was made, or seen to be a folder, by us, and
/// nobody else is here.
fn finish(
    folder: BorrowedFd<'_>,
    name: &[u8],
    entry: &Entry,
    owners: Owners,
    permissions: Permissions,
) -> Result<(), Error> {
    let path = entry.path.as_slice();
    if let Some((uid, gid)) = owner(entry, owners) {
        match chownat(folder, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW) {
            Ok(()) | Err(Errno::INVAL) => {}
            Err(error) => return Err(error).doing("give away", path),
        }
    }
    match permissions {
        Permissions::Set => {
            let mode = Mode::from_raw_mode(entry.mode);
            chmodat(folder, name, mode, AtFlags::empty()).doing("set the mode of", path)?;
        }
        Permissions::None => {}
    }
    utimensat(folder, name, &times(entry.modified), AtFlags::SYMLINK_NOFOLLOW).doing("set the time of", path)
}

fn set_attributes(file: BorrowedFd<'_>, entry: &Entry) -> Result<(), Error> {
    entry.attributes.iter().try_for_each(|(name, value)| {
        fsetxattr(file, name.as_slice(), value, rustix::fs::XattrFlags::empty())
            .doing("set an attribute of", &entry.path)
    })
}

/// Whom an entry belongs to, unless that is the caller, whom new files belong to anyway.
fn owner(entry: &Entry, owners: Owners) -> Option<(Uid, Gid)> {
    if owners == Owners::Caller {
        return None;
    }
    let own = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    ((entry.uid, entry.gid) != own).then(|| (Uid::from_raw(entry.uid), Gid::from_raw(entry.gid)))
}

fn times(Time { seconds, nanoseconds }: Time) -> Timestamps {
    let time = Timespec { tv_sec: seconds, tv_nsec: nanoseconds.into() };
    Timestamps { last_access: time, last_modification: time }
}
