//! From an archive to an image.
//!
//! Three kinds, told apart by what is in them: an OCI image layout (`index.json`), what `docker save` wrote before that
//! (`manifest.json`), and a plain root file system. The first two are taken apart into a scratch folder first, because their
//! parts come in any order; every part that has a digest must have that digest.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use ring::digest::{Context, SHA256};
use serde::Deserialize;

use super::Error;
use super::tree::{Traits, Tree, plain_path, scratch_file};
use crate::packages::hex;

/// A manifest, an index or a configuration: kilobytes in real life.
const TEXT_BYTES_MAX: u64 = 8 << 20;
/// Layers of one image; tools refuse more than 127.
const LAYERS_MAX: usize = 512;
/// How many indexes may point to each other.
const INDEXES_MAX: usize = 4;
/// How long a path and how many parts an archive of an image has.
const PARTS_MAX: usize = 10_000;

/// Fills `root` from the archive.
pub(super) fn unpack(archive: &Path, scratch: &Path, root: &Path) -> Result<(), Error> {
    let file = || {
        File::open(archive)
            .map_err(|cause| Error::Io { doing: format!("{} cannot be read", archive.display()), cause })
    };
    let tree = Tree::new(root)?;
    if !is_of_parts(expanded(file()?)?)? {
        return lay(&tree, expanded(file()?)?);
    }
    take_apart(expanded(file()?)?, scratch)?;
    let layers = match scratch.join("index.json").is_file() {
        true => oci_layers(scratch)?,
        false => docker_layers(scratch)?,
    };
    if layers.is_empty() || layers.len() > LAYERS_MAX {
        return Err(Error::NoImage(format!("it has {} layers", layers.len())));
    }
    for Layer { path, compressed, expanded: whole } in layers {
        let mut file = scratch_file(&path)?;
        if let Some(wanted) = compressed {
            check("a layer", &wanted, &mut file)?;
        }
        if let Some(wanted) = whole {
            check("a layer", &wanted, &mut *expanded(scratch_file(&path)?)?)?;
        }
        lay(&tree, expanded(scratch_file(&path)?)?)?;
    }
    Ok(())
}

struct Layer {
    path: PathBuf,
    /// The digest of the file.
    compressed: Option<String>,
    /// The digest of the archive in it.
    expanded: Option<String>,
}

/// The stream without its compression, which its first bytes tell.
fn expanded(mut file: File) -> Result<Box<dyn Read>, Error> {
    let mut magic = [0; 4];
    let count = file.read(&mut magic)?;
    file.seek(SeekFrom::Start(0))?;
    let file = BufReader::with_capacity(1 << 17, file);
    Ok(match &magic[..count] {
        [0x1f, 0x8b, ..] => Box::new(flate2::read::MultiGzDecoder::new(file)),
        [0x28, 0xb5, 0x2f, 0xfd] => Box::new(zstd::Decoder::with_buffer(file)?),
        _ => Box::new(file),
    })
}

/// Whether the archive is one of an image's parts. Tools write the description last, so all of it is looked through, but only
/// as long as nothing speaks for a root file system.
fn is_of_parts(from: Box<dyn Read>) -> Result<bool, Error> {
    let mut archive = tar::Archive::new(from);
    for entry in archive.entries()? {
        let entry = entry?;
        let Some(path) = plain_path(&entry.path()?) else { continue };
        let first = path.components().next().map(|part| part.as_os_str().to_owned()).unwrap_or_default();
        match first.to_str() {
            Some("index.json" | "manifest.json" | "oci-layout") => return Ok(true),
            Some("usr" | "bin" | "etc" | "var" | "lib" | "sbin") => return Ok(false),
            _ => {}
        }
    }
    Ok(false)
}

/// Writes the parts of an image's archive into the scratch folder.
fn take_apart(from: Box<dyn Read>, scratch: &Path) -> Result<(), Error> {
    let parts = Tree::new(scratch)?;
    let mut archive = tar::Archive::new(from);
    for (number, entry) in archive.entries()?.enumerate() {
        let mut entry = entry?;
        if number > PARTS_MAX {
            return Err(Error::NoImage("it has too many parts".to_owned()));
        }
        let Some(path) = plain_path(&entry.path()?) else { continue };
        let own = Traits { mode: 0o600, uid: 0, gid: 0, modified_seconds: 0 };
        match entry.header().entry_type() {
            tar::EntryType::Regular | tar::EntryType::Continuous if !path.as_os_str().is_empty() => {
                parts.file(&path, own, &mut entry)?;
            }
            // Older tools link layers that are the same.
            tar::EntryType::Symlink | tar::EntryType::Link => {
                let target =
                    entry.link_name()?.ok_or_else(|| Error::NoImage("a link leads nowhere".to_owned()))?;
                let from = path.parent().unwrap_or(Path::new("")).join(&target);
                let normal =
                    normal(&from).ok_or_else(|| Error::NoImage("a link leads out of it".to_owned()))?;
                parts.hard_link(&path, &normal)?;
            }
            _ => {}
        }
    }
    Ok(())
}

/// A path with its `..` resolved by name, if it stays inside.
fn normal(path: &Path) -> Option<PathBuf> {
    let mut normal = PathBuf::new();
    for part in path.components() {
        match part {
            std::path::Component::Normal(name) => normal.push(name),
            std::path::Component::ParentDir => {
                if !normal.pop() {
                    return None;
                }
            }
            std::path::Component::CurDir | std::path::Component::RootDir => {}
            std::path::Component::Prefix(_) => return None,
        }
    }
    Some(normal)
}

#[derive(Deserialize)]
struct Descriptor {
    digest: String,
    #[serde(default)]
    platform: Option<Platform>,
}

#[derive(Deserialize)]
struct Platform {
    architecture: String,
}

/// An index, or a manifest: each has the other's fields empty.
#[derive(Deserialize)]
struct Manifest {
    #[serde(default)]
    manifests: Vec<Descriptor>,
    #[serde(default)]
    layers: Vec<Descriptor>,
}

fn oci_layers(scratch: &Path) -> Result<Vec<Layer>, Error> {
    let mut manifest: Manifest = read_json(&scratch.join("index.json"))?;
    for _ in 0..INDEXES_MAX {
        if manifest.manifests.is_empty() {
            break;
        }
        let ours = manifest.manifests.iter().find(|found| {
            found.platform.as_ref().is_some_and(|platform| platform.architecture == architecture())
        });
        let [only] = manifest.manifests.as_slice() else {
            let Some(ours) = ours else {
                return Err(Error::NoImage(format!("it has nothing for {}", architecture())));
            };
            manifest = read_checked(scratch, &ours.digest)?;
            continue;
        };
        manifest = read_checked(scratch, &only.digest)?;
    }
    let layer = |Descriptor { digest, platform: _ }| {
        Ok(Layer { path: blob(scratch, &digest)?, compressed: Some(digest), expanded: None })
    };
    manifest.layers.into_iter().map(layer).collect()
}

#[derive(Deserialize)]
struct Saved {
    #[serde(rename = "Config")]
    config: String,
    #[serde(rename = "Layers")]
    layers: Vec<String>,
}

#[derive(Deserialize)]
struct Config {
    rootfs: RootFs,
}

#[derive(Deserialize)]
struct RootFs {
    diff_ids: Vec<String>,
}

fn docker_layers(scratch: &Path) -> Result<Vec<Layer>, Error> {
    let saved: Vec<Saved> = read_json(&scratch.join("manifest.json"))?;
    let [Saved { config, layers }] = saved.as_slice() else {
        return Err(Error::NoImage(format!("it holds {} images instead of one", saved.len())));
    };
    let part = |path: &str| {
        let plain = plain_path(Path::new(path)).filter(|path| !path.as_os_str().is_empty());
        plain
            .map(|path| scratch.join(path))
            .ok_or_else(|| Error::NoImage(format!("`{path}` is no part of it")))
    };
    let Config { rootfs: RootFs { diff_ids } } = read_json(&part(config)?)?;
    if diff_ids.len() != layers.len() {
        return Err(Error::NoImage("its layers and their digests do not match".to_owned()));
    }
    let layer = |(path, digest): (&String, String)| {
        Ok(Layer { path: part(path)?, compressed: None, expanded: Some(digest) })
    };
    layers.iter().zip(diff_ids).map(layer).collect()
}

/// The name that image tools have for this machine's kind.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn blob(scratch: &Path, digest: &str) -> Result<PathBuf, Error> {
    let hexadecimal = digest.strip_prefix("sha256:").filter(|rest| {
        rest.len() == 64 && rest.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
    });
    let name =
        hexadecimal.ok_or_else(|| Error::NoImage(format!("`{digest}` is no digest that is known here")))?;
    Ok(scratch.join("blobs/sha256").join(name))
}

fn read_json<T: for<'a> Deserialize<'a>>(path: &Path) -> Result<T, Error> {
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let missing = |cause| Error::Io { doing: format!("its part {name} cannot be read"), cause };
    let mut text = Vec::new();
    scratch_file(path).map_err(missing)?.take(TEXT_BYTES_MAX).read_to_end(&mut text)?;
    serde_json::from_slice(&text).map_err(|error| Error::NoImage(format!("its part {name}: {error}")))
}

fn read_checked(scratch: &Path, digest: &str) -> Result<Manifest, Error> {
    let path = blob(scratch, digest)?;
    let found = fs::metadata(&path).map(|found| found.len());
    if found.is_ok_and(|length| length > TEXT_BYTES_MAX) {
        return Err(Error::NoImage("a description is too long".to_owned()));
    }
    if let Ok(mut file) = scratch_file(&path) {
        check("a description", digest, &mut file)?;
    }
    read_json(&path)
}

fn check(what: &str, wanted: &str, from: &mut dyn Read) -> Result<(), Error> {
    let mut digest = Context::new(&SHA256);
    let mut chunk = vec![0; 1 << 17];
    loop {
        match from.read(&mut chunk) {
            Ok(0) => break,
            Ok(count) => digest.update(&chunk[..count]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error.into()),
        }
    }
    let found = format!("sha256:{}", hex(digest.finish().as_ref()));
    match found == wanted {
        true => Ok(()),
        false => Err(Error::NoImage(format!("{what} has the digest {found} instead of {wanted}"))),
    }
}

/// What the names of a layer begin with that takes something away: `.wh.x` the name `x` below, this whole name all below.
const WHITEOUT: &str = ".wh.";
const OPAQUE: &str = ".wh..wh..opq";

/// Lays one archive of files over what is there.
fn lay(tree: &Tree, from: Box<dyn Read>) -> Result<(), Error> {
    let mut archive = tar::Archive::new(from);
    // What this layer has made itself is not what it takes away.
    let mut made: HashSet<PathBuf> = HashSet::new();
    for entry in archive.entries()? {
        let mut entry = entry?;
        let written = entry.path()?.into_owned();
        let Some(path) = plain_path(&written) else {
            return Err(Error::NoImage(format!("`{}` leads out of it", written.display())));
        };
        let Some(name) = path.file_name().map(|name| name.to_string_lossy().into_owned()) else { continue };
        let parent = path.parent().unwrap_or(Path::new(""));
        if name == OPAQUE {
            tree.empty(parent, |below| made.contains(below))?;
            continue;
        }
        if let Some(gone) = name.strip_prefix(WHITEOUT) {
            let gone = parent.join(gone);
            if plain_path(&gone).as_ref() == Some(&gone) && !made.contains(&gone) && gone != parent {
                tree.remove(&gone)?;
            }
            continue;
        }
        let header = entry.header();
        let id = |id: io::Result<u64>| id.map(|id| u32::try_from(id).unwrap_or(u32::MAX)).unwrap_or(0);
        let traits = Traits {
            mode: header.mode()?,
            uid: id(header.uid()),
            gid: id(header.gid()),
            modified_seconds: i64::try_from(header.mtime()?).unwrap_or(0),
        };
        let link = || -> Result<PathBuf, Error> {
            let target = entry.link_name()?.map(std::borrow::Cow::into_owned);
            target.ok_or_else(|| Error::NoImage(format!("`{}` leads nowhere", path.display())))
        };
        match header.entry_type() {
            tar::EntryType::Directory => tree.folder_as(&path, traits)?,
            tar::EntryType::Symlink => tree.link(&path, &link()?)?,
            tar::EntryType::Link => {
                let target = plain_path(&link()?)
                    .ok_or_else(|| Error::NoImage(format!("`{}` is a link out of it", path.display())))?;
                tree.hard_link(&path, &target)?;
            }
            tar::EntryType::Regular | tar::EntryType::Continuous | tar::EntryType::GNUSparse => {
                tree.file(&path, traits, &mut entry)?;
            }
            // Devices and pipes have no use in a sandbox's image.
            _ => continue,
        }
        made.extend(path.ancestors().filter(|path| !path.as_os_str().is_empty()).map(Path::to_owned));
    }
    Ok(())
}
