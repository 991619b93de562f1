//! `bash` where the image has no bash: the same calls in whatever `sh` there is.

use std::path::Path;

use serde_json::json;
use tempfile::TempDir;

use crate::hands::Hands;

/// Every `sh` of this machine that is not bash: Debian's dash, and busybox where it is installed. With the folder that
/// busybox is found in by that name: the name decides how a shell is spoken to.
fn shells() -> Vec<(Hands, Option<TempDir>)> {
    let mut shells = vec![(Hands::with_shell("/bin/sh"), None)];
    if Path::new("/bin/busybox").exists() {
        let folder = tempfile::tempdir().unwrap();
        let sh = folder.path().join("sh");
        std::os::unix::fs::symlink("/bin/busybox", &sh).unwrap();
        shells.push((Hands::with_shell(sh.to_str().unwrap()), Some(folder)));
    }
    shells
}

#[test]
fn commands_run_one_after_the_other_and_share_a_shell() {
    for (mut hands, _folder) in shells() {
        hands.sh("mkdir d; cd d; A=1; export B=2; f() { echo f$1; }");
        let directory = hands.path("work/d");
        let expected = format!("{}\n1\n2\nf3", directory.display());
        assert_eq!(hands.sh("pwd; echo $A; env | sed -n 's/^B=//p'; f 3"), expected);
        assert_eq!(hands.sh("cat; read x || echo none"), "none", "standard input is empty");
        assert_eq!(hands.bash("echo why; (exit 7)"), ("why".into(), true));
        assert_eq!(hands.bash("printf() { echo mine; }; printf"), ("mine".into(), false));
        assert_eq!(hands.sh("unset -f printf; cat <<'END'\nit's \"quoted\" $A\nEND"), "it's \"quoted\" $A");
        assert!(!hands.bash("set -x; true").1 && !hands.bash("set +x").1);
        assert_eq!(hands.sh("ls /proc/self/fd | tr '\\n' ' '"), "0 1 2 3 ");
    }
}

#[test]
fn what_ends_the_shell_ends_one_call() {
    for (mut hands, _folder) in shells() {
        assert!(hands.bash("exit 3").1);
        assert!(hands.bash("if then (").1, "no program");
        assert_eq!(hands.sh("echo again"), "again");
        let (text, failed) = hands.run("bash", json!({"command": "sleep 100", "timeout_ms": 50}));
        assert!(failed && text.contains("timed out"), "{text}");
        assert_eq!(hands.sh("echo again"), "again");
    }
}
