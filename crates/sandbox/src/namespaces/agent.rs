//! The `tools` program, kept where nobody can change it.
//!
//! It lies in a sealed memory file: every sandbox runs that one file, so its text is shared between all of them, and a
//! sandbox that gets hold of it through `/proc` cannot write to it.

use std::io;
use std::os::fd::OwnedFd;

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};

/// The static program that `build.rs` made.
static TOOLS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/tools"));

/// The program's bytes, for those who can run only files.
pub(crate) fn program() -> &'static [u8] {
    TOOLS
}

/// A sealed, executable memory file with the `tools` program.
pub(crate) fn tools() -> io::Result<OwnedFd> {
    sealed(TOOLS)
}

/// A sealed, executable memory file with these bytes.
pub(crate) fn sealed(program: &[u8]) -> io::Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    // Newer kernels want to be told that this file is to be run; older ones do not know the flag.
    let file = memfd_create("tools", flags | MemfdFlags::EXEC).or_else(|_| memfd_create("tools", flags))?;
    let mut rest = program;
    while !rest.is_empty() {
        let written = rustix::io::write(&file, rest)?;
        rest = &rest[written..];
    }
    fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE | SealFlags::SEAL)?;
    Ok(file)
}
