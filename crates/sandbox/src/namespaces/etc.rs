//! The `/etc` of every sandbox: what programs need to find their way, and nothing that tells about this host's people,
//! keys or neighbours.
//!
//! Made once, when the supervisor starts; each sandbox sees it through a private writable layer. Copying is by list:
//! a name that is not here does not get in.

use std::fs::{self, DirBuilder, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, symlink};
use std::path::Path;

/// Copied where the host has them. Folders with all that is in them.
const COPIED: &[&str] = &[
    "alternatives",
    "bash.bashrc",
    "bash_completion.d",
    "ca-certificates",
    "ca-certificates.conf",
    "crypto-policies",
    "debian_version",
    "fonts",
    "gai.conf",
    "host.conf",
    "inputrc",
    "java-11-openjdk",
    "java-17-openjdk",
    "java-21-openjdk",
    "java-25-openjdk",
    "ld.so.cache",
    "ld.so.conf",
    "ld.so.conf.d",
    "localtime",
    "locale.alias",
    "locale.conf",
    "lsb-release",
    "magic",
    "magic.mime",
    "mime.types",
    "nanorc",
    "networks",
    "os-release",
    "papersize",
    "perl",
    "pki/ca-trust/extracted",
    "pki/tls/certs",
    "pki/tls/cert.pem",
    "pki/tls/openssl.cnf",
    "profile",
    "protocols",
    "python3",
    "python3.10",
    "python3.11",
    "python3.12",
    "python3.13",
    "python3.14",
    "redhat-release",
    "rpc",
    "services",
    "shells",
    "ssl/cert.pem",
    "ssl/certs",
    "ssl/openssl.cnf",
    "terminfo",
    "timezone",
    "vim",
    "xdg",
    "xml",
];

/// Bounds on what a strange host can make us copy.
const FILE_BYTES_MAX: u64 = 4 << 20;
const TOTAL_BYTES_MAX: u64 = 32 << 20;
const ENTRIES_MAX: usize = 20_000;
const DEPTH_MAX: usize = 8;

/// Written fresh. There is no name service and nobody to ask: a look-up fails at once instead of after a timeout.
const WRITTEN: &[(&str, &str)] = &[
    (
        "passwd",
        "root:x:0:0:root:/root:/bin/bash\nnobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n",
    ),
    ("group", "root:x:0:\ntty:x:5:\nnogroup:x:65534:\n"),
    (
        "nsswitch.conf",
        "passwd: files\ngroup: files\nshadow: files\nhosts: files\nnetworks: files\nprotocols: files\nservices: files\n",
    ),
    (
        "resolv.conf",
        "# No network: names are not resolved here.\nnameserver 127.0.0.1\noptions timeout:1 attempts:1\n",
    ),
    ("hosts", "127.0.0.1\tlocalhost sandbox\n::1\tlocalhost ip6-localhost ip6-loopback\n"),
    ("hostname", "sandbox\n"),
    ("fstab", ""),
];

/// Fills the new folder `to` from the host's `from`.
pub(crate) fn curate(from: &Path, to: &Path) -> io::Result<()> {
    folder(to)?;
    let mut budget = Budget { bytes: TOTAL_BYTES_MAX, entries: ENTRIES_MAX };
    for name in COPIED {
        let source = from.join(name);
        let Ok(metadata) = fs::symlink_metadata(&source) else { continue };
        let target = to.join(name);
        if let Some(parent) = target.parent() {
            folder(parent)?;
        }
        copy(&source, &metadata, &target, DEPTH_MAX, &mut budget)?;
    }
    for (name, text) in WRITTEN {
        write(&to.join(name), text.as_bytes())?;
    }
    symlink("/proc/self/mounts", to.join("mtab"))
}

struct Budget {
    bytes: u64,
    entries: usize,
}

fn copy(
    source: &Path,
    metadata: &Metadata,
    target: &Path,
    depth: usize,
    budget: &mut Budget,
) -> io::Result<()> {
    if depth == 0 || budget.entries == 0 {
        return Ok(());
    }
    budget.entries -= 1;
    let kind = metadata.file_type();
    let everybody_reads = metadata.mode() & 0o004 != 0;
    if kind.is_symlink() {
        return symlink(fs::read_link(source)?, target);
    }
    if !everybody_reads {
        return Ok(());
    }
    if kind.is_dir() {
        folder(target)?;
        // What vanishes or cannot be read while we look is not copied, and that is all.
        for entry in fs::read_dir(source).into_iter().flatten().flatten() {
            if let Ok(metadata) = entry.metadata() {
                copy(&entry.path(), &metadata, &target.join(entry.file_name()), depth - 1, budget)?;
            }
        }
    } else if kind.is_file() && metadata.len() <= FILE_BYTES_MAX.min(budget.bytes) {
        let mut bytes = Vec::new();
        if fs::File::open(source).and_then(|file| file.take(FILE_BYTES_MAX).read_to_end(&mut bytes)).is_ok() {
            budget.bytes -= (bytes.len() as u64).min(budget.bytes);
            write(target, &bytes)?;
        }
    }
    Ok(())
}

fn folder(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o755).create(path)
}

fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    use std::io::Write;
    fs::OpenOptions::new().write(true).create_new(true).mode(0o644).open(path)?.write_all(bytes)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn only_listed_and_public_files_are_copied() {
        let host = tempfile::tempdir().unwrap();
        let out = tempfile::tempdir().unwrap();
        let etc = out.path().join("etc");
        fs::create_dir_all(host.path().join("ssl/certs")).unwrap();
        fs::create_dir_all(host.path().join("ssl/private")).unwrap();
        fs::write(host.path().join("ssl/certs/ca.pem"), "public").unwrap();
        fs::write(host.path().join("ssl/certs/key.pem"), "secret").unwrap();
        fs::set_permissions(host.path().join("ssl/certs/key.pem"), fs::Permissions::from_mode(0o600))
            .unwrap();
        fs::write(host.path().join("ssl/private/key.pem"), "secret").unwrap();
        fs::write(host.path().join("shadow"), "secret").unwrap();
        fs::write(host.path().join("passwd"), "host:x:1:1::/:/bin/sh\n").unwrap();
        symlink("../usr/share/zoneinfo/UTC", host.path().join("localtime")).unwrap();

        curate(host.path(), &etc).unwrap();

        assert_eq!(fs::read_to_string(etc.join("ssl/certs/ca.pem")).unwrap(), "public");
        assert_eq!(fs::read_link(etc.join("localtime")).unwrap(), Path::new("../usr/share/zoneinfo/UTC"));
        assert!(!etc.join("ssl/certs/key.pem").exists());
        assert!(!etc.join("ssl/private").exists());
        assert!(!etc.join("shadow").exists());
        assert!(fs::read_to_string(etc.join("passwd")).unwrap().starts_with("root:"));
    }
}
