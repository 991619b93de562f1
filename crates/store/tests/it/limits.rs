//! The limits of a store. Each check takes a store that is opened with them: any engine has to pass.

use protocol::event::{Body, StopReason};
use protocol::id::{SessionId, WorkspaceId};
use session::Draft;
use store::{ChangeError, Lease, Limits, NewSession, Seen, Store};

use crate::world::{World, message, soon};

const LIMITS: Limits =
    Limits { running_max: Some(3), running_per_workspace_max: Some(2), waiting_per_workspace_max: Some(4) };

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
    let view = world.view(&over.token.session).await;
    let takes = view.inbox.into_iter().map(|event| Draft::Take(event.id));
    let idle = Body::StatusIdle { stop_reason: StopReason::EndTurn {}, stop_details: None };
    let drafts = takes.chain([world.draft(idle)]).collect();
    world.store.append(&over.token, view.state.head, drafts).await.expect("appended");
    world.store.release(over).await.expect("works");
    let next = next.await.expect("claims");
    assert_eq!(next.len(), 1);
    assert!(of_first.contains(&next[0].token.session) || of_second.contains(&next[0].token.session));
}

async fn keeps_no_more_waiting_than_the_limit(world: &World) {
    let workspace = world.id();
    begin_many(world, &workspace, 4).await;
    assert!(matches!(begin(world, &workspace).await, Err(ChangeError::QueueFull)));
    begin_many(world, &world.id(), 1).await;
    // One that has nothing to do waits for nobody, and then may not begin to.
    let new = world.new_session(world.record(), Vec::new());
    let new = NewSession { workspace: workspace.clone(), ..new };
    let idle = world.store.create_session(new).await.expect("made").record.id;
    let refused = world.store.send_events(&workspace, &idle, vec![message("hi")]).await;
    assert!(matches!(refused, Err(ChangeError::QueueFull)));
    assert!(world.view(&idle).await.inbox.is_empty());
    let held = claim_all(&world.store).await;
    assert!(!held.is_empty());
    world.store.send_events(&workspace, &idle, vec![message("hi")]).await.expect("there is room again");
}

fn on_sqlite() -> World {
    World::on_sqlite_with(|options| options.limits = LIMITS)
}

#[tokio::test]
async fn no_more_sessions_run_than_the_limits_allow_on_sqlite() {
    runs_no_more_than_the_limits(&on_sqlite()).await;
}

#[tokio::test]
async fn no_more_sessions_wait_than_the_limit_allows_on_sqlite() {
    keeps_no_more_waiting_than_the_limit(&on_sqlite()).await;
}
