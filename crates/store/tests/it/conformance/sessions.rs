//! Sessions as clients see them.

use std::time::Duration;

use protocol::event::{Body, StopReason};
use protocol::id::{AgentId, EventId, ResourceId, SessionId, WorkspaceId};
use protocol::metadata::MetadataPatch;
use protocol::parse::Patch;
use protocol::resource::{Repository, Resource};
use protocol::session::Status;
use protocol::time::Timestamp;
use session::record::Update;
use session::{Draft, Record, Refusal};
use store::{Brought, ChangeError, Cursor, Order, SealedToken, SessionQuery, Slice, TimeBounds};

use crate::world::{World, custom_call, event, interrupt, kinds, message, noon, pair};

pub(crate) async fn a_new_session_is_idle_and_empty(world: &World) {
    let record = world.record();
    let new = world.new_session(record.clone(), Vec::new());
    let thread_id = new.thread_id.clone();
    let (made, state) = pair(world.store.create_session(new).await.expect("made"));
    assert_eq!(made, record);
    assert_eq!((state.shown_status(), &state.thread_id), (Status::Idle, &thread_id));
    let got = world.store.get_session(&world.workspace, &record.id).await.expect("works");
    assert_eq!(got.map(pair), Some((made, state)));
    assert!(world.log(&record.id).await.is_empty());
    assert!(!world.view(&record.id).await.state.wants_brain());
}

pub(crate) async fn a_session_with_initial_events_is_running(world: &World) {
    let record = world.record();
    let id = record.id.clone();
    let new = world.new_session(record, vec![message("one"), message("two")]);
    let (_, state) = pair(world.store.create_session(new).await.expect("made"));
    assert_eq!(state.status, Status::Running);
    let (log, inbox) = world.store.get_history(&id, Slice::default()).await.expect("works");
    assert_eq!(kinds(&log), ["session.status_running", "session.thread_status_running"]);
    assert_eq!(
        inbox.iter().map(|stored| event(stored).body).collect::<Vec<_>>(),
        [message("one"), message("two")]
    );
    assert_eq!(world.claim("test").await.expect("works").token.session, id);
}

pub(crate) async fn an_id_cannot_be_used_twice(world: &World) {
    let record = world.record();
    let new = world.new_session(record.clone(), Vec::new());
    world.store.create_session(new.clone()).await.expect("made");
    let (again, other) = tokio::join!(
        world.store.create_session(new),
        world.store.create_session(world.new_session(world.record(), Vec::new())),
    );
    assert!(matches!(again, Err(ChangeError::Exists)));
    other.expect("made");
}

pub(crate) async fn a_session_is_seen_by_its_workspace_only(world: &World) {
    let id = world.session().await;
    let other = world.id();
    let store = &world.store;
    assert!(store.get_session(&other, &id).await.expect("works").is_none());
    assert!(store.list_sessions(&other, SessionQuery::default()).await.expect("works").is_empty());
    let sent = store.send_events(&other, &id, vec![message("hello")]).await;
    assert!(matches!(sent, Err(ChangeError::NotFound)));
    let updated = store.update_session(&other, &id, Update::default()).await;
    assert!(matches!(updated, Err(ChangeError::NotFound)));
    assert!(matches!(store.archive_session(&other, &id).await, Err(ChangeError::NotFound)));
    assert!(matches!(store.delete_session(&other, &id).await, Err(ChangeError::NotFound)));
    assert!(store.get_session(&world.workspace, &id).await.expect("works").is_some());
}

pub(crate) async fn sent_events_are_echoed_in_order(world: &World) {
    let id = world.session().await;
    let sent = vec![interrupt(), message("one"), message("two")];
    let echoes = world.send(&id, sent.clone()).await;
    let bodies: Vec<_> = echoes.iter().map(|echo| event(echo).body).collect();
    assert_eq!(bodies, sent);
    assert!(echoes.iter().all(|echo| echo.position.is_none() && event(echo).processed_at.is_none()));
    let inbox = world.store.get_inbox(&id).await.expect("works");
    assert!(inbox.iter().eq(echoes.iter().map(|echo| &**echo)));
    assert_eq!(world.state(&id).await.shown_status(), Status::Running);
}

pub(crate) async fn a_refused_event_refuses_the_request(world: &World) {
    let id = world.session().await;
    let before = world.state(&id).await;
    let result = Body::UserCustomToolResult {
        custom_tool_use_id: EventId::from_text("sevt_never"),
        content: Vec::new(),
        is_error: None,
    };
    let refused = world.store.send_events(&world.workspace, &id, vec![message("hello"), result]).await;
    assert!(matches!(refused, Err(ChangeError::Refused(_))));
    assert_eq!(world.state(&id).await, before);
    assert!(world.store.get_inbox(&id).await.expect("works").is_empty());
}

pub(crate) async fn results_are_logged_on_receipt(world: &World) {
    let (id, lease) = world.leased().await;
    let call: EventId = world.id();
    let idle = Body::StatusIdle {
        stop_reason: StopReason::RequiresAction { event_ids: vec![call.clone()] },
        stop_details: None,
    };
    let asks = vec![Draft::New { id: call.clone(), body: custom_call() }, world.draft(idle)];
    world.append(&lease, asks).await;
    let result = Body::UserCustomToolResult { custom_tool_use_id: call, content: Vec::new(), is_error: None };
    let system = Body::SystemMessage { content: vec![protocol::content::Content::text("be brief")] };
    let echoes = world.send(&id, vec![result, system]).await;
    assert_eq!(echoes[0].position.map(|position| position.0), Some(3));
    assert!(event(&echoes[0]).processed_at.is_some());
    assert_eq!(echoes[1].position, None);
    let log = world.log(&id).await;
    assert_eq!(log[2], *echoes[0]);
    assert!(world.state(&id).await.calls.is_empty());
}

fn titled(title: &str) -> Update {
    Update { title: Patch::Set(title.to_owned()), ..Update::default() }
}

pub(crate) async fn an_update_says_what_changed(world: &World) {
    let id = world.session().await;
    world.clock.advance(Duration::from_secs(5));
    let updated = world.store.update_session(&world.workspace, &id, titled("a")).await.expect("updated");
    let (record, state) = pair(updated);
    assert_eq!(record.title.as_deref(), Some("a"));
    assert_eq!(record.updated_at, world.store.now());
    let got = world.store.get_session(&world.workspace, &id).await.expect("works");
    assert_eq!(got.map(pair), Some((record, state)));
    let metadata = MetadataPatch::from([("k".to_owned(), Some("v".to_owned()))]);
    let update = Update { metadata, ..Update::default() };
    let updated = world.store.update_session(&world.workspace, &id, update).await.expect("updated");
    let (record, _) = pair(updated);
    assert_eq!(record.metadata["k"], "v");
    let log = world.log(&id).await;
    assert_eq!(kinds(&log), ["session.updated", "session.updated"]);
    let said = Body::Updated { agent: None, metadata: None, title: Some(Some("a".to_owned())) };
    assert_eq!(event(&log[0]).body, said);
    // The brain sees it, too.
    assert_eq!(*world.view(&id).await.record, record);
}

pub(crate) async fn an_update_that_changes_nothing_says_nothing(world: &World) {
    let id = world.session().await;
    let before = world.store.get_session(&world.workspace, &id).await.expect("works");
    world.clock.advance(Duration::from_secs(5));
    let after = world.store.update_session(&world.workspace, &id, Update::default()).await.expect("works");
    assert_eq!(Some(after), before);
    assert!(world.log(&id).await.is_empty());
}

pub(crate) async fn archiving_ends_a_session(world: &World) {
    let id = world.session().await;
    let archived = world.store.archive_session(&world.workspace, &id).await.expect("archived");
    let (record, state) = pair(archived);
    assert_eq!(record.archived_at, Some(noon()));
    assert_eq!(state.status, Status::Terminated);
    let log = world.log(&id).await;
    assert_eq!(kinds(&log), ["session.thread_status_terminated", "session.status_terminated"]);
    let again = world.store.archive_session(&world.workspace, &id).await.expect("unchanged");
    assert_eq!(pair(again), (record, state));
    let refused = world.store.send_events(&world.workspace, &id, vec![message("hello")]).await;
    assert!(matches!(refused, Err(ChangeError::Refused(session::Refusal::Over))));
    let refused = world.store.update_session(&world.workspace, &id, titled("a")).await;
    assert!(matches!(refused, Err(ChangeError::Refused(_))));
}

pub(crate) async fn a_working_session_is_neither_archived_nor_deleted(world: &World) {
    let id = world.session().await;
    world.send(&id, vec![message("hello")]).await;
    let archived = world.store.archive_session(&world.workspace, &id).await;
    assert!(matches!(archived, Err(ChangeError::Refused(_))));
    let deleted = world.store.delete_session(&world.workspace, &id).await;
    assert!(matches!(deleted, Err(ChangeError::Refused(_))));
    assert_eq!(world.store.get_inbox(&id).await.expect("works").len(), 1);
}

pub(crate) async fn a_deleted_session_leaves_nothing(world: &World) {
    let (id, lease) = world.leased().await;
    world.append(&lease, world.says(2_000)).await;
    let (other, _) = world.leased().await;
    world.store.delete_session(&world.workspace, &id).await.expect("deleted");
    assert!(world.store.get_session(&world.workspace, &id).await.expect("works").is_none());
    assert!(world.log(&id).await.is_empty());
    let again = world.store.delete_session(&world.workspace, &id).await;
    assert!(matches!(again, Err(ChangeError::NotFound)));
    let left = world.store.list_sessions(&world.workspace, SessionQuery::default()).await.expect("works");
    assert_eq!(left.into_iter().map(|seen| seen.record.id).collect::<Vec<_>>(), [other]);
}

pub(crate) async fn tokens_are_kept_until_their_session_is_over(world: &World) {
    let (one, two) = (world.id::<ResourceId>(), world.id::<ResourceId>());
    let token = |resource: &ResourceId, sealed: &str| SealedToken {
        resource: resource.clone(),
        sealed: sealed.to_owned(),
    };
    let repository = |id: &ResourceId| {
        Resource::GithubRepository(Repository {
            id: id.clone(),
            url: "https://github.com/o/r".to_owned(),
            mount_path: "/workspace/r".to_owned(),
            checkout: None,
            created_at: world.store.now(),
            updated_at: world.store.now(),
        })
    };
    let make = async || {
        let record = Record { resources: vec![repository(&one), repository(&two)], ..world.record() };
        let brought = Brought { tokens: vec![token(&one, "first")], ..Brought::default() };
        let new = world.new_session(record, Vec::new());
        world.store.create_session_with(new, brought).await.expect("made").record.id
    };
    let kept = async |id: &SessionId, resource: &ResourceId| {
        world.store.session_token(&world.workspace, id, resource).await.expect("works")
    };
    let (id, other) = (make().await, make().await);
    assert_eq!(kept(&id, &one).await.as_deref(), Some("first"));
    assert_eq!(kept(&id, &two).await, None);
    world.clock.advance(Duration::from_secs(1));
    let rotate =
        async |id: &SessionId, sealed| world.store.rotate_session_token(&world.workspace, id, sealed).await;
    let rotated = rotate(&id, token(&one, "second")).await.expect("rotated").record;
    let times: Vec<_> =
        rotated.resources.iter().filter_map(Resource::repository).map(|one| one.updated_at).collect();
    assert!(times[0] > times[1]);
    rotate(&id, token(&two, "third")).await.expect("rotated");
    assert_eq!(kept(&id, &one).await.as_deref(), Some("second"));
    assert_eq!(kept(&id, &two).await.as_deref(), Some("third"));
    assert_eq!(kept(&other, &one).await.as_deref(), Some("first"), "of the same resource in another session");
    let elsewhere = WorkspaceId::from_text("wrkspc_elsewhere");
    assert_eq!(world.store.session_token(&elsewhere, &id, &one).await.expect("works"), None);
    let unknown = rotate(&id, token(&world.id(), "x")).await;
    assert!(matches!(unknown, Err(ChangeError::NotFound)), "{unknown:?}");
    world.store.archive_session(&world.workspace, &id).await.expect("archived");
    assert_eq!((kept(&id, &one).await, kept(&id, &two).await), (None, None));
    let over = rotate(&id, token(&one, "x")).await;
    assert!(matches!(over, Err(ChangeError::Refused(Refusal::Over))), "{over:?}");
    world.store.delete_session(&world.workspace, &other).await.expect("deleted");
    assert_eq!(kept(&other, &one).await, None);
}

async fn listed(world: &World, query: SessionQuery) -> Vec<Record> {
    let page = world.store.list_sessions(&world.workspace, query).await.expect("works");
    page.into_iter().map(|seen| seen.record).collect()
}

/// Sessions made a second apart, oldest first.
async fn some_sessions(world: &World, count: usize) -> Vec<Record> {
    let mut records = Vec::new();
    for _ in 0..count {
        let record = world.record();
        world.store.create_session(world.new_session(record.clone(), Vec::new())).await.expect("made");
        records.push(record);
        world.clock.advance(Duration::from_secs(1));
    }
    records
}

pub(crate) async fn sessions_are_listed_newest_first(world: &World) {
    let mut made = some_sessions(world, 3).await;
    assert_eq!(listed(world, SessionQuery { order: Order::Asc, ..SessionQuery::default() }).await, made);
    made.reverse();
    assert_eq!(listed(world, SessionQuery::default()).await, made);
    assert_eq!(listed(world, SessionQuery { limit: 2, ..SessionQuery::default() }).await, made[..2]);
}

/// Walks through the list forwards, then back again.
async fn page_through(world: &World, order: Order, all: &[Record]) {
    let query = |after, before| SessionQuery { order, limit: 3, after, before, ..SessionQuery::default() };
    let mut pages = vec![listed(world, query(None, None)).await];
    while let Some(last) = pages.last().and_then(|page| page.last()) {
        let page = listed(world, query(Some(Cursor::of_session(last)), None)).await;
        pages.push(page);
    }
    pages.pop();
    assert_eq!(pages.concat(), all);
    for pair in pages.windows(2) {
        let before = Cursor::of_session(&pair[1][0]);
        assert_eq!(listed(world, query(None, Some(before))).await, pair[0]);
    }
    let before = Cursor::of_session(&all[0]);
    assert!(listed(world, query(None, Some(before))).await.is_empty());
}

pub(crate) async fn sessions_are_paged_both_ways(world: &World) {
    let mut all = some_sessions(world, 8).await;
    page_through(world, Order::Asc, &all).await;
    all.reverse();
    page_through(world, Order::Desc, &all).await;
}

pub(crate) async fn sessions_of_the_same_moment_are_paged_by_id(world: &World) {
    for _ in 0..8 {
        world.session().await;
    }
    let all = listed(world, SessionQuery { order: Order::Asc, ..SessionQuery::default() }).await;
    assert_eq!(all.len(), 8);
    assert!(all.is_sorted_by_key(|record| record.id.clone()));
    page_through(world, Order::Asc, &all).await;
}

pub(crate) async fn sessions_are_filtered(world: &World) {
    let mut of_other = world.record();
    of_other.agent.id = AgentId::from_text("agent_2");
    of_other.agent.version = 3;
    world.store.create_session(world.new_session(of_other.clone(), Vec::new())).await.expect("made");
    world.clock.advance(Duration::from_secs(1));
    let idle = world.session().await;
    let busy = world.session().await;
    world.send(&busy, vec![message("hello")]).await;
    let archived = world.session().await;
    world.store.archive_session(&world.workspace, &archived).await.expect("archived");
    let ended = {
        let (id, lease) = world.leased().await;
        world.append(&lease, vec![world.draft(Body::StatusTerminated {})]).await;
        id
    };
    let got = async |query: SessionQuery| -> Vec<_> {
        let query = SessionQuery { order: Order::Asc, ..query };
        listed(world, query).await.into_iter().map(|record| record.id).collect()
    };
    let query = SessionQuery::default;
    let statuses = |statuses: &[Status]| SessionQuery { statuses: statuses.to_vec(), ..query() };
    let other = of_other.id.clone();
    assert_eq!(got(query()).await, [other.clone(), idle.clone(), busy.clone(), ended.clone()]);
    let all = got(SessionQuery { include_archived: true, ..query() }).await;
    assert_eq!(all, [other.clone(), idle.clone(), busy.clone(), archived, ended.clone()]);
    assert_eq!(got(statuses(&[Status::Running])).await, std::slice::from_ref(&busy));
    assert_eq!(got(statuses(&[Status::Terminated, Status::Running])).await, [busy.clone(), ended.clone()]);
    let agent_id = Some(AgentId::from_text("agent_2"));
    let of_agent = |agent_version| SessionQuery { agent_id: agent_id.clone(), agent_version, ..query() };
    assert_eq!(got(of_agent(None)).await, std::slice::from_ref(&other));
    assert_eq!(got(of_agent(Some(3))).await, std::slice::from_ref(&other));
    assert!(got(of_agent(Some(1))).await.is_empty());
    let version_alone = SessionQuery { agent_version: Some(3), ..query() };
    assert_eq!(got(version_alone).await.len(), 4);
    let created = |created| SessionQuery { created, ..query() };
    let second = Timestamp::from_micros(noon().as_micros() + 1_000_000);
    let until = TimeBounds { lt: Some(second), ..TimeBounds::default() };
    assert_eq!(got(created(until)).await, [other]);
    let from = TimeBounds { gte: Some(second), ..TimeBounds::default() };
    assert_eq!(got(created(from)).await, [idle, busy, ended]);
}
