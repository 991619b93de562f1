//! Making files below one folder, whatever the names and links in them say.
//!
//! A path of an image is looked up as its own root would see it: links lead back into the image (`RESOLVE_IN_ROOT`), never
//! out of it. What is made replaces what was there; nothing is ever written through a link.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{
    AtFlags, CWD, Dir, FileType, Mode, OFlags, ResolveFlags, Timespec, Timestamps, chmodat, chownat, fchmod,
    fchown, futimens, linkat, mkdirat, open, openat, openat2, statat, symlinkat, unlinkat,
};
use rustix::io::Errno;
use rustix::process::{Gid, Uid};

use super::Error;

/// Bounds on what one image may hold: more than any that people use.
const ENTRIES_MAX: u64 = 4_000_000;
const BYTES_MAX: u64 = 64 << 30;
const DEPTH_MAX: usize = 256;
/// How much of a file is copied at a time.
const COPY_BYTES: usize = 256 << 10;
/// Owners that a sandbox has.
const IDS_MAX: u32 = 0x1_0000;

/// The folder that an image grows in.
pub(super) struct Tree {
    root: OwnedFd,
    /// Only root can give files away.
    gives_away: bool,
    entries: std::cell::Cell<u64>,
    bytes: std::cell::Cell<u64>,
}

/// What is kept of a file besides what is in it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Traits {
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) modified_seconds: i64,
}

impl Tree {
    pub(super) fn new(root: &Path) -> io::Result<Self> {
        let root = open(root, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        let gives_away = rustix::process::geteuid().is_root();
        Ok(Self { root, gives_away, entries: 0.into(), bytes: 0.into() })
    }

    /// The folder at this path, made if it is missing, and the last name.
    fn place<'a>(&self, path: &'a Path) -> Result<(OwnedFd, &'a OsStr), Error> {
        let parts: Vec<Component<'_>> = path.components().collect();
        let plain = parts.iter().all(|part| matches!(part, Component::Normal(_)));
        let Some(name) = path.file_name().filter(|_| plain) else {
            return Err(Error::NoImage(format!("`{}` is no plain path", path.display())));
        };
        if parts.len() > DEPTH_MAX {
            return Err(Error::NoImage(format!("`{}` is too deep", path.display())));
        }
        self.entries.set(self.entries.get() + 1);
        if self.entries.get() > ENTRIES_MAX {
            return Err(Error::NoImage(format!("it has more than {ENTRIES_MAX} files")));
        }
        let parent = path.parent().unwrap_or(Path::new(""));
        Ok((self.open_folder(parent)?, name))
    }

    fn open_folder(&self, path: &Path) -> Result<OwnedFd, Error> {
        if path.as_os_str().is_empty() {
            return Ok(self.root.try_clone()?);
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let look = || {
            openat2(
                &self.root,
                path,
                flags,
                Mode::empty(),
                ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS,
            )
        };
        match look() {
            Ok(folder) => Ok(folder),
            // Archives need not name the folders of their files.
            Err(Errno::NOENT) => {
                let (parent, name) = self.place(path)?;
                match mkdirat(&parent, name, Mode::from_raw_mode(0o755)) {
                    Ok(()) => {}
                    // A link that leads nowhere.
                    Err(Errno::EXIST) => {
                        return Err(Error::NoImage(format!("`{}` leads nowhere", path.display())));
                    }
                    Err(error) => return Err(io::Error::from(error).into()),
                }
                look().map_err(|error| io::Error::from(error).into())
            }
            Err(error) => {
                let cause = io::Error::from(error);
                Err(Error::Io { doing: format!("`{}` is no folder of the image", path.display()), cause })
            }
        }
    }

    /// Removes what lies at this path, if anything does.
    pub(super) fn remove(&self, path: &Path) -> Result<(), Error> {
        let (parent, name) = self.place(path)?;
        Ok(remove_at(&parent, name)?)
    }

    /// Removes all that lies in the folder at this path but what `keeps` says.
    pub(super) fn empty(&self, path: &Path, keeps: impl Fn(&Path) -> bool) -> Result<(), Error> {
        let folder = self.open_folder(path)?;
        for name in names(&folder)? {
            if !keeps(&path.join(&name)) {
                remove_at(&folder, &name)?;
            }
        }
        Ok(())
    }

    pub(super) fn folder(&self, path: &Path, mode: u32) -> Result<(), Error> {
        let own = Traits { mode, uid: 0, gid: 0, modified_seconds: 0 };
        self.folder_as(path, own)
    }

    pub(super) fn folder_as(&self, path: &Path, traits: Traits) -> Result<(), Error> {
        let (parent, name) = self.place(path)?;
        let kind = |name: &OsStr| {
            statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW)
                .map(|found| FileType::from_raw_mode(found.st_mode))
        };
        match kind(name) {
            Ok(FileType::Directory) => {}
            // A folder over a link to a folder is that folder: whoever merged `/bin` into `/usr` meant it so.
            Ok(FileType::Symlink) if self.open_folder(path).is_ok() => return Ok(()),
            Ok(_) => {
                remove_at(&parent, name)?;
                mkdirat(&parent, name, Mode::RWXU).map_err(io::Error::from)?;
            }
            Err(_) => mkdirat(&parent, name, Mode::RWXU).map_err(io::Error::from)?,
        }
        // Its maker must be able to fill it and to take it away again.
        let mode = Mode::from_raw_mode(traits.mode & 0o3777 | if self.gives_away { 0 } else { 0o700 });
        if self.gives_away {
            let (uid, gid) = owner(traits);
            chownat(&parent, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
                .map_err(io::Error::from)?;
        }
        chmodat(&parent, name, mode, AtFlags::empty()).map_err(io::Error::from)?;
        Ok(())
    }

    pub(super) fn file(&self, path: &Path, traits: Traits, from: &mut dyn Read) -> Result<(), Error> {
        let (parent, name) = self.place(path)?;
        remove_at(&parent, name)?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = openat(&parent, name, flags, Mode::RUSR | Mode::WUSR).map_err(io::Error::from)?;
        let mut file = File::from(file);
        let left = BYTES_MAX.saturating_sub(self.bytes.get());
        // `io::copy` takes the writer's buffer for its own.
        let mut buffered = io::BufWriter::with_capacity(COPY_BYTES, &mut file);
        let copied = io::copy(&mut from.take(left + 1), &mut buffered)?;
        buffered.into_inner().map_err(io::IntoInnerError::into_error)?;
        if copied > left {
            return Err(Error::NoImage("it has more than 64 GiB".to_owned()));
        }
        self.bytes.set(self.bytes.get() + copied);
        if self.gives_away {
            let (uid, gid) = owner(traits);
            fchown(&file, Some(uid), Some(gid)).map_err(io::Error::from)?;
        }
        // No privileges: neither set-user-id nor set-group-id.
        let mode = traits.mode & 0o777 | if self.gives_away { 0 } else { 0o400 };
        fchmod(&file, Mode::from_raw_mode(mode)).map_err(io::Error::from)?;
        let time = Timespec { tv_sec: traits.modified_seconds, tv_nsec: 0 };
        futimens(&file, &Timestamps { last_access: time, last_modification: time })
            .map_err(io::Error::from)?;
        Ok(())
    }

    pub(super) fn link(&self, path: &Path, to: &Path) -> Result<(), Error> {
        let (parent, name) = self.place(path)?;
        remove_at(&parent, name)?;
        symlinkat(to, &parent, name).map_err(io::Error::from)?;
        Ok(())
    }

    pub(super) fn hard_link(&self, path: &Path, to: &Path) -> Result<(), Error> {
        let (parent, name) = self.place(path)?;
        let (to_parent, to_name) = self.place(to)?;
        if path == to {
            return Ok(());
        }
        remove_at(&parent, name)?;
        linkat(&to_parent, to_name, &parent, name, AtFlags::empty()).map_err(|error| Error::Io {
            doing: format!("`{}` cannot be linked to `{}`", path.display(), to.display()),
            cause: error.into(),
        })
    }

    /// Copies a folder of this machine.
    pub(super) fn copy(&self, source: &Path, wanted: &dyn Fn(&Path) -> bool) -> Result<(), Error> {
        self.copy_below(source, Path::new(""), Path::new(""), wanted, Readable::ByUs)
    }

    /// Copies what everybody may read of a folder of this machine to a path of the image.
    pub(super) fn copy_to(
        &self,
        source: &Path,
        to: &Path,
        wanted: &dyn Fn(&Path) -> bool,
    ) -> Result<(), Error> {
        self.folder(to, 0o755)?;
        self.copy_below(source, to, Path::new(""), wanted, Readable::ByAll)
    }

    fn copy_below(
        &self,
        source: &Path,
        to: &Path,
        below: &Path,
        wanted: &dyn Fn(&Path) -> bool,
        readable: Readable,
    ) -> Result<(), Error> {
        for entry in fs::read_dir(source.join(below))? {
            let name = entry?.file_name();
            let path = below.join(&name);
            let from = source.join(&path);
            if !wanted(&path) {
                continue;
            }
            let found = fs::symlink_metadata(&from)?;
            let traits = Traits {
                mode: found.mode(),
                uid: found.uid(),
                gid: found.gid(),
                modified_seconds: found.mtime(),
            };
            let kind = found.file_type();
            let needed = if kind.is_dir() { 0o005 } else { 0o004 };
            let is_private = !kind.is_symlink() && found.mode() & needed != needed;
            if readable == Readable::ByAll && is_private {
                continue;
            }
            if kind.is_symlink() {
                self.link(&to.join(&path), &fs::read_link(&from)?)?;
            } else if kind.is_dir() {
                self.folder_as(&to.join(&path), traits)?;
                self.copy_below(source, to, &path, wanted, readable)?;
            } else if kind.is_file() {
                let file = open(&from, OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty());
                let file = file.map_err(|error| Error::Io {
                    doing: format!("{} cannot be read", from.display()),
                    cause: error.into(),
                })?;
                self.file(&to.join(&path), traits, &mut File::from(file))?;
            }
        }
        Ok(())
    }
}

/// Which files of this machine are copied.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Readable {
    ByUs,
    ByAll,
}

fn owner(traits: Traits) -> (Uid, Gid) {
    let known = |id: u32| if id < IDS_MAX { id } else { IDS_MAX - 2 };
    (Uid::from_raw(known(traits.uid)), Gid::from_raw(known(traits.gid)))
}

fn names(folder: &OwnedFd) -> io::Result<Vec<std::ffi::OsString>> {
    use std::os::unix::ffi::OsStrExt;
    let mut names = Vec::new();
    for entry in Dir::read_from(folder.as_fd())? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.push(OsStr::from_bytes(name).to_owned());
        }
    }
    Ok(names)
}

/// Removes a file or a tree, never following a link.
fn remove_at(folder: &OwnedFd, name: &OsStr) -> io::Result<()> {
    match unlinkat(folder, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(error) => return Err(error.into()),
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let below = openat(folder, name, flags, Mode::empty())?;
    for inner in names(&below)? {
        remove_at(&below, &inner)?;
    }
    Ok(unlinkat(folder, name, AtFlags::REMOVEDIR)?)
}

/// A path of an archive as a plain one below the image: `./x`, `/x` and `x` are the same; `..` is none.
pub(super) fn plain_path(path: &Path) -> Option<PathBuf> {
    let mut plain = PathBuf::new();
    for part in path.components() {
        match part {
            Component::Normal(name) => plain.push(name),
            Component::CurDir | Component::RootDir => {}
            Component::ParentDir | Component::Prefix(_) => return None,
        }
    }
    Some(plain)
}

/// A file of the scratch folder, which nobody else writes.
pub(super) fn scratch_file(path: &Path) -> io::Result<File> {
    Ok(File::from(rustix::fs::openat(
        CWD,
        path,
        OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::empty(),
    )?))
}
