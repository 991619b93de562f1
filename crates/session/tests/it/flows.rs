//! The flow tables of the reference (`sessions-flows.md`), by their names.

use protocol::event::{Finish, Verdict};
use protocol::session::Status;
use session::is_progress;
use session::step::{Act, FailureKind};

use crate::invariants::check;
use crate::world::{Say, World, confirmation, custom_result, interrupt, message, system};

/// A session that has taken up a message and waits for the model.
fn asked() -> World {
    let mut world = World::new();
    world.send(vec![message("hi")]).expect("accepted");
    assert!(matches!(world.go(), Act::CallModel { .. }));
    world
}

const IDLE: &str = "session.thread_status_idle end_turn\nsession.usage\nsession.status_idle end_turn";

fn shows(world: &mut World, expected: &str) {
    let news = world.news();
    let expected: Vec<&str> = expected.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    assert_eq!(news.lines().collect::<Vec<_>>(), expected);
    check(world);
}

#[test]
fn a1_a_new_session_has_an_empty_log_and_rests() {
    let mut world = World::new();
    assert_eq!(world.go(), Act::Rest);
    assert!(world.log.is_empty());
}

#[test]
fn a2_a_session_with_initial_events_runs_before_anyone_looks() {
    let mut world = World::with_initial(vec![message("hi"), message("there")]);
    assert_eq!(world.state.status, Status::Running);
    world.go();
    shows(
        &mut world,
        r#"session.status_running
        session.thread_status_running
        user.message "hi"
        user.message "there"
        span.model_request_start"#,
    );
}

#[test]
fn b1_one_message_one_answer() {
    let mut world = asked();
    assert_eq!(world.answer(&[Say::Thinking, Say::Text("hello")]), Act::Rest);
    shows(
        &mut world,
        &format!(
            r#"session.status_running
            session.thread_status_running
            user.message "hi"
            span.model_request_start
            agent.thinking
            agent.message "hello"
            span.model_request_end #4
            {IDLE}"#
        ),
    );
    assert_eq!(world.state.tokens.output_tokens, 5);
}

#[test]
fn b3_a_message_sent_while_running_starts_the_next_turn_without_an_idle_between() {
    let mut world = asked();
    world.send(vec![message("and?")]).expect("queued");
    world.skip_news();
    assert!(matches!(world.answer(&[Say::Text("one")]), Act::CallModel { .. }));
    assert_eq!(world.answer(&[Say::Text("two")]), Act::Rest);
    shows(
        &mut world,
        &format!(
            r#"agent.message "one"
            span.model_request_end #4
            user.message "and?"
            span.model_request_start
            agent.message "two"
            span.model_request_end #8
            {IDLE}"#
        ),
    );
}

#[test]
fn b4_a_refusal_is_a_stop_reason_and_the_session_stays_usable() {
    let mut world = asked();
    world.skip_news();
    let refused = Finish::Refused { category: Some("cyber".to_owned()), explanation: None };
    assert_eq!(world.answer_with(&[], refused), Act::Rest);
    shows(
        &mut world,
        "span.model_request_end #4
        session.thread_status_idle refusal
        session.usage
        session.status_idle refusal",
    );
    world.send(vec![message("something else")]).expect("accepted");
    assert!(matches!(world.go(), Act::CallModel { .. }));
}

#[test]
fn b5_a_system_message_is_taken_up_behind_its_user_message() {
    let mut world = World::new();
    world.send(vec![message("hi"), system("be brief")]).expect("accepted");
    world.go();
    shows(
        &mut world,
        r#"session.status_running
        session.thread_status_running
        user.message "hi"
        system.message "be brief"
        span.model_request_start"#,
    );
}

#[test]
fn c1_allowed_calls_run_one_after_the_other_behind_the_span() {
    let mut world = asked();
    world.skip_news();
    let act = world.answer(&[Say::Text("let me see"), Say::Bash("ls"), Say::Bash("pwd")]);
    let (first, second) = (world.call(0), world.call(1));
    assert_eq!(act, Act::Execute { call: first.clone() });
    assert_eq!(world.result(&first), Act::Execute { call: second.clone() });
    assert!(matches!(world.result(&second), Act::CallModel { .. }));
    assert_eq!(world.answer(&[Say::Text("done")]), Act::Rest);
    shows(
        &mut world,
        &format!(
            r#"agent.message "let me see"
            agent.tool_use bash Allow
            agent.tool_use bash Allow
            span.model_request_end #4
            agent.tool_result #6 "done"
            agent.tool_result #7 "done"
            span.model_request_start
            agent.message "done"
            span.model_request_end #11
            {IDLE}"#
        ),
    );
}

#[test]
fn c2_a_custom_tool_waits_for_its_client() {
    let mut world = asked();
    world.skip_news();
    assert_eq!(world.answer(&[Say::Custom("weather")]), Act::Rest);
    let call = world.call(0);
    let echoes = world.send(vec![custom_result(&call)]).expect("accepted");
    assert!(echoes[0].processed_at.is_some(), "processed on receipt");
    assert!(matches!(world.go(), Act::CallModel { .. }));
    shows(
        &mut world,
        "agent.custom_tool_use weather
        span.model_request_end #4
        session.thread_status_idle requires_action #5
        session.usage
        session.status_idle requires_action #5
        user.custom_tool_result #5
        session.status_running
        session.thread_status_running
        span.model_request_start",
    );
}

#[test]
fn c2a_a_result_that_comes_early_skips_the_idle() {
    let mut world = asked();
    world.skip_news();
    let act = world.answer(&[Say::Bash("ls"), Say::Custom("weather")]);
    let (bash, custom) = (world.call(0), world.call(1));
    assert_eq!(act, Act::Execute { call: bash.clone() });
    world.send(vec![custom_result(&custom)]).expect("accepted before the idle");
    assert!(matches!(world.result(&bash), Act::CallModel { .. }));
    assert!(!world.news().contains("status_idle"));
}

#[test]
fn c3_an_allowed_confirmation_runs_the_call() {
    let mut world = asked();
    world.skip_news();
    assert_eq!(world.answer(&[Say::Ask("rm")]), Act::Rest);
    let call = world.call(0);
    let echoes = world.send(vec![confirmation(&call, Verdict::Allow, None)]).expect("accepted");
    assert_eq!(echoes[0].processed_at, None);
    assert_eq!(world.go(), Act::Execute { call: call.clone() });
    assert!(matches!(world.result(&call), Act::CallModel { .. }));
    shows(
        &mut world,
        r#"agent.tool_use bash Ask
        span.model_request_end #4
        session.thread_status_idle requires_action #5
        session.usage
        session.status_idle requires_action #5
        session.status_running
        session.thread_status_running
        user.tool_confirmation #5 Allow
        agent.tool_result #5 "done"
        span.model_request_start"#,
    );
}

#[test]
fn c4_a_denied_call_does_not_run_and_the_model_hears_why() {
    let mut world = asked();
    world.answer(&[Say::Ask("rm")]);
    world.skip_news();
    let call = world.call(0);
    world.send(vec![confirmation(&call, Verdict::Deny, Some("too risky"))]).expect("accepted");
    assert!(matches!(world.go(), Act::CallModel { .. }));
    shows(
        &mut world,
        r#"session.status_running
        session.thread_status_running
        user.tool_confirmation #5 Deny
        agent.tool_result #5 "The user rejected this use of bash: too risky" error
        span.model_request_start"#,
    );
}

#[test]
fn c5_two_blocking_calls_answered_one_at_a_time_show_what_is_left() {
    let mut world = asked();
    world.answer(&[Say::Ask("rm"), Say::Custom("weather")]);
    let (ask, custom) = (world.call(0), world.call(1));
    world.skip_news();
    world.send(vec![confirmation(&ask, Verdict::Allow, None)]).expect("accepted");
    assert_eq!(world.go(), Act::Rest);
    shows(
        &mut world,
        "user.tool_confirmation #5 Allow
        session.thread_status_idle requires_action #6
        session.usage
        session.status_idle requires_action #6",
    );
    world.send(vec![custom_result(&custom)]).expect("accepted");
    assert_eq!(world.go(), Act::Execute { call: ask });
    shows(
        &mut world,
        "user.custom_tool_result #6
        session.status_running
        session.thread_status_running",
    );
}

#[test]
fn c5_both_answers_in_one_request_give_one_run_and_no_second_idle() {
    let mut world = asked();
    world.answer(&[Say::Ask("rm"), Say::Custom("weather")]);
    let (ask, custom) = (world.call(0), world.call(1));
    world.skip_news();
    world.send(vec![custom_result(&custom), confirmation(&ask, Verdict::Allow, None)]).expect("accepted");
    assert_eq!(world.go(), Act::Execute { call: ask });
    shows(
        &mut world,
        "user.custom_tool_result #6
        session.status_running
        session.thread_status_running
        user.tool_confirmation #5 Allow",
    );
}

#[test]
fn c6_a_call_of_a_tool_that_is_not_enabled_is_denied_and_the_turn_goes_on() {
    let mut world = asked();
    world.skip_news();
    assert!(matches!(world.answer(&[Say::Denied("ls")]), Act::CallModel { .. }));
    shows(
        &mut world,
        r#"agent.tool_use bash Deny
        span.model_request_end #4
        agent.tool_result #5 "Permission to use bash has been denied." error
        span.model_request_start"#,
    );
}

#[test]
fn mixed_calls_run_what_is_allowed_before_they_wait() {
    let mut world = asked();
    let act = world.answer(&[Say::Custom("weather"), Say::Ask("rm"), Say::Bash("ls")]);
    let bash = world.call(2);
    assert_eq!(act, Act::Execute { call: bash.clone() });
    assert_eq!(world.result(&bash), Act::Rest);
    assert_eq!(world.state.announced.len(), 2);
    check(&world);
}

#[test]
fn d1_an_interrupt_while_the_model_answers_closes_the_span_first() {
    let mut world = asked();
    world.skip_news();
    world.send(vec![interrupt()]).expect("accepted");
    assert_eq!(world.go(), Act::Rest);
    shows(&mut world, &format!("span.model_request_end #4 error\nuser.interrupt\n{IDLE}"));
}

#[test]
fn d2_an_interrupt_with_a_message_ends_the_turn_and_starts_another() {
    let mut world = asked();
    world.skip_news();
    world.send(vec![interrupt(), message("rather this")]).expect("accepted");
    assert!(matches!(world.go(), Act::CallModel { .. }));
    shows(
        &mut world,
        &format!(
            r#"span.model_request_end #4 error
            user.interrupt
            {IDLE}
            session.status_running
            session.thread_status_running
            user.message "rather this"
            span.model_request_start"#
        ),
    );
}

#[test]
fn d3_an_interrupt_while_a_tool_runs_gives_it_an_error_result() {
    let mut world = asked();
    world.answer(&[Say::Bash("sleep"), Say::Custom("weather")]);
    world.skip_news();
    world.send(vec![interrupt()]).expect("accepted");
    assert_eq!(world.go(), Act::Rest);
    let text = session::step::INTERRUPTED;
    shows(
        &mut world,
        &format!(
            "agent.tool_result #5 {text:?} error\nagent.tool_result #6 {text:?} error\nuser.interrupt\n{IDLE}"
        ),
    );
}

#[test]
fn d4_an_interrupt_at_rest_is_only_recorded() {
    let mut world = asked();
    world.answer(&[Say::Text("hello")]);
    world.skip_news();
    world.send(vec![interrupt()]).expect("accepted");
    assert_eq!(world.go(), Act::Rest);
    shows(&mut world, "user.interrupt");
}

#[test]
fn d4_an_interrupt_behind_a_message_that_nobody_took_up_stops_that_message() {
    let mut world = World::new();
    world.send(vec![message("hi")]).expect("accepted");
    world.send(vec![interrupt()]).expect("accepted");
    assert_eq!(world.go(), Act::Rest);
    shows(
        &mut world,
        &format!(
            r#"session.status_running
            session.thread_status_running
            user.message "hi"
            user.interrupt
            {IDLE}"#
        ),
    );
}

#[test]
fn d5_an_interrupt_of_a_session_that_waits_answers_its_calls_without_running() {
    let mut world = asked();
    world.answer(&[Say::Ask("rm")]);
    world.skip_news();
    world.send(vec![interrupt()]).expect("accepted");
    assert_eq!(world.go(), Act::Rest);
    let text = session::step::INTERRUPTED;
    shows(&mut world, &format!("agent.tool_result #5 {text:?} error\nuser.interrupt\n{IDLE}"));
    world.send(vec![message("go on")]).expect("accepted after the interrupt");
}

#[test]
fn e1_a_transient_error_reschedules_and_then_succeeds() {
    let mut world = asked();
    world.skip_news();
    assert_eq!(world.fail(FailureKind::Overloaded, true), Act::BackOff { failures: 1 });
    assert_eq!(world.state.status, Status::Rescheduling);
    assert!(matches!(world.retry(), Act::CallModel { .. }));
    assert_eq!(world.answer(&[Say::Text("hello")]), Act::Rest);
    shows(
        &mut world,
        &format!(
            r#"span.model_request_end #4 error
            session.error ModelOverloadedError Retrying
            session.thread_status_rescheduled
            session.status_rescheduled
            session.status_running
            session.thread_status_running
            span.model_request_start
            agent.message "hello"
            span.model_request_end #11
            {IDLE}"#
        ),
    );
    assert_eq!(world.state.failures, 0);
}

#[test]
fn e2_exhausted_retries_flush_what_is_queued_and_leave_the_session_usable() {
    let mut world = asked();
    world.fail(FailureKind::RateLimited, true);
    world.send(vec![message("queued")]).expect("queued while rescheduling");
    world.retry();
    world.fail(FailureKind::RateLimited, true);
    world.retry();
    world.skip_news();
    assert_eq!(world.fail(FailureKind::RateLimited, true), Act::Rest);
    shows(
        &mut world,
        r#"span.model_request_end #18 error
        session.error ModelRateLimitedError Exhausted
        user.message "queued"
        session.thread_status_idle retries_exhausted
        session.usage
        session.status_idle retries_exhausted"#,
    );
    world.send(vec![message("again")]).expect("accepted");
    assert!(matches!(world.go(), Act::CallModel { .. }));
    assert_eq!(world.fail(FailureKind::RateLimited, true), Act::BackOff { failures: 1 });
}

#[test]
fn e3_a_terminal_error_ends_the_session() {
    let mut world = asked();
    world.skip_news();
    assert_eq!(world.fail(FailureKind::Internal, false), Act::Stop);
    shows(
        &mut world,
        "span.model_request_end #4 error
        session.error UnknownError Terminal
        session.thread_status_terminated
        session.status_terminated",
    );
    assert!(world.send(vec![message("hello?")]).is_err());
}

#[test]
fn e4_a_turn_that_never_ends_runs_into_the_tool_limit() {
    let mut world = asked();
    world.state.rounds = session::step::ROUNDS_MAX - 1;
    world.answer(&[Say::Bash("ls")]);
    world.skip_news();
    let call = world.call(0);
    assert_eq!(world.result(&call), Act::Rest);
    assert_eq!(
        world.news(),
        "agent.tool_result #5 \"done\"\n\
         session.error ToolUseLimitReachedError Exhausted\n\
         session.thread_status_idle retries_exhausted\n\
         session.usage\n\
         session.status_idle retries_exhausted"
    );
    world.send(vec![message("go on")]).expect("accepted");
    assert!(matches!(world.go(), Act::CallModel { .. }));
}

#[test]
fn e5_a_billing_error_is_final_for_the_turn() {
    let mut world = asked();
    world.skip_news();
    assert_eq!(world.fail(FailureKind::Billing, false), Act::Rest);
    shows(
        &mut world,
        "span.model_request_end #4 error
        session.error BillingError Exhausted
        session.thread_status_idle retries_exhausted
        session.usage
        session.status_idle retries_exhausted",
    );
}

#[test]
fn a_paused_answer_is_asked_again() {
    let mut world = asked();
    assert!(matches!(world.answer_with(&[Say::Text("so far")], Finish::Paused), Act::CallModel { .. }));
    check(&world);
}

#[test]
fn a_brain_that_takes_over_closes_the_request_of_a_dead_one_and_asks_again() {
    let mut world = asked();
    world.skip_news();
    assert!(matches!(world.go(), Act::CallModel { .. }));
    shows(&mut world, "span.model_request_end #4 error\nspan.model_request_start");
}

#[test]
fn a_brain_that_takes_over_runs_the_call_that_has_no_result() {
    let mut world = asked();
    world.answer(&[Say::Bash("ls")]);
    let call = world.call(0);
    assert_eq!(world.go(), Act::Execute { call });
}

#[test]
fn deliverables_are_collected_before_the_client_hears_of_the_end_and_the_answer_is_on_record_by_then() {
    let mut world = asked();
    world.answer(&[Say::Bash("ls")]);
    let call = world.call(0);
    assert!(matches!(world.result_in_sandbox(&call), Act::CallModel { .. }));
    world.skip_news();
    assert_eq!(world.answer(&[Say::Text("done")]), Act::Collect);
    shows(&mut world, "agent.message \"done\"\nspan.model_request_end #8");
    assert_eq!(world.clone().go(), Act::Collect, "a brain that takes over collects");
    assert_eq!(world.collected(), Act::Rest);
    shows(&mut world, IDLE);
}

#[test]
fn web_tools_leave_no_deliverables_and_searches_that_gave_something_are_counted() {
    let mut world = asked();
    world.answer(&[Say::Bash("ls")]);
    let call = world.call(0);
    world.result_in_sandbox(&call);
    world.answer(&[Say::Text("done")]);
    world.collected();
    world.send(vec![message("and the web?")]).expect("accepted");
    world.go();
    world.answer(&[Say::Web("web_search"), Say::Web("web_fetch"), Say::Web("web_search")]);
    for _ in 0..2 {
        let call = world.call(0);
        world.result(&call);
    }
    world.send(vec![interrupt()]).expect("accepted");
    assert_eq!(world.go(), Act::Rest, "nothing is collected");
    let used = world.state.usage_at(world.state.last_at).server_tool_use;
    assert_eq!((used.web_search_requests, used.web_fetch_requests), (1, 0));
}

#[test]
fn an_interrupt_of_a_session_whose_initial_message_nobody_took_up_stops_that_message() {
    let mut world = World::with_initial(vec![message("hi")]);
    world.send(vec![interrupt(), message("rather this")]).expect("accepted");
    assert!(matches!(world.go(), Act::CallModel { .. }));
    shows(
        &mut world,
        &format!(
            r#"session.status_running
            session.thread_status_running
            user.message "hi"
            user.interrupt
            {IDLE}
            session.status_running
            session.thread_status_running
            user.message "rather this"
            span.model_request_start"#
        ),
    );
}

#[test]
fn a_server_that_gives_up_leaves_nothing_open_that_the_next_turn_would_run_into() {
    let mut world = asked();
    world.answer(&[Say::Bash("boom"), Say::Custom("weather")]);
    let call = world.call(0);
    world.result_in_sandbox(&call);
    world.send(vec![message("are you there?")]).expect("queued");
    world.skip_news();
    assert_eq!(world.give_up(), Act::Rest);
    shows(
        &mut world,
        r#"agent.tool_result #6 "Tool execution was interrupted before completion. Please retry." error
        session.error UnknownError Exhausted
        user.message "are you there?"
        session.thread_status_idle retries_exhausted
        session.usage
        session.status_idle retries_exhausted"#,
    );
    world.send(vec![message("again")]).expect("queued");
    assert!(matches!(world.go(), Act::CallModel { .. }));
}

#[test]
fn a_session_that_is_given_up_before_it_began_has_begun_and_is_idle() {
    let mut world = World::new();
    world.send(vec![message("hi")]).expect("queued");
    assert_eq!(world.give_up(), Act::Rest);
    shows(
        &mut world,
        r#"session.status_running
        session.thread_status_running
        session.error UnknownError Exhausted
        user.message "hi"
        session.thread_status_idle retries_exhausted
        session.usage
        session.status_idle retries_exhausted"#,
    );
}

#[test]
fn a_call_that_was_pending_when_the_server_gave_up_has_an_unknown_outcome() {
    let mut world = asked();
    assert!(matches!(world.answer(&[Say::Bash("boom")]), Act::Execute { .. }));
    world.skip_news();
    assert_eq!(world.give_up(), Act::Rest);
    let news = world.news();
    assert!(news.starts_with("agent.tool_result #5 \"harness: the server failed repeatedly"), "{news}");
    check(&world);
}

#[test]
fn brains_that_die_one_after_the_other_record_no_progress_and_one_that_gets_an_answer_does() {
    let mut world = asked();
    for _ in 0..3 {
        // Each closes the request of the one before, and asks again.
        assert!(matches!(world.go(), Act::CallModel { .. }));
    }
    assert!(!world.log.iter().any(|event| is_progress(&event.body)));
    world.answer(&[Say::Bash("boom")]);
    assert!(world.log.iter().any(|event| is_progress(&event.body)));
    let asked = world.log.len();
    assert!(matches!(world.go(), Act::Execute { .. }));
    assert!(!world.log[asked..].iter().any(|event| is_progress(&event.body)));
}
