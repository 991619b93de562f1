//! Which client events a session accepts now (`sessions.md` §11.2).

use protocol::event::Verdict;
use protocol::id::{EventId, ThreadId};
use session::Refusal;

use crate::world::{Say, World, confirmation, custom_result, interrupt, message, system};

fn refusal(world: &mut World, bodies: Vec<protocol::event::Body>) -> String {
    let before = world.clone();
    let refusal = world.send(bodies).expect_err("refused");
    assert_eq!(world.state, before.state, "a refusal changes nothing");
    match refusal {
        Refusal::Invalid(invalid) => invalid.to_string(),
        Refusal::Over => "over".to_owned(),
    }
}

fn waiting(says: &[Say<'_>]) -> World {
    let mut world = World::new();
    world.send(vec![message("hi")]).expect("accepted");
    world.go();
    world.answer(says);
    world
}

#[test]
fn a_message_while_a_call_waits_is_refused_in_the_words_that_clients_match() {
    let mut world = waiting(&[Say::Custom("weather")]);
    let text = refusal(&mut world, vec![message("hello?")]);
    assert!(
        text.contains("Invalid user.message event at events[0]: waiting on responses to events [sevt_"),
        "{text}"
    );
}

#[test]
fn an_interrupt_before_a_message_releases_that_rule() {
    let mut world = waiting(&[Say::Custom("weather")]);
    world.send(vec![interrupt(), message("never mind")]).expect("accepted");
    world.send(vec![message("more")]).expect("the interrupt still waits, the rule stays released");
}

#[test]
fn one_bad_event_refuses_the_whole_request() {
    let mut world = World::new();
    let text = refusal(&mut world, vec![message("good"), custom_result(&EventId::from_text("sevt_none"))]);
    assert_eq!(text, "events[1].custom_tool_use_id: no pending call has the id sevt_none");
}

#[test]
fn a_call_is_answered_once() {
    let mut world = waiting(&[Say::Custom("weather"), Say::Custom("time"), Say::Ask("rm")]);
    let (custom, ask) = (world.call(0), world.call(2));
    world.send(vec![custom_result(&custom), confirmation(&ask, Verdict::Allow, None)]).expect("accepted");
    assert!(refusal(&mut world, vec![custom_result(&custom)]).contains("no pending call"));
    assert!(refusal(&mut world, vec![confirmation(&ask, Verdict::Deny, None)]).contains("already confirmed"));
}

#[test]
fn answers_must_fit_their_call() {
    let mut world = waiting(&[Say::Custom("weather"), Say::Ask("rm")]);
    let (custom, ask) = (world.call(0), world.call(1));
    assert!(
        refusal(&mut world, vec![confirmation(&custom, Verdict::Allow, None)])
            .contains("user.custom_tool_result")
    );
    assert!(refusal(&mut world, vec![custom_result(&ask)]).contains("not of a custom tool"));
    let mut world = waiting(&[Say::Bash("ls")]);
    let allowed = world.call(0);
    let text = refusal(&mut world, vec![confirmation(&allowed, Verdict::Allow, None)]);
    assert!(text.contains("does not ask for a confirmation"), "{text}");
}

#[test]
fn a_system_message_stands_last_and_once() {
    let mut world = World::new();
    assert!(refusal(&mut world, vec![system("a"), message("b")]).contains("must be the last event"));
    assert!(refusal(&mut world, vec![system("a"), system("b")]).contains("must be the last event"));
    world.send(vec![system("alone")]).expect("alone is accepted");
}

#[test]
fn while_a_call_waits_a_system_message_only_follows_a_tool_result() {
    let mut world = waiting(&[Say::Custom("weather"), Say::Custom("time")]);
    assert!(refusal(&mut world, vec![system("be brief")]).contains("waiting on responses to events"));
    let call = world.call(0);
    world.send(vec![custom_result(&call), system("be brief")]).expect("accepted");
}

#[test]
fn an_interrupt_of_another_thread_is_refused() {
    let mut world = World::new();
    let elsewhere =
        protocol::event::Body::UserInterrupt { session_thread_id: Some(ThreadId::from_text("sthr_K")) };
    assert_eq!(refusal(&mut world, vec![elsewhere]), "events[0].session_thread_id: Thread not found: sthr_K");
}

#[test]
fn the_inbox_is_bounded() {
    let mut world = World::new();
    for _ in 0..session::admit::QUEUED_MAX / 50 {
        world.send((0..50).map(|_| message("hi")).collect()).expect("accepted");
    }
    assert!(refusal(&mut world, vec![message("one more")]).contains("already has 1000 events waiting"));
}

#[test]
fn the_inbox_is_bounded_in_bytes_too() {
    let mut world = World::new();
    let large = "x".repeat(session::admit::QUEUED_BYTES_MAX / 2);
    world.send(vec![message(&large), message(&large)]).expect("fits");
    assert!(refusal(&mut world, vec![message("one more")]).contains("too much content"));
}
