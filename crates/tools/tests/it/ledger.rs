//! A call runs at most once; a cancelled call ends.

use serde_json::json;
use tools::wire::{INTERRUPTED, Op, Output, Refusal, Reply};

use crate::hands::{Hands, execute, make_fifo, text, wait_for};

#[test]
fn a_finished_call_is_answered_again_and_not_run_again() {
    let mut hands = Hands::new();
    let op = execute("toolu_1", "bash", json!({"command": "echo x >> log; wc -l < log"}), 0);
    let first = hands.ask(op.clone());
    assert_eq!(first, Reply::Output(Output::text("1")));
    assert_eq!(hands.ask(op), first);
    // The id alone decides: the input is not looked at again.
    assert_eq!(hands.ask(execute("toolu_1", "bash", json!({"command": "echo other"}), 0)), first);
    assert_eq!(hands.get("work/log"), "x\n");
}

#[test]
fn a_failed_call_is_not_run_again_either() {
    let mut hands = Hands::new();
    let op = execute("toolu_1", "edit", json!({"file_path": "a", "old_string": "a", "new_string": "b"}), 0);
    let first = hands.ask(op.clone());
    hands.put("work/a", "a");
    assert_eq!(hands.ask(op), first);
    assert_eq!(hands.get("work/a"), "a");
}

#[test]
fn a_request_for_a_running_call_waits_for_it() {
    let mut hands = Hands::new();
    let fifo = hands.path("work/fifo");
    make_fifo(&fifo);
    let op =
        execute("toolu_1", "bash", json!({"command": "echo x >> log; echo > fifo; cat fifo; cat log"}), 0);
    let first = hands.send(op.clone());
    wait_for(&fifo);
    let second = hands.send(op);
    assert_eq!(hands.ask(Op::Ping), Reply::Pong);
    std::fs::write(&fifo, "go\n").unwrap();
    assert_eq!(hands.output(first), Output::text("go\nx"));
    assert_eq!(hands.output(second), Output::text("go\nx"));
    assert_eq!(hands.get("work/log"), "x\n");
}

#[test]
fn a_call_that_waits_for_its_turn_is_not_run_twice() {
    let mut hands = Hands::new();
    let busy = hands.call("bash", json!({"command": "read -t 0.2 < <(sleep 1)"}));
    let op = execute("toolu_1", "bash", json!({"command": "echo x >> log"}), 0);
    let ids = [hands.send(op.clone()), hands.send(op.clone()), hands.send(op)];
    hands.output(busy);
    for id in ids {
        hands.output(id);
    }
    assert_eq!(hands.get("work/log"), "x\n");
}

#[test]
fn a_call_whose_output_is_no_longer_kept_is_refused_and_not_run() {
    let mut hands = Hands::new();
    let write = |i: usize| {
        execute(&format!("toolu_{i}"), "write", json!({"file_path": "a", "content": i.to_string()}), 0)
    };
    for i in 0..300 {
        hands.ask(write(i));
    }
    let refused = Reply::Refused {
        reason: Refusal::Forgotten,
        message: "call toolu_0 already ran, its output is no longer kept".into(),
    };
    assert_eq!(hands.ask(write(0)), refused);
    assert_eq!(hands.ask(write(299)), Reply::Output(Output::text("wrote 3 bytes to a")));
    assert_eq!(hands.get("work/a"), "299");
}

#[test]
fn a_cancelled_command_is_killed_and_says_so() {
    let mut hands = Hands::new();
    let fifo = hands.path("work/fifo");
    make_fifo(&fifo);
    let job = hands.sh("A=1; sleep 1000 & echo $!");
    let command = json!({"command": "trap '' TERM; echo $$ > pid; echo > fifo; sleep 1000"});
    let call = hands.send(execute("toolu_1", "bash", command, 0));
    let next = hands.call("bash", json!({"command": "echo [$A]"}));
    wait_for(&fifo);
    assert_eq!(hands.ask(Op::Cancel { call_id: "toolu_1".into() }), Reply::Cancelled { known: true });
    assert_eq!(hands.output(call), Output::error(INTERRUPTED));
    assert_eq!(hands.output(next), Output::text("[]"));
    assert!(!Hands::lives(&hands.get("work/pid")));
    assert!(!Hands::lives(&job));
    assert_eq!(
        hands.ask(execute("toolu_1", "bash", json!({}), 0)),
        Reply::Output(Output::error(INTERRUPTED))
    );
}

#[test]
fn a_command_that_is_cancelled_before_its_turn_never_runs() {
    let mut hands = Hands::new();
    let fifo = hands.path("work/fifo");
    make_fifo(&fifo);
    let busy = hands.call("bash", json!({"command": "A=1; cat fifo"}));
    let waiting = hands.send(execute("toolu_1", "bash", json!({"command": "touch ran"}), 0));
    assert_eq!(hands.ask(Op::Cancel { call_id: "toolu_1".into() }), Reply::Cancelled { known: true });
    assert_eq!(hands.output(waiting), Output::error(INTERRUPTED));
    std::fs::write(&fifo, "go\n").unwrap();
    assert_eq!(hands.output(busy), Output::text("go"));
    assert_eq!(hands.sh("ls; echo $A"), "fifo\n1");
}

#[test]
fn a_cancelled_search_ends_at_once() {
    let mut hands = Hands::new();
    // Sparse: it takes long to read and no room on the disk.
    let file = std::fs::File::create(hands.path("work/large")).unwrap();
    file.set_len(1 << 42).unwrap();
    let call = hands.send(execute("toolu_1", "read", json!({"file_path": "large", "view_range": [5, 6]}), 0));
    assert_eq!(hands.ask(Op::Cancel { call_id: "toolu_1".into() }), Reply::Cancelled { known: true });
    assert_eq!(hands.output(call), Output::error(INTERRUPTED));
}

#[test]
fn a_file_tool_that_overruns_is_given_up() {
    let mut hands = Hands::new();
    let file = std::fs::File::create(hands.path("work/large")).unwrap();
    file.set_len(1 << 42).unwrap();
    let call = hands.send(execute("c", "read", json!({"file_path": "large", "view_range": [5, 6]}), 50));
    assert_eq!(text(hands.output(call)), ("tool 'read' timed out".into(), true));
}

#[test]
fn cancelling_what_is_not_known_or_has_ended_changes_nothing() {
    let mut hands = Hands::new();
    assert_eq!(hands.ask(Op::Cancel { call_id: "never".into() }), Reply::Cancelled { known: false });
    let op = execute("toolu_1", "bash", json!({"command": "echo a"}), 0);
    hands.ask(op.clone());
    assert_eq!(hands.ask(Op::Cancel { call_id: "toolu_1".into() }), Reply::Cancelled { known: true });
    assert_eq!(hands.ask(op), Reply::Output(Output::text("a")));
}

#[test]
fn file_tools_run_while_the_shell_is_busy_and_side_by_side() {
    let mut hands = Hands::new();
    let fifo = hands.path("work/fifo");
    make_fifo(&fifo);
    let busy = hands.call("bash", json!({"command": "cat fifo"}));
    let ids: Vec<u64> = (0..100)
        .map(|i| hands.call("write", json!({"file_path": format!("f{i}"), "content": "x"})))
        .collect();
    for (i, id) in ids.into_iter().enumerate() {
        assert_eq!(hands.output(id), Output::text(format!("wrote 1 bytes to f{i}")));
    }
    std::fs::write(&fifo, "go\n").unwrap();
    assert_eq!(hands.output(busy), Output::text("go"));
}

#[test]
fn too_many_waiting_commands_are_turned_away_and_may_come_again() {
    let mut hands = Hands::new();
    let fifo = hands.path("work/fifo");
    make_fifo(&fifo);
    let busy = hands.call("bash", json!({"command": "cat fifo"}));
    let ids: Vec<u64> = (0..256).map(|_| hands.call("bash", json!({"command": ":"}))).collect();
    let op = execute("toolu_1", "bash", json!({"command": "echo late"}), 0);
    assert!(matches!(hands.ask(op.clone()), Reply::Refused { reason: Refusal::Busy, .. }));
    std::fs::write(&fifo, "go\n").unwrap();
    for id in [busy].into_iter().chain(ids) {
        hands.output(id);
    }
    assert_eq!(hands.ask(op), Reply::Output(Output::text("late")));
}

#[test]
fn an_unknown_tool_is_an_error_for_the_model() {
    let mut hands = Hands::new();
    assert_eq!(hands.bad("web_search", json!({})), "tool 'web_search' is not available in this sandbox");
}
