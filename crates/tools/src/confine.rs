//! Paths that a model names, confined to the roots.
//!
//! In two steps. [`Roots::resolve`] follows every symlink by reading it, a dangling last one included,
//! and refuses what then lies outside. What it returns has no symlink left in it, so acting on it goes
//! through [`Place`], which lets the kernel refuse any symlink, magic link or `..` between the root and
//! the file. Whoever swaps a directory for a link in between gets an error, not a way out.
//!
//! This keeps the model's file tools where the user expects them. It is no wall against the commands in
//! the same sandbox, which have the same rights; the sandbox is.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;

use crate::config::{Access, Config};

/// As many as the kernel follows.
const SYMLINKS_MAX: usize = 40;

/// The directories that the file tools may reach.
pub struct Roots {
    workdir: PathBuf,
    roots: Vec<(PathBuf, Access)>,
}

/// Why a path was not resolved. Shown to the model after the tool's name.
#[derive(Debug, PartialEq, Eq)]
pub enum Error {
    /// It leads out of every root.
    Outside(String),
    /// It cannot be followed.
    Unreachable(String, Errno),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Outside(asked) => write!(
                f,
                "path '{asked}' is outside the session's working directory and its other permitted directories"
            ),
            Error::Unreachable(asked, cause) => write!(f, "path '{asked}': {}", reason(&(*cause).into())),
        }
    }
}

/// A cause in the same few words everywhere.
pub fn reason(cause: &io::Error) -> String {
    match Errno::from_io_error(cause) {
        Some(Errno::NOENT) => "no such file or directory".into(),
        Some(Errno::NOTDIR) => "not a directory".into(),
        Some(Errno::ISDIR) => "is a directory".into(),
        Some(Errno::ACCESS | Errno::PERM) => "permission denied".into(),
        Some(Errno::EXIST) => "file already exists".into(),
        Some(Errno::LOOP) => "too many levels of symbolic links".into(),
        Some(Errno::NAMETOOLONG) => "file name too long".into(),
        Some(Errno::NOSPC | Errno::DQUOT) => "no space left on device".into(),
        Some(Errno::FBIG) => "file too large".into(),
        Some(Errno::ROFS) => "read-only file system".into(),
        Some(Errno::XDEV) => "leads outside the permitted directories".into(),
        Some(Errno::NXIO) => "not a regular file".into(),
        Some(other) => other.to_string().to_lowercase(),
        None => cause.to_string(),
    }
}

impl Roots {
    /// The roots of a configuration.
    pub fn new(config: &Config) -> Roots {
        let own = [(config.workdir.clone(), Access::Write), (config.outputs.clone(), Access::Write)];
        let extra = config.extra_roots.iter().map(|root| (root.path.clone(), root.access));
        Roots { workdir: config.workdir.clone(), roots: own.into_iter().chain(extra).collect() }
    }

    /// The working directory.
    pub fn workdir(&self) -> Place {
        Place { root: self.workdir.clone(), relative: PathBuf::new(), access: Access::Write }
    }

    /// Where a path leads.
    pub fn resolve(&self, asked: &str) -> Result<Place, Error> {
        if asked.as_bytes().contains(&0) {
            return Err(Error::Unreachable(asked.replace('\0', "\u{fffd}"), Errno::INVAL));
        }
        let full =
            follow(&self.workdir.join(asked)).map_err(|cause| Error::Unreachable(asked.into(), cause))?;
        let within = self.roots.iter().filter(|(root, _)| full.starts_with(root));
        // The innermost root, but a read-only one protects what is below it, whatever else allows.
        let read_only = within.clone().any(|(_, access)| *access == Access::Read);
        let innermost = within.max_by_key(|(root, _)| root.as_os_str().len());
        let Some((root, _)) = innermost else {
            return Err(Error::Outside(asked.into()));
        };
        let relative = full.strip_prefix(root).expect("the root was chosen because the path starts with it");
        let access = if read_only { Access::Read } else { Access::Write };
        Ok(Place { root: root.clone(), relative: relative.to_owned(), access })
    }
}

/// Collapses `.` and `..` as written, then follows every symlink. Components that do not exist stay as
/// they are, so that a file which is about to be made has a place too.
fn follow(path: &Path) -> Result<PathBuf, Errno> {
    let mut ahead: VecDeque<OsString> = VecDeque::new();
    for component in path.components() {
        match component {
            Component::ParentDir => drop(ahead.pop_back()),
            Component::Normal(name) => ahead.push_back(name.to_owned()),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    let mut done = PathBuf::from("/");
    let mut symlinks = 0;
    while let Some(name) = ahead.pop_front() {
        if name == ".." {
            done.pop();
            continue;
        }
        let next = done.join(&name);
        let target = match rustix::fs::readlinkat(CWD, &next, Vec::new()) {
            Ok(target) => target,
            // Not a symlink, or nothing there, or below something that is no directory.
            Err(Errno::INVAL | Errno::NOENT | Errno::NOTDIR) => {
                done = next;
                continue;
            }
            Err(cause) => return Err(cause),
        };
        symlinks += 1;
        if symlinks > SYMLINKS_MAX {
            return Err(Errno::LOOP);
        }
        let target = Path::new(OsStr::from_bytes(target.as_bytes()));
        if target.is_absolute() {
            done = PathBuf::from("/");
        }
        for component in target.components().rev() {
            match component {
                Component::ParentDir => ahead.push_front("..".into()),
                Component::Normal(name) => ahead.push_front(name.to_owned()),
                Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
            }
        }
    }
    Ok(done)
}

/// A place below a root that may or may not exist. Everything done to it happens below the root.
#[derive(Clone, Debug)]
pub struct Place {
    root: PathBuf,
    relative: PathBuf,
    access: Access,
}

/// A regular file, open.
pub struct Opened {
    /// The file.
    pub file: File,
    /// What it was when it was opened.
    pub stat: Stat,
}

impl Opened {
    /// Its size in bytes.
    pub fn size_bytes(&self) -> u64 {
        u64::try_from(self.stat.st_size).unwrap_or(0)
    }

    /// Its bytes, at most `bytes_max` and one more, by which the caller sees that it has grown over it.
    pub fn read(&self, bytes_max: u64) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::with_capacity(self.size_bytes().min(bytes_max) as usize + 1);
        (&self.file).take(bytes_max + 1).read_to_end(&mut bytes)?;
        Ok(bytes)
    }
}

impl Place {
    /// A directory, as the place that everything is confined to.
    pub fn root(path: &Path) -> Place {
        Place { root: path.to_owned(), relative: PathBuf::new(), access: Access::Read }
    }

    /// The absolute path, without symlinks.
    pub fn path(&self) -> PathBuf {
        if self.relative.as_os_str().is_empty() { self.root.clone() } else { self.root.join(&self.relative) }
    }

    /// The read-only root that forbids a change here, if one does.
    pub fn read_only_root(&self) -> Option<&Path> {
        (self.access == Access::Read).then_some(self.root.as_path())
    }

    /// Whether this place is `base` or below it.
    pub fn within(&self, base: &Place) -> bool {
        self.path().starts_with(base.path())
    }

    /// The places above this one, from its root down.
    pub fn parents(&self) -> impl Iterator<Item = Place> {
        let depth = self.relative.components().count();
        (0..depth)
            .map(|depth| Place { relative: self.relative.components().take(depth).collect(), ..self.clone() })
    }

    /// A place below this one. `name` must hold neither `..` nor a leading `/`.
    pub fn below(&self, name: &Path) -> Place {
        debug_assert!(name.components().all(|component| matches!(component, Component::Normal(_))));
        Place { relative: self.relative.join(name), ..self.clone() }
    }

    /// What is there: a symlink is seen as a symlink.
    pub fn stat(&self) -> io::Result<Stat> {
        let file = self.open_beneath(OFlags::PATH | OFlags::NOFOLLOW)?;
        Ok(rustix::fs::fstat(file)?)
    }

    /// Opens a regular file for reading. Anything else is an error, and never waits: not for the other
    /// end of a FIFO, not for a device.
    pub fn open(&self) -> io::Result<Opened> {
        let file = self.open_beneath(OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY)?;
        let stat = rustix::fs::fstat(&file)?;
        if !FileType::from_raw_mode(stat.st_mode).is_file() {
            return Err(Errno::NXIO.into());
        }
        Ok(Opened { file: File::from(file), stat })
    }

    /// Opens a directory to list it.
    pub fn open_directory(&self) -> io::Result<OwnedFd> {
        self.open_beneath(OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NONBLOCK)
    }

    /// Replaces the file, or makes it and the directories above it.
    ///
    /// The bytes go to a new file that is then renamed. So a reader never sees half of them, what a
    /// crash leaves is the old file, and another name of the old file (a hard link, perhaps to something
    /// outside) keeps the old bytes.
    pub fn replace(&self, bytes: &[u8]) -> io::Result<()> {
        let Some(name) = self.relative.file_name() else {
            return Err(Errno::ISDIR.into());
        };
        let directory = self.make_parents()?;
        let mode = match rustix::fs::statat(&directory, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) if FileType::from_raw_mode(stat.st_mode).is_file() => {
                Some(Mode::from_raw_mode(stat.st_mode) & (Mode::RWXU | Mode::RWXG | Mode::RWXO))
            }
            Ok(stat) if FileType::from_raw_mode(stat.st_mode).is_dir() => return Err(Errno::ISDIR.into()),
            Ok(_) => return Err(Errno::NXIO.into()),
            Err(Errno::NOENT) => None,
            Err(cause) => return Err(cause.into()),
        };
        let (temporary, file) = create_temporary(&directory)?;
        let written = (|| {
            if let Some(mode) = mode {
                rustix::fs::fchmod(&file, mode)?;
            }
            io::Write::write_all(&mut &file, bytes)?;
            Ok(rustix::fs::renameat(&directory, &temporary, &directory, name)?)
        })();
        if written.is_err() {
            // The disk may be full; leave nothing behind.
            let _ = rustix::fs::unlinkat(&directory, &temporary, AtFlags::empty());
        }
        written
    }

    fn make_parents(&self) -> io::Result<OwnedFd> {
        let mut directory = open_root(&self.root)?;
        for component in self.relative.parent().into_iter().flat_map(Path::components) {
            let name = component.as_os_str();
            match rustix::fs::mkdirat(&directory, name, Mode::from_raw_mode(0o777)) {
                Ok(()) | Err(Errno::EXIST) => {}
                // A directory that exists may lie in one that we may not change.
                Err(cause) if rustix::fs::statat(&directory, name, AtFlags::SYMLINK_NOFOLLOW).is_err() => {
                    return Err(cause.into());
                }
                Err(_) => {}
            }
            directory = open_component(&directory, name, OFlags::PATH | OFlags::DIRECTORY)?;
        }
        Ok(directory)
    }

    fn open_beneath(&self, flags: OFlags) -> io::Result<OwnedFd> {
        let root = open_root(&self.root)?;
        let name = if self.relative.as_os_str().is_empty() { Path::new(".") } else { &self.relative };
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        let mut flags = flags | OFlags::CLOEXEC;
        if flags.contains(OFlags::PATH | OFlags::NOFOLLOW) {
            // openat2 would refuse a symlink even here, where it is only looked at. The parent is held to
            // the rule; the last component is not followed.
            let (Some(parent), Some(last)) = (name.parent(), name.file_name()) else {
                flags -= OFlags::NOFOLLOW;
                return Ok(open_under(&root, name, flags, resolve)?);
            };
            if parent.as_os_str().is_empty() {
                return Ok(rustix::fs::openat(&root, last, flags, Mode::empty())?);
            }
            let parent =
                open_under(&root, parent, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, resolve)?;
            return Ok(rustix::fs::openat(&parent, last, flags, Mode::empty())?);
        }
        Ok(open_under(&root, name, flags, resolve)?)
    }
}

/// Opens a root. Its path has no symlink since the start; if one is there now, it is refused.
fn open_root(root: &Path) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    open_under(CWD, root, flags, ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS)
}

fn open_under(
    directory: impl AsFd,
    name: &Path,
    flags: OFlags,
    resolve: ResolveFlags,
) -> Result<OwnedFd, Errno> {
    loop {
        match rustix::fs::openat2(&directory, name, flags, Mode::empty(), resolve) {
            // A rename elsewhere in the tree made the walk uncertain. The kernel asks to try again.
            Err(Errno::AGAIN | Errno::INTR) => {}
            // Some sandboxes' kernels do not have the call.
            Err(Errno::NOSYS) => return open_by_steps(directory, name, flags),
            result => return result,
        }
    }
}

/// What `openat2` does, one component at a time. `name` holds no `..`.
fn open_by_steps(directory: impl AsFd, name: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
    let mut names: Vec<&OsStr> = Vec::new();
    let mut at = if name.is_absolute() {
        rustix::fs::openat(CWD, "/", OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?
    } else {
        directory.as_fd().try_clone_to_owned().map_err(|_| Errno::MFILE)?
    };
    for component in name.components() {
        match component {
            Component::Normal(name) => names.push(name),
            Component::RootDir | Component::CurDir => {}
            Component::ParentDir | Component::Prefix(_) => return Err(Errno::XDEV),
        }
    }
    let Some((last, parents)) = names.split_last() else {
        return open_component(&at, OsStr::new("."), flags);
    };
    for name in parents {
        at = open_component(&at, name, OFlags::PATH | OFlags::DIRECTORY)?;
    }
    open_component(&at, last, flags)
}

fn open_component(directory: &OwnedFd, name: &OsStr, flags: OFlags) -> Result<OwnedFd, Errno> {
    let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(directory, name, flags, Mode::empty())
}

fn create_temporary(directory: &OwnedFd) -> io::Result<(String, File)> {
    let mut random = [0; 8];
    rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty())?;
    let name = format!(".posthouse-{:016x}.tmp", u64::from_ne_bytes(random));
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = rustix::fs::openat(directory, &name, flags, Mode::from_raw_mode(0o666))?;
    Ok((name, File::from(file)))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn step_by_step_is_as_strict_as_the_kernel() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().canonicalize().unwrap();
        fs::create_dir_all(root.join("a/b")).unwrap();
        fs::write(root.join("a/b/file"), "").unwrap();
        symlink("a", root.join("link")).unwrap();
        symlink("/etc/passwd", root.join("a/out")).unwrap();
        symlink("none", root.join("a/dangling")).unwrap();
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        let at = open_root(&root).unwrap();
        for name in [
            "a/b/file",
            "a/b",
            ".",
            "a/none",
            "link",
            "link/b/file",
            "a/out",
            "a/dangling",
            "a/b/file/x",
            "../x",
        ] {
            let kernel = open_under(&at, Path::new(name), flags, resolve).map(drop);
            let steps = open_by_steps(&at, Path::new(name), flags).map(drop);
            // A step through a link fails because a link is no directory, which the kernel words otherwise.
            assert_eq!(kernel.is_ok(), steps.is_ok(), "{name}");
        }
        // Stricter where no caller goes: what it is given holds no `..`.
        assert!(open_by_steps(&at, Path::new("a/../a"), flags).is_err());
        assert!(open_by_steps(CWD, &root.join("a/b/file"), flags).is_ok());
        assert!(open_by_steps(CWD, &root.join("link/b/file"), flags).is_err());
    }

    #[test]
    fn every_link_is_followed_and_what_is_missing_kept() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().canonicalize().unwrap();
        fs::create_dir_all(root.join("a/b")).unwrap();
        symlink("../a/b", root.join("a/up")).unwrap();
        symlink(root.join("a/up"), root.join("absolute")).unwrap();
        symlink("nowhere/at/all", root.join("dangling")).unwrap();
        symlink("self", root.join("self")).unwrap();
        for (asked, expected) in [
            ("a/up/new", "a/b/new"),
            ("absolute/x/y", "a/b/x/y"),
            ("dangling/z", "nowhere/at/all/z"),
            ("./a//./b/../c", "a/c"),
            ("self/../a", "a"),
        ] {
            assert_eq!(follow(&root.join(asked)), Ok(root.join(expected)), "{asked}");
        }
        assert_eq!(follow(&root.join("self/x")), Err(Errno::LOOP));
        assert_eq!(follow(Path::new("/../../..")), Ok("/".into()));
    }
}
