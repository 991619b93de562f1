//! One snapshot as a file: the archive of [`tools::archive`], compressed, with a trailer that tells a whole one from one that
//! was cut or changed.
//!
//! ```text
//! zstd of the archive │ magic, 8 bytes │ length of the zstd part, u64 little-endian │ SHA-256 of the zstd part, 32 bytes
//! ```
//!
//! The digest is no proof of who made it; what is in an archive is checked entry by entry all the same. It refuses nothing
//! by policy: where a snapshot is kept and for how long is decided above.

use std::fs::File;
use std::io::{self, BufWriter, Read, Seek, SeekFrom, Write};
use std::os::fd::BorrowedFd;

use ring::digest::{Context, SHA256};
use serde::{Deserialize, Serialize};
use tools::archive::freight::{Receiver, Word};
use tools::archive::{self, Bounds, Packed, Scope, Unpacked};

/// Stored; a file that begins its trailer otherwise is none of ours.
const MAGIC: [u8; 8] = *b"posthsn1";
const DIGEST_BYTES: usize = 32;
const TRAILER_BYTES: usize = MAGIC.len() + 8 + DIGEST_BYTES;
/// The fastest level that packs well: a workspace is mostly text and programs.
const LEVEL: i32 = 1;
/// Before the compressor and before the file.
const BUFFER_BYTES: usize = 128 << 10;

/// A snapshot that was written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Written {
    /// The whole file.
    pub size_bytes: u64,
    /// The SHA-256 of the whole file, in hexadecimal.
    pub sha256: String,
    /// Files, folders and links in it.
    pub entries: u64,
    /// Bytes of its files before compression.
    pub content_bytes: u64,
    /// Files that no snapshot carries: sockets, devices, paths of more than 4,095 bytes.
    pub left_out: u64,
}

/// Why a snapshot could not be written or read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It is not whole, or not what was written.
    #[error("the snapshot is corrupt: {0}")]
    Corrupt(String),
    /// Reading or writing failed: a full disk, a file that cannot be read.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// An entry cannot be read, written or allowed.
    #[error(transparent)]
    Archive(archive::Error),
}

impl From<archive::Error> for Error {
    fn from(error: archive::Error) -> Self {
        match error {
            archive::Error::Corrupt(what) => Self::Corrupt(what.to_owned()),
            other => Self::Archive(other),
        }
    }
}

/// Writes the tree below `root` into the empty file `into`, and makes it durable.
pub fn save(root: BorrowedFd<'_>, scope: &Scope, into: &File) -> Result<Written, Error> {
    write(into, |stream| Ok(archive::pack(root, scope, stream)?))
}

/// Writes an archive that somebody sends into the empty file `into`, and makes it durable. It is not looked into: whoever
/// unpacks it looks at each entry, and the numbers in what is returned are the sender's.
pub(crate) fn receive(mut from: Receiver<impl Read>, into: &File) -> Result<Written, Error> {
    write(into, |stream| {
        io::copy(&mut from, stream)?;
        match from.word() {
            Some(Word::Whole { entries, bytes, left_out }) => Ok(Packed { entries, bytes, left_out }),
            Some(Word::Broken(_)) | None => Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
        }
    })
}

/// Sends the archive that the snapshot `from` holds, up to the first byte that is wrong.
pub(crate) fn send(mut from: &File, into: &mut impl Write) -> Result<(), Error> {
    let (length, expected) = trailer(from)?;
    from.seek(SeekFrom::Start(0))?;
    let mut hashed = HashedReader { file: from.take(length), digest: Context::new(&SHA256) };
    let mut expander = Garbled(zstd::Decoder::new(&mut hashed)?);
    let mut piece = vec![0; BUFFER_BYTES];
    loop {
        match expander.read(&mut piece)? {
            0 => break,
            count => into.write_all(&piece[..count])?,
        }
    }
    drop(expander);
    io::copy(&mut hashed, &mut io::sink())?;
    match hashed.digest.finish().as_ref() == expected {
        true => Ok(()),
        false => Err(Error::Corrupt("its digest is another".to_owned())),
    }
}

type Stream<'a> = BufWriter<zstd::Encoder<'a, Hashed<'a>>>;

fn write<'a>(
    into: &'a File,
    archive: impl FnOnce(&mut Stream<'a>) -> Result<Packed, Error>,
) -> Result<Written, Error> {
    let hashed = Hashed { file: into, digest: Context::new(&SHA256), length: 0 };
    let compressor = zstd::Encoder::new(hashed, LEVEL)?;
    let mut stream = BufWriter::with_capacity(BUFFER_BYTES, compressor);
    let Packed { entries, bytes, left_out } = archive(&mut stream)?;
    let compressor = stream.into_inner().map_err(io::IntoInnerError::into_error)?;
    let Hashed { mut file, digest, length } = compressor.finish()?;
    let mut trailer = MAGIC.to_vec();
    trailer.extend(length.to_le_bytes());
    trailer.extend(digest.clone().finish().as_ref());
    let mut whole = digest;
    whole.update(&trailer);
    file.write_all(&trailer)?;
    file.sync_data()?;
    Ok(Written {
        size_bytes: length + TRAILER_BYTES as u64,
        sha256: hexadecimal(whole.finish().as_ref()),
        entries,
        content_bytes: bytes,
        left_out,
    })
}

/// Makes in `root` what the snapshot `from` holds. After an error the folder may hold any part of it.
pub fn restore(
    mut from: &File,
    root: BorrowedFd<'_>,
    scope: &Scope,
    bounds: &Bounds,
) -> Result<Unpacked, Error> {
    let (length, expected) = trailer(from)?;
    from.seek(SeekFrom::Start(0))?;
    let mut hashed = HashedReader { file: from.take(length), digest: Context::new(&SHA256) };
    let expander = zstd::Decoder::new(&mut hashed)?;
    let unpacked = archive::unpack(Garbled(expander), root, scope, bounds)?;
    // What the expander had no use for belongs to the digest, too.
    io::copy(&mut hashed, &mut io::sink())?;
    match hashed.digest.finish().as_ref() == expected {
        true => Ok(unpacked),
        false => Err(Error::Corrupt("its digest is another".to_owned())),
    }
}

/// Looks whether the file is whole and unchanged, without unpacking it.
pub fn verify(mut file: &File) -> Result<(), Error> {
    let (length, expected) = trailer(file)?;
    file.seek(SeekFrom::Start(0))?;
    let mut hashed = HashedReader { file: file.take(length), digest: Context::new(&SHA256) };
    io::copy(&mut hashed, &mut io::sink())?;
    match hashed.digest.finish().as_ref() == expected {
        true => Ok(()),
        false => Err(Error::Corrupt("its digest is another".to_owned())),
    }
}

/// The length and the digest of the compressed part, as the end of the file has them.
fn trailer(mut file: &File) -> Result<(u64, [u8; DIGEST_BYTES]), Error> {
    let size = file.metadata()?.len();
    let Some(length) = size.checked_sub(TRAILER_BYTES as u64) else {
        return Err(Error::Corrupt("it is too short".to_owned()));
    };
    file.seek(SeekFrom::Start(length))?;
    let (mut magic, mut said, mut digest) = ([0; 8], [0; 8], [0; DIGEST_BYTES]);
    file.read_exact(&mut magic)?;
    file.read_exact(&mut said)?;
    file.read_exact(&mut digest)?;
    if magic != MAGIC || u64::from_le_bytes(said) != length {
        return Err(Error::Corrupt("its end is missing".to_owned()));
    }
    Ok((length, digest))
}

struct Hashed<'a> {
    file: &'a File,
    digest: Context,
    length: u64,
}

impl Write for Hashed<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.file.write(bytes)?;
        self.digest.update(&bytes[..count]);
        self.length += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

struct HashedReader<'a> {
    file: io::Take<&'a File>,
    digest: Context,
}

impl Read for HashedReader<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let count = self.file.read(into)?;
        self.digest.update(&into[..count]);
        Ok(count)
    }
}

/// What the expander says about bytes that it cannot expand is not the fault of any file.
struct Garbled<R>(R);

impl<R: Read> Read for Garbled<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        // A frame that ends before the archive does reads as an early end, which the unpacker calls corrupt.
        match self.0.read(into) {
            Err(error) if error.raw_os_error().is_none() && error.kind() != io::ErrorKind::Interrupted => {
                Ok(0)
            }
            other => other,
        }
    }
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::fd::AsFd;

    use super::*;

    const BOUNDS: Bounds = Bounds { bytes_max: 1 << 20, file_bytes_max: 1 << 20, entries_max: 100 };

    fn snapshot() -> Vec<u8> {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("file"), "hello ".repeat(1000)).unwrap();
        let mut file = tempfile::tempfile().unwrap();
        let saved = save(File::open(folder.path()).unwrap().as_fd(), &Scope::ALL, &file).unwrap();
        assert_eq!((saved.entries, saved.content_bytes, saved.left_out), (1, 6000, 0));
        let mut bytes = Vec::new();
        file.seek(SeekFrom::Start(0)).unwrap();
        file.read_to_end(&mut bytes).unwrap();
        assert_eq!(saved.size_bytes, bytes.len() as u64);
        assert!(bytes.len() < 1000, "{} bytes", bytes.len());
        bytes
    }

    fn restored(bytes: &[u8]) -> Result<String, Error> {
        let (folder, mut file) = (tempfile::tempdir().unwrap(), tempfile::tempfile().unwrap());
        file.write_all(bytes).unwrap();
        let verified = verify(&file);
        let done = restore(&file, File::open(folder.path()).unwrap().as_fd(), &Scope::ALL, &BOUNDS);
        assert_eq!(verified.is_ok(), done.is_ok());
        done.map(|_| fs::read_to_string(folder.path().join("file")).unwrap())
    }

    #[test]
    fn a_snapshot_is_restored_and_the_same_tree_gives_the_same_one() {
        assert_eq!(restored(&snapshot()).unwrap(), "hello ".repeat(1000));
    }

    #[test]
    fn a_snapshot_cut_anywhere_or_with_any_byte_changed_is_corrupt() {
        let whole = snapshot();
        for cut in 0..whole.len() {
            assert!(matches!(restored(&whole[..cut]), Err(Error::Corrupt(_))), "cut at {cut}");
        }
        for place in 0..whole.len() {
            let mut changed = whole.clone();
            changed[place] ^= 1;
            let tried = restored(&changed);
            // An entry may look wrong before the end shows that all of it is.
            assert!(matches!(tried, Err(Error::Corrupt(_) | Error::Archive(_))), "byte {place}: {tried:?}");
        }
        let mut longer = whole.clone();
        longer.extend(&whole);
        assert!(matches!(restored(&longer), Err(Error::Corrupt(_))));
    }

    #[test]
    fn a_full_disk_is_an_error_that_says_so() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("file"), "hello").unwrap();
        let full = File::options().write(true).open("/dev/full").unwrap();
        let tried = save(File::open(folder.path()).unwrap().as_fd(), &Scope::ALL, &full);
        let Err(Error::Io(cause)) = tried else { panic!("{tried:?}") };
        assert_eq!(cause.kind(), io::ErrorKind::StorageFull);
    }
}
