//! What a session brings into its sandbox: variables for its shells, and whom its programs are to trust besides those whom
//! everybody trusts.
//!
//! Brought once the sandbox lives, so that one that was made for anybody can become a session's. Bringing it again is as good
//! as once.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;

/// Who wants to be told whom to trust: each program has a name of its own for it.
pub const TRUST_VARIABLES: &[&str] = &[
    "SSL_CERT_FILE",
    "CURL_CA_BUNDLE",
    "REQUESTS_CA_BUNDLE",
    "PIP_CERT",
    "NODE_EXTRA_CA_CERTS",
    "CARGO_HTTP_CAINFO",
    "GIT_SSL_CAINFO",
    "AWS_CA_BUNDLE",
    "DENO_CERT",
    "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH",
];

/// Where the list is written that has the session's authority in it.
const TRUSTED: &str = "/run/session/certificates.crt";
/// Where systems keep whom they trust.
const SYSTEM_TRUSTED: [&str; 3] =
    ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem"];
/// Larger than any list of authorities that is shipped.
const TRUSTED_BYTES_MAX: u64 = 4 << 20;

/// Writes a list of those whom the system trusts and of `authority` (PEM), and gives the variables that name it. The system's
/// own list is extended, too, where that may be written: some programs know no variable.
pub fn trust(authority: &str, environment: &[(OsString, OsString)]) -> io::Result<Vec<(OsString, OsString)>> {
    let named =
        environment.iter().find(|(name, _)| name == TRUST_VARIABLES[0]).map(|(_, path)| PathBuf::from(path));
    let system = SYSTEM_TRUSTED.iter().map(PathBuf::from);
    let sources = named.into_iter().filter(|path| path != Path::new(TRUSTED)).chain(system);
    let mut list = sources.filter_map(|path| read(&path).ok()).next().unwrap_or_default();
    extend(&mut list, authority);
    replace(Path::new(TRUSTED), &list)?;
    for path in SYSTEM_TRUSTED.map(Path::new) {
        // Where it is not there or may not be written, the variables have to do.
        let _ = read(path)
            .and_then(|mut list| if extend(&mut list, authority) { replace(path, &list) } else { Ok(()) });
    }
    Ok(TRUST_VARIABLES.iter().map(|name| (OsString::from(name), OsString::from(TRUSTED))).collect())
}

/// Adds an authority to a list. `false`: it is there.
fn extend(list: &mut Vec<u8>, authority: &str) -> bool {
    let authority = authority.trim().as_bytes();
    if list.windows(authority.len()).any(|part| part == authority) {
        return false;
    }
    if !list.is_empty() && !list.ends_with(b"\n") {
        list.push(b'\n');
    }
    list.extend_from_slice(authority);
    list.push(b'\n');
    true
}

/// Reads a list. What is restored may have put anything in its place: nothing is waited for, and the size is bounded.
fn read(path: &Path) -> io::Result<Vec<u8>> {
    let flags = i32::try_from(OFlags::NONBLOCK.bits()).unwrap_or_default();
    let file = fs::OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() || metadata.len() > TRUSTED_BYTES_MAX {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut list = Vec::new();
    io::Read::read_to_end(&mut io::Read::take(file, TRUSTED_BYTES_MAX), &mut list)?;
    Ok(list)
}

/// Puts a list in a file's place, whole or not at all, whatever is there.
fn replace(path: &Path, list: &[u8]) -> io::Result<()> {
    let folder = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
    fs::create_dir_all(folder)?;
    let aside = path.with_extension("new");
    match fs::remove_file(&aside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let mut file = fs::OpenOptions::new().write(true).create_new(true).open(&aside)?;
    file.write_all(list)?;
    file.set_permissions(fs::Permissions::from_mode(0o644))?;
    fs::rename(&aside, path)
}

/// Whether a variable may be brought: a name as programs know it, and no byte that ends a text.
pub fn is_variable(name: &str, value: &str) -> bool {
    let mut bytes = name.bytes();
    let is_first = bytes.next().is_some_and(|byte| byte.is_ascii_alphabetic() || byte == b'_');
    is_first && bytes.all(|byte| byte.is_ascii_alphanumeric() || byte == b'_') && !value.contains('\0')
}

/// Sets variables, each in the place of one of the same name.
pub fn set(
    environment: &mut Vec<(OsString, OsString)>,
    variables: impl IntoIterator<Item = (OsString, OsString)>,
) {
    for (name, value) in variables {
        environment.retain(|(known, _)| known.as_os_str() != OsStr::new(&name));
        environment.push((name, value));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_authority_is_added_once() {
        let mut list = b"first".to_vec();
        assert!(extend(&mut list, "second\n"));
        assert!(!extend(&mut list, "second"));
        assert_eq!(list, b"first\nsecond\n");
    }

    #[test]
    fn names_of_variables_are_those_that_programs_know() {
        let good = ["A", "_A1", "GITHUB_TOKEN"];
        assert!(good.iter().all(|name| is_variable(name, "x y=z")));
        assert!(!["", "1A", "A-B", "A=B", "A B"].iter().any(|name| is_variable(name, "x")));
        assert!(!is_variable("A", "x\0y"));
    }
}
