//! What the host takes out of the outputs directory.

use std::fs;
use std::os::unix::fs::symlink;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use tools::wire::{OUTPUT_PIECE_BYTES_MAX, Op, Refusal, Reply};

use crate::hands::{Hands, make_fifo};

fn list(hands: &mut Hands, max_bytes: u64, max_files: u64) -> (Vec<(String, u64)>, bool) {
    match hands.ask(Op::Collect { max_bytes, max_files }) {
        Reply::Files { files, truncated } => {
            (files.into_iter().map(|file| (file.path, file.size_bytes)).collect(), truncated)
        }
        other => panic!("{other:?}"),
    }
}

fn piece(hands: &mut Hands, path: &str, offset: u64, length: u64) -> Reply {
    hands.ask(Op::ReadOutput { path: path.into(), offset, length })
}

#[test]
fn regular_files_are_listed_and_nothing_else() {
    let mut hands = Hands::new();
    hands.put("outside/secret", "s");
    hands.put("outputs/b.txt", "12345");
    hands.put("outputs/a/x.bin", [0, 255]);
    hands.put("outputs/.hidden", "");
    hands.put("outputs/.gitignore", "*");
    let outputs = hands.path("outputs");
    symlink(hands.path("outside/secret"), outputs.join("link")).unwrap();
    symlink(hands.path("outside"), outputs.join("linked")).unwrap();
    make_fifo(&outputs.join("fifo"));
    fs::create_dir(outputs.join("empty")).unwrap();
    hands.sh("touch \"$(printf '../outputs/\\377')\"");
    let expected = [(".gitignore", 1), (".hidden", 0), ("a/x.bin", 2), ("b.txt", 5)];
    let expected = expected.map(|(path, size)| (path.to_owned(), size)).to_vec();
    assert_eq!(list(&mut hands, u64::MAX, u64::MAX), (expected.clone(), false));
    assert_eq!(list(&mut hands, u64::MAX, 2), (expected[..2].to_vec(), true));
    assert_eq!(list(&mut hands, 7, 100), (expected[..3].to_vec(), true));
    assert_eq!(list(&mut hands, 8, 4), (expected, false));
}

#[test]
fn a_file_from_the_end_of_time_is_listed() {
    let mut hands = Hands::new();
    hands.sh("touch -d @9223372036854775807 ../outputs/late; touch -d @-62135596800 ../outputs/early");
    assert_eq!(list(&mut hands, u64::MAX, u64::MAX).0.len(), 2);
}

#[test]
fn an_outputs_directory_that_is_gone_is_empty() {
    let mut hands = Hands::new();
    fs::remove_dir(hands.path("outputs")).unwrap();
    assert_eq!(list(&mut hands, 1, 1), (vec![], false));
    assert!(matches!(piece(&mut hands, "a", 0, 1), Reply::Refused { reason: Refusal::Invalid, .. }));
}

#[test]
fn a_listing_of_very_many_files_is_cut() {
    let mut hands = Hands::new();
    hands.sh("cd ../outputs; mkdir d; cd d; seq -f 'name%.0f' 60000 | xargs touch");
    let (files, truncated) = list(&mut hands, u64::MAX, u64::MAX);
    assert!(truncated);
    assert!(files.len() > 40_000 && files.len() < 50_000);
}

#[test]
fn a_file_is_read_in_pieces() {
    let mut hands = Hands::new();
    let bytes: Vec<u8> = (0..6_000_000u32).map(|i| (i * 31) as u8).collect();
    hands.put("outputs/d/large.bin", &bytes);
    let mut copied = Vec::new();
    loop {
        let reply = piece(&mut hands, "d/large.bin", copied.len() as u64, u64::MAX);
        let Reply::Bytes { data, size_bytes } = reply else { panic!("{reply:?}") };
        assert_eq!(size_bytes, bytes.len() as u64);
        let data = STANDARD.decode(data).unwrap();
        if data.is_empty() {
            break;
        }
        assert!(data.len() as u64 <= OUTPUT_PIECE_BYTES_MAX);
        copied.extend(data);
    }
    assert!(copied == bytes);
    let expected = Reply::Bytes { data: STANDARD.encode(&bytes[10..15]), size_bytes: 6_000_000 };
    assert_eq!(piece(&mut hands, "d/large.bin", 10, 5), expected);
}

#[test]
fn nothing_else_is_read() {
    let mut hands = Hands::new();
    hands.put("outside/secret", "s");
    hands.put("outputs/d/file", "x");
    let outputs = hands.path("outputs");
    symlink(hands.path("outside/secret"), outputs.join("link")).unwrap();
    symlink(hands.path("outside"), outputs.join("linked")).unwrap();
    symlink("d", outputs.join("inside")).unwrap();
    symlink("/proc/self/root", outputs.join("magic")).unwrap();
    make_fifo(&outputs.join("fifo"));
    for path in [
        "link",
        "linked/secret",
        "inside/file",
        "magic/etc/passwd",
        "fifo",
        "d",
        "none",
        "",
        ".",
        "..",
        "../outside/secret",
        "d/../d/file",
        "/etc/passwd",
        "a\0b",
    ] {
        let reply = piece(&mut hands, path, 0, 10);
        assert!(matches!(reply, Reply::Refused { reason: Refusal::Invalid, .. }), "{path}: {reply:?}");
    }
}
