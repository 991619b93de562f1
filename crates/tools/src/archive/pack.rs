//! From a folder to an archive. The tree should stand still meanwhile; where it does not, the archive is still whole, and
//! holds of each file what was there when it was read.

use std::collections::HashMap;
use std::ffi::CString;
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{
    AtFlags, Dir, FileType, Mode, OFlags, SeekFrom, Stat, chmodat, fchmod, fgetxattr, flistxattr, fstat,
    openat, readlinkat, seek, statat,
};
use rustix::io::Errno;

use super::beneath::Beneath;
use super::tar::{self, Entry, Extent, Kind, Time};
use super::{
    Doing, EXTENTS_MAX, Error, Owners, PATH_BYTES_MAX, Place, Scope, XATTR_BYTES_MAX, carried_mode,
    carries_attribute,
};

/// The name and the value of an extended attribute.
type Attribute = (Vec<u8>, Vec<u8>);

/// What an archive holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Packed {
    /// Entries of every kind.
    pub entries: u64,
    /// Bytes of files.
    pub bytes: u64,
    /// What was left out: sockets, devices, paths that are too long.
    pub left_out: u64,
}

/// Read at once.
const CHUNK_BYTES: usize = 128 << 10;

/// Writes the tree below `root` into `into`. The same tree gives the same bytes.
pub fn pack(root: BorrowedFd<'_>, scope: &Scope, into: &mut impl Write) -> Result<Packed, Error> {
    let place = Place { name: b"", root };
    let mut packed = Packed::default();
    Packer::new(&place, scope, Owners::Recorded, None, &mut packed, into).tree()?;
    tar::finish(into).doing("write the archive", b"")?;
    Ok(packed)
}

/// Writes these folders into `into`, all of whose files are the caller's. What is mounted in them is left alone. What its
/// owner may not read is made readable as long as that takes, so nobody else should be at work here.
pub fn pack_places(places: &[Place<'_>], into: &mut impl Write) -> Result<Packed, Error> {
    let mut packed = Packed::default();
    for place in places {
        let found = fstat(place.root).doing("look at", place.name)?;
        let device = Some(found.st_dev);
        let mut packer = Packer::new(place, &Scope::ALL, Owners::Caller, device, &mut packed, into);
        // Somebody else's is as it is in every sandbox.
        if found.st_uid == rustix::process::geteuid().as_raw() {
            packer.write(entry(b"", Kind::Folder, &found, Vec::new()))?;
        }
        let done = packer.tree();
        packer.close_again();
        done?;
    }
    tar::finish(into).doing("write the archive", b"")?;
    Ok(packed)
}

struct Packer<'a, W> {
    beneath: Beneath<'a>,
    /// What the paths in the archive begin with.
    name: &'a [u8],
    scope: &'a Scope,
    owners: Owners,
    /// Where everything lies that is packed; `None`: wherever it is found.
    device: Option<u64>,
    into: &'a mut W,
    packed: &'a mut Packed,
    /// Files with several names: device and number of each that was seen, and its first name.
    linked: HashMap<(u64, u64), Vec<u8>>,
    /// Folders that their owner may not enter, opened meanwhile, with their modes.
    opened: Vec<(Vec<u8>, Mode)>,
    chunk: Vec<u8>,
}

impl<'a, W: Write> Packer<'a, W> {
    fn new(
        place: &'a Place<'_>,
        scope: &'a Scope,
        owners: Owners,
        device: Option<u64>,
        packed: &'a mut Packed,
        into: &'a mut W,
    ) -> Self {
        Self {
            beneath: Beneath::new(place.root),
            name: place.name,
            scope,
            owners,
            device,
            into,
            packed,
            linked: HashMap::new(),
            opened: Vec::new(),
            chunk: vec![0; CHUNK_BYTES],
        }
    }

    fn tree(&mut self) -> Result<(), Error> {
        // Folders that are still to be read; only one is open at a time, however deep the tree.
        let mut folders = vec![Vec::new()];
        while let Some(folder) = folders.pop() {
            let below = self.folder(&folder)?;
            // The last one first: it is taken from the end.
            folders.extend(below.into_iter().rev());
        }
        Ok(())
    }

    /// Gives folders that were opened the modes that they had, those inside first.
    fn close_again(&mut self) {
        while let Some((path, mode)) = self.opened.pop() {
            let (parent, name) = super::split(&path);
            // One that is gone needs none.
            if let Ok(folder) = self.beneath.folder(parent) {
                let _ = chmodat(folder, name, mode, AtFlags::empty());
            }
        }
    }

    /// Writes what is in a folder, and gives the folders in it.
    fn folder(&mut self, path: &[u8]) -> Result<Vec<Vec<u8>>, Error> {
        let mut below = Vec::new();
        for name in self.names(path)? {
            let mut child = path.to_vec();
            if !path.is_empty() {
                child.push(b'/');
            }
            child.extend(name.as_bytes());
            if !self.scope.holds(&child) {
                continue;
            }
            let before = if self.name.is_empty() { 0 } else { self.name.len() + 1 };
            if before + child.len() > PATH_BYTES_MAX {
                self.packed.left_out += 1;
                continue;
            }
            if self.child(path, &name, &child)? {
                below.push(child);
            }
        }
        Ok(below)
    }

    fn names(&mut self, path: &[u8]) -> Result<Vec<CString>, Error> {
        let read = |folder: BorrowedFd<'_>| -> Result<Vec<CString>, Errno> {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let mut names = Vec::new();
            for entry in Dir::new(openat(folder, ".", flags, Mode::empty())?)? {
                let entry = entry?;
                if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
                    names.push(entry.file_name().to_owned());
                }
            }
            names.sort();
            Ok(names)
        };
        self.beneath.folder(path).and_then(read).doing("read the folder", path)
    }

    /// Writes one file; whether it is a folder.
    fn child(&mut self, parent: &[u8], name: &CString, path: &[u8]) -> Result<bool, Error> {
        let folder = self.beneath.folder(parent).doing("open the folder", parent)?;
        let found = match statat(folder, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(found) => found,
            Err(Errno::NOENT) => return Ok(false),
            Err(error) => return Err(error).doing("look at", path),
        };
        if self.device.is_some_and(|device| device != found.st_dev) {
            return Ok(false);
        }
        let file_type = FileType::from_raw_mode(found.st_mode);
        // A kernel may make all whiteouts of a layer one file; each is as good by itself.
        let may_be_linked = !matches!(file_type, FileType::Directory | FileType::CharacterDevice);
        if may_be_linked && found.st_nlink > 1 {
            if let Some(first) = self.linked.get(&(found.st_dev, found.st_ino)) {
                let kind = Kind::HardLink { to: first.clone() };
                return self.write(entry(path, kind, &found, Vec::new())).map(|()| false);
            }
            self.linked.insert((found.st_dev, found.st_ino), path.to_vec());
        }
        match file_type {
            FileType::RegularFile => {
                let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
                let own = Mode::from_raw_mode(found.st_mode);
                let closed = self.owners == Owners::Caller && !own.contains(Mode::RUSR);
                if closed {
                    chmodat(folder, name, own | Mode::RUSR, AtFlags::empty()).doing("open", path)?;
                }
                let file = openat(folder, name, flags, Mode::empty()).doing("open", path)?;
                if closed {
                    fchmod(&file, own).doing("close again", path)?;
                }
                self.file(&file, path, &found)?;
            }
            FileType::Directory => {
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let own = Mode::from_raw_mode(found.st_mode);
                if self.owners == Owners::Caller && !own.contains(Mode::RUSR | Mode::XUSR) {
                    chmodat(folder, name, own | Mode::RWXU, AtFlags::empty()).doing("open", path)?;
                    self.opened.push((path.to_vec(), own));
                }
                let opened = openat(folder, name, flags, Mode::empty()).doing("open", path)?;
                let attributes = self.attributes(opened.as_fd(), path)?;
                self.write(entry(path, Kind::Folder, &found, attributes))?;
                return Ok(true);
            }
            FileType::Symlink => {
                let to = readlinkat(folder, name, Vec::new()).doing("read the link", path)?.into_bytes();
                self.write(entry(path, Kind::Link { to }, &found, Vec::new()))?;
            }
            FileType::Fifo => self.write(entry(path, Kind::Pipe, &found, Vec::new()))?,
            FileType::CharacterDevice if found.st_rdev == 0 => {
                self.write(entry(path, Kind::Device { major: 0, minor: 0 }, &found, Vec::new()))?;
            }
            FileType::CharacterDevice | FileType::BlockDevice | FileType::Socket | FileType::Unknown => {
                self.packed.left_out += 1;
            }
        }
        Ok(false)
    }

    fn file(&mut self, file: &OwnedFd, path: &[u8], found: &Stat) -> Result<(), Error> {
        let size = u64::try_from(found.st_size).unwrap_or(0);
        let attributes = self.attributes(file.as_fd(), path)?;
        let has_holes = u64::try_from(found.st_blocks).unwrap_or(0) * 512 < size;
        let extents = if has_holes { extents(file.as_fd(), size).doing("read", path)? } else { None };
        let whole = [Extent { offset: 0, length: size }];
        let kind = match &extents {
            Some(extents) => Kind::Sparse { size, extents: extents.clone() },
            None => Kind::File { size },
        };
        self.write(entry(path, kind, found, attributes))?;
        let pieces = extents.as_deref().unwrap_or(&whole);
        for piece in pieces {
            self.piece(file, path, *piece)?;
        }
        let written = pieces.iter().map(|piece| piece.length).sum();
        self.packed.bytes += written;
        tar::pad(written, self.into).doing("write the archive", b"")
    }

    /// Writes exactly this piece; zeros for what the file has lost since it was looked at.
    fn piece(&mut self, file: &OwnedFd, path: &[u8], piece: Extent) -> Result<(), Error> {
        let (mut offset, end) = (piece.offset, piece.offset + piece.length);
        while offset < end {
            let wanted = usize::try_from(end - offset).unwrap_or(usize::MAX).min(CHUNK_BYTES);
            let count = match rustix::io::pread(file, &mut self.chunk[..wanted], offset) {
                Err(Errno::INTR) => continue,
                other => other.doing("read", path)?,
            };
            if count == 0 {
                self.chunk[..wanted].fill(0);
            }
            let count = if count == 0 { wanted } else { count };
            self.into.write_all(&self.chunk[..count]).doing("write the archive", b"")?;
            offset += count as u64;
        }
        Ok(())
    }

    fn attributes(&mut self, file: BorrowedFd<'_>, path: &[u8]) -> Result<Vec<Attribute>, Error> {
        let mut names = Vec::with_capacity(256);
        loop {
            match flistxattr(file, rustix::buffer::spare_capacity(&mut names)) {
                Ok(_) => break,
                Err(Errno::OPNOTSUPP) => return Ok(Vec::new()),
                Err(Errno::RANGE) if names.capacity() < XATTR_BYTES_MAX => {
                    names = Vec::with_capacity(names.capacity() * 4);
                }
                Err(error) => return Err(error).doing("read the attributes of", path),
            }
        }
        let (mut attributes, mut total) = (Vec::new(), 0);
        for name in names.split(|byte| *byte == 0).filter(|name| name.starts_with(b"user.")) {
            // The kernel's own bound for one value.
            let mut value = Vec::with_capacity(64 << 10);
            match fgetxattr(file, name, rustix::buffer::spare_capacity(&mut value)) {
                Ok(_) => {}
                Err(Errno::NODATA) => continue,
                Err(error) => return Err(error).doing("read the attributes of", path),
            }
            if carries_attribute(name, &value) {
                total += name.len() + value.len();
                if total > XATTR_BYTES_MAX {
                    self.packed.left_out += 1;
                    break;
                }
                value.shrink_to_fit();
                attributes.push((name.to_vec(), value));
            }
        }
        attributes.sort();
        Ok(attributes)
    }

    fn write(&mut self, mut entry: Entry) -> Result<(), Error> {
        self.packed.entries += 1;
        if !self.name.is_empty() {
            entry.path = match entry.path.as_slice() {
                b"" => self.name.to_vec(),
                below => [self.name, b"/", below].concat(),
            };
            if let Kind::HardLink { to } = &mut entry.kind {
                *to = [self.name, b"/", to].concat();
            }
        }
        if self.owners == Owners::Caller {
            (entry.uid, entry.gid) = (0, 0);
        }
        tar::write(&entry, self.into).doing("write the archive", b"")
    }
}

fn entry(path: &[u8], kind: Kind, found: &Stat, attributes: Vec<(Vec<u8>, Vec<u8>)>) -> Entry {
    let is_folder = matches!(kind, Kind::Folder);
    Entry {
        path: path.to_vec(),
        kind,
        mode: carried_mode(found.st_mode, is_folder),
        uid: found.st_uid,
        gid: found.st_gid,
        modified: Time {
            seconds: found.st_mtime,
            nanoseconds: u32::try_from(found.st_mtime_nsec).unwrap_or(0),
        },
        attributes,
    }
}

/// Where a file has bytes; `None` if it lies in too many pieces for a map.
fn extents(file: BorrowedFd<'_>, size: u64) -> Result<Option<Vec<Extent>>, Errno> {
    let (mut extents, mut at) = (Vec::new(), 0);
    while at < size {
        let start = match seek(file, SeekFrom::Data(at)) {
            Ok(start) if start < size => start,
            Ok(_) | Err(Errno::NXIO) => break,
            Err(Errno::INVAL | Errno::OPNOTSUPP) => return Ok(None),
            Err(error) => return Err(error),
        };
        let end = seek(file, SeekFrom::Hole(start))?.min(size);
        extents.push(Extent { offset: start, length: end - start });
        if extents.len() >= EXTENTS_MAX {
            return Ok(None);
        }
        at = end;
    }
    if at < size {
        // As GNU tar marks a hole at the end.
        extents.push(Extent { offset: size, length: 0 });
    }
    Ok(Some(extents))
}
