//! Where the log says that a session's workspace is.

use protocol::event::{Body, Snapshot};
use protocol::id::{EventId, SandboxId, ThreadId};
use protocol::time::Timestamp;
use session::record::{NO_WORKSPACE, want_snapshot};
use session::state::Wish;
use session::{Refusal, State};

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_micros(seconds * 1_000_000)
}

/// The fold of these events, a second apart.
fn folded(bodies: &[Body]) -> State {
    let mut state = State::new(ThreadId::from_text("sthr_1"), "helper".to_owned(), at(0));
    for (number, body) in (1..).zip(bodies) {
        state.apply(&EventId::from_text(format!("sevt_{number}")), body, at(number));
    }
    state
}

fn sandbox(name: &str) -> Body {
    Body::Sandbox { sandbox_id: SandboxId::from_text(name) }
}

fn snapshot(key: &str) -> Snapshot {
    Snapshot {
        key: key.to_owned(),
        size_bytes: 1,
        sha256: String::new(),
        base: "host".to_owned(),
        saved_at: at(2),
        begun_at: at(1),
        left_out: 0,
    }
}

fn saved(key: &str, put_away: bool) -> Body {
    Body::Snapshot { snapshot: snapshot(key), put_away }
}

fn lost(key: &str) -> Body {
    Body::SnapshotLost { key: key.to_owned(), reason: "it was old".to_owned(), told: false }
}

#[test]
fn a_workspace_that_is_put_away_is_in_its_snapshot_alone() {
    let state = folded(&[sandbox("sbx_1"), saved("one", true)]);
    assert_eq!((state.sandbox, state.snapshot), (None, Some(snapshot("one"))));
    let state = folded(&[sandbox("sbx_1"), saved("one", false)]);
    assert_eq!(state.sandbox, Some(SandboxId::from_text("sbx_1")));
}

#[test]
fn a_workspace_is_as_old_as_its_first_sandbox_however_often_it_moved() {
    let fresh = folded(&[sandbox("sbx_1")]);
    assert_eq!(fresh.workspace_begun_at, Some(at(1)));
    let moved = folded(&[
        sandbox("sbx_1"),
        saved("one", true),
        sandbox("sbx_2"),
        saved("two", true),
        sandbox("sbx_3"),
    ]);
    assert_eq!(moved.workspace_begun_at, Some(at(1)));
    let anew = folded(&[sandbox("sbx_1"), saved("one", true), lost("one"), sandbox("sbx_2")]);
    assert_eq!((anew.workspace_begun_at, anew.snapshot), (Some(at(4)), None));
}

#[test]
fn a_snapshot_outlives_its_sandbox_and_is_lost_only_by_its_own_name() {
    let died = Body::SandboxLost { sandbox_id: SandboxId::from_text("sbx_2") };
    let state = folded(&[sandbox("sbx_1"), saved("one", true), sandbox("sbx_2"), died, lost("another")]);
    assert_eq!((state.sandbox, state.snapshot), (None, Some(snapshot("one"))));
}

#[test]
fn a_workspace_that_was_lost_while_nobody_was_there_is_told_once() {
    let told = Body::SnapshotLost { key: String::new(), reason: "it was old".to_owned(), told: true };
    let untold = |bodies: &[Body]| folded(bodies).untold_loss;
    let gone = [sandbox("sbx_1"), saved("one", true), lost("one")];
    assert_eq!(untold(&gone).as_deref(), Some("it was old"));
    assert_eq!(untold(&[gone.as_slice(), &[told]].concat()), None);
    assert_eq!(untold(&[sandbox("sbx_1"), saved("one", false), lost("one")]), None, "its sandbox lives");
    assert_eq!(untold(&[gone[0].clone(), gone[1].clone(), lost("another")]), None, "it is another's");
}

#[test]
fn a_sandbox_that_was_put_away_is_to_be_told_of_until_the_model_has_heard_of_it() {
    let untold = |bodies: &[Body]| folded(bodies).untold_restoration;
    let died = Body::SandboxLost { sandbox_id: SandboxId::from_text("sbx_2") };
    let (begun, again, away) = (sandbox("sbx_1"), sandbox("sbx_2"), saved("one", true));
    let told = Body::RestorationTold {};
    assert!(untold(&[begun.clone(), away.clone(), again.clone()]));
    assert!(untold(&[begun.clone(), away.clone(), again.clone(), saved("two", true)]), "twice is told once");
    assert!(!untold(&[begun.clone(), away.clone(), again.clone(), told]));
    assert!(!untold(&[begun.clone(), away.clone(), again.clone(), died]), "that was told, and more");
    assert!(!untold(&[begun, saved("one", false)]), "it lives on");
    assert!(!untold(&[away, again]), "a session that begins with another's workspace has run nothing");
}

#[test]
fn a_snapshot_is_wanted_once_and_only_of_a_sandbox_that_is_there() {
    let want = |bodies: &[Body]| want_snapshot(&folded(bodies));
    let (begun, wanted) = (sandbox("sbx_1"), Body::SnapshotWanted {});
    assert_eq!(want(std::slice::from_ref(&begun)), Ok(Some(Body::SnapshotWanted {})));
    assert_eq!(want(&[begun.clone(), wanted.clone()]), Ok(None), "it is on record");
    let saved_since = [begun.clone(), wanted.clone(), saved("one", false)];
    assert_eq!(
        want(&saved_since),
        Ok(Some(Body::SnapshotWanted {})),
        "something may have been written since"
    );
    assert_eq!(want(&[begun.clone(), saved("one", true)]), Ok(None), "what is saved is all there is");
    let Err(Refusal::Invalid(nothing)) = want(&[]) else { panic!("there is nothing to be saved") };
    assert_eq!(nothing.code, Some(NO_WORKSPACE));
    let Err(Refusal::Invalid(busy)) = want(&[begun.clone(), Body::StatusRunning {}]) else {
        panic!("it works")
    };
    assert!(busy.to_string().contains("cannot be saved while it works"), "{busy}");
    assert_eq!(want(&[begun, Body::StatusTerminated {}]), Err(Refusal::Over));
}

#[test]
fn a_wish_for_a_snapshot_ends_with_one_or_with_a_reason() {
    let wish = |bodies: &[Body]| folded(bodies).wish;
    let (begun, wanted) = (sandbox("sbx_1"), Body::SnapshotWanted {});
    assert_eq!(wish(&[begun.clone(), wanted.clone()]), Some(Wish::Pending { since: at(2) }));
    assert_eq!(wish(&[begun.clone(), wanted.clone(), saved("one", true)]), None);
    let unsaved = Body::SnapshotUnsaved { reason: "too large".to_owned() };
    let failed = Wish::Failed { at: at(3), reason: "too large".to_owned() };
    assert_eq!(wish(&[begun.clone(), wanted.clone(), unsaved.clone()]), Some(failed));
    assert_eq!(
        wish(&[begun.clone(), wanted.clone(), unsaved, wanted.clone()]),
        Some(Wish::Pending { since: at(4) })
    );
    let died = Body::SandboxLost { sandbox_id: SandboxId::from_text("sbx_1") };
    assert!(matches!(wish(&[begun, wanted, died]), Some(Wish::Failed { .. })));
}
