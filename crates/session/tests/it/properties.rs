//! Random histories: whatever clients send, however acts end and wherever brains die, the invariants hold and the
//! session comes to rest.

use proptest::prelude::*;
use protocol::event::{Finish, Verdict};
use session::step::{Act, FailureKind};

use crate::invariants::check;
use crate::world::{Say, World, confirmation, custom_result, interrupt, message, system};

/// What the world does next.
#[derive(Clone, Debug)]
enum Move {
    Message,
    System,
    Interrupt,
    InterruptAndMessage,
    /// Answers the n-th call that waits: result, allow or deny.
    Answer(usize, bool),
    /// The act under way ends well, or not.
    Finish(u8),
    /// The brain dies; another takes over.
    Crash,
    /// Brains died too often; the next one gives up.
    GiveUp,
}

fn moves() -> impl Strategy<Value = Vec<Move>> {
    let one = prop_oneof![
        3 => Just(Move::Message),
        1 => Just(Move::System),
        1 => Just(Move::Interrupt),
        1 => Just(Move::InterruptAndMessage),
        4 => (0..4_usize, any::<bool>()).prop_map(|(n, yes)| Move::Answer(n, yes)),
        12 => any::<u8>().prop_map(Move::Finish),
        2 => Just(Move::Crash),
        1 => Just(Move::GiveUp),
    ];
    prop::collection::vec(one, 0..80)
}

/// Sends, and lets the brain hear of it where it would: at rest at once, at work when the act ends or is cut off.
fn send(world: &mut World, act: Act, bodies: Vec<protocol::event::Body>) -> Act {
    let has_interrupt = bodies.iter().any(|body| matches!(body, protocol::event::Body::UserInterrupt { .. }));
    if world.send(bodies).is_err() {
        return act;
    }
    match act {
        Act::Rest => world.go(),
        _ if has_interrupt => world.go(),
        other => other,
    }
}

fn answer_call(world: &mut World, act: Act, n: usize, yes: bool) -> Act {
    let calls: Vec<_> = world.state.blocked().map(|call| (call.id.clone(), call.kind.clone())).collect();
    let Some((id, kind)) = calls.get(n % calls.len().max(1)) else { return act };
    let body = match kind {
        session::state::CallKind::Custom => custom_result(id),
        session::state::CallKind::Builtin { .. } | session::state::CallKind::Mcp { .. } => {
            confirmation(id, if yes { Verdict::Allow } else { Verdict::Deny }, None)
        }
    };
    send(world, act, vec![body])
}

fn finish(world: &mut World, act: Act, how: u8) -> Act {
    match act {
        Act::CallModel { .. } => match how % 10 {
            0..=2 => world.answer(&[Say::Text("done")]),
            3 => world.answer(&[Say::Thinking, Say::Bash("ls"), Say::Custom("weather")]),
            4 => world.answer(&[Say::Ask("rm"), Say::Ask("mv"), Say::Bash("ls")]),
            5 => world.answer(&[Say::Denied("web_fetch"), Say::Custom("weather")]),
            6 => world.answer_with(&[], Finish::Refused { category: None, explanation: None }),
            7 => world.answer_with(&[Say::Text("hm")], Finish::Paused),
            8 => world.fail(FailureKind::Overloaded, true),
            _ => world.fail(FailureKind::RequestFailed, false),
        },
        // Every other call finds the sandbox made, as the first call of a session does not.
        Act::Execute { call } if how.is_multiple_of(2) => world.result_in_sandbox(&call),
        Act::Execute { call } => world.result(&call),
        Act::Collect => world.collected(),
        Act::BackOff { .. } => world.retry(),
        rest @ (Act::Rest | Act::Stop) => rest,
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    #[test]
    fn any_interleaving_keeps_the_invariants(moves in moves(), starts_running in any::<bool>()) {
        let mut world = if starts_running { World::with_initial(vec![message("hi")]) } else { World::new() };
        let mut act = world.go();
        for next in moves {
            act = match next {
                Move::Message => send(&mut world, act, vec![message("hi")]),
                Move::System => send(&mut world, act, vec![system("be brief")]),
                Move::Interrupt => send(&mut world, act, vec![interrupt()]),
                Move::InterruptAndMessage => send(&mut world, act, vec![interrupt(), message("rather")]),
                Move::Answer(n, yes) => answer_call(&mut world, act, n, yes),
                Move::Finish(how) => finish(&mut world, act, how),
                Move::Crash => world.go(),
                Move::GiveUp if world.state.wants_brain() => world.give_up(),
                Move::GiveUp => act,
            };
            check(&world);
            prop_assert_eq!(world.state.wants_brain(), !matches!(act, Act::Rest | Act::Stop), "{:?}", act);
        }
        // Left alone with willing clients, the session comes to rest.
        for _ in 0..400 {
            act = match act {
                Act::Rest if world.state.is_waiting() => answer_call(&mut world, Act::Rest, 0, true),
                Act::Rest | Act::Stop => break,
                other => finish(&mut world, other, 0),
            };
            check(&world);
        }
        prop_assert!(matches!(act, Act::Rest | Act::Stop));
        prop_assert!(world.inbox.is_empty());
        prop_assert!(world.state.calls.is_empty());
    }
}
