//! What of the host's `/usr` a sandbox that may install packages does not see.
//!
//! Such a sandbox's root is shown as the owner of what the host's root owns, so it could read a file that the host keeps
//! from everybody. Whatever under `/usr` not everybody may read (or enter) is therefore hidden: a folder of whiteouts, made
//! once for each supervisor, lies over `/usr` as a layer. `/usr/local` is left out here, because it is never shown with its
//! owners.
//!
//! It is a look, not a watch: what is made private after it stays readable until the next supervisor. Packages ship nothing
//! secret, and `/usr/local`, `/opt` and `/etc`, where people put such things, are not shown this way.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, chown};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, Stat, fstat, mknodat, openat, statat};

/// Bounds on a strange host. A large one has half a million files under `/usr`, and a handful of private ones.
const ENTRIES_MAX: usize = 4_000_000;
const MASKED_MAX: usize = 10_000;
const DEPTH_MAX: usize = 64;

/// Fills the new folder `masks` for the tree `below`; `except` is a folder directly below it. How many were hidden.
pub(crate) fn make(below: &Path, except: &str, masks: &Path) -> io::Result<usize> {
    fs::DirBuilder::new().mode(0o755).create(masks)?;
    let mut look = Look { masks: masks.to_owned(), source: below.to_owned(), entries: 0, masked: 0 };
    let top = openat(CWD, below, FOLDER, Mode::empty())?;
    look.folder(top.as_fd(), &PathBuf::new(), except.as_bytes(), 0)?;
    Ok(look.masked)
}

const FOLDER: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
const READ_BY_ALL: u32 = 0o004;
const ENTERED_BY_ALL: u32 = 0o005;

struct Look {
    source: PathBuf,
    masks: PathBuf,
    entries: usize,
    masked: usize,
}

impl Look {
    fn folder(&mut self, folder: BorrowedFd<'_>, path: &Path, except: &[u8], depth: usize) -> io::Result<()> {
        if depth > DEPTH_MAX {
            return Err(io::Error::other(format!("{} is too deep", path.display())));
        }
        for entry in Dir::read_from(folder)? {
            let entry = entry?;
            let name = entry.file_name();
            let bytes = name.to_bytes();
            if matches!(bytes, b"." | b"..") || (depth == 0 && bytes == except) {
                continue;
            }
            self.entries += 1;
            if self.entries > ENTRIES_MAX {
                return Err(io::Error::other(format!("more than {ENTRIES_MAX} files")));
            }
            if entry.file_type() == FileType::Symlink {
                continue;
            }
            let found = match statat(folder, name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(found) => found,
                // Removed while we look.
                Err(rustix::io::Errno::NOENT) => continue,
                Err(error) => return Err(error.into()),
            };
            let kind = FileType::from_raw_mode(found.st_mode);
            let needed = if kind == FileType::Directory { ENTERED_BY_ALL } else { READ_BY_ALL };
            let below = path.join(std::ffi::OsStr::from_bytes(bytes));
            if kind != FileType::Symlink && found.st_mode & needed != needed {
                self.mask(&below)?;
            } else if kind == FileType::Directory {
                match openat(folder, name, FOLDER, Mode::empty()) {
                    Ok(next) => self.folder(next.as_fd(), &below, except, depth + 1)?,
                    Err(rustix::io::Errno::NOENT) => {}
                    Err(error) => return Err(error.into()),
                }
            }
        }
        Ok(())
    }

    fn mask(&mut self, path: &Path) -> io::Result<()> {
        self.masked += 1;
        if self.masked > MASKED_MAX {
            return Err(io::Error::other(format!("more than {MASKED_MAX} private files")));
        }
        let parents: Vec<&Path> =
            path.ancestors().skip(1).filter(|parent| !parent.as_os_str().is_empty()).collect();
        for parent in parents.into_iter().rev() {
            self.copy_folder(parent)?;
        }
        // A character device 0, 0 is how an overlay is told that a name is not there. Anybody may make one.
        mknodat(CWD, self.masks.join(path), FileType::CharacterDevice, Mode::empty(), 0)?;
        Ok(())
    }

    /// A folder that lies in the layer is seen with the layer's owner and mode, so it gets those of the original.
    fn copy_folder(&self, path: &Path) -> io::Result<()> {
        let copy = self.masks.join(path);
        let original: Stat = fstat(openat(CWD, self.source.join(path), FOLDER, Mode::empty())?)?;
        match fs::DirBuilder::new().mode(original.st_mode & 0o7777).create(&copy) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(()),
            done => done?,
        }
        chown(copy, Some(original.st_uid), Some(original.st_gid))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};

    use super::*;

    #[test]
    fn what_not_everybody_may_read_is_masked_and_nothing_else() {
        let tree = tempfile::tempdir().unwrap();
        let put = |name: &str, mode: u32| {
            let path = tree.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, "x").unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        };
        put("bin/open", 0o755);
        put("bin/only-root", 0o700);
        put("share/a/secret", 0o640);
        put("share/b/inside", 0o644);
        put("local/etc/secret", 0o600);
        std::os::unix::fs::symlink("/etc/shadow", tree.path().join("share/link")).unwrap();
        fs::set_permissions(tree.path().join("share/b"), fs::Permissions::from_mode(0o711)).unwrap();
        let masks = tempfile::tempdir().unwrap();
        let masks = masks.path().join("masks");

        assert_eq!(make(tree.path(), "local", &masks).unwrap(), 3);

        for hidden in ["bin/only-root", "share/a/secret", "share/b"] {
            let found = fs::symlink_metadata(masks.join(hidden)).unwrap();
            assert!(found.file_type().is_char_device() && found.rdev() == 0, "{hidden}");
        }
        for shown in ["bin/open", "share/link", "local"] {
            assert!(fs::symlink_metadata(masks.join(shown)).is_err(), "{shown}");
        }
    }
}
