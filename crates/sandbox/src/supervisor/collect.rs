//! Deliverables onto the host's disk.
//!
//! What a sandbox names its files, and what it says of their sizes, is not believed: a path is taken apart and each part checked,
//! folders are entered without following links, and a file is written under a name of ours first and then moved into place, so that
//! nothing that lies in the target folder is ever written through.

use std::fs::{DirBuilder, File};
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, Stat, Timespec, Timestamps, fstat, futimens, mkdirat, openat,
    renameat, statat, unlinkat,
};
use rustix::io::Errno;
use tools::wire::OutputFile;

/// Bounds on what is copied out at once: more than a person looks through, less than fills a disk.
pub(crate) const FILES_MAX: u64 = 1000;
pub(crate) const BYTES_MAX: u64 = 512 << 20;

const DEPTH_MAX: usize = 16;
const NAME_BYTES_MAX: usize = 255;

/// A path below the target folder that is safe to make.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SafePath(Vec<String>);

impl SafePath {
    /// Takes a path apart; `None` if a part is odd.
    pub(crate) fn parse(path: &str) -> Option<Self> {
        let parts: Vec<String> = path.split('/').map(str::to_owned).collect();
        let plain = |part: &String| {
            !matches!(part.as_str(), "" | "." | "..")
                && part.len() <= NAME_BYTES_MAX
                && !part.chars().any(char::is_control)
        };
        (parts.len() <= DEPTH_MAX && parts.iter().all(plain)).then_some(Self(parts))
    }

    pub(crate) fn to_path(&self) -> PathBuf {
        self.0.iter().collect()
    }
}

/// The contents of a file, as far as a list tells.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Version {
    pub(crate) size_bytes: u64,
    modified_ms: i64,
}

/// What changed this short a time before it was copied may have changed again without showing it: times are as coarse as
/// the kernel's tick, and more so on some file systems.
const SETTLING_MS: i64 = 1000;

impl Version {
    /// What a list says of a file.
    pub(crate) fn listed(file: &OutputFile) -> Self {
        let OutputFile { path: _, size_bytes, modified_ms } = *file;
        Self { size_bytes, modified_ms }
    }

    /// Whether what lies in the target is a copy of just this, by size and time.
    pub(crate) fn is_copied(self, into: &Path, path: &SafePath) -> bool {
        self.find(into, path).unwrap_or(false)
    }

    fn find(self, into: &Path, path: &SafePath) -> io::Result<bool> {
        let (name, folders) = path.0.split_last().expect("a parsed path has a part");
        let mut folder = openat(CWD, into, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        for part in folders {
            folder = openat(&folder, part, ENTER, Mode::empty())?;
        }
        let found = statat(&folder, name, AtFlags::SYMLINK_NOFOLLOW)?;
        Ok(FileType::from_raw_mode(found.st_mode).is_file()
            && u64::try_from(found.st_size) == Ok(self.size_bytes)
            && modified_ms(&found) == self.modified_ms)
    }

    /// The time that a copy gets which was begun then: that of the original, or just beside it if the copy may be stale
    /// without a sign of it.
    fn stamp(self, begun_ms: i64) -> Timespec {
        let is_settled = self.modified_ms < begun_ms.saturating_sub(SETTLING_MS);
        let milliseconds = if is_settled { self.modified_ms } else { self.modified_ms.saturating_sub(1) };
        Timespec {
            tv_sec: milliseconds.div_euclid(1000),
            tv_nsec: (milliseconds.rem_euclid(1000) * 1_000_000) as _,
        }
    }
}

fn modified_ms(stat: &Stat) -> i64 {
    stat.st_mtime.saturating_mul(1000).saturating_add((stat.st_mtime_nsec / 1_000_000) as i64)
}

/// A file on its way in. It appears under its name when it is whole.
pub(crate) struct Incoming {
    folder: OwnedFd,
    name: String,
    file: File,
    /// When it was begun, by the clock of the disk.
    begun_ms: i64,
}

/// Into a folder, and not through a link.
const ENTER: OFlags = OFlags::DIRECTORY.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Our name for a file that is not whole yet.
const PARTIAL: &str = ".posthouse-partial";

impl Incoming {
    pub(crate) fn create(into: &Path, path: &SafePath) -> io::Result<Self> {
        let (name, folders) = path.0.split_last().expect("a parsed path has a part");
        // What an agent made for its client is nobody else's business.
        DirBuilder::new().recursive(true).mode(0o700).create(into)?;
        let mut folder = openat(CWD, into, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        for part in folders {
            match mkdirat(&folder, part, Mode::from_raw_mode(0o755)) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(error) => return Err(error.into()),
            }
            folder = openat(&folder, part, ENTER, Mode::empty())?;
        }
        // Left by a copy that was cut short.
        let _ = unlinkat(&folder, PARTIAL, AtFlags::empty());
        let create = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = File::from(openat(&folder, PARTIAL, create, Mode::from_raw_mode(0o644))?);
        let begun_ms = modified_ms(&fstat(&file)?);
        Ok(Self { folder, name: name.clone(), file, begun_ms })
    }

    pub(crate) fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes)
    }

    /// The file is whole, and of this version if it did not change while it was copied.
    pub(crate) fn finish(self, version: Version) -> io::Result<()> {
        let stamp = version.stamp(self.begun_ms);
        // A time that this disk cannot keep costs another copy next time, and nothing else.
        let _ = futimens(&self.file, &Timestamps { last_access: stamp, last_modification: stamp });
        Ok(renameat(&self.folder, PARTIAL, &self.folder, &self.name)?)
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        // Nothing is there once it is finished; what was given up must not look like a deliverable.
        let _ = unlinkat(&self.folder, PARTIAL, AtFlags::empty());
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn odd_names_are_refused() {
        for path in ["", "/etc/passwd", "../x", "a/../b", "a//b", "./a", "a/", "a\0b", "a\nb", "\u{1b}[2J"] {
            assert_eq!(SafePath::parse(path), None, "{path:?}");
        }
        assert!(SafePath::parse(&"a/".repeat(20)).is_none());
        assert_eq!(SafePath::parse("a/b c.txt").unwrap().to_path(), Path::new("a/b c.txt"));
    }

    fn version(size_bytes: u64, modified_ms: i64) -> Version {
        Version::listed(&OutputFile { path: "a/b".to_owned(), size_bytes, modified_ms })
    }

    #[test]
    fn a_copy_is_known_again_by_its_size_and_its_time() {
        let into = tempfile::tempdir().unwrap();
        let path = SafePath::parse("a/b").unwrap();
        let copy = |version: Version| {
            let mut incoming = Incoming::create(into.path(), &path).unwrap();
            incoming.append(b"new").unwrap();
            incoming.finish(version).unwrap();
        };
        let is_copied = |version: Version| version.is_copied(into.path(), &path);
        assert!(!is_copied(version(3, 1_700_000_000_123)));
        for modified_ms in [1_700_000_000_123, 0] {
            copy(version(3, modified_ms));
            assert!(is_copied(version(3, modified_ms)));
            assert!(!is_copied(version(4, modified_ms)));
            assert!(!is_copied(version(3, modified_ms + 1)));
        }

        let begun_ms = Incoming::create(into.path(), &path).unwrap().begun_ms;
        let just_now = version(3, begun_ms);
        copy(just_now);
        assert!(!is_copied(just_now), "it may have changed since within the same tick");

        for modified_ms in [i64::MIN, i64::MAX] {
            copy(version(3, modified_ms));
        }
    }

    #[test]
    fn a_copy_that_is_given_up_leaves_nothing() {
        let into = tempfile::tempdir().unwrap();
        let mut incoming = Incoming::create(into.path(), &SafePath::parse("a").unwrap()).unwrap();
        incoming.append(b"half").unwrap();
        drop(incoming);
        assert_eq!(fs::read_dir(into.path()).unwrap().count(), 0);
    }

    #[test]
    fn nothing_is_written_through_what_lies_in_the_target() {
        let outside = tempfile::tempdir().unwrap();
        let into = tempfile::tempdir().unwrap();
        let victim = outside.path().join("victim");
        fs::write(&victim, "old").unwrap();
        symlink(&victim, into.path().join("link")).unwrap();
        symlink(outside.path(), into.path().join("folder")).unwrap();
        fs::hard_link(&victim, into.path().join("hard")).unwrap();

        let put = |path: &str| -> io::Result<()> {
            let mut incoming = Incoming::create(into.path(), &SafePath::parse(path).unwrap())?;
            incoming.append(b"new")?;
            incoming.finish(version(3, 0))
        };
        put("link").unwrap();
        put("hard").unwrap();
        put("a/b").unwrap();
        assert!(put("folder/victim").is_err());

        assert_eq!(fs::read_to_string(&victim).unwrap(), "old");
        assert_eq!(fs::read_to_string(into.path().join("link")).unwrap(), "new");
        assert_eq!(fs::read_to_string(into.path().join("a/b")).unwrap(), "new");
    }
}
