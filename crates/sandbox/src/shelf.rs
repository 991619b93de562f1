//! Where images and package layers lie: `images/` and `layers/` of a data directory.
//!
//! ```text
//! images/<name>/root/        the file system, as its root owns it
//! images/<name>/image.json   where it came from, and the digest that names it
//! layers/<key>/u/ r/         what installing packages wrote: upper folders and plain folders (`namespaces::stacks`)
//! layers/<key>/layer.json    what it is
//! ```
//!
//! Both are never written again once they are there, because overlays lie over them: they are made beside and moved into
//! place. Both the server and the supervisor look here; neither needs to ask the other.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::namespaces::stacks::Found;
use crate::packages::hex;
use crate::provider::{Base, Error};
use crate::supervisor::build;

pub(crate) const IMAGES: &str = "images";
pub(crate) const LAYERS: &str = "layers";
pub(crate) const ROOT: &str = "root";
const IMAGE_FILE: &str = "image.json";
pub(crate) const LAYER_FILE: &str = "layer.json";

/// What is written beside an image's root.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageCard {
    /// Tells this image from every other, another of the same name included.
    pub digest: String,
    /// What it was made from, for people.
    pub source: String,
    /// Of all its files, as they were counted when it was made.
    pub size_bytes: u64,
}

/// The shape of a layer: whether its builder had [`crate::Rights::Install`]. A layer of one shape fits no sandbox of another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    Installs,
    Plain,
}

/// The images and layers of one data directory.
#[derive(Clone, Debug)]
pub(crate) struct Shelf {
    data: PathBuf,
}

impl Shelf {
    pub(crate) fn new(data: impl Into<PathBuf>) -> Self {
        Self { data: data.into() }
    }

    pub(crate) fn images(&self) -> PathBuf {
        self.data.join(IMAGES)
    }

    pub(crate) fn layers(&self) -> PathBuf {
        self.data.join(LAYERS)
    }

    /// The folder of an image of this name, whether there is one or not; `None` if it cannot be a name.
    pub(crate) fn image(&self, name: &str) -> Option<PathBuf> {
        Some(self.images().join(file_name(name)?))
    }

    /// The folder of the layer for this base.
    pub(crate) fn layer(&self, base: &Base, shape: Shape) -> Result<PathBuf, Error> {
        let root = match &base.image {
            Some(name) => {
                let card = self.image(name).and_then(|folder| card(&folder));
                card.ok_or_else(|| no_image(name))?.digest
            }
            None => host_identity(),
        };
        Ok(self.layers().join(base.packages.key(&format!("{root} {shape:?}"))))
    }

    /// The folder in which the layer of this key is being made.
    pub(crate) fn unfinished(&self, key: &str) -> Result<PathBuf, Error> {
        let folder = self.layers().join(build::unfinished(key));
        let plain = key.bytes().all(|byte| byte.is_ascii_hexdigit());
        match plain && folder.is_dir() {
            true => Ok(folder),
            false => Err(Error::refused("no layer of this key is being made")),
        }
    }

    /// Finds what a sandbox starts from.
    pub(crate) fn find(&self, base: &Base, shape: Shape) -> Result<Found, Error> {
        let mut found = Found { base: base.name(), ..Found::default() };
        if let Some(name) = &base.image {
            let folder = self.image(name).filter(|folder| folder.join(ROOT).is_dir());
            let folder = folder.ok_or_else(|| no_image(name))?;
            let ImageCard { digest, .. } = card(&folder).ok_or_else(|| no_image(name))?;
            found.base = base.name_with(Some(&digest));
            found.image = Some(folder.join(ROOT));
        }
        if !base.packages.is_empty() {
            let layer = self.layer(base, shape)?;
            if !layer.join(LAYER_FILE).is_file() {
                return Err(Error::Unprepared {});
            }
            // Its age is that of its last use.
            let _ = mark_used(&layer);
            found.layer = Some(layer);
        }
        Ok(found)
    }
}

fn no_image(name: &str) -> Error {
    Error::refused(format!("there is no image {name} here; `posthouse images list` shows those that are"))
}

/// Marks a folder as used.
pub(crate) fn mark_used(folder: &Path) -> std::io::Result<()> {
    let now = rustix::fs::Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_NOW };
    let times = rustix::fs::Timestamps { last_access: now, last_modification: now };
    Ok(rustix::fs::utimensat(rustix::fs::CWD, folder, &times, rustix::fs::AtFlags::empty())?)
}

/// The name of an image's folder: that of the image, with what no file name holds spelled out.
pub(crate) fn file_name(name: &str) -> Option<String> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b".-_/:@".contains(&byte);
    let fits = (1..=128).contains(&name.len())
        && name.bytes().all(plain)
        && !name.starts_with(['.', '-', '/'])
        && !name.contains("..");
    fits.then(|| name.replace('/', "%2F"))
}

/// The name of the image in a folder of this name.
pub(crate) fn image_name(file_name: &str) -> String {
    file_name.replace("%2F", "/")
}

/// What is written beside the image in this folder.
pub(crate) fn card(folder: &Path) -> Option<ImageCard> {
    serde_json::from_slice(&fs::read(folder.join(IMAGE_FILE)).ok()?).ok()
}

/// Writes the card of an image that is being made.
pub(crate) fn write_card(folder: &Path, card: &ImageCard) -> std::io::Result<()> {
    fs::write(folder.join(IMAGE_FILE), serde_json::to_vec_pretty(card)?)
}

/// Changes when the host's own packages do: a layer over other files than it was made over would be a mixture.
fn host_identity() -> String {
    let release = fs::read("/etc/os-release").unwrap_or_default();
    let mut text = format!("{}\n", std::env::consts::ARCH).into_bytes();
    text.extend(release);
    for path in ["/var/lib/dpkg/status", "/var/lib/rpm/rpmdb.sqlite", "/lib/apk/db/installed"] {
        if let Ok(found) = fs::metadata(path) {
            text.extend(
                format!("{path} {} {} {}\n", found.len(), found.mtime(), found.mtime_nsec()).into_bytes(),
            );
        }
    }
    format!("host-{}", hex(ring::digest::digest(&ring::digest::SHA256, &text).as_ref()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packages::Packages;

    #[test]
    fn names_of_images_stay_in_their_folder() {
        assert_eq!(
            file_name("registry.example/python:3.13"),
            Some("registry.example%2Fpython:3.13".to_owned())
        );
        assert_eq!(image_name("registry.example%2Fpython:3.13"), "registry.example/python:3.13");
        for odd in ["", ".", "..", "../x", "a/../b", "/x", "-x", "a b", "a%2Fb", "a\0"] {
            assert_eq!(file_name(odd), None, "{odd:?}");
        }
    }

    #[test]
    fn what_is_not_there_is_told_apart_from_what_is_not_prepared() {
        let data = tempfile::tempdir().unwrap();
        let shelf = Shelf::new(data.path());
        let find = |base: &Base| shelf.find(base, Shape::Plain);
        let host = Found { base: "host".to_owned(), ..Found::default() };
        assert_eq!(find(&Base::default()).unwrap(), host);
        let base = Base { image: Some("x".to_owned()), ..Base::default() };
        assert!(matches!(find(&base), Err(Error::Refused { .. })));
        let packages = Packages { pip: vec!["six".to_owned()], ..Packages::default() };
        let base = Base { image: None, packages };
        assert!(matches!(find(&base), Err(Error::Unprepared {})));
        let layer = shelf.layer(&base, Shape::Plain).unwrap();
        fs::create_dir_all(&layer).unwrap();
        fs::write(layer.join(LAYER_FILE), "{}").unwrap();
        assert_eq!(find(&base).unwrap().layer, Some(layer.clone()));
        assert_ne!(shelf.layer(&base, Shape::Installs).unwrap(), layer);
    }
}
