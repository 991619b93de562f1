//! The root file system of a sandbox: the host's tools, a private writable layer, and nothing of the host's own.
//!
//! One tmpfs of bounded size holds everything that a sandbox writes. Without an image, `/usr` (and what else holds
//! programs) and a curated `/etc` are seen through overlays whose upper layers lie in that tmpfs; an image is seen whole,
//! through one. `stacks` says what lies under them. Built by the child in its own mount namespace, and pivoted into, after
//! which the host's tree is out of reach. It refuses to show `/home`, `/root`, `/var` (but for the database of packages),
//! `/run` or anything else of the host that is not named here.
//!
//! Inside the working folder, where nobody but the child looks:
//!
//! ```text
//! etc/            the curated /etc, made once, shared, never written
//! stage/          the tmpfs of one sandbox
//!   r/            becomes /
//!   u/ w/         upper and work folders of the overlays; out of reach once r/ is the root
//!   l/            where folders that were taken hold of are mounted for the overlays over them; as much out of reach
//!   d/ e/         /dev and the empty /sys of a sandbox from an image, whose own are not used
//! ```

use std::ffi::CString;
use std::fmt::Write;
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, StatxFlags, chmodat, mkdirat, mknodat, open, statat, statx,
    symlinkat, unlinkat,
};
use rustix::io::Errno;
use rustix::mount::{
    MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, mount, mount_bind,
    mount_bind_recursive, mount_change, move_mount, open_tree, unmount,
};
use rustix::process::{chdir, pivot_root, umask};

use super::child::{Failure, Step};
use super::stacks::{Kind, Lower, Plan, Stack};
use super::{etc, snapshot, sys};
use crate::provider::{Access, Limits, Mount};

/// The names inside the working folder. `mountinfo` shows them to the sandbox, so they say nothing.
pub(crate) const ETC: &str = "etc";
pub(crate) const STAGE: &str = "stage";
const ROOT: &str = "stage/r";
const LOWERS: &str = "stage/l";

/// How the host's folders of programs appear. Looked at once, when the supervisor starts.
#[derive(Clone, Debug)]
pub(crate) struct Layout {
    /// The host's top folders that hold programs.
    folders: Vec<Folder>,
    /// Folders below `/usr` in which the agent may add and replace files although the host's root owns them.
    opened: Vec<PathBuf>,
    /// Files and folders of `/proc` that tell about the host.
    masked: Vec<Mask>,
    etc: Etc,
}

/// How the curated `/etc` gets into a sandbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Etc {
    /// Through a layer, at no cost.
    Layer,
    /// Copied, where the kernel has no overlays for us.
    Copy,
}

#[derive(Clone, Debug)]
struct Folder {
    name: &'static str,
    kind: FolderKind,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum FolderKind {
    /// A link, as on the host (`/bin` where `/usr` is merged).
    Link(PathBuf),
    /// Seen through a private writable layer.
    Layer,
    /// Read-only, because the kernel takes no overlay over it here.
    ReadOnly,
}

#[derive(Clone, Debug)]
struct Mask {
    name: &'static str,
    is_folder: bool,
}

/// Top folders that hold programs, on one distribution or another. `/nix` and `/gnu` carry whole systems.
const PROGRAM_FOLDERS: &[&str] =
    &["usr", "bin", "sbin", "lib", "lib32", "lib64", "libx32", "opt", "nix", "gnu"];

/// Folders that stay the host's names but start empty.
const EMPTY_FOLDERS: &[&str] = &[
    "dev",
    "dev/pts",
    "etc",
    "home",
    "media",
    "mnt",
    "mnt/session",
    "mnt/session/outputs",
    "mnt/session/uploads",
    "proc",
    "root",
    "run",
    "run/lock",
    "srv",
    "sys",
    "var",
    "var/cache",
    "var/lib",
    "var/log",
    "workspace",
];
const SHARED_FOLDERS: &[&str] = &["tmp", "var/tmp", "dev/shm"];

/// What package managers expect to find, beside their database. Parents first.
const FOLDERS_OF_PACKAGES: &[&str] = &[
    "var/cache/apt",
    "var/cache/apt/archives",
    "var/cache/apt/archives/partial",
    "var/cache/debconf",
    "var/lib/apt",
    "var/lib/apt/lists",
    "var/lib/apt/lists/partial",
    "var/log/apt",
];

/// What a sandbox has even if its image has not. Parents first.
const IMAGE_FOLDERS: &[&str] = &[
    "dev",
    "etc",
    "mnt",
    "mnt/session",
    "mnt/session/outputs",
    "mnt/session/uploads",
    "proc",
    "root",
    "run",
    "sys",
    "tmp",
    "var",
    "var/tmp",
    "workspace",
];

/// What a program may find in `/dev`. No terminal, no disk, no `/dev/kvm`.
const DEVICES: &[&str] = &["null", "zero", "full", "random", "urandom"];

/// What every user of a machine may read in `/proc` and a sandbox should not: how the host was started, where its kernel
/// lies, its keys, disks, devices and interrupts.
pub(crate) const MASKED: &[&str] = &[
    "acpi",
    "bus",
    "cmdline",
    "config.gz",
    "diskstats",
    "driver",
    "dynamic_debug",
    "fs",
    "interrupts",
    "iomem",
    "ioports",
    "irq",
    "kallsyms",
    "kcore",
    "key-users",
    "keys",
    "kmsg",
    "kpagecount",
    "kpageflags",
    "latency_stats",
    "modules",
    "partitions",
    "pressure",
    "sched_debug",
    "schedstat",
    "scsi",
    "slabinfo",
    "swaps",
    "sysrq-trigger",
    "sysvipc",
    "timer_list",
    "vmallocinfo",
    "asound",
    "mdstat",
    "mtrr",
];

/// Below `/usr`: where installers put things.
const OPENED: &[&str] = &[
    "",
    "bin",
    "sbin",
    "lib",
    "share",
    "include",
    "lib/python3",
    "lib/python3/dist-packages",
    "local",
    "local/bin",
    "local/sbin",
    "local/lib",
    "local/share",
    "local/include",
    "local/etc",
    "local/src",
    "local/lib/python3.10",
    "local/lib/python3.10/dist-packages",
    "local/lib/python3.11",
    "local/lib/python3.11/dist-packages",
    "local/lib/python3.12",
    "local/lib/python3.12/dist-packages",
    "local/lib/python3.13",
    "local/lib/python3.13/dist-packages",
    "local/lib/python3.14",
    "local/lib/python3.14/dist-packages",
    "local/lib/node_modules",
];

/// One file in this many bytes of disk: files cost the kernel memory even when they are empty.
const BYTES_PER_FILE: u64 = 8 << 10;
const FILES_MIN: u64 = 1 << 12;

impl Layout {
    /// Looks at the host. `layers` says whether the kernel lets us put an overlay over a folder.
    pub(crate) fn of_host(layers: impl Fn(&Path) -> bool) -> Self {
        let folders = PROGRAM_FOLDERS.iter().filter_map(|name| {
            let path = Path::new("/").join(name);
            let kind = fs::symlink_metadata(&path).ok()?.file_type();
            let kind = match () {
                () if kind.is_symlink() => FolderKind::Link(fs::read_link(&path).ok()?),
                () if !kind.is_dir() => return None,
                () if layers(&path) => FolderKind::Layer,
                () => FolderKind::ReadOnly,
            };
            Some(Folder { name, kind })
        });
        let opened = OPENED.iter().map(|name| Path::new("usr").join(name));
        let is_folder = |path: &Path| fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_dir());
        let masked = MASKED.iter().filter_map(|name| {
            let metadata = fs::symlink_metadata(Path::new("/proc").join(name)).ok()?;
            Some(Mask { name, is_folder: metadata.is_dir() })
        });
        let folders: Vec<Folder> = folders.collect();
        let has_layers = folders.iter().any(|folder| folder.kind == FolderKind::Layer);
        Self {
            etc: if has_layers { Etc::Layer } else { Etc::Copy },
            folders,
            opened: opened.filter(|path| is_folder(&Path::new("/").join(path))).collect(),
            masked: masked.filter(|mask| mask.is_folder || readable_by_all(mask.name)).collect(),
        }
    }

    /// The folders of programs that are seen through a layer.
    pub(crate) fn layered(&self) -> impl Iterator<Item = &'static str> {
        self.folders.iter().filter(|folder| folder.kind == FolderKind::Layer).map(|folder| folder.name)
    }

    /// Whether the curated `/etc` is.
    pub(crate) fn has_etc_layer(&self) -> bool {
        self.etc == Etc::Layer
    }

    #[cfg(test)]
    pub(crate) fn without_masks(mut self) -> Self {
        self.masked.clear();
        self
    }
}

/// What only the host's root may read needs no mask: inside, nobody is the host's root.
fn readable_by_all(name: &str) -> bool {
    use std::os::unix::fs::MetadataExt;
    fs::metadata(Path::new("/proc").join(name)).is_ok_and(|metadata| metadata.mode() & 0o006 != 0)
}

/// A host folder, taken hold of before the ids change, to be mounted after.
pub(crate) struct HeldMount {
    tree: OwnedFd,
    is_folder: bool,
    inside: PathBuf,
}

/// Makes every mount of this namespace private: nothing comes in or goes out any more.
pub(crate) fn detach_propagation() -> Result<(), Failure> {
    mount_change("/", MountPropagationFlags::REC | MountPropagationFlags::PRIVATE).step("make mounts private")
}

/// Takes hold of the host folders that this sandbox is to see.
pub(crate) fn hold(mounts: &[Mount]) -> Result<Vec<HeldMount>, Failure> {
    mounts
        .iter()
        .map(|Mount { host, inside, access }| {
            let flags = OpenTreeFlags::OPEN_TREE_CLONE
                | OpenTreeFlags::OPEN_TREE_CLOEXEC
                | OpenTreeFlags::AT_RECURSIVE;
            let tree = open_tree(CWD, host, flags).step("take hold of a mounted folder")?;
            let read_only = match access {
                Access::ReadOnly => libc::MOUNT_ATTR_RDONLY,
                Access::ReadWrite => 0,
            };
            let attributes = libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV | read_only;
            sys::mount_attributes(tree.as_fd(), attributes).step("restrict a mounted folder")?;
            let found =
                statx(&tree, "", AtFlags::EMPTY_PATH, StatxFlags::TYPE).step("look at a mounted folder")?;
            let is_folder = FileType::from_raw_mode(u32::from(found.stx_mode)) == FileType::Directory;
            Ok(HeldMount { tree, is_folder, inside: inside.clone() })
        })
        .collect()
}

/// Takes hold of a folder that lies under an overlay. Nothing that is mounted below it comes along.
pub(crate) fn hold_lower(folder: &Path) -> Result<OwnedFd, Failure> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    open_tree(CWD, folder, flags).step("take hold of a folder below a layer")
}

/// Who made what is found where the root is built.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Origin {
    /// Nobody but this builder and whoever made the image.
    Ours,
    /// A sandbox: what it left in a snapshot or a package layer may be anything, links included.
    Sandbox,
}

/// What one sandbox's root is built from.
pub(crate) struct Parts<'a> {
    pub(crate) layout: &'a Layout,
    pub(crate) limits: &'a Limits,
    pub(crate) hostname: &'a str,
    pub(crate) plan: &'a Plan,
    /// The folders of `plan.held`, each a mount that is nowhere yet.
    pub(crate) lowers: Vec<OwnedFd>,
    pub(crate) mounts: Vec<HeldMount>,
    /// What the stage starts with.
    pub(crate) snapshot: Option<&'a OwnedFd>,
}

/// Builds the root and moves into it, out of a snapshot if there is one. `hand_out` gets the bare stage. The working folder
/// of the process is the one with [`ETC`] and [`STAGE`]; the ids are those of the namespace's root already, so that
/// everything made here belongs to it.
pub(crate) fn build(
    parts: Parts<'_>,
    hand_out: impl FnOnce(&OwnedFd) -> io::Result<()>,
) -> Result<(), Failure> {
    let Parts { layout, limits, hostname, plan, mut lowers, mounts, snapshot } = parts;
    let mask = umask(Mode::empty());
    match plan.stage.and_then(|_| lowers.pop()) {
        None => mount_stage(limits)?,
        Some(folder) => {
            let attributes = libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV;
            sys::mount_attributes(folder.as_fd(), attributes).step("restrict the stage")?;
            move_mount(&folder, "", CWD, STAGE, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
                .step("mount the stage")?;
        }
    }
    hand_out(&snapshot::hold_stage()?).step("hand out the stage")?;
    let origin = match snapshot {
        None => Origin::Ours,
        Some(snapshot) => {
            snapshot::restore(snapshot, limits)?;
            clear_ways(layout, plan, &mounts)?;
            Origin::Sandbox
        }
    };
    for folder in [ROOT, "stage/u", "stage/w"] {
        make_if_missing(Path::new(folder))?;
    }
    mount_lowers(lowers)?;
    match plan.kind {
        Kind::Host => build_over_host(layout, hostname, plan, origin)?,
        Kind::Image => build_over_image(hostname, plan, origin)?,
    }
    mount_devices()?;
    mount_proc(layout)?;
    for held in mounts {
        mount_held(held, plan.kind, ways(plan, origin))?;
    }
    umask(mask);
    enter()
}

fn build_over_host(layout: &Layout, hostname: &str, plan: &Plan, origin: Origin) -> Result<(), Failure> {
    make_folders()?;
    // A mount of its own, because only a mount can become the root.
    mount_bind(ROOT, ROOT).step("make the root a mount")?;
    mount_programs(layout, origin)?;
    for stack in &plan.stacks {
        mount_stack(layout, plan, stack, origin)?;
    }
    if plan.installs {
        for name in FOLDERS_OF_PACKAGES {
            make_below_root(name, ways(plan, origin))?;
        }
    }
    match origin {
        Origin::Ours => name_host(layout, hostname),
        // What the snapshot has is the agent's, links included.
        Origin::Sandbox => Ok(()),
    }
}

/// How the ways in the root are to be taken: a layer is as little to be trusted as a snapshot.
fn ways(plan: &Plan, origin: Origin) -> Origin {
    if plan.has_layer { Origin::Sandbox } else { origin }
}

/// Makes a folder of the root, in which overlays may be mounted by now. Those of a snapshot may hold a link on the way.
fn make_below_root(name: &str, origin: Origin) -> Result<(), Failure> {
    match origin {
        Origin::Ours => make_if_missing(&Path::new(ROOT).join(name)),
        Origin::Sandbox => insist_on_way(Path::new(name)),
    }
}

/// Makes sure that every step of the way to this path, below the root, is a folder.
fn insist_on_way(path: &Path) -> Result<(), Failure> {
    let mut way = PathBuf::from(ROOT);
    path.components().try_for_each(|step| {
        way.push(step);
        insist_on_folder(&way, 0o755, Origin::Sandbox)
    })
}

/// Everything that is touched here by name is made sure of first: an image may hold a link in its place, and until the root
/// is entered such a link would lead into the host's tree.
fn build_over_image(hostname: &str, plan: &Plan, origin: Origin) -> Result<(), Failure> {
    for stack in &plan.stacks {
        mount_layer(plan, stack, ROOT)?;
    }
    for name in IMAGE_FOLDERS {
        let mode = if name.ends_with("tmp") { 0o1777 } else { 0o755 };
        insist_on_folder(&Path::new(ROOT).join(name), mode, origin)?;
    }
    for (plain, covered) in [("stage/d", "stage/r/dev"), ("stage/e", "stage/r/sys")] {
        mkdirat(CWD, plain, Mode::from_raw_mode(0o755)).step("make folders")?;
        mount_bind(plain, covered).step("cover a folder of the image")?;
    }
    for (name, mode) in [("pts", 0o755), ("shm", 0o1777)] {
        mkdirat(CWD, format!("stage/d/{name}"), Mode::from_raw_mode(mode)).step("make folders")?;
    }
    etc::complete(Path::new(ETC), Path::new("stage/r/etc"), hostname).step("complete the image's /etc")
}

/// Mounts what was taken hold of where [`mount_layer`] finds it: an overlay takes names only, and these say nothing.
fn mount_lowers(lowers: Vec<OwnedFd>) -> Result<(), Failure> {
    if !lowers.is_empty() {
        mkdirat(CWD, LOWERS, Mode::from_raw_mode(0o755)).step("make folders")?;
    }
    for (number, tree) in lowers.into_iter().enumerate() {
        let target = format!("{LOWERS}/{number}");
        mkdirat(CWD, &target, Mode::from_raw_mode(0o755)).step("make folders")?;
        move_mount(&tree, "", CWD, &target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
            .step("mount a folder below a layer")?;
    }
    Ok(())
}

/// How many files, folders and links a sandbox may have.
pub(crate) fn files_max(limits: &Limits) -> u64 {
    (limits.disk_bytes / BYTES_PER_FILE).max(FILES_MIN)
}

/// Moves aside whatever a snapshot has where the root is about to be built and that is not a folder: it would be followed out
/// of the stage. What shows only once overlays are mounted is insisted on then.
fn clear_ways(layout: &Layout, plan: &Plan, mounts: &[HeldMount]) -> Result<(), Failure> {
    let root = |name: &str| Path::new("r").join(name);
    snapshot::clear_way(Path::new("r"))?;
    for stack in &plan.stacks {
        snapshot::clear_way(&Path::new("u").join(stack.name()))?;
        snapshot::clear_way(&root(&stack.target))?;
    }
    if plan.kind == Kind::Image {
        return Ok(());
    }
    let programs = layout.folders.iter().filter(|folder| match folder.kind {
        FolderKind::Link(_) => false,
        FolderKind::Layer | FolderKind::ReadOnly => true,
    });
    let names = EMPTY_FOLDERS.iter().chain(SHARED_FOLDERS).copied().chain(programs.map(|folder| folder.name));
    names.chain([ETC]).try_for_each(|name| snapshot::clear_way(&root(name)))?;
    mounts.iter().try_for_each(|mount| {
        let inside = mount.inside.strip_prefix("/").unwrap_or(&mount.inside);
        snapshot::clear_way(&Path::new("r").join(inside))
    })
}

fn mount_stage(limits: &Limits) -> Result<(), Failure> {
    let files = files_max(limits);
    let options = format!("size={},nr_inodes={files},mode=755", limits.disk_bytes);
    let flags = MountFlags::NOSUID | MountFlags::NODEV;
    mount("sandbox", STAGE, "tmpfs", flags, text(&options).as_c_str()).step("mount the writable tmpfs")
}

fn make_folders() -> Result<(), Failure> {
    let mut path = String::with_capacity(64);
    let mut below_root = |name: &str, mode: u32| {
        path.clear();
        write!(path, "{ROOT}/{name}").expect("a string takes any text");
        make_with_mode(Path::new(path.as_str()), mode)
    };
    for name in EMPTY_FOLDERS {
        below_root(name, if *name == "root" { 0o700 } else { 0o755 })?;
    }
    SHARED_FOLDERS.iter().try_for_each(|name| below_root(name, 0o1777))
}

/// What is no layer. What is gets a folder to be mounted on.
fn mount_programs(layout: &Layout, origin: Origin) -> Result<(), Failure> {
    for Folder { name, kind } in &layout.folders {
        let target = format!("{ROOT}/{name}");
        match kind {
            FolderKind::Link(to) => match symlinkat(to, CWD, &target) {
                // The snapshot has it, or what the agent put in its place.
                Err(Errno::EXIST) if origin == Origin::Sandbox => {}
                linked => linked.step("link a program folder")?,
            },
            FolderKind::Layer => {
                make_if_missing(Path::new(&target))?;
            }
            FolderKind::ReadOnly => {
                make_if_missing(Path::new(&target))?;
                mount_read_only(&format!("/{name}"), &target)?;
            }
        }
    }
    if layout.etc == Etc::Copy && origin == Origin::Ours {
        etc::curate(Path::new(ETC), Path::new("stage/r/etc")).step("copy /etc")?;
    }
    Ok(())
}

fn mount_stack(layout: &Layout, plan: &Plan, stack: &Stack, origin: Origin) -> Result<(), Failure> {
    let upper = Path::new("stage/u").join(stack.name());
    let opened = match origin {
        Origin::Ours => layout.opened.as_slice(),
        // The snapshot has them, or the agent's own in their place, which must not be followed.
        Origin::Sandbox => &[],
    };
    // A folder that exists in the upper layer too is the agent's; all in it shows through.
    for path in opened {
        let Ok(below) = path.strip_prefix(&stack.target) else { continue };
        let covered = plan.installs && stack.target == "usr";
        if covered || (stack.target != "usr" && !path.starts_with("usr/local")) {
            continue;
        }
        // The first of them is the upper folder itself.
        make_if_missing(&if below.as_os_str().is_empty() { upper.clone() } else { upper.join(below) })?;
    }
    let ways = ways(plan, origin);
    if plan.installs || ways == Origin::Sandbox {
        // Below a stack that has just been mounted there may be no such folder.
        make_below_root(&stack.target, ways)?;
    }
    mount_layer(plan, stack, &format!("{ROOT}/{}", stack.target))
}

fn mount_read_only(folder: &str, target: &str) -> Result<(), Failure> {
    mount_bind_recursive(folder, target).step("bind a program folder")?;
    let mounted =
        open(target, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).step("bind a program folder")?;
    let attributes = libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV;
    sys::mount_attributes(mounted.as_fd(), attributes).step("restrict a program folder")
}

fn name_host(layout: &Layout, hostname: &str) -> Result<(), Failure> {
    if hostname == "sandbox" {
        return Ok(());
    }
    let etc = Path::new("stage/r/etc");
    let named = [("hostname", format!("{hostname}\n")), ("hosts", etc::hosts(hostname))];
    named
        .iter()
        .try_for_each(|(name, text)| match layout.etc {
            Etc::Layer => etc::replace(&etc.join(name), text.as_bytes()),
            Etc::Copy => fs::write(etc.join(name), text),
        })
        .step("name the host")
}

fn mount_layer(plan: &Plan, stack: &Stack, target: &str) -> Result<(), Failure> {
    let name = stack.name();
    for layer in ["u", "w"] {
        make_if_missing(&Path::new(STAGE).join(layer).join(&name))?;
    }
    if stack.target == "root" {
        chmodat(CWD, format!("stage/u/{name}"), Mode::from_raw_mode(0o700), AtFlags::empty())
            .step("make folders")?;
    }
    let lowers: Vec<String> = stack
        .lowers
        .iter()
        .map(|lower| match lower {
            Lower::Named(path) => path.clone(),
            Lower::Held(number) => format!("{LOWERS}/{number}"),
        })
        .collect();
    debug_assert!(
        plan.held.len() >= stack.lowers.iter().filter(|lower| matches!(lower, Lower::Held(_))).count()
    );
    // Without `userxattr` an ordinary user's overlay cannot replace a deleted folder.
    let options =
        format!("lowerdir={},upperdir=stage/u/{name},workdir=stage/w/{name},userxattr", lowers.join(":"));
    let flags = MountFlags::NOSUID | MountFlags::NODEV;
    mount("sandbox", target, "overlay", flags, text(&options).as_c_str()).step("mount a writable layer")
}

fn mount_devices() -> Result<(), Failure> {
    for name in DEVICES {
        let target = format!("stage/r/dev/{name}");
        make_file(&target)?;
        mount_bind(format!("/dev/{name}"), &target).step("bind a device")?;
    }
    let flags = MountFlags::NOSUID | MountFlags::NOEXEC;
    mount("sandbox", "stage/r/dev/pts", "devpts", flags, c"newinstance,ptmxmode=0666,mode=0620")
        .step("mount terminals")?;
    let links = [
        ("pts/ptmx", "ptmx"),
        ("/proc/self/fd", "fd"),
        ("/proc/self/fd/0", "stdin"),
        ("/proc/self/fd/1", "stdout"),
        ("/proc/self/fd/2", "stderr"),
    ];
    links
        .iter()
        .try_for_each(|(to, name)| symlinkat(*to, CWD, format!("stage/r/dev/{name}")).step("link a device"))
}

/// Done while the host's `/proc` is still in sight: the kernel allows a new one only to who could see the old one.
fn mount_proc(layout: &Layout) -> Result<(), Failure> {
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount("proc", "stage/r/proc", "proc", flags, None).step("mount /proc")?;
    let empty = "stage/r/sys";
    for Mask { name, is_folder } in &layout.masked {
        let target = format!("stage/r/proc/{name}");
        let cover = if *is_folder { empty } else { "stage/r/dev/null" };
        match mount_bind(cover, &target) {
            // Some entries belong to a namespace and are missing in a new one.
            Ok(()) | Err(Errno::NOENT) => {}
            Err(error) => return Err(error).step("mask a file of /proc"),
        }
    }
    Ok(())
}

fn mount_held(
    HeldMount { tree, is_folder, inside }: HeldMount,
    kind: Kind,
    origin: Origin,
) -> Result<(), Failure> {
    // An image or a snapshot may have put links where the way leads.
    let is_ours = kind == Kind::Host && origin == Origin::Ours;
    let mut target = PathBuf::from(ROOT);
    let mut components = inside.components().filter(|part| matches!(part, Component::Normal(_))).peekable();
    while let Some(part) = components.next() {
        target.push(part);
        if components.peek().is_some() || is_folder {
            match is_ours {
                true => make_if_missing(&target)?,
                false => insist_on_folder(&target, 0o755, origin)?,
            }
        } else {
            if !is_ours && unlinkat(CWD, &target, AtFlags::empty()) == Err(Errno::ISDIR) {
                snapshot::move_aside(&target).step("clear the way for a mount")?;
            }
            make_file(target.to_str().unwrap_or_default())?;
        }
    }
    move_mount(&tree, "", CWD, &target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
        .step("mount a folder of the host")
}

/// Makes the new root the root and forgets the old one.
fn enter() -> Result<(), Failure> {
    chdir(ROOT).step("enter the root")?;
    pivot_root(".", ".").step("pivot the root")?;
    // The old root lies on top of the new one now; unmounting it uncovers the new one.
    unmount(".", UnmountFlags::DETACH).step("let go of the host's root")?;
    chdir("/workspace").step("enter /workspace")
}

fn make_if_missing(path: &Path) -> Result<(), Failure> {
    make_with_mode(path, 0o755)
}

fn make_with_mode(path: &Path, mode: u32) -> Result<(), Failure> {
    match mkdirat(CWD, path, Mode::from_raw_mode(mode)) {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(error) => Err(error).step("make folders"),
    }
}

/// Makes a folder of an image if it is missing, and refuses anything but a real one.
fn insist_on_folder(path: &Path, mode: u32, origin: Origin) -> Result<(), Failure> {
    let make = || mkdirat(CWD, path, Mode::from_raw_mode(mode));
    match make() {
        Ok(()) => return Ok(()),
        Err(Errno::EXIST) => {}
        Err(error) => return Err(error).step("make folders"),
    }
    let found = statat(CWD, path, AtFlags::SYMLINK_NOFOLLOW).step("look at a folder of the image")?;
    if FileType::from_raw_mode(found.st_mode) == FileType::Directory {
        return Ok(());
    }
    match origin {
        Origin::Ours => {
            let inside = path.strip_prefix(ROOT).unwrap_or(path).display();
            Err(io::Error::other(format!("/{inside} is something else in the image")))
                .step("use a folder of the image")
        }
        // The agent's doing; its workspace is worth more than what it put here.
        Origin::Sandbox => {
            unlinkat(CWD, path, AtFlags::empty()).step("clear the way for the root")?;
            make().step("make folders")
        }
    }
}

fn make_file(path: &str) -> Result<(), Failure> {
    match mknodat(CWD, path, FileType::RegularFile, Mode::from_raw_mode(0o644), 0) {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(error) => Err(error).step("make a file to mount on"),
    }
}

fn text(options: &str) -> CString {
    CString::new(options).expect("our mount options hold no zero byte")
}

/// Whether a mount that a caller asks for can be made.
pub(crate) fn check(mount: &Mount) -> io::Result<()> {
    let refuse = |why: &str| {
        Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("mount at {}: {why}", mount.inside.display()),
        ))
    };
    if !mount.host.is_absolute() || !mount.inside.is_absolute() {
        return refuse("both paths must be absolute");
    }
    let parts: Vec<Component<'_>> = mount.inside.components().skip(1).collect();
    let [Component::Normal(top), ..] = parts.as_slice() else {
        return refuse("the root itself cannot be covered");
    };
    if !parts.iter().all(|part| matches!(part, Component::Normal(_))) {
        return refuse("the path must be plain");
    }
    if ["proc", "dev", "sys", "etc"].iter().any(|name| top == name) {
        return refuse("this folder is the sandbox's own");
    }
    if !mount.host.exists() {
        return refuse("the host has no such file or folder");
    }
    Ok(())
}

/// Tries an overlay over a folder of the host, in a throw-away child of the probe.
pub(crate) fn try_layer(lower: &Path) -> Result<(), Failure> {
    let name = lower.file_name().unwrap_or_default().to_string_lossy();
    let trial = format!("stage/{name}");
    for folder in ["", "/u", "/w", "/m"] {
        mkdirat(CWD, format!("{trial}{folder}"), Mode::from_raw_mode(0o755)).step("make folders")?;
    }
    let options = format!("lowerdir={},upperdir={trial}/u,workdir={trial}/w,userxattr", lower.display());
    mount("sandbox", format!("{trial}/m"), "overlay", MountFlags::NODEV, text(&options).as_c_str())
        .step("mount a writable layer")
}

/// Tries the other way, for a folder that takes no layer.
pub(crate) fn try_read_only(folder: &Path) -> Result<(), Failure> {
    let target = format!("stage/{}/m", folder.file_name().unwrap_or_default().to_string_lossy());
    mount_read_only(&folder.to_string_lossy(), &target)
}

/// The folders over which a layer is wanted.
pub(crate) fn program_folders() -> Vec<PathBuf> {
    let is_folder = |path: &PathBuf| fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_dir());
    PROGRAM_FOLDERS.iter().map(|name| Path::new("/").join(name)).filter(is_folder).collect()
}

/// Tries an overlay over a folder that somebody else has taken hold of, in a throw-away child of the probe.
pub(crate) fn try_held(tree: &OwnedFd) -> Result<(), Failure> {
    for folder in [LOWERS, "stage/u", "stage/w", "stage/m"] {
        mkdirat(CWD, folder, Mode::from_raw_mode(0o755)).step("make folders")?;
    }
    move_mount(tree, "", CWD, LOWERS, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
        .step("mount a folder below a layer")?;
    let options = format!("lowerdir={LOWERS},upperdir=stage/u,workdir=stage/w,userxattr");
    mount("sandbox", "stage/m", "overlay", MountFlags::NODEV, text(&options).as_c_str())
        .step("mount a writable layer")?;
    let found = statat(CWD, "stage/m/bin", AtFlags::empty()).step("look through a layer")?;
    match (found.st_uid, found.st_gid) {
        (0, 0) => Ok(()),
        (uid, gid) => Err(io::Error::other(format!("owner {uid}, {gid}"))).step("be shown as an owner"),
    }
}

/// Mounts a `/proc` and moves into a root that has nothing else, in a throw-away child of the probe.
pub(crate) fn try_proc_and_root() -> Result<(), Failure> {
    mkdirat(CWD, ROOT, Mode::from_raw_mode(0o755)).step("make folders")?;
    mount_bind(ROOT, ROOT).step("make the root a mount")?;
    for folder in ["stage/r/proc", "stage/r/workspace"] {
        mkdirat(CWD, folder, Mode::from_raw_mode(0o755)).step("make folders")?;
    }
    mount("proc", "stage/r/proc", "proc", MountFlags::NOSUID, None).step("mount /proc")?;
    enter()
}

/// Mounts the stage alone, for [`try_layer`].
pub(crate) fn try_stage() -> Result<(), Failure> {
    mount("sandbox", STAGE, "tmpfs", MountFlags::NODEV, c"size=64k,mode=755").step("mount the writable tmpfs")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_over_the_sandboxs_own_folders_are_refused() {
        let at = |inside: &str| {
            check(&Mount { host: "/usr".into(), inside: inside.into(), access: Access::ReadOnly })
        };
        assert!(at("/data").is_ok());
        assert!(at("/workspace/data").is_ok());
        for inside in ["/", "/proc", "/proc/x", "/dev/null", "/etc", "/sys", "/a/../proc", "relative"] {
            assert!(at(inside).is_err(), "{inside}");
        }
    }
}
