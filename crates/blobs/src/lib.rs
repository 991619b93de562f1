//! Where large things last: files by key, in a folder of this machine or in a bucket that speaks S3.
//!
//! A blob is put whole and never changes; a key is a path of plain names, such as `snapshots/sesn_1/2`. Putting and getting
//! stream between the store and a local file, so that size costs no memory. It decides nothing: what is kept, for how long and
//! for whom is decided by those who know what a key means.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures_util::{StreamExt as _, TryStreamExt as _};
use object_store::aws::AmazonS3Builder;
use object_store::local::LocalFileSystem;
use object_store::path::Path as Key;
use object_store::prefix::PrefixStore;
use object_store::{ObjectStore, ObjectStoreExt as _, WriteMultipart};
use ring::digest::{Context, SHA256};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use url::Url;

/// A part of a blob on its way into a bucket: above the least that S3 takes, and a few of them fit into memory.
const PART_BYTES: usize = 8 << 20;
/// Parts on their way at once.
const PARTS_MAX: usize = 4;
/// What S3 deletes and lists is bounded by it; ours has one key for each session.
const LISTED_MAX: usize = 1_000_000;

/// Why a blob could not be put, had or removed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no such blob.
    #[error("there is no blob `{key}`")]
    Missing {
        /// Its key.
        key: String,
    },
    /// The address cannot be used.
    #[error("the blob store `{address}` cannot be used: {reason}")]
    Address {
        /// As it was given; it holds no secret.
        address: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The store failed; it may do better later.
    #[error("the blob store failed")]
    Store(#[source] object_store::Error),
    /// The local file failed.
    #[error("the local file failed")]
    File(#[from] io::Error),
}

/// A blob that is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Its key.
    pub key: String,
    /// Its size.
    pub size_bytes: u64,
    /// How long it has been there, by this machine's clock.
    pub age: Duration,
}

/// A blob that was copied into a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fetched {
    /// Its size.
    pub size_bytes: u64,
    /// The SHA-256 of what came, in hexadecimal.
    pub sha256: String,
}

/// Blobs by key. Cheap to clone.
#[derive(Clone)]
pub struct Blobs {
    store: Arc<dyn ObjectStore>,
    place: Place,
}

/// What a blob is written to.
#[derive(Clone, Debug)]
enum Place {
    Folder(PathBuf),
    Bucket,
}

impl Blobs {
    /// The blobs at an address: `s3://bucket/prefix`, or a folder, which is made if need be.
    ///
    /// A bucket's endpoint, region and credentials come from the usual variables (`AWS_ENDPOINT_URL`, `AWS_REGION`,
    /// `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`, `AWS_SESSION_TOKEN` and so on), as `variables` gives them; plain HTTP is used
    /// only for an endpoint that says so.
    pub fn at(address: &str, variables: impl IntoIterator<Item = (String, String)>) -> Result<Self, Error> {
        let refuse = |reason: String| Error::Address { address: address.to_owned(), reason };
        match address.split_once("://") {
            None => Self::in_folder(Path::new(address)),
            Some(("s3", _)) => {
                let url = Url::parse(address).map_err(|error| refuse(error.to_string()))?;
                let bucket = url.host_str().ok_or_else(|| refuse("it names no bucket".to_owned()))?;
                // One TLS for the whole program. Whoever came first has chosen the same.
                let _ = rustls::crypto::ring::default_provider().install_default();
                let mut builder = AmazonS3Builder::new().with_bucket_name(bucket);
                for (name, value) in variables {
                    let Ok(key) = name.to_ascii_lowercase().parse() else { continue };
                    if name.starts_with("AWS_ENDPOINT_URL") && value.starts_with("http://") {
                        builder = builder.with_allow_http(true);
                    }
                    builder = builder.with_config(key, value);
                }
                let store = builder.build().map_err(|error| refuse(error.to_string()))?;
                let prefix =
                    Key::parse(url.path().trim_matches('/')).map_err(|error| refuse(error.to_string()))?;
                Ok(Self { store: Arc::new(PrefixStore::new(store, prefix)), place: Place::Bucket })
            }
            Some((scheme, _)) => Err(refuse(format!("`{scheme}` is neither a folder nor `s3`"))),
        }
    }

    /// The blobs in a folder of this machine, which is made for this user alone if need be.
    pub fn in_folder(folder: &Path) -> Result<Self, Error> {
        use std::os::unix::fs::DirBuilderExt as _;
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        let store =
            LocalFileSystem::new_with_prefix(folder).map_err(Error::Store)?.with_automatic_cleanup(true);
        Ok(Self { store: Arc::new(store), place: Place::Folder(folder.canonicalize()?) })
    }

    /// Puts a local file under a key: all of it or nothing. A blob that is there already is replaced. The file must not be written
    /// afterwards: in a folder of the same file system the blob is a second name of it.
    pub async fn put(&self, key: &str, file: &Path) -> Result<(), Error> {
        let path = parse(key)?;
        if let Place::Folder(folder) = &self.place {
            // A link costs nothing where a copy costs the size; on another file system it is a copy.
            let (folder, file, key) = (folder.clone(), file.to_owned(), key.to_owned());
            return on_disk(move || put_beside(&folder, &file, &key)).await;
        }
        let mut file = tokio::fs::File::open(file).await?;
        let upload = self.store.put_multipart(&path).await.map_err(Error::Store)?;
        let mut parts = WriteMultipart::new_with_chunk_size(upload, PART_BYTES);
        let copied = async {
            let mut buffer = vec![0; 1 << 20];
            loop {
                let count = file.read(&mut buffer).await?;
                if count == 0 {
                    return Ok(());
                }
                parts.wait_for_capacity(PARTS_MAX).await.map_err(Error::Store)?;
                parts.write(&buffer[..count]);
            }
        };
        match copied.await {
            Ok(()) => parts.finish().await.map(drop).map_err(Error::Store),
            Err(error) => {
                // What was uploaded is of no use; the bucket's own rules remove what stays all the same.
                let _ = parts.abort().await;
                Err(error)
            }
        }
    }

    /// Copies a blob into a new local file, which is there afterwards only if all of it is.
    pub async fn get(&self, key: &str, into: &Path) -> Result<Fetched, Error> {
        let found = self.store.get(&parse(key)?).await.map_err(|error| missing(key, error))?;
        let mut file = tokio::fs::File::create_new(into).await?;
        let copied = async {
            let (mut bytes, mut size_bytes) = (found.into_stream(), 0);
            let mut digest = Context::new(&SHA256);
            while let Some(piece) = bytes.next().await {
                let piece = piece.map_err(Error::Store)?;
                size_bytes += piece.len() as u64;
                digest.update(&piece);
                file.write_all(&piece).await?;
            }
            file.flush().await?;
            Ok(Fetched { size_bytes, sha256: hexadecimal(digest.finish().as_ref()) })
        };
        let copied = copied.await;
        if copied.is_err() {
            let _ = tokio::fs::remove_file(into).await;
        }
        copied
    }

    /// Removes a blob. One that is not there is as good as removed.
    pub async fn delete(&self, key: &str) -> Result<(), Error> {
        match self.store.delete(&parse(key)?).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(Error::Store(error)),
        }
    }

    /// Every blob below a path, at most a million, with its age at `now`.
    pub async fn list(&self, below: &str, now: SystemTime) -> Result<Vec<Listed>, Error> {
        let listed = self.store.list(Some(&parse(below)?)).take(LISTED_MAX).map_ok(|meta| Listed {
            key: meta.location.to_string(),
            size_bytes: meta.size,
            age: now.duration_since(SystemTime::from(meta.last_modified)).unwrap_or_default(),
        });
        listed.try_collect().await.map_err(Error::Store)
    }
}

/// An error with its causes, on one line: a store's own message seldom says what went wrong.
pub fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

/// A hard link under a name of its own first, then a rename: nobody ever sees half a blob.
fn put_beside(folder: &Path, file: &Path, key: &str) -> io::Result<()> {
    let target = folder.join(key);
    let parent = target.parent().unwrap_or(folder);
    std::fs::create_dir_all(parent)?;
    let mut partial = target.clone().into_os_string();
    // As `object_store` names what it has not finished, so that no list shows it.
    partial.push("#1");
    let partial = PathBuf::from(partial);
    let _ = std::fs::remove_file(&partial);
    if std::fs::hard_link(file, &partial).is_err() {
        let copied = std::fs::copy(file, &partial).and_then(|_| std::fs::File::open(&partial)?.sync_data());
        if let Err(error) = copied {
            let _ = std::fs::remove_file(&partial);
            return Err(error);
        }
    }
    std::fs::rename(&partial, &target)?;
    // A name is as durable as its folder.
    std::fs::File::open(parent)?.sync_all()
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

async fn on_disk<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T, Error> {
    Ok(tokio::task::spawn_blocking(work).await.map_err(io::Error::other)??)
}

fn parse(key: &str) -> Result<Key, Error> {
    let path = Key::parse(key).map_err(|error| Error::Store(error.into()))?;
    // Nothing that a folder would read otherwise than a bucket.
    let plain = |name: &str| {
        !name.is_empty()
            && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte))
            && !name.starts_with('.')
    };
    match key.split('/').all(plain) {
        true => Ok(path),
        false => Err(Error::Missing { key: key.to_owned() }),
    }
}

fn missing(key: &str, error: object_store::Error) -> Error {
    match error {
        object_store::Error::NotFound { .. } => Error::Missing { key: key.to_owned() },
        other => Error::Store(other),
    }
}
