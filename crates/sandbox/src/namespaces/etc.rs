//! The `/etc` of every sandbox: what programs need to find their way, and nothing that tells about this host's people,
//! keys or neighbours.
//!
//! Made once, when the supervisor starts; each sandbox sees it through a private writable layer. Copying is by list:
//! a name that is not here does not get in.

use std::fs::{self, DirBuilder, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, symlink};
use std::path::Path;

use super::snapshot;

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
        "nsswitch.conf",
        "passwd: files\ngroup: files\nshadow: files\nhosts: files\nnetworks: files\nprotocols: files\nservices: files\n",
    ),
    (
        "resolv.conf",
        "# No network: names are not resolved here.\nnameserver 127.0.0.1\noptions timeout:1 attempts:1\n",
    ),
    ("hosts", "127.0.0.1\tlocalhost sandbox\n::1\tlocalhost ip6-localhost ip6-loopback\n"),
    // The sandbox is thrown away, so nothing of the system's needs protection from `pip install`.
    ("pip.conf", PIP),
    ("hostname", "sandbox\n"),
    ("fstab", ""),
];

const PIP: &str =
    "[global]\nbreak-system-packages = true\nroot-user-action = ignore\ndisable-pip-version-check = true\n";

/// The accounts that every sandbox has. Where the host has a package manager, its other system accounts are there too,
/// because packages name them as owners of files: their names and numbers, and nothing of people.
const PASSWD: &str =
    "root:x:0:0:root:/root:/bin/bash\nnobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n";
const GROUP: &str = "root:x:0:\ntty:x:5:\nnogroup:x:65534:\n";
/// The first number of people's accounts, everywhere.
const PEOPLE_FIRST: u32 = 1000;

/// There are no users to drop to for downloads, and a proxy instead of a network.
const APT: &str = "APT::Sandbox::User \"root\";\nAPT::Get::Assume-Yes \"true\";\nDpkg::Use-Pty \"0\";\nDir::Cache::pkgcache \"\";\nDir::Cache::srcpkgcache \"\";\n";
const APT_FILE: &str = "apt/apt.conf.d/90sandbox";
/// Of `/etc/apt`, what says where packages come from and whose they must be. Never `auth.conf`, which holds passwords, nor
/// `apt.conf`, which may hold a proxy's.
const APT_COPIED: &[&str] = &[
    "keyrings",
    "preferences",
    "preferences.d",
    "sources.list",
    "sources.list.d",
    "trusted.gpg",
    "trusted.gpg.d",
];

/// Whom the host trusts, where an image finds it.
pub(crate) const HOST_TRUSTED: &str = "/etc/ssl/host-certificates.crt";
/// Where the host keeps whom it trusts, on one distribution or another.
pub(crate) const TRUSTED: &[&str] =
    &["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt"];

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
    curate_apt(&from.join("apt"), &to.join("apt"), &mut budget)?;
    for (name, text) in WRITTEN {
        write(&to.join(name), text.as_bytes())?;
    }
    for (name, usual) in [("passwd", PASSWD), ("group", GROUP)] {
        let hosts = fs::read_to_string(from.join(name)).unwrap_or_default();
        write(&to.join(name), accounts(usual, &hosts).as_bytes())?;
    }
    symlink("/proc/self/mounts", to.join("mtab"))
}

/// The usual accounts and the host's system accounts.
fn accounts(usual: &str, hosts: &str) -> String {
    let mut lines: Vec<String> = usual.lines().map(str::to_owned).collect();
    for line in hosts.lines() {
        let fields: Vec<&str> = line.split(':').collect();
        let known = |name: &str| usual.lines().any(|line| line.split(':').next() == Some(name));
        match fields.as_slice() {
            [name, _, id, rest @ ..]
                if !known(name) && id.parse::<u32>().is_ok_and(|id| id < PEOPLE_FIRST) =>
            {
                lines.push(match rest {
                    [group, _about, home, shell] => format!("{name}:x:{id}:{group}::{home}:{shell}"),
                    _ => format!("{name}:x:{id}:"),
                });
            }
            _ => {}
        }
    }
    lines.join("\n") + "\n"
}

fn curate_apt(from: &Path, to: &Path, budget: &mut Budget) -> io::Result<()> {
    if !from.is_dir() {
        return Ok(());
    }
    folder(&to.join("apt.conf.d"))?;
    for name in APT_COPIED {
        let source = from.join(name);
        let Ok(metadata) = fs::symlink_metadata(&source) else { continue };
        copy(&source, &metadata, &to.join(name), 2, budget)?;
    }
    drop_passwords(&to.join("sources.list"))?;
    for entry in fs::read_dir(to.join("sources.list.d")).into_iter().flatten() {
        drop_passwords(&entry?.path())?;
    }
    write(&to.join(APT_FILE.trim_start_matches("apt/")), APT.as_bytes())
}

/// Removes a list of sources whose addresses hold a user name or a password.
fn drop_passwords(list: &Path) -> io::Result<()> {
    let Ok(text) = fs::read_to_string(list) else { return Ok(()) };
    let tells = text.split("://").skip(1).any(|rest| {
        rest.split(|char: char| char == '/' || char.is_whitespace()).next().unwrap_or_default().contains('@')
    });
    if tells { fs::remove_file(list) } else { Ok(()) }
}

/// Gives an image's `/etc` what a sandbox needs to find its way. `curated` is the one that [`curate`] made; `to` is a real
/// folder. What is replaced may be a link to anywhere, so it is removed, never followed.
pub(crate) fn complete(curated: &Path, to: &Path, hostname: &str) -> io::Result<()> {
    let of_curated = |name: &str| fs::read(curated.join(name));
    replace(&to.join("resolv.conf"), &of_curated("resolv.conf")?)?;
    replace(&to.join("hosts"), hosts(hostname).as_bytes())?;
    replace(&to.join("hostname"), format!("{hostname}\n").as_bytes())?;
    for (name, text) in [("passwd", PASSWD), ("group", GROUP), ("pip.conf", PIP)] {
        if fs::symlink_metadata(to.join(name)).is_err() {
            write(&to.join(name), text.as_bytes())?;
        }
    }
    let is_folder = |path: &Path| fs::symlink_metadata(path).is_ok_and(|found| found.is_dir());
    if ["apt", "apt/apt.conf.d"].iter().all(|name| is_folder(&to.join(name))) {
        replace(&to.join(APT_FILE), APT.as_bytes())?;
    }
    let inside = |path: &str| to.join(path.trim_start_matches("/etc/"));
    let trusted =
        TRUSTED.iter().find_map(|path| fs::read(curated.join(path.trim_start_matches("/etc/"))).ok());
    if let Some(trusted) = trusted {
        let ssl = to.join("ssl");
        if !is_folder(&ssl) {
            let _ = fs::remove_file(&ssl);
            folder(&ssl)?;
        }
        replace(&inside(HOST_TRUSTED), &trusted)?;
    }
    Ok(())
}

/// The hosts that a sandbox of this name knows.
pub(crate) fn hosts(hostname: &str) -> String {
    format!("127.0.0.1\tlocalhost {hostname}\n::1\tlocalhost ip6-localhost ip6-loopback\n")
}

/// Puts a file in the place of whatever is there.
pub(crate) fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::IsADirectory => snapshot::move_aside(path)?,
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    write(path, bytes)
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
        fs::write(
            host.path().join("passwd"),
            "mail:x:8:8:A Name:/var/mail:/bin/false\nann:x:1000:1000:Ann:/home/ann:/bin/sh\nroot:x:0:0::/:/x\n",
        )
        .unwrap();
        fs::create_dir_all(host.path().join("apt/auth.conf.d")).unwrap();
        fs::create_dir_all(host.path().join("apt/sources.list.d")).unwrap();
        fs::write(host.path().join("apt/auth.conf.d/x"), "secret").unwrap();
        fs::write(host.path().join("apt/auth.conf"), "secret").unwrap();
        fs::write(host.path().join("apt/sources.list"), "deb http://deb.example/ stable main\n").unwrap();
        fs::write(host.path().join("apt/sources.list.d/a.list"), "deb https://ann:secret@deb.example/ x y\n")
            .unwrap();
        symlink("../usr/share/zoneinfo/UTC", host.path().join("localtime")).unwrap();

        curate(host.path(), &etc).unwrap();

        assert_eq!(fs::read_to_string(etc.join("ssl/certs/ca.pem")).unwrap(), "public");
        assert_eq!(fs::read_link(etc.join("localtime")).unwrap(), Path::new("../usr/share/zoneinfo/UTC"));
        assert!(!etc.join("ssl/certs/key.pem").exists());
        assert!(!etc.join("ssl/private").exists());
        assert!(!etc.join("shadow").exists());
        let accounts = fs::read_to_string(etc.join("passwd")).unwrap();
        assert_eq!(accounts, format!("{PASSWD}mail:x:8:8::/var/mail:/bin/false\n"));
        assert!(etc.join("apt/sources.list").exists() && etc.join(APT_FILE).exists());
        for absent in ["apt/auth.conf", "apt/auth.conf.d", "apt/sources.list.d/a.list"] {
            assert!(!etc.join(absent).exists(), "{absent}");
        }
    }
}
