//! Where the master key comes from: a file of our own, a text that an environment variable held, or a command.
//!
//! What is read is a keyring: one key, or several while one is changed for another. The first wraps what is new, the others
//! still unwrap. A key is 32 bytes, written as 64 hexadecimal digits or as base64; white space and commas stand between keys.

use std::fs::{File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE, URL_SAFE_NO_PAD};
use protocol::secret::Secret;
use ring::hmac;
use tokio::io::AsyncReadExt as _;
use zeroize::{Zeroize as _, Zeroizing};

use crate::error::KeyError;
use crate::seal::{KEY_BYTES, Key};

/// Keys of one ring. A rotation needs two.
pub const KEYS_MAX: usize = 8;
/// Enough for so many keys, in whatever form, with line ends.
const TEXT_BYTES_MAX: usize = 4_096;
/// How long the command may take.
const COMMAND_TIME_MAX: Duration = Duration::from_secs(30);
const FILE_MODE: u32 = 0o600;
/// Who may do anything with the file besides its owner: nobody.
const OTHERS: u32 = 0o077;

/// Where the master key comes from.
#[derive(Clone)]
pub enum Source {
    /// A file, made when it is first needed and nothing is sealed yet.
    File(PathBuf),
    /// The key itself, from an environment variable.
    Text(Secret),
    /// A command for the shell, which prints it.
    Command(String),
}

/// A key that wraps the keys of workspaces.
pub struct MasterKey {
    key: Key,
    name: String,
}

impl MasterKey {
    /// A new one.
    pub fn random() -> Self {
        Self::named(Key::random())
    }

    fn named(key: Key) -> Self {
        // Tells nothing of the key: who knows the name would have to guess 256 bits.
        let signed =
            hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key.bits()), b"posthouse vault master key");
        let name = signed.as_ref()[..8].iter().map(|byte| format!("{byte:02x}")).collect();
        Self { key, name }
    }

    /// Tells it from others, in the database and in messages.
    pub fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn key(&self) -> &Key {
        &self.key
    }

    /// As it is written into a file.
    fn text(&self) -> Zeroizing<String> {
        Zeroizing::new(STANDARD.encode(self.key.bits()))
    }

    fn parse(word: &str) -> Result<Self, KeyError> {
        let form = KeyError::Form("must be 32 bytes, as 64 hexadecimal digits or as base64");
        let mut bytes = Zeroizing::new(Vec::with_capacity(TEXT_BYTES_MAX));
        let is_hex = word.len() == 2 * KEY_BYTES && word.bytes().all(|byte| byte.is_ascii_hexdigit());
        if is_hex {
            let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
            for pair in word.as_bytes().chunks_exact(2) {
                let (Some(high), Some(low)) = (digit(pair[0]), digit(pair[1])) else { return Err(form) };
                bytes.push(high << 4 | low);
            }
        } else {
            let engines = [STANDARD, STANDARD_NO_PAD, URL_SAFE, URL_SAFE_NO_PAD];
            let is_read = engines.iter().any(|engine| {
                bytes.zeroize();
                engine.decode_vec(word, &mut bytes).is_ok()
            });
            if !is_read {
                return Err(form);
            }
        }
        if bytes.len() != KEY_BYTES {
            return Err(form);
        }
        let mut bits = Zeroizing::new([0; KEY_BYTES]);
        bits.copy_from_slice(&bytes);
        if bits.iter().all(|byte| *byte == bits[0]) {
            return Err(KeyError::Form("is the same byte again and again: take random ones"));
        }
        Ok(Self::named(Key::from_bits(bits)))
    }
}

/// The master keys that a process has, at least one.
pub struct Keyring {
    keys: Vec<MasterKey>,
}

impl Keyring {
    /// A ring of these, the first for what is new.
    pub fn new(first: MasterKey, others: Vec<MasterKey>) -> Self {
        let mut keys = vec![first];
        keys.extend(others);
        Self { keys }
    }

    /// Reads a ring.
    pub fn parse(text: &str) -> Result<Self, KeyError> {
        let words =
            text.split(|sign: char| sign.is_whitespace() || sign == ',').filter(|word| !word.is_empty());
        let keys = words.take(KEYS_MAX + 1).map(MasterKey::parse).collect::<Result<Vec<_>, _>>()?;
        match keys.len() {
            0 => Err(KeyError::Form("is empty")),
            1..=KEYS_MAX => Ok(Self { keys }),
            _ => Err(KeyError::Form("is more keys than a ring may hold")),
        }
    }

    /// The key for what is new.
    pub fn first(&self) -> &MasterKey {
        &self.keys[0]
    }

    /// The key of that name.
    pub fn find(&self, name: &str) -> Option<&MasterKey> {
        self.keys.iter().find(|key| key.name() == name)
    }

    /// How many there are, at least one.
    pub fn count(&self) -> usize {
        self.keys.len()
    }

    pub(crate) fn into_keys(self) -> Vec<MasterKey> {
        self.keys
    }
}

impl Source {
    /// Reads the ring; `None` if it is a file that does not exist.
    pub(crate) async fn load(&self) -> Result<Option<Keyring>, KeyError> {
        match self {
            Self::File(path) => read(path),
            Self::Text(text) => Keyring::parse(text.reveal()).map(Some),
            Self::Command(command) => run(command).await.map(Some),
        }
    }
}

fn read(path: &Path) -> Result<Option<Keyring>, KeyError> {
    let failed = |source| KeyError::File { path: path.to_owned(), source };
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    // Of the file that is open, not of what has its name by now.
    let metadata = file.metadata().map_err(failed)?;
    if !metadata.is_file() {
        return Err(failed(std::io::Error::other("it is no file")));
    }
    if metadata.mode() & OTHERS != 0 {
        return Err(KeyError::Exposed { path: path.to_owned() });
    }
    let mut text = Zeroizing::new(String::with_capacity(TEXT_BYTES_MAX + 1));
    file.take(TEXT_BYTES_MAX as u64 + 1).read_to_string(&mut text).map_err(failed)?;
    if text.len() > TEXT_BYTES_MAX {
        return Err(KeyError::Form("is longer than a ring of keys can be"));
    }
    Keyring::parse(&text).map(Some)
}

/// Makes the file with a new key, unless it is there by now: then that is read.
pub(crate) fn make(path: &Path) -> Result<Keyring, KeyError> {
    let failed = |source| KeyError::File { path: path.to_owned(), source };
    let made = beside(path);
    write(&made, &Keyring::new(MasterKey::random(), Vec::new())).map_err(failed)?;
    // Two processes that start at once must end with one key: a link is made or refused, never replaced.
    let linked = std::fs::hard_link(&made, path);
    let _ = std::fs::remove_file(&made);
    match linked {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => return Err(failed(error)),
        Ok(()) | Err(_) => {}
    }
    sync_folder(path).map_err(failed)?;
    read(path)?.ok_or_else(|| failed(std::io::ErrorKind::NotFound.into()))
}

/// Puts a ring in the place of the file: at any moment it is either the old one or the new one.
pub(crate) fn replace(path: &Path, ring: &Keyring) -> Result<(), KeyError> {
    let failed = |source| KeyError::File { path: path.to_owned(), source };
    let made = beside(path);
    write(&made, ring).map_err(failed)?;
    std::fs::rename(&made, path).map_err(failed)?;
    sync_folder(path).map_err(failed)
}

/// Held by whoever changes the file's keys.
pub(crate) struct Changing(#[expect(dead_code, reason = "dropping it unlocks")] File);

/// Takes the right to change the file's keys: two who did so at once would each lose the other's key.
pub(crate) fn change(path: &Path) -> Result<Changing, KeyError> {
    let failed = |source| KeyError::File { path: path.to_owned(), source };
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".lock");
    let open = OpenOptions::new().create(true).append(true).mode(FILE_MODE).open(path.with_file_name(name));
    let lock = open.map_err(failed)?;
    lock.try_lock().map_err(|error| match error {
        std::fs::TryLockError::WouldBlock => failed(std::io::Error::other("somebody is changing it now")),
        std::fs::TryLockError::Error(error) => failed(error),
    })?;
    Ok(Changing(lock))
}

fn beside(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.new", std::process::id()));
    path.with_file_name(name)
}

fn write(path: &Path, ring: &Keyring) -> std::io::Result<()> {
    // What a killed process of the same number left over.
    let _ = std::fs::remove_file(path);
    let mut file = OpenOptions::new().write(true).create_new(true).mode(FILE_MODE).open(path)?;
    for key in &ring.keys {
        file.write_all(key.text().as_bytes())?;
        file.write_all(b"\n")?;
    }
    file.sync_all()
}

fn sync_folder(path: &Path) -> std::io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(folder)?.sync_all()
}

async fn run(command: &str) -> Result<Keyring, KeyError> {
    let mut shell = tokio::process::Command::new("/bin/sh");
    shell.args(["-c", command]).stdin(Stdio::null()).stdout(Stdio::piped()).kill_on_drop(true);
    let mut child = shell.spawn().map_err(|_| KeyError::Command("cannot be started"))?;
    let output = child.stdout.take().ok_or(KeyError::Command("has no output"))?;
    let read = async {
        let mut text = Zeroizing::new(String::with_capacity(TEXT_BYTES_MAX + 1));
        let mut bounded = output.take(TEXT_BYTES_MAX as u64 + 1);
        bounded.read_to_string(&mut text).await.map_err(|_| KeyError::Command("printed no text"))?;
        if text.len() > TEXT_BYTES_MAX {
            return Err(KeyError::Command("printed more than a ring of keys can be"));
        }
        let status = child.wait().await.map_err(|_| KeyError::Command("cannot be waited for"))?;
        if status.success() { Ok(text) } else { Err(KeyError::Command("failed")) }
    };
    let text = tokio::time::timeout(COMMAND_TIME_MAX, read)
        .await
        .unwrap_or(Err(KeyError::Command("did not end within 30 seconds")))?;
    Keyring::parse(&text)
}
