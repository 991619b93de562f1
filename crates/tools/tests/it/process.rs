//! The process: what it takes over, what ends it, what it leaves.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::process::Command;

use serde_json::json;
use tools::wire::{Op, Refusal, Reply};

use crate::hands::{Hands, eventually, execute};

#[test]
fn it_answers_and_stays_through_polite_signals() {
    let mut hands = Hands::new();
    let pid = hands.child.id().to_string();
    for signal in ["TERM", "INT", "HUP", "QUIT", "PIPE"] {
        assert!(Command::new("kill").args(["-s", signal, &pid]).status().unwrap().success());
    }
    assert_eq!(hands.ask(Op::Ping), Reply::Pong);
}

#[test]
fn the_end_of_the_socket_ends_it_and_every_command() {
    let mut hands = Hands::new();
    let job = hands.sh("setsid sh -c 'trap \"\" TERM; sleep 1000' >/dev/null 2>&1 & echo $!");
    hands.call("bash", json!({"command": "trap '' TERM; sleep 1000"}));
    hands.hang_up();
    eventually("the job is dead", || !Hands::lives(&job));
}

#[test]
fn orphans_are_reaped() {
    let mut hands = Hands::new();
    let parent = hands.child.id();
    let orphans = hands
        .sh("for i in 1 2 3 4 5; do (sh -c 'echo $PPID; exec sleep 0.01' &); done; (sleep 0.01 & echo $!)");
    for pid in orphans.lines().chain(hands.sh("(true & echo $!)").lines()) {
        eventually("reaped", || {
            let stat = fs::read_to_string(format!("/proc/{}/stat", pid.trim())).unwrap_or_default();
            !stat.contains(&format!(" {parent} "))
        });
    }
}

#[test]
fn its_memory_and_environment_are_closed_to_commands() {
    let hands = Hands::new();
    let proc = format!("/proc/{}", hands.child.id());
    // What an undumpable process shows belongs to root, and only a privileged user could look.
    let owner = fs::metadata(format!("{proc}/environ")).unwrap();
    assert_eq!((owner.uid(), owner.gid()), (0, 0));
    let mut hands = hands;
    if hands.sh("id -u") != "0" {
        let looked =
            hands.bash(&format!("cat {proc}/environ; ls {proc}/fd; cat {proc}/mem; readlink {proc}/exe")).0;
        assert_eq!(looked.matches("Permission denied").count(), 3, "{looked}");
    }
}

#[test]
fn idle_it_is_one_thread() {
    let mut hands = Hands::new();
    hands.good("write", json!({"file_path": "a", "content": "x"}));
    hands.sh("true");
    let tasks = format!("/proc/{}/task", hands.child.id());
    eventually("one thread", || fs::read_dir(&tasks).unwrap().count() == 1);
}

#[test]
fn descriptors_do_not_pile_up() {
    let mut hands = Hands::new();
    // Few enough that a single one lost in each round would be missed at the end.
    let pid = hands.child.id().to_string();
    assert!(Command::new("prlimit").args(["--pid", &pid, "--nofile=48"]).status().unwrap().success());
    for _ in 0..50 {
        hands.bash("exit 1");
        hands.run("bash", json!({"command": "sleep 100", "timeout_ms": 1}));
        hands.run("read", json!({"file_path": "none"}));
        hands.run("write", json!({"file_path": "a/b/c", "content": "x"}));
        hands.run("glob", json!({"pattern": "**"}));
        hands.run("grep", json!({"pattern": "x"}));
    }
    assert_eq!(hands.sh("echo alive"), "alive");
    assert_eq!(hands.good("read", json!({"file_path": "a/b/c"})), "x");
}

#[test]
fn an_operation_it_does_not_know_is_refused() {
    let mut hands = Hands::new();
    let id = hands.send_raw(json!({"id": 77, "op": {"dance": {}}}), 77);
    assert!(matches!(hands.reply(id), Reply::Refused { reason: Refusal::Invalid, .. }));
    let deep = (0..130).fold(json!(1), |inner, _| json!([inner]));
    let refused = hands.ask(execute("toolu_1", "bash", deep, 0));
    assert!(matches!(refused, Reply::Refused { reason: Refusal::Invalid, .. }), "{refused:?}");
    assert_eq!(hands.ask(Op::Ping), Reply::Pong);
}

#[test]
fn a_request_that_is_no_request_ends_it() {
    let mut hands = Hands::new();
    hands.send_raw(json!("nonsense"), 0);
    assert!(!hands.child.wait().unwrap().success());
}
