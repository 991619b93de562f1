//! What is checked of each session when all is over.

use std::collections::HashSet;
use std::fmt;
use std::time::Duration;

use serde_json::Value;
use testkit::invariants;

use crate::chaos::model::READ_BACK_COMMAND;

/// What the rules of the log call a call whose effect nobody knows.
const UNKNOWN: [&str; 2] =
    ["It is not known whether this call had any effect", "was interrupted before completion"];
/// What says that everything before it in the workspace is gone.
const WORKSPACE_LOST: &str = "next call gets a new, empty workspace";

/// What was counted.
#[derive(Clone, Debug, Default)]
pub(super) struct Tally {
    pub(super) sessions: usize,
    /// From the last word of a client to the rest behind it.
    pub(super) turns: Vec<Duration>,
    pub(super) events: usize,
    pub(super) calls: usize,
    /// Calls whose outcome nobody knows, and which say so.
    pub(super) unknown: usize,
    pub(super) workspaces_lost: usize,
    pub(super) interrupts: usize,
    /// Requests that were refused for the moment.
    pub(super) turned_away: usize,
    pub(super) without_answer: usize,
    pub(super) resumed: usize,
    /// Visible errors of sessions.
    pub(super) errors: usize,
    /// Model requests that were begun again.
    pub(super) requests_failed: usize,
}

impl Tally {
    pub(super) fn add(&mut self, other: &Self) {
        let Self {
            sessions,
            turns,
            events,
            calls,
            unknown,
            workspaces_lost,
            interrupts,
            turned_away,
            without_answer,
            resumed,
            errors,
            requests_failed,
        } = other;
        self.sessions += sessions;
        self.turns.extend(turns);
        self.events += events;
        self.calls += calls;
        self.unknown += unknown;
        self.workspaces_lost += workspaces_lost;
        self.interrupts += interrupts;
        self.turned_away += turned_away;
        self.without_answer += without_answer;
        self.resumed += resumed;
        self.errors += errors;
        self.requests_failed += requests_failed;
    }

    /// How long a turn took that is longer than this part of them.
    fn turn_seconds(&self, part: f64) -> f64 {
        let mut turns = self.turns.clone();
        turns.sort();
        let last = turns.len().saturating_sub(1);
        turns.get((last as f64 * part) as usize).map_or(0.0, Duration::as_secs_f64)
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            formatter,
            "{} sessions, {} turns ({:.1} s at the median, {:.1} s in one of a hundred, {:.1} s at the most), {} events, {} calls ({} of unknown outcome, {} workspaces lost), {} interrupts, \
             {} model requests begun again, {} visible errors; clients: {} requests turned away, {} without an answer, \
             {} streams resumed",
            self.sessions,
            self.turns.len(),
            self.turn_seconds(0.5),
            self.turn_seconds(0.99),
            self.turn_seconds(1.0),
            self.events,
            self.calls,
            self.unknown,
            self.workspaces_lost,
            self.interrupts,
            self.requests_failed,
            self.errors,
            self.turned_away,
            self.without_answer,
            self.resumed,
        )
    }
}

/// A call and what came of it.
pub(super) struct Call {
    command: String,
    is_error: bool,
    output: String,
}

/// All calls of a log that have a result, in the order in which they were made.
pub(super) fn calls_of(events: &[Value]) -> Vec<Call> {
    let result_of = |call: &Value| {
        events.iter().find(|event| event["type"] == "agent.tool_result" && event["tool_use_id"] == call["id"])
    };
    let call = |event: &Value| {
        let result = result_of(event)?;
        Some(Call {
            command: event["input"]["command"].as_str()?.to_owned(),
            is_error: result["is_error"] == true,
            output: result["content"][0]["text"].as_str().unwrap_or_default().to_owned(),
        })
    };
    events.iter().filter(|event| event["type"] == "agent.tool_use").filter_map(call).collect()
}

/// Checks a session's log, what was shown of it, and the effects of its calls.
pub(super) fn check(
    list: &[Value],
    shown: &[Value],
    acknowledged: &[String],
    tally: &mut Tally,
) -> Result<(), String> {
    invariants::check_at_rest(list)?;
    invariants::check_stream(list, shown)?;
    for id in acknowledged {
        let count = list.iter().filter(|event| event["id"] == id.as_str()).count();
        if count != 1 {
            return Err(format!("{id} was acknowledged and is there {count} times"));
        }
    }
    let kinds = |kind: &str| list.iter().filter(|event| event["type"] == kind).count();
    tally.events += list.len();
    tally.errors += kinds("session.error");
    tally.requests_failed += list
        .iter()
        .filter(|event| event["type"] == "span.model_request_end" && event["is_error"] == true)
        .count();
    check_effects(&calls_of(list), tally)
}

/// Each effect at most once; each result says what is true.
fn check_effects(calls: &[Call], tally: &mut Tally) -> Result<(), String> {
    if !calls.last().is_some_and(Call::has_read_back) {
        return Err("the file could not be read back".to_owned());
    }
    // The first call in the workspace that there is now.
    let mut begin = 0;
    for (index, call) in calls.iter().enumerate() {
        if call.has_read_back() {
            check_file(&call.output, &calls[begin..index])?;
        } else {
            check_result(call, tally)?;
        }
        if call.output.contains(WORKSPACE_LOST) {
            tally.workspaces_lost += 1;
            begin = index + 1;
        }
    }
    Ok(())
}

/// The file of a workspace against the calls that were made in it.
fn check_file(file: &str, calls: &[Call]) -> Result<(), String> {
    let mut found = HashSet::new();
    for mark in file.lines().filter(|line| line.starts_with('c')) {
        if !found.insert(mark) {
            return Err(format!("{mark} happened twice"));
        }
    }
    for call in calls {
        let Some(mark) = call.mark() else { continue };
        match (call.is_error, found.remove(mark)) {
            (true, true) if !call.is_unknown() => {
                return Err(format!("{mark} happened, and its result says that it failed: {}", call.output));
            }
            (false, false) => return Err(format!("{mark} ran, and is not in the file")),
            (true, _) | (false, true) => {}
        }
    }
    match found.iter().next() {
        Some(stray) => Err(format!("{stray} happened in a workspace in which nobody called for it")),
        None => Ok(()),
    }
}

fn check_result(call: &Call, tally: &mut Tally) -> Result<(), String> {
    if call.is_error && call.is_unknown() {
        tally.unknown += 1;
    }
    let Some(mark) = call.mark() else { return Ok(()) };
    tally.calls += 1;
    match call.is_error {
        // Nothing here fails by itself.
        true if !call.is_unknown() => Err(format!("{mark} failed: {}", call.output)),
        false if call.output.trim() != "1" => {
            Err(format!("{mark} ran, and says that it happened so often: {}", call.output))
        }
        true | false => Ok(()),
    }
}

impl Call {
    /// Whether it read the file back.
    pub(super) fn has_read_back(&self) -> bool {
        self.command == READ_BACK_COMMAND && !self.is_error
    }

    fn is_unknown(&self) -> bool {
        UNKNOWN.iter().any(|text| self.output.contains(text))
    }

    /// What it leaves in the file.
    fn mark(&self) -> Option<&str> {
        let (_, rest) = self.command.split_once("echo ")?;
        rest.split_whitespace().next()
    }
}

/// A finding that could never come would be worth nothing.
#[test]
fn effects_that_are_missing_repeated_or_out_of_place_are_found() {
    let call = |mark: &str, is_error: bool, output: &str| Call {
        command: format!("echo {mark} >> /workspace/calls"),
        is_error,
        output: output.to_owned(),
    };
    let read_back =
        |file: &str| Call { command: READ_BACK_COMMAND.to_owned(), is_error: false, output: file.to_owned() };
    let lost = format!("the sandbox is gone. {}. {WORKSPACE_LOST}.", UNKNOWN[0]);
    let found = |calls: &[Call]| check_effects(calls, &mut Tally::default());
    let (done, unknown) = (|mark| call(mark, false, "1"), |mark| call(mark, true, UNKNOWN[0]));

    assert_eq!(
        found(&[done("c1"), unknown("c2"), read_back("c1\nc2"), done("c3"), read_back("c1\nc2\nc3")]),
        Ok(())
    );
    assert_eq!(found(&[done("c1"), unknown("c2"), read_back("c1")]), Ok(()));
    assert_eq!(found(&[done("c1"), call("c2", true, &lost), done("c3"), read_back("c3")]), Ok(()));

    let wrong = |calls: &[Call]| found(calls).expect_err("it is wrong");
    assert!(wrong(&[done("c1")]).contains("could not be read back"));
    assert!(wrong(&[unknown("c1"), read_back("c1\nc1")]).contains("twice"));
    assert!(wrong(&[done("c1"), read_back("")]).contains("is not in the file"));
    assert!(wrong(&[done("c1"), read_back("c1\nc2")]).contains("nobody called"));
    assert!(wrong(&[call("c1", true, "hand: no"), read_back("")]).contains("failed"));
    assert!(wrong(&[call("c1", false, "2"), read_back("c1")]).contains("so often"));
    let late = [call("c1", true, &lost), done("c2"), read_back("c1\nc2")];
    assert!(wrong(&late).contains("nobody called"), "a call that was given up must not happen afterwards");
}
