//! Deliverables onto the host's disk.
//!
//! What a sandbox names its files, and what it says of their sizes, is not believed: a path is taken apart and each part checked,
//! folders are entered without following links, and a file is written under a name of ours first and then moved into place, so that
//! nothing that lies in the target folder is ever written through.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, mkdirat, openat, renameat, unlinkat};
use rustix::io::Errno;

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

/// A file on its way in. It appears under its name when it is whole.
pub(crate) struct Incoming {
    folder: OwnedFd,
    name: String,
    file: File,
}

/// Our name for a file that is not whole yet.
const PARTIAL: &str = ".posthouse-partial";

impl Incoming {
    pub(crate) fn create(into: &Path, path: &SafePath) -> io::Result<Self> {
        let (name, folders) = path.0.split_last().expect("a parsed path has a part");
        let enter = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut folder = openat(CWD, into, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        for part in folders {
            match mkdirat(&folder, part, Mode::from_raw_mode(0o755)) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(error) => return Err(error.into()),
            }
            folder = openat(&folder, part, enter, Mode::empty())?;
        }
        // Left by a copy that was cut short.
        let _ = unlinkat(&folder, PARTIAL, AtFlags::empty());
        let create = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = File::from(openat(&folder, PARTIAL, create, Mode::from_raw_mode(0o644))?);
        Ok(Self { folder, name: name.clone(), file })
    }

    pub(crate) fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes)
    }

    pub(crate) fn finish(self) -> io::Result<()> {
        Ok(renameat(&self.folder, PARTIAL, &self.folder, &self.name)?)
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
            incoming.finish()
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
