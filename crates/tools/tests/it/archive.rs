//! Trees of files as streams, and what an unpacker refuses.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File, Permissions};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use proptest::prelude::*;
use rustix::fs::{CWD, FileType, Mode, XattrFlags, fsetxattr, lgetxattr, mknodat};
use tempfile::TempDir;
use tools::archive::tar::{self, Entry, Extent, Kind, Time};
use tools::archive::{Bounds, Error, Packed, Scope, Unpacked, pack, unpack};

const BOUNDS: Bounds = Bounds { bytes_max: 1 << 30, file_bytes_max: 1 << 40, entries_max: 200_000 };

fn packed(folder: &Path) -> (Vec<u8>, Packed) {
    let mut archive = Vec::new();
    let packed = pack(File::open(folder).unwrap().as_fd(), &Scope::ALL, &mut archive).unwrap();
    (archive, packed)
}

fn unpacked(archive: &[u8], bounds: &Bounds) -> (TempDir, Result<Unpacked, Error>) {
    let folder = tempfile::tempdir().unwrap();
    let unpacked = unpack(archive, File::open(folder.path()).unwrap().as_fd(), &Scope::ALL, bounds);
    (folder, unpacked)
}

/// Packs, unpacks, and packs again: the same bytes mean the same tree.
fn survives(folder: &Path) -> TempDir {
    let (archive, packed_first) = packed(folder);
    let (copy, unpacked) = unpacked(&archive, &BOUNDS);
    assert_eq!(unpacked.unwrap().entries, packed_first.entries);
    let (again, _) = packed(copy.path());
    assert!(archive == again, "the copy is not the same");
    copy
}

#[test]
fn a_tree_of_every_kind_of_file_survives_a_round_trip() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    fs::create_dir_all(at("a/b/c")).unwrap();
    fs::write(at("a/plain"), "hello").unwrap();
    fs::write(at("a/empty"), "").unwrap();
    fs::write(at("a/block"), vec![b'x'; 512]).unwrap();
    symlink("../../nowhere", at("a/b/dangling")).unwrap();
    symlink("/etc/passwd", at("a/absolute")).unwrap();
    symlink("x".repeat(2000), at("a/long link")).unwrap();
    fs::hard_link(at("a/plain"), at("a/b/c/again")).unwrap();
    fs::hard_link(at("a/absolute"), at("a/b/link to a link")).unwrap();
    fs::write(folder.path().join(OsStr::from_bytes(b"not \xff utf-8\n")), "odd").unwrap();
    fs::write(at(&"n".repeat(255)), "long").unwrap();
    fs::write(at(" leading space"), "").unwrap();
    mknodat(CWD, at("pipe"), FileType::Fifo, Mode::RUSR, 0).unwrap();
    fs::write(at("unreadable"), "secret").unwrap();
    fs::set_permissions(at("unreadable"), Permissions::from_mode(0o000)).unwrap();
    fs::create_dir(at("closed")).unwrap();
    fs::write(at("closed/inside"), "x").unwrap();
    fs::set_permissions(at("closed"), Permissions::from_mode(0o555)).unwrap();
    fs::set_permissions(at("a/b"), Permissions::from_mode(0o3755)).unwrap();
    File::open(at("a/b/c")).unwrap().set_modified(std::time::UNIX_EPOCH).unwrap();

    let copy = survives(folder.path());
    let copied = |name: &str| copy.path().join(name);
    assert_eq!(fs::read(copied("a/b/c/again")).unwrap(), b"hello");
    assert_eq!(fs::metadata(copied("a/plain")).unwrap().nlink(), 2);
    assert_eq!(fs::symlink_metadata(copied("a/absolute")).unwrap().nlink(), 2);
    assert_eq!(fs::metadata(copied("closed")).unwrap().mode() & 0o7777, 0o555);
    assert_eq!(fs::metadata(copied("unreadable")).unwrap().mode() & 0o7777, 0);
    assert_eq!(fs::metadata(copied("a/b")).unwrap().mode() & 0o7777, 0o3755);
}

#[test]
fn a_sparse_file_stays_sparse_and_costs_only_what_is_in_it() {
    let folder = tempfile::tempdir().unwrap();
    let file = File::create(folder.path().join("sparse")).unwrap();
    file.set_len(1 << 36).unwrap();
    rustix::io::pwrite(&file, b"middle", 1 << 35).unwrap();
    File::create(folder.path().join("all hole")).unwrap().set_len(1 << 30).unwrap();
    let file = File::create(folder.path().join("ends with bytes")).unwrap();
    rustix::io::pwrite(&file, b"end", 1 << 20).unwrap();

    assert!(packed(folder.path()).0.len() < 64 << 10);
    let copy = survives(folder.path());
    let found = fs::metadata(copy.path().join("sparse")).unwrap();
    assert_eq!(found.len(), 1 << 36);
    assert!(found.blocks() * 512 < 1 << 20, "it takes {} blocks", found.blocks());
    let mut middle = [0; 6];
    let file = File::open(copy.path().join("sparse")).unwrap();
    rustix::io::pread(file, &mut middle, 1 << 35).unwrap();
    assert_eq!(&middle, b"middle");
}

#[test]
fn what_an_overlay_leaves_in_its_upper_layer_survives_and_nothing_that_points_elsewhere_does() {
    let folder = tempfile::tempdir().unwrap();
    let hidden = folder.path().join("hidden");
    fs::create_dir(&hidden).unwrap();
    let open = File::open(&hidden).unwrap();
    for (name, value) in [
        ("user.overlay.opaque", "y"),
        ("user.overlay.redirect", "/etc"),
        ("user.overlay.origin", "handle"),
        ("user.mine", "kept"),
        ("user.with=sign%", ""),
    ] {
        fsetxattr(&open, name, value.as_bytes(), XattrFlags::empty()).unwrap();
    }
    // Of one file, as some kernels make them.
    mknodat(CWD, hidden.join("deleted"), FileType::CharacterDevice, Mode::empty(), 0).unwrap();
    fs::hard_link(hidden.join("deleted"), hidden.join("deleted too")).unwrap();

    let copy = survives(folder.path());
    let attribute = |name: &str| {
        let mut value = [0; 100];
        let length = lgetxattr(copy.path().join("hidden"), name, &mut value).ok()?;
        Some(String::from_utf8_lossy(&value[..length]).into_owned())
    };
    assert_eq!(attribute("user.overlay.opaque").as_deref(), Some("y"));
    assert_eq!(attribute("user.mine").as_deref(), Some("kept"));
    assert_eq!(attribute("user.with=sign%").as_deref(), Some(""));
    assert_eq!(attribute("user.overlay.redirect"), None);
    assert_eq!(attribute("user.overlay.origin"), None);
    let whiteout = fs::symlink_metadata(copy.path().join("hidden/deleted too")).unwrap();
    assert_eq!((whiteout.mode() & 0o170_000, whiteout.rdev(), whiteout.nlink()), (0o020_000, 0, 1));
}

#[test]
fn sockets_and_set_user_id_bits_are_left_behind() {
    let folder = tempfile::tempdir().unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(folder.path().join("socket")).unwrap();
    fs::write(folder.path().join("sudo"), "").unwrap();
    fs::set_permissions(folder.path().join("sudo"), Permissions::from_mode(0o6755)).unwrap();
    let (archive, packed) = packed(folder.path());
    assert_eq!(packed, Packed { entries: 1, bytes: 0, left_out: 1 });
    let (copy, unpacked) = unpacked(&archive, &BOUNDS);
    unpacked.unwrap();
    assert_eq!(fs::metadata(copy.path().join("sudo")).unwrap().mode() & 0o7777, 0o755);
}

#[test]
fn a_tree_as_deep_as_a_path_may_be_long_needs_no_more_open_files_than_a_flat_one() {
    let folder = tempfile::tempdir().unwrap();
    let root = File::open(folder.path()).unwrap();
    let mut at: std::os::fd::OwnedFd = root.into();
    // Twice as deep as a path can say.
    for _ in 0..4000 {
        rustix::fs::mkdirat(&at, "d", Mode::RWXU).unwrap();
        let flags = rustix::fs::OFlags::DIRECTORY | rustix::fs::OFlags::PATH;
        at = rustix::fs::openat(&at, "d", flags, Mode::empty()).unwrap();
    }
    let (archive, packed) = packed(folder.path());
    assert_eq!(packed, Packed { entries: 2048, bytes: 0, left_out: 1 });
    let (_copy, unpacked) = unpacked(&archive, &BOUNDS);
    assert_eq!(unpacked.unwrap().entries, 2048);
}

#[test]
fn only_what_is_in_scope_is_packed_and_unpacked() {
    const SCOPE: Scope = Scope { tops: &["u", "r"], except: &["r/dev", "r/proc"] };
    let folder = tempfile::tempdir().unwrap();
    for name in ["u/usr", "r/dev/pts", "r/device", "r/home", "w/work", "up"] {
        fs::create_dir_all(folder.path().join(name)).unwrap();
    }
    let mut archive = Vec::new();
    pack(File::open(folder.path()).unwrap().as_fd(), &SCOPE, &mut archive).unwrap();
    let mut names = Vec::new();
    let mut rest = archive.as_slice();
    while let Some(entry) = tar::read(&mut rest).unwrap() {
        names.push(String::from_utf8(entry.path).unwrap());
    }
    assert_eq!(names, ["r", "u", "r/device", "r/home", "u/usr"]);
    for path in ["w", "w/work", "r/dev/null", "r/proc", "up"] {
        let folder = tempfile::tempdir().unwrap();
        let root = File::open(folder.path()).unwrap();
        let tried = unpack(archive_of(&[folder_entry(path)]).as_slice(), root.as_fd(), &SCOPE, &BOUNDS);
        assert!(matches!(tried, Err(Error::Refused { .. })), "{path}: {tried:?}");
    }
}

fn folder_entry(path: &str) -> Entry {
    Entry {
        path: path.into(),
        kind: Kind::Folder,
        mode: 0o755,
        uid: 0,
        gid: 0,
        modified: Time::default(),
        attributes: Vec::new(),
    }
}

fn archive_of(entries: &[Entry]) -> Vec<u8> {
    let mut archive = Vec::new();
    for entry in entries {
        tar::write(entry, &mut archive).unwrap();
        if let Kind::File { size } = entry.kind {
            // What is refused is refused before its bytes are wanted.
            let size = size.min(1 << 20);
            archive.write_all(&vec![b'x'; usize::try_from(size).unwrap()]).unwrap();
            tar::pad(size, &mut archive).unwrap();
        }
    }
    tar::finish(&mut archive).unwrap();
    archive
}

#[test]
fn a_hostile_archive_is_refused_at_the_entry_that_is() {
    let plain = folder_entry("x");
    let with = |path: &str, kind: Kind| Entry { path: path.into(), kind, mode: 0o644, ..plain.clone() };
    let file = |path: &str| with(path, Kind::File { size: 1 });
    let attribute = |name: &str, value: &str| {
        let attributes = vec![(name.as_bytes().to_vec(), value.as_bytes().to_vec())];
        Entry { attributes, ..folder_entry("x") }
    };
    let bombs = [
        Kind::File { size: 1 << 31 },
        Kind::File { size: u64::MAX },
        Kind::Sparse { size: 1 << 50, extents: vec![Extent { offset: 1 << 50, length: 0 }] },
        Kind::Sparse { size: 1 << 39, extents: vec![Extent { offset: 0, length: 1 << 38 }] },
    ];
    let refused: Vec<(&str, Vec<Entry>)> = [
        ("its path is not plain", vec![file("../escaped")]),
        ("its path is not plain", vec![folder_entry("a"), file("a/../../escaped")]),
        ("its path is not plain", vec![file("a//b")]),
        ("its path is not plain", vec![file("./a")]),
        ("its path is not plain", vec![folder_entry("..")]),
        ("its path is not plain", vec![folder_entry("")]),
        ("its path is absolute", vec![file("/tmp/escaped")]),
        ("its path is none", vec![file(&"n".repeat(256))]),
        ("its path is none", vec![file(&"n/".repeat(3000))]),
        ("it is a device", vec![with("x", Kind::Device { major: 1, minor: 3 })]),
        ("it is a device", vec![with("x", Kind::Device { major: 0, minor: 1 })]),
        ("it is of a kind that is not unpacked", vec![with("x", Kind::Other(b'4'))]),
        ("it is of a kind that is not unpacked", vec![with("x", Kind::Other(b'7'))]),
        ("its mode says more than permissions", vec![Entry { mode: 0o4755, ..file("x") }]),
        ("its mode says more than permissions", vec![Entry { mode: 0o2755, ..file("x") }]),
        ("its mode says more than permissions", vec![Entry { mode: 0o4755, ..folder_entry("x") }]),
        ("its mode says more than permissions", vec![Entry { mode: 0o100_644, ..file("x") }]),
        ("its owner is none of a sandbox", vec![Entry { uid: 0x7000_0000, ..file("x") }]),
        ("its owner is none of a sandbox", vec![Entry { gid: 0x1_0000, ..file("x") }]),
        ("it has an attribute that is not unpacked", vec![attribute("user.overlay.redirect", "/etc")]),
        ("it has an attribute that is not unpacked", vec![attribute("user.overlay.metacopy", "")]),
        ("it has an attribute that is not unpacked", vec![attribute("user.overlay.opaque", "z")]),
        ("it has an attribute that is not unpacked", vec![attribute("trusted.overlay.opaque", "y")]),
        ("it has an attribute that is not unpacked", vec![attribute("security.capability", "")]),
        ("it has an attribute that is not unpacked", vec![attribute("user.", "")]),
        ("its path is not plain", vec![with("x", Kind::HardLink { to: b"../etc/passwd".to_vec() })]),
        ("its path is absolute", vec![with("x", Kind::HardLink { to: b"/etc/passwd".to_vec() })]),
        ("the link points nowhere", vec![with("x", Kind::Link { to: Vec::new() })]),
    ]
    .into_iter()
    .chain(bombs.map(|kind| {
        let long = matches!(kind, Kind::Sparse { size, .. } if size > BOUNDS.file_bytes_max);
        (if long { "the file is too long" } else { "there are too many bytes" }, vec![with("x", kind)])
    }))
    .collect();
    for (reason, entries) in refused {
        let (folder, tried) = unpacked(&archive_of(&entries), &BOUNDS);
        let Err(Error::Refused { reason: given, .. }) = tried else { panic!("{reason}: {tried:?}") };
        assert_eq!(given, reason);
        assert!(!folder.path().parent().unwrap().join("escaped").exists());
    }
}

#[test]
fn nothing_is_written_through_a_link_that_the_archive_itself_brings() {
    let outside = tempfile::tempdir().unwrap();
    let to = outside.path().as_os_str().as_bytes().to_vec();
    let link = Entry { kind: Kind::Link { to }, ..folder_entry("way") };
    let inside = |path: &str, kind: Kind| Entry { kind, ..folder_entry(path) };
    let attacks = [
        inside("way/file", Kind::File { size: 1 }),
        inside("way/folder", Kind::Folder),
        inside("way/link", Kind::Link { to: b"x".to_vec() }),
        inside("way/pipe", Kind::Pipe),
        inside("way/device", Kind::Device { major: 0, minor: 0 }),
        inside("way/hard", Kind::HardLink { to: b"way".to_vec() }),
        inside("hard", Kind::HardLink { to: b"way/target".to_vec() }),
        inside("way", Kind::File { size: 1 }),
        inside("way", Kind::Folder),
        inside("way", Kind::Pipe),
    ];
    fs::write(outside.path().join("target"), "").unwrap();
    let before = fs::metadata(outside.path()).unwrap();
    for attack in attacks {
        let what = attack.clone();
        let (folder, tried) = unpacked(&archive_of(&[link.clone(), attack]), &BOUNDS);
        assert!(matches!(tried, Err(Error::Io { .. })), "{what:?}: {tried:?}");
        assert!(!folder.path().join("hard").exists());
    }
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 1);
    let after = fs::metadata(outside.path()).unwrap();
    assert_eq!((before.mode(), before.mtime_nsec()), (after.mode(), after.mtime_nsec()));
}

#[test]
fn more_entries_or_bytes_than_allowed_end_it() {
    let entries: Vec<Entry> = (0..4).map(|number| folder_entry(&format!("f{number}"))).collect();
    let few = Bounds { entries_max: 3, ..BOUNDS };
    assert!(matches!(unpacked(&archive_of(&entries), &few).1, Err(Error::Refused { .. })));
    let file = |path: &str| Entry { kind: Kind::File { size: 600 }, ..folder_entry(path) };
    let small = Bounds { bytes_max: 1000, ..BOUNDS };
    let (folder, tried) = unpacked(&archive_of(&[file("a"), file("b")]), &small);
    assert!(matches!(tried, Err(Error::Refused { .. })), "{tried:?}");
    assert!(!folder.path().join("b").exists());
}

#[test]
fn an_archive_cut_anywhere_is_corrupt() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("a"), vec![b'x'; 700]).unwrap();
    fs::create_dir(folder.path().join("b")).unwrap();
    let (archive, _) = packed(folder.path());
    for cut in (0..archive.len()).step_by(97) {
        let tried = unpacked(&archive[..cut], &BOUNDS).1;
        assert!(matches!(tried, Err(Error::Corrupt(_))), "cut at {cut}: {tried:?}");
    }
    let mut longer = archive;
    longer.push(0);
    assert!(matches!(unpacked(&longer, &BOUNDS).1, Err(Error::Corrupt(_))));
}

#[test]
fn a_full_disk_while_packing_is_an_error_that_says_so() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("a"), vec![b'x'; 1 << 20]).unwrap();
    let full = File::options().write(true).open("/dev/full").unwrap();
    let tried = pack(
        File::open(folder.path()).unwrap().as_fd(),
        &Scope::ALL,
        &mut io::BufWriter::with_capacity(4096, full),
    );
    let Err(Error::Io { cause, .. }) = tried else { panic!("{tried:?}") };
    assert_eq!(cause.kind(), io::ErrorKind::StorageFull);
}

#[test]
fn a_hundred_thousand_small_files_survive_a_round_trip() {
    let folder = in_memory();
    for group in 0..100 {
        let group_folder = folder.path().join(format!("g{group}"));
        fs::create_dir(&group_folder).unwrap();
        for number in 0..1000 {
            fs::write(group_folder.join(number.to_string()), format!("{group}:{number}")).unwrap();
        }
    }
    let (archive, _) = packed(folder.path());
    drop(folder);
    let copy = in_memory();
    let root = File::open(copy.path()).unwrap();
    unpack(archive.as_slice(), root.as_fd(), &Scope::ALL, &BOUNDS).unwrap();
    assert!(packed(copy.path()).0 == archive, "the copy is not the same");
    assert_eq!(fs::read_to_string(copy.path().join("g99/999")).unwrap(), "99:999");
}

#[test]
fn another_program_can_list_an_archive() {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("folder")).unwrap();
    fs::write(folder.path().join("folder/file"), "hello").unwrap();
    symlink("file", folder.path().join("folder/link")).unwrap();
    File::create(folder.path().join("sparse")).unwrap().set_len(1 << 20).unwrap();
    let (archive, _) = packed(folder.path());
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), archive).unwrap();
    let listed = std::process::Command::new("tar").args(["-tf"]).arg(file.path()).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&listed.stdout), "folder\nsparse\nfolder/file\nfolder/link\n");
}

/// A folder of a file system in memory, as a sandbox's is, where there is one: a disk would be what is tested.
fn in_memory() -> TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

/// What a random tree may hold, by name.
#[derive(Clone, Debug)]
enum Node {
    File { bytes: Vec<u8>, mode: u32, hole: u64 },
    Link(Vec<u8>),
    Folder(BTreeMap<OsString, Node>, u32),
}

fn name() -> impl Strategy<Value = OsString> {
    prop::collection::vec(1..=255_u8, 1..120).prop_filter_map("a name", |bytes| {
        let plain = !bytes.contains(&b'/') && !matches!(bytes.as_slice(), b"." | b"..");
        plain.then(|| OsString::from_vec(bytes))
    })
}

fn node() -> impl Strategy<Value = Node> {
    let bytes = prop::collection::vec(any::<u8>(), 0..2000);
    let leaf = prop_oneof![
        (bytes, 0..0o2000_u32, prop_oneof![Just(0), 1..1_u64 << 24])
            .prop_map(|(bytes, mode, hole)| Node::File { bytes, mode, hole }),
        prop::collection::vec(1..=255_u8, 1..300).prop_map(Node::Link),
    ];
    leaf.prop_recursive(4, 40, 8, |inner| {
        (prop::collection::btree_map(name(), inner, 0..8), 0..0o2000_u32)
            .prop_map(|(children, mode)| Node::Folder(children, mode))
    })
}

fn plant(node: &Node, at: &Path) {
    match node {
        Node::File { bytes, mode, hole } => {
            let file = File::create(at).unwrap();
            rustix::io::pwrite(&file, bytes, *hole).unwrap();
            file.set_permissions(Permissions::from_mode(*mode)).unwrap();
        }
        Node::Link(to) => symlink(OsStr::from_bytes(to), at).unwrap(),
        Node::Folder(children, mode) => {
            fs::create_dir(at).unwrap();
            children.iter().for_each(|(name, child)| plant(child, &at.join(name)));
            fs::set_permissions(at, Permissions::from_mode(mode | if is_root() { 0 } else { 0o700 }))
                .unwrap();
        }
    }
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_tree_survives_a_round_trip(node in node()) {
        let folder = tempfile::tempdir().unwrap();
        plant(&node, &folder.path().join("tree"));
        survives(folder.path());
    }

    #[test]
    fn no_stream_of_bytes_makes_the_unpacker_panic(
        flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8)
    ) {
        let mut archive = archive_of(&[
            folder_entry("a"),
            Entry { kind: Kind::File { size: 700 }, ..folder_entry(&"long/".repeat(30)[..149]) },
            Entry { kind: Kind::Link { to: b"x".to_vec() }, ..folder_entry("b") },
        ]);
        for (place, byte) in flips {
            let place = place.index(archive.len());
            archive[place] = byte;
        }
        let _ = unpacked(&archive, &BOUNDS);
    }
}
