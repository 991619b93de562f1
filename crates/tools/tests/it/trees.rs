//! Trees that a session brings.

use std::fs;
use std::os::fd::AsFd as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use tools::archive::{Place, pack_places};
use tools::wire::{Op, Refusal, Reply, TREE};

use crate::hands::Hands;

/// An archive of a small tree with what a repository has: a folder, an executable, a link.
fn archive() -> Vec<u8> {
    let tree = tempfile::tempdir().unwrap();
    fs::create_dir(tree.path().join("src")).unwrap();
    fs::write(tree.path().join("src/a"), "a".repeat(100_000)).unwrap();
    fs::write(tree.path().join("run"), "#!/bin/sh\necho ran\n").unwrap();
    fs::set_permissions(tree.path().join("run"), fs::Permissions::from_mode(0o755)).unwrap();
    symlink("/etc", tree.path().join("out")).unwrap();
    let mut archive = Vec::new();
    let root = fs::File::open(tree.path()).unwrap();
    pack_places(&[Place { name: TREE, root: root.as_fd() }], &mut archive).unwrap();
    archive
}

fn piece(at: &str, offset: usize, bytes: &[u8], last: bool) -> Op {
    Op::Unpack { at: at.to_owned(), offset: offset as u64, data: STANDARD.encode(bytes), last }
}

/// Brings an archive in pieces of that size; the first answer that is none of success.
fn bring(hands: &mut Hands, at: &str, archive: &[u8], size: usize) -> Reply {
    for (number, bytes) in archive.chunks(size).enumerate() {
        let offset = number * size;
        let reply = hands.ask(piece(at, offset, bytes, offset + bytes.len() == archive.len()));
        if reply != Reply::Unpacked {
            return reply;
        }
    }
    Reply::Unpacked
}

#[test]
fn a_tree_comes_in_pieces_and_belongs_to_whoever_runs_the_tools() {
    let mut hands = Hands::new();
    let at = hands.path("work").join("deep/er/tree");
    let text = at.to_str().unwrap().to_owned();
    let archive = archive();
    for size in [archive.len(), 4096, 1000] {
        let _ = fs::remove_dir_all(&at);
        assert_eq!(bring(&mut hands, &text, &archive, size), Reply::Unpacked, "{size}");
        assert_eq!(fs::metadata(at.join("src/a")).unwrap().len(), 100_000);
        assert_eq!(fs::metadata(at.join("src/a")).unwrap().uid(), rustix::process::geteuid().as_raw());
        assert_eq!(fs::read_link(at.join("out")).unwrap().to_str(), Some("/etc"));
    }
    assert_eq!(hands.sh(&format!("{text}/run; ls -A {text}/..")), "ran\ntree");
}

#[test]
fn what_is_there_already_stays_as_it_is() {
    let mut hands = Hands::new();
    let at = hands.path("work").join("tree");
    let archive = archive();
    for _ in 0..2 {
        assert_eq!(bring(&mut hands, at.to_str().unwrap(), &archive, 50_000), Reply::Unpacked);
        fs::write(at.join("mine"), "mine").unwrap();
    }
    assert!(at.join("mine").exists());
}

#[test]
fn what_is_broken_off_or_broken_leaves_nothing_and_can_be_brought_again() {
    let mut hands = Hands::new();
    let at = hands.path("work").join("tree");
    let text = at.to_str().unwrap().to_owned();
    let archive = archive();
    assert_eq!(hands.ask(piece(&text, 0, &archive[..5000], false)), Reply::Unpacked);
    let refused = |reply: Reply| {
        assert!(matches!(&reply, Reply::Refused { reason: Refusal::Invalid, .. }), "{reply:?}")
    };
    refused(hands.ask(piece(&text, 4000, &archive[4000..], true)));
    refused(hands.ask(piece(&text, 0, b"no archive", true)));
    let mut broken = archive.clone();
    broken[0] ^= 1;
    refused(bring(&mut hands, &text, &broken, 1000));
    refused(bring(&mut hands, "relative", &archive, archive.len()));
    assert_eq!(fs::read_dir(hands.path("work")).unwrap().count(), 0);
    // Nobody waits for the end of what was broken off.
    for _ in 0..20 {
        assert_eq!(hands.ask(piece(&text, 0, &archive[..5000], false)), Reply::Unpacked);
    }
    assert_eq!(bring(&mut hands, &text, &archive, 3000), Reply::Unpacked);
    assert_eq!(hands.sh("echo still here"), "still here");
}
