//! `bash`: one shell, its limits, and its ends.

use std::fs;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::hands::{Hands, eventually, execute, make_fifo, text, wait_for};

#[test]
fn output_and_errors_are_merged_in_order_and_trailing_newlines_cut() {
    let mut hands = Hands::new();
    assert_eq!(hands.sh("echo a; echo b >&2; printf ' c \\n\\n\\n'"), "a\nb\n c ");
}

#[test]
fn nothing_printed_says_so() {
    let mut hands = Hands::new();
    assert_eq!(hands.bash("true"), ("(no output)".into(), false));
    assert_eq!(hands.bash("false"), ("(no output)".into(), true));
}

#[test]
fn a_failing_command_is_an_error_with_its_output_and_without_its_code() {
    let mut hands = Hands::new();
    assert_eq!(hands.bash("echo why; (exit 7)"), ("why".into(), true));
}

#[test]
fn directory_variables_functions_and_jobs_live_on() {
    let mut hands = Hands::new();
    hands.sh("mkdir d; cd d; A=1; export B=2; f() { echo f$1; }; sleep 1000 & J=$!; set -f");
    let directory = hands.path("work/d");
    let expected = format!("{}\n1\n2\nf3\n*\nalive", directory.display());
    assert_eq!(hands.sh("pwd; echo $A; sh -c 'echo $B'; f 3; echo *; kill -0 $J && echo alive"), expected);
}

#[test]
fn standard_input_is_empty() {
    let mut hands = Hands::new();
    assert_eq!(hands.sh("cat; read x || echo none; readlink /proc/self/fd/0"), "none\n/dev/null");
}

#[test]
fn a_command_gets_three_descriptors_and_a_session_of_its_own() {
    let mut hands = Hands::new();
    // `ls` itself opens one for the directory it lists.
    assert_eq!(hands.sh("ls /proc/self/fd"), "0\n1\n2\n3");
    let tools = hands.child.id().to_string();
    assert_ne!(hands.sh("ps -o sid= -p $$ | tr -d ' '"), tools);
    assert_eq!(hands.sh("ps -o sid= -p $$ | tr -d ' '"), hands.sh("echo $$"));
}

#[test]
fn signals_are_as_a_program_expects_them() {
    let mut hands = Hands::new();
    let masks = hands.sh("grep -E 'Sig(Blk|Ign)' /proc/self/status | tr -s '\\t ' ' '");
    // The C library keeps 32 and 33 to itself and ignores them in whatever it spawns.
    assert_eq!(masks, "SigBlk: 0000000000000000\nSigIgn: 0000000180000000");
}

#[test]
fn when_memory_runs_out_commands_go_first() {
    let mut hands = Hands::new();
    let own = fs::read_to_string(format!("/proc/{}/oom_score_adj", std::process::id())).unwrap();
    let commands: i32 = hands.sh("cat /proc/self/oom_score_adj").parse().unwrap();
    assert!(commands > own.trim().parse().unwrap());
}

#[test]
fn the_environment_is_what_was_given_without_credentials() {
    let given = [
        ("ANTHROPIC_API_KEY", "secret"),
        ("POSTHOUSE_TOKEN", "secret"),
        ("BASH_ENV", "/secret"),
        ("GIVEN", "yes"),
        ("TERM", "xterm"),
    ];
    let mut hands = Hands::with_environment(&given);
    let printed = hands.sh("env | sort");
    assert!(!printed.contains("secret"), "{printed}");
    let names: Vec<&str> = printed.lines().filter_map(|line| line.split('=').next()).collect();
    assert_eq!(names, ["GIVEN", "HOME", "LANG", "PATH", "PWD", "SHLVL", "TERM", "_"]);
    assert!(printed.contains("TERM=dumb\n"));
}

#[test]
fn control_sequences_are_removed_and_bytes_that_are_no_text_replaced() {
    let mut hands = Hands::new();
    assert_eq!(
        hands.sh(r"printf '\033[1;31mred\033[0m \033]0;title\007ok \377\000.'"),
        "red ok \u{fffd}\u{fffd}."
    );
}

#[test]
fn a_missing_command_is_refused() {
    let mut hands = Hands::new();
    for input in [json!({}), json!({"command": ""}), json!({"command": null, "restart": false})] {
        assert_eq!(hands.bad("bash", input), "bash: command is required");
    }
    assert_eq!(hands.bad("bash", json!({"command": "a\u{0}b"})), "bash: command contains a zero byte");
    assert!(hands.bad("bash", json!({"command": 5})).starts_with("bash: invalid input: "));
}

#[test]
fn a_command_may_be_anything_that_a_shell_reads() {
    let mut hands = Hands::new();
    let long = format!("echo {}", "x".repeat(200_000));
    assert_eq!(hands.sh(&format!("{long} | wc -c")), "200001");
    assert_eq!(hands.sh("cat <<'E'\na 'b\" $c \\\nE"), "a 'b\" $c \\");
    assert_eq!(hands.sh("# only a comment"), "(no output)");
    assert_eq!(hands.sh("echo é日本 # ß"), "é日本");
    assert_eq!(hands.sh("-x 2>/dev/null; echo done"), "done");
}

#[test]
fn what_a_shell_cannot_read_is_an_error_and_no_more() {
    let mut hands = Hands::new();
    hands.sh("A=1");
    for command in ["if then", "echo 'open", "cat <<E\nopen", "}", "break", "return 3", "$(("] {
        hands.bash(command);
        assert_eq!(hands.sh("echo $A"), "1", "after {command}");
    }
}

#[test]
fn functions_and_options_of_a_command_do_not_disturb_the_next() {
    let mut hands = Hands::new();
    hands.sh(
        "read() { echo shadowed; }; printf() { echo shadowed; }; eval() { echo shadowed; }; IFS=x; set -u",
    );
    assert_eq!(hands.sh("echo '  a  b '"), "  a  b ");
    assert_eq!(hands.bash("set -x; true").0, "++ true");
}

#[test]
fn exit_ends_the_shell_and_the_next_command_gets_a_new_one() {
    let mut hands = Hands::new();
    hands.sh("A=1; cd /");
    assert_eq!(hands.bash("echo before; trap 'echo bye' EXIT; exit 3"), ("before\nbye".into(), true));
    assert_eq!(hands.sh("echo [$A]; pwd"), format!("[]\n{}", hands.path("work").display()));
    assert_eq!(hands.bash("echo fine; exit 0"), ("fine".into(), false));
    assert_eq!(hands.bash("set -e; false; echo not reached"), ("(no output)".into(), true));
    assert_eq!(hands.bash("exec echo replaced"), ("replaced".into(), false));
    assert_eq!(hands.sh("echo new"), "new");
}

#[test]
fn a_shell_that_is_killed_says_so() {
    let mut hands = Hands::new();
    let (text, is_error) = hands.bash("echo before; kill -9 $$");
    assert_eq!(text, "before\n[the shell was killed by signal 9; the next command starts a new one]");
    assert!(is_error);
    assert_eq!(hands.sh("echo new"), "new");
}

#[test]
fn the_end_of_a_shell_is_the_end_of_its_jobs() {
    let mut hands = Hands::new();
    let job = hands.bash("sleep 1000 & echo $!; exit 0").0;
    assert!(!Hands::lives(&job));
    let job = hands.sh("setsid sleep 1000 >/dev/null & echo $!");
    assert!(Hands::lives(&job));
    // A shell that dies between two calls.
    let shell = hands.sh("echo $$; (read -t 0.1 < <(:); kill -9 $$) >/dev/null 2>&1 &");
    eventually("the shell and its job are dead", || !Hands::lives(&shell) && !Hands::lives(&job));
    assert_ne!(hands.sh("echo $$"), shell);
}

#[test]
fn restart_brings_a_new_shell() {
    let mut hands = Hands::new();
    assert_eq!(hands.good("bash", json!({"restart": true})), "bash session restarted");
    let job = hands.sh("A=1; sleep 1000 & echo $!");
    assert_eq!(
        hands.good("bash", json!({"restart": true, "command": "echo ignored"})),
        "bash session restarted"
    );
    assert!(!Hands::lives(&job));
    assert_eq!(hands.sh("echo [$A]"), "[]");
}

#[test]
fn a_background_job_that_holds_the_output_holds_up_nothing() {
    let mut hands = Hands::new();
    let started = Instant::now();
    assert_eq!(hands.sh("sleep 1000 & sh -c 'sleep 1000' & echo done"), "done");
    assert_eq!(hands.sh("(while :; do sleep 100; done) & disown; echo done"), "done");
    assert!(started.elapsed() < Duration::from_secs(20));
}

#[test]
fn what_a_job_prints_between_calls_is_shown_with_the_next_and_bounded() {
    let mut hands = Hands::new();
    let fifo = hands.path("work/fifo");
    make_fifo(&fifo);
    hands.sh("(cat fifo; echo late; echo > fifo) &");
    fs::write(&fifo, "").unwrap();
    wait_for(&fifo);
    assert_eq!(hands.sh("echo now"), "late\nnow");
    // Far more than a pipe holds: were nobody reading, the job would never come to its end.
    hands.sh("(cat fifo; head -c 5000000 /dev/zero | tr '\\0' x; echo; echo > fifo) &");
    fs::write(&fifo, "").unwrap();
    wait_for(&fifo);
    let text = hands.sh("echo now");
    assert!(text.starts_with("[output truncated]\nxxx") && text.ends_with("x\nnow"), "{}", text.len());
    assert!(text.len() < 10_000);
}

#[test]
fn a_job_that_never_stops_printing_does_not_hold_up_a_call() {
    let mut hands = Hands::new();
    hands.sh("yes flood &");
    hands.sh("echo done > file");
    assert_eq!(hands.get("work/file"), "done\n");
    hands.sh("kill %1");
}

#[test]
fn a_shell_that_redirects_all_it_prints_goes_on() {
    let mut hands = Hands::new();
    assert_eq!(hands.sh("exec >file 2>&1"), "(no output)");
    assert_eq!(hands.sh("echo hidden"), "(no output)");
    assert_eq!(hands.get("work/file"), "hidden\n");
    assert_eq!(
        hands.bad("bash", json!({"command": "sleep 1000", "timeout_ms": 50})),
        "bash: bash command timed out after 0.05s"
    );
}

#[test]
fn only_the_last_100_kib_are_kept() {
    let mut hands = Hands::new();
    // Two-byte characters, so that the result is below the number of characters that is shown.
    let text = hands.sh("for i in $(seq 30000); do printf 'éééé%d\\n' $i; done");
    assert!(text.starts_with("[output truncated]\n"));
    assert!(text.ends_with("\néééé30000"));
    let kept = text.len() - "[output truncated]\n".len();
    assert!((100 * 1024 - 4..=100 * 1024).contains(&kept), "{kept}");
}

#[test]
fn a_long_output_goes_to_a_file() {
    let mut hands = Hands::new();
    let text = hands.sh("head -c 102400 /dev/zero | tr '\\0' x");
    let saved = hands.path("tmp/tool-outputs/call_1.txt");
    let first =
        format!("[output of 102400 characters is too long to show; all of it is in {}]\n", saved.display());
    assert!(text.starts_with(&first), "{}", &text[..200]);
    assert!(text.len() < 11_000);
    assert_eq!(fs::read_to_string(saved).unwrap(), "x".repeat(102_400));
}

#[test]
fn a_flood_leaves_memory_flat_and_the_shell_alive() {
    let mut hands = Hands::new();
    hands.sh("A=1; true");
    let before = hands.resident_kib();
    let flood = if cfg!(debug_assertions) { "300M" } else { "10G" };
    let (text, is_error) = hands.bash(&format!("head -c {flood} /dev/zero | tr '\\0' '\\377'; echo end"));
    assert!(!is_error);
    assert!(text.contains("end"));
    let after = hands.resident_kib();
    assert!(after < before + 4096, "{before} KiB, then {after} KiB");
    assert_eq!(hands.sh("echo $A"), "1");
}

#[test]
fn a_command_that_overruns_is_killed_with_everything_that_was_started() {
    let mut hands = Hands::new();
    hands.sh("A=1; trap '' TERM INT HUP
        (trap '' TERM; sleep 1000) & echo $! >> pids
        setsid sh -c 'trap \"\" TERM; echo $$ >> pids; sleep 1000' &
        setsid setsid sh -c 'echo $$ >> pids; (sleep 1000 & echo $! >> pids; exit)
          exec sleep 1000' </dev/null >/dev/null 2>&1 &
        sh -c 'echo $$ >> pids; kill -STOP $$' &
        while [ $(wc -l < pids) -lt 5 ]; do :; done");
    let command = "echo partial; echo $$ >> pids; sh -c 'echo $$ >> pids; kill -STOP $PPID; sleep 1000'";
    let text = hands.bad("bash", json!({"command": command, "timeout_ms": 1500}));
    assert_eq!(text, "bash: bash command timed out after 1.5s\npartial");
    let pids = hands.get("work/pids");
    assert!(pids.lines().count() >= 5);
    for pid in pids.lines() {
        assert!(!Hands::lives(pid), "{pid}");
    }
    assert_eq!(hands.sh("echo [$A]"), "[]");
}

#[test]
fn the_time_of_the_call_bounds_the_time_that_the_input_asks_for() {
    let mut hands = Hands::new();
    let input = json!({"command": "sleep 1000", "timeout_ms": 500_000});
    let id = hands.send(execute("c", "bash", input, 40));
    assert_eq!(text(hands.output(id)), ("bash: bash command timed out after 0.04s".into(), true));
}

#[test]
fn a_time_of_zero_or_less_is_the_default() {
    let mut hands = Hands::new();
    for timeout in [json!(0), json!(-5), json!(null)] {
        assert_eq!(hands.good("bash", json!({"command": "echo ok", "timeout_ms": timeout})), "ok");
    }
}

#[test]
fn a_command_that_never_stops_printing_is_still_stopped() {
    let mut hands = Hands::new();
    let (text, is_error) = hands.run("bash", json!({"command": "yes", "timeout_ms": 200}));
    assert!(is_error);
    assert!(text.contains("bash: bash command timed out after 0.2s\n"), "{}", &text[..200]);
}

#[test]
fn a_fork_bomb_ends_with_its_call() {
    let mut hands = Hands::new();
    let bomb = "ulimit -u 200 2>/dev/null; b() { sleep 0.01; [ $1 -gt 5 ] || { b $(($1+1)) & b $(($1+1)) & }; sleep 1000; }; b 0";
    let text = hands.bad("bash", json!({"command": bomb, "timeout_ms": 1000}));
    assert!(text.starts_with("bash: bash command timed out after 1s"));
    assert_eq!(hands.sh("echo alive"), "alive");
}

#[test]
fn a_command_cannot_end_the_call_of_another() {
    let mut hands = Hands::new();
    // A job of the first call knows the form of a marker and finds the pipe, but not the next marker.
    hands.sh(
        "(for f in /proc/$BASHPID/fd/*; do for i in 1 2 3; do printf '0000000000000000 0\\nx' >&${f##*/}; done; done; touch tried) 2>/dev/null &
         while [ ! -e tried ]; do :; done",
    );
    assert_eq!(hands.bash("echo real; false"), ("real".into(), true));
}

#[test]
fn calls_run_one_after_the_other_in_their_order() {
    let mut hands = Hands::new();
    let ids: Vec<u64> =
        (0..50).map(|i| hands.call("bash", json!({"command": format!("echo {i} >> log")}))).collect();
    for id in ids {
        assert!(!hands.output(id).is_error);
    }
    let expected: String = (0..50).map(|i| format!("{i}\n")).collect();
    assert_eq!(hands.get("work/log"), expected);
}
