//! Who is next, what a session waits for, and how often its holders have died.

use std::collections::HashSet;

use protocol::content::Content;
use protocol::event::{Body, StopReason};
use protocol::id::{EventId, SessionId, WorkspaceId};
use session::Draft;
use store::{AppendError, LEASE, Lease, NewSession, Seen, Waiting, WaitsFor};

use crate::world::{World, message};

/// Sessions of one workspace that want a brain, in this order.
async fn wanting(world: &World, workspace: &WorkspaceId, count: usize) -> Vec<SessionId> {
    let mut ids = Vec::new();
    for _ in 0..count {
        let record = world.record();
        ids.push(record.id.clone());
        let new = world.new_session(record, vec![message("hi")]);
        let new = NewSession { workspace: workspace.clone(), ..new };
        world.store.create_session(new).await.expect("made");
    }
    ids
}

/// Its session has nothing to do any more.
async fn finish(world: &World, lease: Lease) {
    let inbox = world.view(&lease.token.session).await.inbox;
    let idle = Body::StatusIdle { stop_reason: StopReason::EndTurn {}, stop_details: None };
    let taken = inbox.into_iter().map(|event| Draft::Take(event.id));
    world.append(&lease, taken.chain([world.draft(idle)]).collect()).await;
    world.store.release(lease).await.expect("works");
}

async fn seen(world: &World, id: &SessionId) -> Seen {
    world.store.get_session(&world.workspace, id).await.expect("works").expect("exists")
}

async fn waiting(world: &World, id: &SessionId) -> Option<Waiting> {
    seen(world, id).await.waiting
}

pub(crate) async fn a_workspace_with_one_session_is_not_kept_waiting_by_one_with_many(world: &World) {
    let large = wanting(world, &world.workspace, 50).await;
    let small = wanting(world, &world.id(), 1).await;
    let mut claimed = Vec::new();
    let mut leases = Vec::new();
    for _ in 0..3 {
        let lease = world.claim("test").await.expect("works");
        claimed.push(lease.token.session.clone());
        leases.push(lease);
    }
    assert!(claimed[..2].contains(&small[0]), "it is second at the latest: {claimed:?}");
    claimed.retain(|id| *id != small[0]);
    assert_eq!(claimed, large[..2], "within a workspace the oldest comes first");
}

pub(crate) async fn a_claim_of_several_takes_from_every_workspace(world: &World) {
    let large = wanting(world, &world.workspace, 20).await;
    let mut others = Vec::new();
    for _ in 0..3 {
        others.extend(wanting(world, &world.id(), 1).await);
    }
    let leases = world.store.claim("test", 4).await.expect("works");
    let claimed: HashSet<SessionId> = leases.iter().map(|lease| lease.token.session.clone()).collect();
    let expected: HashSet<SessionId> = others.into_iter().chain([large[0].clone()]).collect();
    assert_eq!(claimed, expected);
}

pub(crate) async fn a_newcomer_is_served_long_before_the_backlog_of_workspaces_with_as_few_running(
    world: &World,
) {
    const BACKLOG: usize = 60;
    let busy = wanting(world, &world.workspace, BACKLOG).await;
    let mut running = world.claim("test").await.expect("works");
    let newcomer = wanting(world, &world.id(), 1).await.remove(0);
    // One place: whenever it is free, neither workspace has anything running.
    let mut served = 0;
    while running.token.session != newcomer {
        served += 1;
        assert!(served < BACKLOG * 2 / 3, "it is kept waiting by sessions that queued before it");
        finish(world, running).await;
        running = world.claim("test").await.expect("works");
    }
    assert!(busy.len() > served);
}

pub(crate) async fn a_session_shows_what_it_waits_for_and_since_when(world: &World) {
    let id = world.session().await;
    assert_eq!(waiting(world, &id).await, None);
    let since = world.store.now();
    world.send(&id, vec![message("hi")]).await;
    let for_a_brain = Some(Waiting { reason: WaitsFor::Brain, since });
    assert_eq!(waiting(world, &id).await, for_a_brain);
    world.clock.advance(LEASE);
    world.send(&id, vec![message("and?")]).await;
    assert_eq!(waiting(world, &id).await, for_a_brain, "since the first");
    let lease = world.claim("test").await.expect("works");
    assert_eq!(waiting(world, &id).await, None);
    world.store.set_waiting(&lease.token, Some(WaitsFor::Model)).await.expect("held");
    let for_the_model = Some(Waiting { reason: WaitsFor::Model, since: world.store.now() });
    assert_eq!(waiting(world, &id).await, for_the_model);
    world.append(&lease, world.says(1)).await;
    assert_eq!(waiting(world, &id).await, None, "it goes on");
    let token = lease.token.clone();
    world.store.release(lease).await.expect("works");
    let refused = world.store.set_waiting(&token, Some(WaitsFor::Model)).await;
    assert!(matches!(refused, Err(AppendError::Fenced)));
}

pub(crate) async fn holders_that_die_in_a_row_are_counted_until_one_gets_on(world: &World) {
    let id = world.session().await;
    for deaths in 0..3 {
        let lease = world.lease(&id).await;
        assert_eq!(lease.deaths, deaths);
        // Not progress.
        world.append(&lease, vec![world.draft(Body::ModelRequestStart {})]).await;
        world.clock.advance(LEASE);
    }
    let lease = world.lease(&id).await;
    assert_eq!(lease.deaths, 3);
    let content = vec![Content::text("done")];
    let result = Body::AgentToolResult { tool_use_id: world.id::<EventId>(), content, is_error: false };
    world.append(&lease, vec![world.draft(result)]).await;
    world.clock.advance(LEASE);
    let lease = world.lease(&id).await;
    assert_eq!(lease.deaths, 1, "one since it got on");
    world.store.release(lease).await.expect("works");
    assert_eq!(world.lease(&id).await.deaths, 0, "who gives the lease back lives");
}
