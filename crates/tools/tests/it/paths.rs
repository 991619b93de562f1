//! The file tools stay where they belong, whatever lies at a path.

use std::fs;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Value, json};

use crate::hands::{Hands, make_fifo};

const OUTSIDE: &str = "is outside the session's working directory and its other permitted directories";

/// One input of each file tool that would touch this path.
fn touches(path: &str) -> [(&'static str, Value); 5] {
    [
        ("read", json!({ "file_path": path })),
        ("write", json!({"file_path": path, "content": "pwned"})),
        ("edit", json!({"file_path": path, "old_string": "s", "new_string": "pwned"})),
        ("glob", json!({"pattern": "*", "path": path})),
        ("grep", json!({"pattern": ".", "path": path})),
    ]
}

fn all_refuse(hands: &mut Hands, path: &str) {
    for (tool, input) in touches(path) {
        let message = hands.bad(tool, input);
        assert_eq!(message, format!("{tool}: path '{path}' {OUTSIDE}"));
    }
}

#[test]
fn paths_outside_are_refused() {
    let mut hands = Hands::new();
    hands.put("outside/secret", "s");
    let absolute = hands.path("outside/secret").display().to_string();
    for path in [
        "/etc/passwd",
        "../outside/secret",
        "a/../../outside/secret",
        "/proc/self/root/etc/passwd",
        "/proc/self/environ",
        "/dev/null",
        "/",
        "..",
        &absolute,
    ] {
        all_refuse(&mut hands, path);
    }
    assert_eq!(hands.get("outside/secret"), "s");
}

#[test]
fn links_that_lead_outside_are_refused() {
    let mut hands = Hands::new();
    hands.put("outside/secret", "s");
    let (work, outside) = (hands.path("work"), hands.path("outside"));
    fs::create_dir(work.join("d")).unwrap();
    for (name, target) in [
        ("absolute", outside.join("secret")),
        ("relative", Path::new("../outside/secret").into()),
        ("dangling", outside.join("new")),
        ("directory", outside.clone()),
        ("d/up", Path::new("../..").into()),
        ("magic", "/proc/self/root".into()),
        ("magic-cwd", "/proc/self/cwd/../outside".into()),
        ("magic-fd", "/proc/self/fd/3".into()),
        ("chain", Path::new("absolute").into()),
    ] {
        symlink(target, work.join(name)).unwrap();
    }
    for path in [
        "absolute",
        "relative",
        "dangling",
        "directory",
        "directory/secret",
        "directory/new/file",
        "d/up/outside/secret",
        "magic/etc/passwd",
        "magic-cwd/secret",
        "magic-fd",
        "chain",
    ] {
        all_refuse(&mut hands, path);
    }
    assert_eq!(hands.get("outside/secret"), "s");
    assert!(!outside.join("new").exists());
}

#[test]
fn links_that_stay_inside_are_followed() {
    let mut hands = Hands::new();
    hands.put("work/d/a", "text");
    let work = hands.path("work");
    symlink("d/a", work.join("file")).unwrap();
    symlink(work.join("d"), work.join("directory")).unwrap();
    symlink("d/new", work.join("dangling")).unwrap();
    symlink("../work/d/../d", work.join("round")).unwrap();
    for path in ["file", "directory/a", "round/a"] {
        assert_eq!(hands.good("read", json!({ "file_path": path })), "text", "{path}");
    }
    hands.good("write", json!({"file_path": "dangling", "content": "made"}));
    hands.good("write", json!({"file_path": "directory/other", "content": "made"}));
    hands.good("edit", json!({"file_path": "file", "old_string": "text", "new_string": "new"}));
    assert_eq!(
        (hands.get("work/d/new"), hands.get("work/d/other"), hands.get("work/d/a")),
        ("made".into(), "made".into(), "new".into())
    );
    assert!(work.join("file").is_symlink() && work.join("dangling").is_symlink());
}

#[test]
fn links_in_a_circle_are_refused() {
    let mut hands = Hands::new();
    let work = hands.path("work");
    symlink("b", work.join("a")).unwrap();
    symlink("a", work.join("b")).unwrap();
    for (tool, input) in touches("a") {
        assert_eq!(hands.bad(tool, input), format!("{tool}: path 'a': too many levels of symbolic links"));
    }
}

#[test]
fn what_is_no_regular_file_is_refused_without_waiting() {
    let mut hands = Hands::new();
    make_fifo(&hands.path("work/fifo"));
    let _listener = UnixListener::bind(hands.path("work/socket")).unwrap();
    for path in ["fifo", "socket"] {
        for (tool, input) in touches(path) {
            let message = hands.bad(tool, input);
            let expected = match tool {
                "glob" => "not a directory",
                "grep" => "not a regular file or directory",
                _ => "not a regular file",
            };
            assert_eq!(message, format!("{tool}: {path}: {expected}"));
        }
    }
    // On the way of a search they are passed by.
    hands.put("work/a", "needle");
    assert_eq!(hands.good("grep", json!({"pattern": "needle"})).lines().count(), 1);
    assert_eq!(hands.good("glob", json!({"pattern": "*"})).lines().count(), 3);
}

#[test]
fn devices_are_refused() {
    let mut hands = Hands::new();
    let made = std::process::Command::new("mknod")
        .arg(hands.path("work/zero"))
        .args(["c", "1", "5"])
        .output()
        .unwrap();
    if !made.status.success() {
        // Only root may make a device; there is then none in any sandbox either.
        return;
    }
    for (tool, input) in touches("zero") {
        let message = hands.bad(tool, input);
        assert!(message.contains("not a "), "{message}");
    }
}

#[test]
fn writing_to_a_hard_link_leaves_the_other_name_alone() {
    let mut hands = Hands::new();
    let secret = hands.put("outside/secret", "s");
    for name in ["a", "b"] {
        fs::hard_link(&secret, hands.path("work").join(name)).unwrap();
    }
    hands.good("write", json!({"file_path": "a", "content": "new"}));
    hands.good("edit", json!({"file_path": "b", "old_string": "s", "new_string": "new"}));
    assert_eq!(
        (hands.get("work/a"), hands.get("work/b"), hands.get("outside/secret")),
        ("new".into(), "new".into(), "s".into())
    );
}

#[test]
fn other_roots_may_be_used_and_read_only_ones_not_changed() {
    let mut hands = Hands::new();
    let upload = hands.put("uploads/data.csv", "s,1").display().to_string();
    let root = hands.path("uploads").display().to_string();
    assert_eq!(hands.good("read", json!({"file_path": upload})), "s,1");
    for (tool, input) in touches(&upload).into_iter().filter(|(tool, _)| matches!(*tool, "write" | "edit")) {
        assert_eq!(hands.bad(tool, input), format!("{tool}: {upload} is inside read-only directory {root}"));
    }
    symlink(&upload, hands.path("work/link")).unwrap();
    let message = hands.bad("write", json!({"file_path": "link", "content": ""}));
    assert_eq!(message, format!("write: link is inside read-only directory {root}"));
    for name in ["outputs/report.txt", "tmp/x"] {
        let path = hands.path(name).display().to_string();
        hands.good("write", json!({"file_path": path, "content": "ok"}));
        assert_eq!(hands.get(name), "ok");
    }
    assert_eq!(hands.get("uploads/data.csv"), "s,1");
}

#[test]
fn a_root_that_is_replaced_by_a_link_is_refused() {
    let mut hands = Hands::new();
    hands.put("outside/secret", "s");
    fs::remove_dir(hands.path("outputs")).unwrap();
    symlink(hands.path("outside"), hands.directory.path().join("outputs")).unwrap();
    let path = hands.directory.path().canonicalize().unwrap().join("outputs/secret").display().to_string();
    all_refuse(&mut hands, &path);
}

#[test]
fn a_directory_that_becomes_a_link_under_way_never_leads_out() {
    let mut hands = Hands::new();
    hands.put("outside/file", "secret");
    let (work, outside) = (hands.path("work"), hands.path("outside"));
    let done = Arc::new(AtomicBool::new(false));
    let swapper = std::thread::spawn({
        let (work, done) = (work.clone(), Arc::clone(&done));
        move || {
            while !done.load(Ordering::Relaxed) {
                let _ = fs::create_dir(work.join("d"));
                let _ = fs::write(work.join("d/file"), "mine");
                let _ = fs::remove_dir_all(work.join("d"));
                let _ = symlink(&outside, work.join("d"));
                let _ = fs::remove_file(work.join("d"));
            }
        }
    });
    for _ in 0..300 {
        for (tool, input) in [
            ("read", json!({"file_path": "d/file"})),
            ("write", json!({"file_path": "d/file", "content": "pwned"})),
            ("edit", json!({"file_path": "d/file", "old_string": "secret", "new_string": "pwned"})),
            ("grep", json!({"pattern": "secret"})),
            ("glob", json!({"pattern": "d/*"})),
        ] {
            let (text, _) = hands.run(tool, input);
            assert!(!text.contains("secret"), "{tool}: {text}");
        }
    }
    done.store(true, Ordering::Relaxed);
    swapper.join().unwrap();
    assert_eq!(hands.get("outside/file"), "secret");
    assert_eq!(fs::read_dir(hands.path("outside")).unwrap().count(), 1);
}

#[test]
fn a_path_with_a_zero_byte_is_refused() {
    let mut hands = Hands::new();
    for (tool, input) in touches("a\0b") {
        assert!(hands.bad(tool, input).starts_with(&format!("{tool}: path 'a\u{fffd}b': ")));
    }
}
