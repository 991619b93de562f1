//! Images: root file systems that the operator has named, below `images/` of the data directory.
//!
//! An image is imported once and never written again. It comes from a folder, from an archive of a root file system, or
//! from what `docker save` and other tools write (OCI image layout): then its layers are laid over each other here, and what
//! has a digest is checked against it. Whatever the source says, files are made only below the new image, devices and
//! privileges are left out, and a half made image is thrown away.
//!
//! It refuses to fetch anything from anywhere; that is for the tools that know registries and their credentials.

mod tarball;
mod tree;

use std::fs;
use std::io::{self, Read as _};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use ring::digest::{Context, SHA256};

use crate::packages::hex;
pub use crate::shelf::ImageCard;
use crate::shelf::{LAYER_FILE, ROOT, Shelf, card, file_name, image_name, write_card};
use crate::supervisor::build::remove_tree;
use tree::Tree;

/// Why an image could not be made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The name is none.
    #[error(
        "`{0}` is no name for an image: it is 1 to 128 letters, digits, `.`, `-`, `_`, `/`, `:` or `@`, not beginning with `.`, `-` or `/`"
    )]
    Name(String),
    /// There is one of this name.
    #[error("there is an image {0} already; remove it with `posthouse images prune --image {0}`")]
    Exists(String),
    /// What it is made from is not an image, or not a whole one.
    #[error("this is no image: {0}")]
    NoImage(String),
    /// A tool that makes root file systems failed.
    #[error("{program} failed: {lines}")]
    Tool {
        /// Which.
        program: String,
        /// Its last words.
        lines: String,
    },
    /// Reading or writing failed.
    #[error("{doing}")]
    Io {
        /// What was being done, and to what.
        doing: String,
        /// What the kernel said.
        #[source]
        cause: io::Error,
    },
}

impl From<io::Error> for Error {
    fn from(cause: io::Error) -> Self {
        Self::Io { doing: "the files of the image could not be made".to_owned(), cause }
    }
}

/// An image, or the packages that were installed for an environment, on disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept {
    /// The image's name; of a layer, its key.
    pub name: String,
    /// What it is.
    pub kind: Kind,
    /// Where it came from: a source, or the packages.
    pub about: String,
    /// Bytes on the disk.
    pub size_bytes: u64,
    /// How long ago a sandbox was last made from it; an image in which no packages were installed counts from its making.
    pub unused: Duration,
    folder: PathBuf,
}

/// What lies on the shelf.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A root file system.
    Image,
    /// Installed packages.
    Layer,
}

/// How an image is made on this machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// A small Debian, by the tool of that name.
    Mmdebstrap,
    /// The same by the older tool. It needs root.
    Debootstrap,
    /// A copy of this machine's tools.
    Copy,
}

impl Way {
    fn program(self) -> Option<&'static str> {
        match self {
            Self::Mmdebstrap => Some("mmdebstrap"),
            Self::Debootstrap => Some("debootstrap"),
            Self::Copy => None,
        }
    }
}

/// The images and layers of a data directory.
pub struct Images {
    shelf: Shelf,
}

/// What the folders of unfinished work begin with; the maker's process follows, and a `-`.
const NEW: &str = ".new-";
const GONE: &str = ".gone-";

impl Images {
    /// Those of this data directory.
    #[must_use]
    pub fn new(data_dir: &Path) -> Self {
        Self { shelf: Shelf::new(data_dir) }
    }

    /// Whether there is an image of this name.
    #[must_use]
    pub fn holds(&self, name: &str) -> bool {
        self.shelf.image(name).is_some_and(|folder| card(&folder).is_some())
    }

    /// Makes an image from a folder or from an archive: of a root file system, or of an image as other tools save it; each may
    /// be compressed by gzip or zstd.
    pub fn import(&self, name: &str, source: &Path) -> Result<ImageCard, Error> {
        let found = fs::metadata(source)
            .map_err(|cause| Error::Io { doing: format!("{} cannot be read", source.display()), cause })?;
        let about = format!("{}", source.display());
        self.make(name, &about, |scratch, root| match found.is_dir() {
            true => Tree::new(root)?.copy(source, &|_| true),
            false => tarball::unpack(source, scratch, root),
        })
    }

    /// Makes an image on this machine. `None` takes the first way that this machine has. A copy of this machine's tools is as
    /// everybody may read them, and there can be no further packages in it.
    pub fn build(
        &self,
        name: &str,
        way: Option<Way>,
        suite: &str,
        packages: &[String],
    ) -> Result<ImageCard, Error> {
        let plain = |text: &str| {
            let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"+.-:=_".contains(&byte);
            !text.is_empty() && !text.starts_with('-') && text.bytes().all(fits)
        };
        if let Some(odd) = packages.iter().map(String::as_str).chain([suite]).find(|text| !plain(text)) {
            return Err(Error::NoImage(format!("`{odd}` is no package of Debian, nor a suite")));
        }
        let is_here = |way: &Way| way.program().is_none_or(|program| find(program).is_some());
        let first = || [Way::Mmdebstrap, Way::Debootstrap].into_iter().find(is_here).unwrap_or(Way::Copy);
        let way = way.unwrap_or_else(first);
        match way.program() {
            Some(program) => {
                let found = find(program)
                    .ok_or_else(|| Error::NoImage(format!("`{program}` is not installed on this machine")))?;
                let about = format!("{program} {suite}");
                self.make(name, &about, |_, root| bootstrap(way, &found, suite, packages, root))
            }
            None if packages.is_empty() => {
                self.make(name, "this machine's tools", |_, root| copy_host(Path::new("/"), root))
            }
            None => Err(Error::NoImage(
                "packages need `mmdebstrap` or `debootstrap`, and not a copy of this machine's tools; \
                 an environment can list packages too"
                    .to_owned(),
            )),
        }
    }

    fn make(
        &self,
        name: &str,
        about: &str,
        fill: impl FnOnce(&Path, &Path) -> Result<(), Error>,
    ) -> Result<ImageCard, Error> {
        let file_name = file_name(name).ok_or_else(|| Error::Name(name.to_owned()))?;
        let images = self.shelf.images();
        let place = images.join(&file_name);
        if place.exists() {
            return Err(Error::Exists(name.to_owned()));
        }
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&images)?;
        // Without the name's own characters: apt, for one, takes a `:` in a path for the end of it.
        let plain = hex(&ring::digest::digest(&SHA256, name.as_bytes()).as_ref()[..8]);
        let new = images.join(format!("{NEW}{}-{plain}", std::process::id()));
        self.sweep()?;
        remove_tree(&new)?;
        fs::DirBuilder::new().mode(0o755).create(&new)?;
        let made = (|| {
            let (scratch, root) = (new.join("scratch"), new.join(ROOT));
            fs::DirBuilder::new().mode(0o700).create(&scratch)?;
            fs::DirBuilder::new().mode(0o755).create(&root)?;
            let mask = rustix::process::umask(rustix::fs::Mode::empty());
            let filled = fill(&scratch, &root);
            rustix::process::umask(mask);
            filled?;
            remove_tree(&scratch)?;
            if fs::symlink_metadata(root.join("bin")).is_err()
                && fs::symlink_metadata(root.join("usr")).is_err()
            {
                return Err(Error::NoImage("it has neither /bin nor /usr".to_owned()));
            }
            let measured = measure(&root)?;
            let card =
                ImageCard { digest: measured.digest, source: about.to_owned(), size_bytes: measured.bytes };
            write_card(&new, &card)?;
            rustix::fs::syncfs(fs::File::open(&new)?).map_err(io::Error::from)?;
            // Whoever was faster keeps the name.
            rustix::fs::renameat_with(
                rustix::fs::CWD,
                &new,
                rustix::fs::CWD,
                &place,
                rustix::fs::RenameFlags::NOREPLACE,
            )
            .map_err(|error| match error {
                rustix::io::Errno::EXIST => Error::Exists(name.to_owned()),
                other => io::Error::from(other).into(),
            })?;
            Ok(card)
        })();
        if made.is_err() {
            remove_tree(&new)?;
        }
        made
    }

    /// Removes what processes that have died have left half made or half removed.
    pub fn sweep(&self) -> io::Result<()> {
        for place in [self.shelf.images(), self.shelf.layers()] {
            for entry in fs::read_dir(place).into_iter().flatten() {
                let entry = entry?;
                let name = entry.file_name().to_string_lossy().into_owned();
                let rest = [NEW, GONE].iter().find_map(|prefix| name.strip_prefix(prefix));
                let maker = rest.and_then(|rest| rest.split('-').next()?.parse::<u32>().ok());
                if maker.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()) {
                    remove_tree(&entry.path())?;
                }
            }
        }
        Ok(())
    }

    /// All of them, images first.
    pub fn list(&self) -> io::Result<Vec<Kept>> {
        let mut kept = Vec::new();
        for (name, folder) in folders(&self.shelf.images())? {
            let Some(ImageCard { digest: _, source, size_bytes }) = card(&folder) else { continue };
            let unused = unused(&folder);
            let name = image_name(&name);
            kept.push(Kept { name, kind: Kind::Image, about: source, size_bytes, unused, folder });
        }
        for (name, folder) in folders(&self.shelf.layers())? {
            let Ok(about) = fs::read_to_string(folder.join(LAYER_FILE)) else { continue };
            let about: serde_json::Value = serde_json::from_str(&about).unwrap_or_default();
            let unused = unused(&folder);
            // Of packages for containers the engine has the files.
            let elsewhere = about["engine_bytes"].as_u64().unwrap_or_default();
            let size_bytes = measure_size(&folder)?.saturating_add(elsewhere);
            let about = describe(&about);
            kept.push(Kept { name, kind: Kind::Layer, about, size_bytes, unused, folder });
        }
        Ok(kept)
    }

    /// Removes one. A sandbox that lies over it keeps what it has open and may miss the rest, so it should be one that no
    /// sandbox uses.
    pub fn remove(&self, kept: &Kept) -> io::Result<()> {
        // Out of everybody's sight at once, and only then file by file.
        let gone =
            kept.folder.with_file_name(format!("{GONE}{}-{}", std::process::id(), file_part(&kept.folder)));
        fs::rename(&kept.folder, &gone)?;
        remove_tree(&gone)
    }
}

fn file_part(folder: &Path) -> String {
    folder.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

fn folders(place: &Path) -> io::Result<Vec<(String, PathBuf)>> {
    let entries = match fs::read_dir(place) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry?;
        if let Ok(name) = entry.file_name().into_string()
            && !name.starts_with('.')
        {
            found.push((name, entry.path()));
        }
    }
    found.sort();
    Ok(found)
}

fn unused(folder: &Path) -> Duration {
    let used = fs::metadata(folder).and_then(|found| found.modified()).unwrap_or(SystemTime::UNIX_EPOCH);
    used.elapsed().unwrap_or_default()
}

fn describe(card: &serde_json::Value) -> String {
    let packages = card["packages"].as_object().into_iter().flatten();
    let lists = packages.filter_map(|(manager, list)| {
        let list: Vec<&str> = list.as_array()?.iter().filter_map(serde_json::Value::as_str).collect();
        (!list.is_empty()).then(|| format!("{manager}: {}", list.join(" ")))
    });
    let lists = lists.collect::<Vec<_>>().join(", ");
    match card["image"].as_str() {
        Some(image) => format!("{lists} over {image}"),
        None => lists,
    }
}

struct Measured {
    digest: String,
    bytes: u64,
}

/// Adds up the files of a tree, and digests what each is and holds: names, kinds, modes and contents. Not times: the same
/// files are the same image whenever they are imported.
fn measure(root: &Path) -> io::Result<Measured> {
    use std::os::unix::ffi::OsStrExt;
    use std::os::unix::fs::MetadataExt;
    let (mut digest, mut bytes) = (Context::new(&SHA256), 0);
    let mut buffer = vec![0; 128 << 10];
    walk(root, |path, found| {
        digest.update(path.as_os_str().as_bytes());
        digest.update(&[0]);
        let size = if found.is_dir() { 0 } else { found.size() };
        for figure in [u64::from(found.mode()), size] {
            digest.update(&figure.to_le_bytes());
        }
        bytes += found.blocks() * 512;
        if found.is_symlink() {
            digest.update(fs::read_link(root.join(path))?.as_os_str().as_bytes());
        } else if found.is_file() {
            let mut file = fs::File::open(root.join(path))?;
            loop {
                match file.read(&mut buffer)? {
                    0 => break,
                    count => digest.update(&buffer[..count]),
                }
            }
        }
        Ok(())
    })?;
    Ok(Measured { digest: format!("sha256:{}", hex(digest.finish().as_ref())), bytes })
}

fn measure_size(folder: &Path) -> io::Result<u64> {
    use std::os::unix::fs::MetadataExt;
    let mut bytes = 0;
    walk(folder, |_, found| {
        bytes += found.blocks() * 512;
        Ok(())
    })?;
    Ok(bytes)
}

/// Visits everything below a folder, always in the same order.
fn walk(root: &Path, mut visit: impl FnMut(&Path, &fs::Metadata) -> io::Result<()>) -> io::Result<()> {
    let mut folders = vec![PathBuf::new()];
    while let Some(folder) = folders.pop() {
        let mut names: Vec<_> = fs::read_dir(root.join(&folder))?
            .map(|entry| Ok(entry?.file_name()))
            .collect::<io::Result<_>>()?;
        names.sort_unstable();
        for name in names {
            let path = folder.join(name);
            let found = fs::symlink_metadata(root.join(&path))?;
            visit(&path, &found)?;
            if found.is_dir() {
                folders.push(path);
            }
        }
    }
    Ok(())
}

/// Where a program lies, wherever an ordinary user's `PATH` leads.
fn find(program: &str) -> Option<PathBuf> {
    let folders = ["/usr/sbin", "/usr/bin", "/sbin", "/bin", "/usr/local/bin", "/usr/local/sbin"];
    folders.into_iter().map(|folder| Path::new(folder).join(program)).find(|path| path.is_file())
}

fn bootstrap(way: Way, program: &Path, suite: &str, packages: &[String], root: &Path) -> Result<(), Error> {
    let mut include = vec!["ca-certificates".to_owned()];
    include.extend(packages.iter().cloned());
    let mut command = match way {
        // One that is killed leaves its mounts where they were, unless they are its own.
        Way::Debootstrap if rustix::process::geteuid().is_root() => {
            let mut command = Command::new("unshare");
            command.args(["--mount", "--"]).arg(program);
            command
        }
        Way::Mmdebstrap | Way::Debootstrap | Way::Copy => Command::new(program),
    };
    command.arg("--variant=minbase").arg(format!("--include={}", include.join(",")));
    if way == Way::Mmdebstrap {
        // It leaves this machine's settings of apt aside. Whose mirror is a frozen one has said so there.
        command.args(dates_trusted().into_iter().map(|setting| format!("--aptopt={setting}")));
    }
    let output = command
        .arg(suite)
        .arg(root)
        .output()
        .map_err(|cause| Error::Io { doing: format!("{} cannot be run", program.display()), cause })?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    let lines: Vec<&str> = said.lines().collect();
    let lines = lines[lines.len().saturating_sub(20)..].join("\n");
    Err(Error::Tool { program: file_part(program), lines })
}

/// What this machine's apt says of dates, where it differs from the usual.
fn dates_trusted() -> Vec<String> {
    let said =
        Command::new("apt-config").arg("dump").output().map(|output| output.stdout).unwrap_or_default();
    let is_on_dates = |line: &&str| {
        ["Acquire::Check-Valid-Until ", "Acquire::Check-Date "].iter().any(|name| line.starts_with(name))
    };
    String::from_utf8_lossy(&said).lines().filter(is_on_dates).map(str::to_owned).collect()
}

/// What of this machine makes its tools work elsewhere.
const HOST_FOLDERS: &[&str] = &["usr", "bin", "sbin", "lib", "lib32", "lib64", "libx32", "var/lib/dpkg"];

/// Copies this machine's tools, without what is not for everybody and without `/usr/local`, which is its people's. `/etc` is
/// the one that every sandbox gets.
fn copy_host(host: &Path, root: &Path) -> Result<(), Error> {
    let tree = Tree::new(root)?;
    for name in HOST_FOLDERS {
        let source = host.join(name);
        let Ok(found) = fs::symlink_metadata(&source) else { continue };
        if found.is_symlink() {
            tree.link(Path::new(name), &fs::read_link(&source)?)?;
            continue;
        }
        for parent in Path::new(name).ancestors().skip(1).collect::<Vec<_>>().into_iter().rev() {
            if !parent.as_os_str().is_empty() {
                tree.folder(parent, 0o755)?;
            }
        }
        tree.copy_to(&source, Path::new(name), &|path| path != Path::new("local"))?;
    }
    let etc = root.join("etc");
    Ok(crate::namespaces::etc::curate(&host.join("etc"), &etc)?)
}

#[cfg(test)]
mod tests;
