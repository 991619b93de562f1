//! Calls of MCP servers' tools (flow table C8), and what becomes of one that a brain died over.

use protocol::event::{Permission, Verdict};
use session::is_progress;
use session::step::{Act, OUTCOME_UNKNOWN};

use crate::invariants::check;
use crate::world::{Say, World, confirmation, interrupt, message};

fn asked() -> World {
    let mut world = World::new();
    world.send(vec![message("hi")]).expect("accepted");
    assert!(matches!(world.go(), Act::CallModel { .. }));
    world.skip_news();
    world
}

fn shows(world: &mut World, expected: &str) {
    let news = world.news();
    let expected: Vec<&str> = expected.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    assert_eq!(news.lines().collect::<Vec<_>>(), expected);
    check(world);
}

#[test]
fn c8_an_allowed_call_runs_and_its_result_is_of_its_own_kind() {
    let mut world = asked();
    let act = world.answer(&[Say::Mcp("search", Permission::Allow)]);
    let call = world.call(0);
    assert_eq!(act, Act::Execute { call: call.clone() });
    world.begin(&call, false);
    assert!(matches!(world.result(&call), Act::CallModel { .. }));
    shows(
        &mut world,
        r#"agent.mcp_tool_use linear search Allow
        span.model_request_end #4
        agent.mcp_tool_result #5 "done"
        span.model_request_start"#,
    );
}

#[test]
fn c8_a_call_that_is_asked_about_waits_for_its_confirmation() {
    let mut world = asked();
    assert_eq!(world.answer(&[Say::Mcp("search", Permission::Ask)]), Act::Rest);
    let call = world.call(0);
    world.send(vec![confirmation(&call, Verdict::Allow, None)]).expect("accepted");
    assert!(world.send(vec![confirmation(&call, Verdict::Allow, None)]).is_err(), "it is confirmed once");
    assert_eq!(world.go(), Act::Execute { call: call.clone() });
    shows(
        &mut world,
        "agent.mcp_tool_use linear search Ask
        span.model_request_end #4
        session.thread_status_idle requires_action #5
        session.usage
        session.status_idle requires_action #5
        session.status_running
        session.thread_status_running
        user.tool_confirmation #5 Allow",
    );
}

#[test]
fn c8_a_denied_call_does_not_run_and_the_model_hears_why() {
    let mut world = asked();
    world.answer(&[Say::Mcp("search", Permission::Ask), Say::Mcp("drop", Permission::Deny)]);
    let call = world.call(0);
    world.skip_news();
    world.send(vec![confirmation(&call, Verdict::Deny, Some("not now"))]).expect("accepted");
    assert!(matches!(world.go(), Act::CallModel { .. }));
    shows(
        &mut world,
        r#"session.status_running
        session.thread_status_running
        user.tool_confirmation #5 Deny
        agent.mcp_tool_result #5 "The user rejected this use of search: not now" error
        span.model_request_start"#,
    );
}

#[test]
fn c8_a_call_of_a_tool_that_is_not_enabled_is_denied() {
    let mut world = asked();
    assert!(matches!(world.answer(&[Say::Mcp("drop", Permission::Deny)]), Act::CallModel { .. }));
    let call_result = r#"agent.mcp_tool_result #5 "Permission to use drop has been denied." error"#;
    assert!(world.news().contains(call_result));
}

#[test]
fn c8_a_server_that_cannot_be_reached_changes_nothing_but_what_is_said() {
    let mut world = World::new();
    world.send(vec![message("hi")]).expect("accepted");
    world.go();
    world.skip_news();
    let before = world.state.clone();
    world.mcp_fails();
    let failed =
        &world.log.iter().find(|event| event.body.kind() == "session.error").expect("it is said").body;
    assert!(!is_progress(failed), "a brain that dies after it gets the session nowhere");
    assert_eq!(
        (world.state.failures, &world.state.ended, world.state.status),
        (before.failures, &before.ended, before.status)
    );
}

#[test]
fn a_call_that_a_brain_died_over_is_not_made_again_and_the_model_is_told() {
    let mut world = asked();
    world.answer(&[Say::Mcp("pay", Permission::Allow), Say::Mcp("search", Permission::Allow)]);
    let (first, second) = (world.call(0), world.call(1));
    world.begin(&first, false);
    world.skip_news();
    assert_eq!(world.go(), Act::Execute { call: second }, "the one that was never begun is made");
    shows(&mut world, &format!("agent.mcp_tool_result #5 {OUTCOME_UNKNOWN:?} error"));
}

#[test]
fn a_call_that_changes_nothing_is_made_again_after_a_crash() {
    let mut world = asked();
    world.answer(&[Say::Mcp("search", Permission::Allow)]);
    let call = world.call(0);
    world.begin(&call, true);
    assert_eq!(world.go(), Act::Execute { call });
}

#[test]
fn a_confirmed_call_that_a_brain_died_over_is_not_made_again() {
    let mut world = asked();
    world.answer(&[Say::Mcp("pay", Permission::Ask)]);
    let call = world.call(0);
    world.send(vec![confirmation(&call, Verdict::Allow, None)]).expect("accepted");
    assert_eq!(world.go(), Act::Execute { call: call.clone() });
    world.begin(&call, false);
    world.skip_news();
    assert!(matches!(world.go(), Act::CallModel { .. }));
    assert!(world.news().contains("not known whether it had any effect"));
}

#[test]
fn d_an_interrupt_ends_a_call_whether_it_had_begun_or_not() {
    let mut world = asked();
    world.answer(&[Say::Mcp("pay", Permission::Allow), Say::Mcp("search", Permission::Allow)]);
    world.begin(&world.call(0).clone(), false);
    world.send(vec![interrupt()]).expect("accepted");
    world.skip_news();
    assert_eq!(world.go(), Act::Rest);
    let news = world.news();
    assert_eq!(news.matches("agent.mcp_tool_result").count(), 2, "{news}");
    assert_eq!(news.matches("interrupted before completion").count(), 2, "{news}");
}

#[test]
fn a_turn_that_is_given_up_closes_its_calls() {
    let mut world = asked();
    world.answer(&[Say::Mcp("pay", Permission::Allow)]);
    world.skip_news();
    assert_eq!(world.give_up(), Act::Rest);
    assert!(world.news().starts_with("agent.mcp_tool_result"));
}
