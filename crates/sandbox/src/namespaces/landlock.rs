//! The file filter: what a sandbox may write, even where a mount or an owner would let it.
//!
//! Everything in the sandbox's root may be read and run; writing is allowed beneath the folders that are the agent's
//! own, and nowhere else, `/proc` above all. Where the kernel can, signals and abstract sockets end at the sandbox too.
//! Rules name files by descriptor, so each sandbox gets a ruleset of its own, made in the new root.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, open};

use super::sys;

/// Access rights by the ABI that brought them.
const EXECUTE: u64 = 1 << 0;
const WRITE_FILE: u64 = 1 << 1;
const READ_FILE: u64 = 1 << 2;
const READ_DIR: u64 = 1 << 3;
const MAKE_CHAR: u64 = 1 << 6;
const MAKE_BLOCK: u64 = 1 << 11;
const ABI_1: u64 = (1 << 13) - 1;
const REFER: u64 = 1 << 13;
const TRUNCATE: u64 = 1 << 14;
const IOCTL_DEV: u64 = 1 << 15;

const SCOPE_ABSTRACT_SOCKETS: u64 = 1 << 0;
const SCOPE_SIGNALS: u64 = 1 << 1;

/// The first ABI with scopes.
pub(crate) const ABI_WITH_SCOPES: u32 = 6;

/// Folders in which the agent may do what it likes, as far as they exist.
const WRITABLE: &[&str] = &[
    "/workspace",
    "/root",
    "/tmp",
    "/var",
    "/run",
    "/home",
    "/srv",
    "/mnt",
    "/media",
    "/opt",
    "/usr",
    "/etc",
    "/dev/shm",
];

/// Devices and terminals: written to, never created.
const DEVICES: &str = "/dev";

/// Puts this process under the rules. Called in the new root.
pub(crate) fn restrict(abi: u32, also_writable: &[PathBuf]) -> io::Result<()> {
    let handled = match abi {
        0 => return Err(io::ErrorKind::Unsupported.into()),
        1 => ABI_1,
        2 => ABI_1 | REFER,
        3 | 4 => ABI_1 | REFER | TRUNCATE,
        _ => ABI_1 | REFER | TRUNCATE | IOCTL_DEV,
    };
    let scoped = if abi >= ABI_WITH_SCOPES { SCOPE_ABSTRACT_SOCKETS | SCOPE_SIGNALS } else { 0 };
    let attributes = sys::RulesetAttributes { handled_access_fs: handled, handled_access_net: 0, scoped };
    // An older kernel refuses a structure that is longer than the one it knows, unless the rest is zero.
    let ruleset = sys::landlock_ruleset(&attributes, size_of::<sys::RulesetAttributes>())?;

    allow(&ruleset, Path::new("/"), handled & (EXECUTE | READ_FILE | READ_DIR))?;
    allow(
        &ruleset,
        Path::new(DEVICES),
        handled & (WRITE_FILE | READ_FILE | READ_DIR | TRUNCATE | IOCTL_DEV),
    )?;
    let write = handled & !(MAKE_CHAR | MAKE_BLOCK);
    for folder in WRITABLE.iter().map(Path::new).chain(also_writable.iter().map(PathBuf::as_path)) {
        allow(&ruleset, folder, write)?;
    }
    sys::landlock_restrict(ruleset.as_fd())
}

fn allow(ruleset: &OwnedFd, path: &Path, access: u64) -> io::Result<()> {
    let folder = match open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()) {
        Ok(folder) => folder,
        // Not every host has every folder.
        Err(rustix::io::Errno::NOENT) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    sys::landlock_allow(ruleset.as_fd(), folder.as_fd(), access)
}
