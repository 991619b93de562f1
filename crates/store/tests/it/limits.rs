//! The limits of a store. Each check takes a store that is opened with them: any engine has to pass.

use protocol::event::{Body, StopReason};
use protocol::id::{SessionId, WorkspaceId};
use session::Draft;
use store::{ChangeError, LEASE, Lease, Limits, NewSession, Options, Seen, Store};

use crate::world::{World, message, soon};

fn few_run(options: &mut Options) {
    options.limits =
        Limits { running_max: Some(3), running_per_workspace_max: Some(2), waiting_per_workspace_max: None };
}

fn few_wait(options: &mut Options) {
    options.limits = Limits { waiting_per_workspace_max: Some(4), ..Limits::default() };
}

/// Makes a session that wants a brain.
async fn begin(world: &World, workspace: &WorkspaceId) -> Result<Seen, ChangeError> {
    let new = world.new_session(world.record(), vec![message("hi")]);
    world.store.create_session(NewSession { workspace: workspace.clone(), ..new }).await
}

async fn begin_many(world: &World, workspace: &WorkspaceId, count: usize) -> Vec<SessionId> {
    let mut ids = Vec::new();
    for _ in 0..count {
        ids.push(begin(world, workspace).await.expect("made").record.id);
    }
    ids
}

/// What can be claimed now. At least one session must be.
async fn claim_all(store: &Store) -> Vec<Lease> {
    soon(store.claim("test", 100)).await.expect("works")
}

/// Does what the session wants.
async fn satisfy(world: &World, lease: &Lease) {
    let view = world.view(&lease.token.session).await;
    let takes = view.inbox.into_iter().map(|event| Draft::Take(event.id));
    let idle = Body::StatusIdle { stop_reason: StopReason::EndTurn {}, stop_details: None };
    let drafts = takes.chain([world.draft(idle)]).collect();
    world.store.append(&lease.token, view.state.head, drafts).await.expect("appended");
}

/// A brain that dies between the end of a turn and giving its lease back.
async fn frees_the_place_of_a_dead_brain(world: &World) {
    let workspace = world.id();
    let sessions = begin_many(world, &workspace, 3).await;
    let held = claim_all(&world.store).await;
    assert_eq!(held.len(), 2);
    for lease in &held {
        satisfy(world, lease).await;
    }
    world.clock.advance(LEASE * 2);
    let next = claim_all(&world.store).await;
    assert_eq!(next.len(), 1);
    assert!(sessions.contains(&next[0].token.session));
}

async fn runs_no_more_than_the_limits(world: &World) {
    let (first, second) = (world.id(), world.id());
    let of_first = begin_many(world, &first, 4).await;
    let mut held = claim_all(&world.store).await;
    assert_eq!(held.len(), 2, "of one workspace");
    let of_second = begin_many(world, &second, 4).await;
    held.extend(claim_all(&world.store).await);
    assert_eq!(held.len(), 3, "in all");
    // A place of the first is free: the first has one running, the second too.
    let place = held.iter().position(|lease| of_first.contains(&lease.token.session)).expect("it runs");
    let over = held.remove(place);
    let waits = world.store.clone();
    let next = tokio::spawn(async move { claim_all(&waits).await });
    satisfy(world, &over).await;
    world.store.release(over).await.expect("works");
    let next = next.await.expect("claims");
    assert_eq!(next.len(), 1);
    assert!(of_first.contains(&next[0].token.session) || of_second.contains(&next[0].token.session));
}

/// The count may lag a moment behind, but not for ever.
async fn keeps_no_more_waiting_than_the_limit(world: &World) {
    let workspace = world.id();
    let refused = loop {
        if let Err(refused) = begin(world, &workspace).await {
            break refused;
        }
    };
    assert!(matches!(refused, ChangeError::QueueFull), "{refused}");
    begin_many(world, &world.id(), 1).await;
    // One that has nothing to do waits for nobody, and then may not begin to.
    let new = world.new_session(world.record(), Vec::new());
    let new = NewSession { workspace: workspace.clone(), ..new };
    let idle = world.store.create_session(new).await.expect("made").record.id;
    let mut held = Vec::new();
    while let Err(refused) = world.store.send_events(&workspace, &idle, vec![message("hi")]).await {
        assert!(matches!(refused, ChangeError::QueueFull), "{refused}");
        assert!(world.view(&idle).await.inbox.is_empty());
        held.extend(claim_all(&world.store).await);
    }
    assert!(!held.is_empty(), "there was room before any of them ran");
}

#[tokio::test]
async fn no_more_sessions_run_than_the_limits_allow_on_sqlite() {
    runs_no_more_than_the_limits(&World::on_sqlite_with(few_run)).await;
}

#[tokio::test]
async fn no_more_sessions_wait_than_the_limit_allows_on_sqlite() {
    keeps_no_more_waiting_than_the_limit(&World::on_sqlite_with(few_wait)).await;
}

#[tokio::test]
async fn no_more_sessions_run_than_the_limits_allow_on_postgres() {
    runs_no_more_than_the_limits(&World::on_postgres_with(few_run).await).await;
}

#[tokio::test]
async fn no_more_sessions_wait_than_the_limit_allows_on_postgres() {
    keeps_no_more_waiting_than_the_limit(&World::on_postgres_with(few_wait).await).await;
}

#[tokio::test]
async fn no_more_sessions_run_than_the_limits_allow_in_memory() {
    runs_no_more_than_the_limits(&World::in_memory_with(few_run)).await;
}

#[tokio::test]
async fn no_more_sessions_wait_than_the_limit_allows_in_memory() {
    keeps_no_more_waiting_than_the_limit(&World::in_memory_with(few_wait)).await;
}

#[tokio::test]
async fn a_dead_brain_holds_no_place_on_sqlite() {
    frees_the_place_of_a_dead_brain(&World::on_sqlite_with(few_run)).await;
}

#[tokio::test]
async fn a_dead_brain_holds_no_place_on_postgres() {
    frees_the_place_of_a_dead_brain(&World::on_postgres_with(few_run).await).await;
}

#[tokio::test]
async fn a_dead_brain_holds_no_place_in_memory() {
    frees_the_place_of_a_dead_brain(&World::in_memory_with(few_run)).await;
}
