//! `read`, `write`, `edit`, `glob` and `grep`: results, limits and messages.

use std::fs::{self, File};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use tools::wire::{Content, Output, Source};

use crate::hands::{Hands, make_fifo};

fn whole(file_path: &str) -> Value {
    json!({ "file_path": file_path })
}

fn lines(file_path: &str, start: i64, end: i64) -> Value {
    json!({"file_path": file_path, "view_range": [start, end]})
}

#[test]
fn read_returns_a_file_byte_for_byte() {
    let mut hands = Hands::new();
    let text = "\u{feff}a\r\nb\té\u{1b}[1m\n\n";
    let path = hands.put("work/a.txt", text);
    for file_path in ["a.txt", "./x/../a.txt", path.to_str().unwrap()] {
        let input = whole(file_path);
        assert_eq!(hands.good("read", input), text, "{file_path}");
    }
    hands.put("work/empty", "");
    assert_eq!(hands.good("read", json!({"file_path": "empty"})), "(no output)");
}

#[test]
fn read_returns_lines_as_a_split_by_newlines_counts_them() {
    let mut hands = Hands::new();
    hands.put("work/a", "one\ntwo\r\nthree\n");
    let cases = [
        (1, 1, "one"),
        (1, 2, "one\ntwo\r"),
        (2, 0, "two\r\nthree\n"),
        (2, -1, "two\r\nthree\n"),
        (-3, 1, "one"),
        (3, 3, "three"),
        (3, 4, "three\n"),
        (3, 400, "three\n"),
        (4, 4, "(no output)"),
        (9, 12, "(no output)"),
        (3, 2, "(no output)"),
    ];
    for (start, end, expected) in cases {
        assert_eq!(hands.good("read", lines("a", start, end)), expected, "[{start}, {end}]");
    }
    assert_eq!(hands.good("read", json!({"file_path": "a", "view_range": null})), "one\ntwo\r\nthree\n");
    let bad = hands.bad("read", json!({"file_path": "a", "view_range": [1]}));
    assert_eq!(bad, "read: view_range must be [start_line, end_line]");
}

#[test]
fn read_takes_up_to_256_kib_and_lines_of_larger_files() {
    let mut hands = Hands::new();
    let two_byte_characters = "é".repeat(131_072);
    hands.put("work/exact", &two_byte_characters);
    let shown = hands.good("read", json!({"file_path": "exact"}));
    assert!(shown.starts_with("[output of 131072 characters is too long to show; all of it is in "));
    hands.put("work/over", format!("{two_byte_characters}x"));
    assert_eq!(
        hands.bad("read", json!({"file_path": "over"})),
        "read: over is 262145 bytes, exceeds 262144-byte limit. Use the view_range parameter to read \
         specific line ranges, e.g. view_range: [1, 500]."
    );
    assert_eq!(
        hands.bad("read", lines("over", 1, 1)),
        "read: line 1 of over alone exceeds 262144-byte limit. The read tool cannot return part of a \
         line, so view_range cannot narrow this further."
    );
    let large: String = (1..=200_000).map(|line| format!("line {line}\n")).collect();
    hands.put("work/large", large);
    assert_eq!(hands.good("read", lines("large", 199_999, 200_000)), "line 199999\nline 200000");
    assert_eq!(
        hands.bad("read", lines("large", 2, 0)),
        "read: view_range [2, 0] of large exceeds 262144-byte limit. Narrow the view_range to read a \
         smaller portion."
    );
}

#[test]
fn read_refuses_what_is_not_there_or_not_text() {
    let mut hands = Hands::new();
    assert_eq!(hands.bad("read", json!({"file_path": "none"})), "read: none: no such file or directory");
    assert_eq!(hands.bad("read", json!({"file_path": "."})), "read: .: not a regular file");
    hands.put("work/binary", [0x66, 0xff]);
    let message = "not valid UTF-8 text (binary files are only supported for image/PDF extensions)";
    assert_eq!(hands.bad("read", json!({"file_path": "binary"})), format!("read: binary: {message}"));
    assert_eq!(hands.bad("read", lines("binary", 1, 1)), format!("read: binary: {message}"));
    assert_eq!(hands.bad("read", json!({"file_path": "binary/x"})), "read: binary/x: not a directory");
    let missing = hands.bad("read", json!({}));
    assert_eq!(missing, "read: invalid input: missing field `file_path`");
    let long = "x".repeat(300);
    assert_eq!(
        hands.bad("read", json!({ "file_path": long })),
        format!("read: path '{long}': file name too long")
    );
}

#[test]
fn read_returns_pictures_and_documents_as_blocks() {
    let mut hands = Hands::new();
    let bytes: Vec<u8> = (0..200_000u32).map(|i| (i * 7) as u8).collect();
    for (name, media_type) in [
        ("a.png", "image/png"),
        ("a.JPG", "image/jpeg"),
        ("a.jpeg", "image/jpeg"),
        ("a.gif", "image/gif"),
        ("a.webp", "image/webp"),
        ("a.pdf", "application/pdf"),
    ] {
        hands.put(&format!("work/{name}"), &bytes);
        let id = hands.call("read", json!({ "file_path": name }));
        let source = Source::Base64 { media_type: media_type.into(), data: STANDARD.encode(&bytes) };
        let content = match media_type {
            "application/pdf" => Content::Document { source },
            _ => Content::Image { source },
        };
        assert_eq!(hands.output(id), Output { content: vec![content], is_error: false });
    }
    let message = "read: view_range is not supported for image/PDF files";
    assert_eq!(hands.bad("read", lines("a.png", 1, 2)), message);
}

#[test]
fn read_takes_pictures_of_5_mib_encoded_and_documents_of_20_mib() {
    let mut hands = Hands::new();
    for (name, bytes_max, encoded) in [("a.png", 3_932_160, 5 << 20), ("a.pdf", 20 << 20, 27_962_028)] {
        let file = File::create(hands.path("work").join(name)).unwrap();
        file.set_len(bytes_max).unwrap();
        let id = hands.call("read", json!({ "file_path": name }));
        match &hands.output(id).content[..] {
            [Content::Image { source } | Content::Document { source }] => {
                let Source::Base64 { data, .. } = source;
                assert_eq!(data.len(), encoded);
            }
            other => panic!("{}", other.len()),
        }
        file.set_len(bytes_max + 1).unwrap();
        assert_eq!(
            hands.bad("read", json!({ "file_path": name })),
            format!(
                "read: {name} is {} bytes, exceeds {bytes_max}-byte limit for image/PDF files.",
                bytes_max + 1
            )
        );
    }
}

#[test]
fn write_makes_directories_and_replaces_what_is_there() {
    let mut hands = Hands::new();
    let input = json!({"file_path": "a/b/c.txt", "content": "é\r\n"});
    assert_eq!(hands.good("write", input.clone()), "wrote 4 bytes to a/b/c.txt");
    assert_eq!(hands.get("work/a/b/c.txt"), "é\r\n");
    let path = hands.path("work/a/b/c.txt");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o750)).unwrap();
    assert_eq!(
        hands.good("write", json!({"file_path": "a/b/c.txt", "content": ""})),
        "wrote 0 bytes to a/b/c.txt"
    );
    assert_eq!(hands.get("work/a/b/c.txt"), "");
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o750);
    assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
}

#[test]
fn a_new_file_is_readable_by_all_and_writable_by_its_owner() {
    let mut hands = Hands::new();
    hands.good("write", json!({"file_path": "d/a", "content": ""}));
    let mode = |name: &str| fs::metadata(hands.path(name)).unwrap().permissions().mode() & 0o7777;
    assert_eq!((mode("work/d/a"), mode("work/d")), (0o644, 0o755));
}

#[test]
fn write_takes_a_file_of_megabytes() {
    let mut hands = Hands::new();
    let content = "0123456789".repeat(500_000);
    hands.good("write", json!({"file_path": "large", "content": content}));
    assert_eq!(hands.get("work/large"), content);
}

#[test]
fn write_refuses_a_directory_and_a_file_in_the_way() {
    let mut hands = Hands::new();
    hands.put("work/file", "");
    let write = |file_path: &str| json!({"file_path": file_path, "content": ""});
    assert_eq!(hands.bad("write", write(".")), "write: .: is a directory");
    fs::create_dir(hands.path("work/d")).unwrap();
    assert_eq!(hands.bad("write", write("d")), "write: d: is a directory");
    assert_eq!(hands.bad("write", write("file/x")), "write: file/x: not a directory");
    assert_eq!(
        hands.bad("write", json!({"file_path": "a"})),
        "write: invalid input: missing field `content`"
    );
}

#[test]
fn a_full_disk_leaves_the_old_file_and_nothing_else() {
    let mut hands = Hands::new();
    hands.put("work/a", "old");
    // The limit of the file size stands for a full disk.
    let pid = hands.child.id().to_string();
    let limited =
        std::process::Command::new("prlimit").args(["--pid", &pid, "--fsize=1000"]).status().unwrap();
    assert!(limited.success());
    let message = hands.bad("write", json!({"file_path": "a", "content": "x".repeat(5000)}));
    assert_eq!(message, "write: a: file too large");
    assert_eq!(hands.get("work/a"), "old");
    assert_eq!(fs::read_dir(hands.path("work")).unwrap().count(), 1);
}

fn edit(file_path: &str, old: &str, new: &str, replace_all: Value) -> Value {
    json!({"file_path": file_path, "old_string": old, "new_string": new, "replace_all": replace_all})
}

#[test]
fn edit_replaces_one_or_all() {
    let mut hands = Hands::new();
    hands.put("work/a", "x y\r\nx");
    assert_eq!(hands.good("edit", edit("a", "y\r\n", "é", Value::Null)), "edited a (1 replacement(s))");
    assert_eq!(hands.get("work/a"), "x éx");
    assert_eq!(hands.good("edit", edit("a", "x", "xx", json!(true))), "edited a (2 replacement(s))");
    assert_eq!(hands.get("work/a"), "xx éxx");
    assert_eq!(hands.good("edit", edit("a", " é", "", json!(false))), "edited a (1 replacement(s))");
    assert_eq!(hands.get("work/a"), "xxxx");
}

#[test]
fn edit_refuses_what_is_not_exact() {
    let mut hands = Hands::new();
    hands.put("work/a", "x x");
    hands.put("work/binary", [0xff]);
    hands.put("work/over", "x".repeat((256 << 10) + 1));
    let cases = [
        (edit("a", "y", "z", Value::Null), "edit: old_string not found in a"),
        (edit("a", "x", "z", Value::Null), "edit: old_string appears 2 times in a (must be unique)"),
        (edit("a", "", "z", Value::Null), "edit: old_string must not be empty"),
        (edit("none", "x", "z", Value::Null), "edit: none: no such file or directory"),
        (edit(".", "x", "z", Value::Null), "edit: .: not a regular file"),
        (
            edit("binary", "x", "z", Value::Null),
            "edit: binary: not valid UTF-8 text (cannot edit binary files)",
        ),
        (
            edit("over", "x", "z", Value::Null),
            "edit: over is 262145 bytes, exceeds 262144-byte limit. The edit tool loads the whole file \
             and cannot modify a file this large.",
        ),
    ];
    for (input, expected) in cases {
        assert_eq!(hands.bad("edit", input), expected);
    }
    assert_eq!(hands.get("work/a"), "x x");
}

#[test]
fn edit_does_not_blow_a_file_up() {
    let mut hands = Hands::new();
    hands.put("work/a", "x".repeat(200_000));
    let message = hands.bad("edit", edit("a", "x", &"y".repeat(1_000_000), json!(true)));
    assert!(message.starts_with("edit: a would become larger than "), "{message}");
}

fn glob(pattern: &str) -> Value {
    json!({ "pattern": pattern })
}

#[test]
fn glob_lists_absolute_paths_newest_first() {
    let mut hands = Hands::new();
    let names = ["old.rs", "src/b.rs", "src/deep/c.rs", ".hidden.rs", "src/other.txt"];
    for (age, name) in names.iter().enumerate() {
        let path = hands.put(&format!("work/{name}"), "");
        let modified = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000 + age as u64);
        File::options().write(true).open(path).unwrap().set_modified(modified).unwrap();
    }
    let work = hands.path("work").display().to_string();
    let expect =
        |names: &[&str]| names.iter().map(|name| format!("{work}/{name}")).collect::<Vec<_>>().join("\n");
    let cases: [(&str, &[&str]); 7] = [
        ("**/*.rs", &[".hidden.rs", "src/deep/c.rs", "src/b.rs", "old.rs"]),
        ("*.rs", &[".hidden.rs", "old.rs"]),
        ("src/*.rs", &["src/b.rs"]),
        ("./src/**/c.rs", &["src/deep/c.rs"]),
        ("src/{b.rs,*.txt}", &["src/other.txt", "src/b.rs"]),
        ("**/[bc].rs", &["src/deep/c.rs", "src/b.rs"]),
        ("src/deep", &["src/deep"]),
    ];
    for (pattern, names) in cases {
        assert_eq!(hands.good("glob", glob(pattern)), expect(names), "{pattern}");
    }
    let below = hands.good("glob", json!({"pattern": "*.rs", "path": "src"}));
    assert_eq!(below, expect(&["src/b.rs"]));
    assert_eq!(hands.good("glob", glob("*.none")), "no matches");
}

#[test]
fn glob_refuses_to_leave_and_to_guess() {
    let mut hands = Hands::new();
    hands.put("work/a", "");
    let outside = "is outside the session's working directory and its other permitted directories";
    let cases = [
        (
            glob("/etc/*"),
            "absolute pattern not permitted; pass a relative pattern (and optionally path)".to_owned(),
        ),
        (glob("a/../../*"), "'..' is not permitted in the pattern".into()),
        (json!({"pattern": "*", "path": "/etc"}), format!("path '/etc' {outside}")),
        (json!({"pattern": "*", "path": "none"}), "none: no such file or directory".into()),
        (json!({"pattern": "*", "path": "a"}), "a: not a directory".into()),
        (glob(""), "pattern is required".into()),
    ];
    for (input, expected) in cases {
        assert_eq!(hands.bad("glob", input), format!("glob: {expected}"));
    }
    assert!(hands.bad("glob", glob("a[")).starts_with("glob: error parsing glob"));
}

#[test]
fn patterns_that_nest_too_deep_end_no_sandbox() {
    let mut hands = Hands::new();
    for (open, close) in [("{", "}"), ("[", "]"), ("{a,", "}"), ("**/", ""), ("(", ")")] {
        let pattern = format!("{}x{}", open.repeat(50_000), close.repeat(50_000));
        assert!(hands.run("glob", glob(&pattern)).0.len() < 5000);
        hands.put("work/.ignore", &pattern[..pattern.len().min(60_000)]);
        hands.put("work/a", "needle\n");
        hands.run("grep", grep("needle"));
    }
    assert_eq!(hands.good("glob", glob("{a,{b,c}}")).lines().count(), 1);
}

#[test]
fn glob_shows_links_that_stay_and_follows_none_on_its_way() {
    let mut hands = Hands::new();
    hands.put("work/d/a.rs", "");
    hands.put("outside/secret.rs", "");
    let work = hands.path("work");
    symlink(hands.path("outside"), work.join("out")).unwrap();
    symlink(hands.path("outside/secret.rs"), work.join("out.rs")).unwrap();
    symlink("d/a.rs", work.join("in.rs")).unwrap();
    let listed = hands.good("glob", glob("**/*.rs"));
    let mut listed: Vec<&str> = listed.lines().collect();
    listed.sort_unstable();
    assert_eq!(listed, [work.join("d/a.rs").to_str().unwrap(), work.join("in.rs").to_str().unwrap()]);
    assert_eq!(hands.good("glob", glob("out/*")), "no matches");
}

#[test]
fn glob_lists_200_and_does_not_drown_in_dependencies() {
    let mut hands = Hands::new();
    for i in 0..250 {
        hands.put(&format!("work/f{i}"), "");
        hands.put(&format!("work/node_modules/m{i}"), "");
    }
    hands.put("work/.git/HEAD", "");
    assert_eq!(hands.good("glob", glob("**/*")).lines().count(), 200);
    assert_eq!(hands.good("glob", glob("**/m1")), "no matches");
    assert_eq!(hands.good("glob", glob("node_modules/m1")).lines().count(), 1);
    assert_eq!(hands.good("glob", json!({"pattern": "m1", "path": "node_modules"})).lines().count(), 1);
}

fn grep(pattern: &str) -> Value {
    json!({ "pattern": pattern })
}

#[test]
fn grep_shows_path_line_and_text() {
    let mut hands = Hands::new();
    let b = hands.put("work/b.txt", "one\ntwo\r\nthree");
    let a = hands.put("work/a/a.txt", "two é\n");
    let (a, b) = (a.display(), b.display());
    assert_eq!(hands.good("grep", grep("t(wo|hree)")), format!("{a}:1:two é\n{b}:2:two\n{b}:3:three"));
    assert_eq!(hands.good("grep", json!({"pattern": "^two", "path": "a"})), format!("{a}:1:two é"));
    assert_eq!(hands.good("grep", json!({"pattern": "two", "path": "b.txt"})), format!("{b}:2:two"));
    assert_eq!(hands.good("grep", grep("(?i)ONE$")), format!("{b}:1:one"));
    assert_eq!(hands.good("grep", grep("four")), "no matches");
    assert_eq!(hands.good("grep", json!({"pattern": "-e", "path": ""})), "no matches");
}

#[test]
fn grep_leaves_out_what_ripgrep_leaves_out() {
    let mut hands = Hands::new();
    hands.sh("mkdir .git; echo ignored.txt > .gitignore");
    for name in ["ignored.txt", ".hidden", ".git/config", "sub/ignored.txt"] {
        hands.put(&format!("work/{name}"), "needle\n");
    }
    for name in ["repo/kept", "repo/.kept", "repo/built/x", "repo/sub/built/x", "repo/other", "repo/excluded"]
    {
        hands.put(&format!("work/{name}"), "needle\n");
    }
    hands.put("work/repo/.git/info/exclude", "excluded\n");
    hands.put("work/repo/.gitignore", "/built\nkept\n");
    hands.put("work/repo/.ignore", "!kept\n!.kept\nother\n");
    hands.put("work/binary", b"needle\n\0\n");
    hands.put("outside/secret", "needle\n");
    symlink(hands.path("outside/secret"), hands.path("work/link")).unwrap();
    symlink(hands.path("outside"), hands.path("work/linked")).unwrap();
    hands.put("work/seen", "needle\n");
    let work = hands.path("work");
    let seen = |names: &[&str]| {
        let lines = names.iter().map(|name| format!("{}/{name}:1:needle", work.display()));
        lines.collect::<Vec<_>>().join("\n")
    };
    let found = hands.good("grep", grep("needle"));
    assert_eq!(
        found.replace(&format!("{}/binary:1:needle\n", work.display()), ""),
        seen(&["repo/.kept", "repo/kept", "repo/sub/built/x", "seen"])
    );
    let below = hands.good("grep", json!({"pattern": "needle", "path": "repo/sub"}));
    assert_eq!(below, seen(&["repo/sub/built/x"]));
    assert_eq!(hands.good("grep", json!({"pattern": "needle", "path": ".hidden"})).lines().count(), 1);
}

#[test]
fn files_of_rules_may_be_anything() {
    let mut hands = Hands::new();
    fs::create_dir(hands.path("work/.git")).unwrap();
    let places = [".ignore", ".gitignore", "a/.ignore", "a/.gitignore", "a/b/.gitignore"];
    fs::create_dir_all(hands.path("work/a/b")).unwrap();
    make_fifo(&hands.path("work").join(places[0]));
    symlink("/dev/zero", hands.path("work").join(places[1])).unwrap();
    fs::create_dir(hands.path("work").join(places[2])).unwrap();
    hands.put("work/a/.gitignore", [0xff, b'[', b'\n', b'*', b'x', b'\n']);
    hands.put("work/a/b/.gitignore", "*a?b[c-d]*e\n".repeat(1 << 20));
    hands.put("work/a/b/file", "needle\n");
    hands.put("work/a/x", "needle\n");
    assert_eq!(hands.good("grep", grep("needle")).lines().count(), 1);
}

#[test]
fn a_deep_tree_is_searched_as_deep_as_paths_go() {
    let mut hands = Hands::new();
    // Two trees, one hung below the other, because no path reaches as deep as both together.
    let name = "d".repeat(200);
    let deep: PathBuf = (0..15).map(|_| name.as_str()).collect();
    for tree in ["upper", "lower"] {
        let path = hands.path("work").join(tree).join(&deep);
        fs::create_dir_all(&path).unwrap();
        for directory in path.ancestors().take(16) {
            fs::write(directory.join("f"), "needle\n").unwrap();
        }
    }
    let work = hands.path("work");
    fs::rename(work.join("lower"), work.join("upper").join(&deep).join("lower")).unwrap();
    for found in [hands.good("grep", grep("needle")), hands.good("glob", glob("**/f"))] {
        assert!((17..32).contains(&found.lines().count()), "{found}");
    }
}

#[test]
fn grep_stops_at_100_kib_and_cuts_long_lines() {
    let mut hands = Hands::new();
    hands.put("work/a", "é needle\n".repeat(20_000));
    let found = hands.good("grep", grep("needle"));
    let (shown, last) = found.rsplit_once('\n').unwrap();
    assert_eq!(last, "[output truncated at 102400 bytes]");
    assert!((102_000..=102_400).contains(&shown.len()), "{}", shown.len());
    let long = hands.put("work/long", format!("{}needle\n", "x".repeat(5000)));
    let found = hands.good("grep", json!({"pattern": "needle", "path": "long"}));
    assert_eq!(found, format!("{}:1:{} [... omitted end of long line]", long.display(), "x".repeat(2000)));
}

#[test]
fn grep_takes_files_of_any_bytes_and_any_line_length() {
    let mut hands = Hands::new();
    let latin = hands.put("work/latin", b"caf\xe9 needle\n");
    assert_eq!(hands.good("grep", grep("needle")), format!("{}:1:caf\u{fffd} needle", latin.display()));
    // One line of 64 MiB: more than a search keeps, so the file is left out and the search goes on.
    hands.put("work/a-line", "x".repeat(64 << 20));
    let before = hands.resident_kib();
    assert_eq!(hands.good("grep", grep("needle")).lines().count(), 1);
    assert!(hands.resident_kib() < before + 8192);
}

#[test]
fn grep_refuses_bad_and_excessive_patterns() {
    let mut hands = Hands::new();
    for pattern in ["(", "a{2,1}", "\\", "(?:(?:(?:x{1000}){1000}){1000})", "a\nb"] {
        let message = hands.bad("grep", grep(pattern));
        assert!(message.starts_with("grep: invalid regex: "), "{message}");
    }
    let nested = format!("{}x{}", "(".repeat(100_000), ")".repeat(100_000));
    assert!(hands.bad("grep", grep(&nested)).starts_with("grep: invalid regex: "));
    let deep = format!("{}x{}", "(".repeat(90), ")".repeat(90));
    assert_eq!(hands.good("grep", grep(&deep)), "no matches");
    assert_eq!(
        hands.bad("grep", json!({"pattern": "x", "path": "none"})),
        "grep: none: no such file or directory"
    );
}
