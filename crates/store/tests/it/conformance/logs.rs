//! The log: appends and slices.

use std::time::Duration;

use protocol::content::Content;
use protocol::event::{Answer, Body, Finish, ModelUsage};
use protocol::id::EventId;
use protocol::position::Position;
use protocol::session::Usage;
use protocol::time::Timestamp;
use session::Draft;
use store::{AppendError, Order, Slice, TimeBounds};

use crate::world::{START, World, event, id_of, interrupt, kinds, message, noon, positions, said};

pub(crate) async fn positions_count_from_one_without_a_gap(world: &World) {
    let (id, lease) = world.leased().await;
    let mut head = START;
    for count in [1, 3, 2] {
        let view = world.store.append(&lease.token, head, world.says(count)).await.expect("appended");
        assert_eq!(view.state.head, Position(head.0 + count as u64));
        head = view.state.head;
    }
    assert_eq!(positions(&world.log(&id).await), [1, 2, 3, 4, 5, 6]);
}

pub(crate) async fn an_append_is_all_or_nothing(world: &World) {
    let (id, lease) = world.leased().await;
    let mut drafts = world.says(3);
    drafts.push(Draft::Take(EventId::from_text("sevt_never")));
    let result = world.store.append(&lease.token, START, drafts).await;
    assert!(matches!(result, Err(AppendError::Moved(view)) if view.state.head == START));
    assert!(world.log(&id).await.is_empty());
}

pub(crate) async fn of_two_appends_at_one_position_one_wins(world: &World) {
    let (id, lease) = world.leased().await;
    let (first, second) = tokio::join!(
        world.store.append(&lease.token, START, world.says(2)),
        world.store.append(&lease.token, START, world.says(2)),
    );
    let [Ok(won), Err(AppendError::Moved(moved))] = [first, second] else { panic!("one of each") };
    assert_eq!(won, *moved);
    assert_eq!(positions(&world.log(&id).await), [1, 2]);
}

pub(crate) async fn an_append_without_drafts_only_looks(world: &World) {
    let (id, lease) = world.leased().await;
    world.append(&lease, world.says(1)).await;
    world.send(&id, vec![message("hello")]).await;
    let looked = world.store.append(&lease.token, Position(1), Vec::new()).await.expect("looks");
    assert_eq!(looked, world.view(&id).await);
    assert_eq!(looked.inbox.len(), 1);
    let stale = world.store.append(&lease.token, START, Vec::new()).await;
    assert!(matches!(stale, Err(AppendError::Moved(view)) if *view == looked));
}

pub(crate) async fn times_grow_even_if_the_clock_jumps_back(world: &World) {
    let (id, lease) = world.leased().await;
    world.append(&lease, world.says(2)).await;
    world.clock.set(Timestamp::parse("2020-01-01T00:00:00Z").expect("valid"));
    world.append(&lease, world.says(2)).await;
    let later = Timestamp::from_micros(noon().as_micros() + 1_000_000);
    world.clock.set(later);
    world.append(&lease, world.says(1)).await;
    let times: Vec<_> =
        world.log(&id).await.iter().map(|event| event.processed_at.expect("in the log")).collect();
    assert!(times.is_sorted_by(|earlier, later| earlier < later));
    assert_eq!(times[4], later);
    assert!(times[3] < later);
}

pub(crate) async fn the_text_is_the_event_as_shown(world: &World) {
    let (id, lease) = world.leased().await;
    let draft = world.draft(said("\"quoted\" {\"processed_at\":null} \u{1F434}"));
    let Draft::New { id: event_id, body } = draft.clone() else { unreachable!() };
    world.append(&lease, vec![draft]).await;
    let stored = world.log(&id).await.remove(0);
    assert_eq!((event(&stored).id, event(&stored).body), (event_id, body));
    assert_eq!(event(&stored).processed_at, stored.processed_at);
    assert_eq!(stored.json, serde_json::to_vec(&event(&stored)).expect("writes"));
}

pub(crate) async fn usage_is_stamped_with_the_figures_of_the_moment(world: &World) {
    let (id, lease) = world.leased().await;
    let model_usage = ModelUsage { input_tokens: 7, output_tokens: 3, ..ModelUsage::default() };
    world.append(&lease, vec![world.draft(Body::StatusRunning {})]).await;
    world.clock.advance(Duration::from_secs(4));
    let request = EventId::from_text("sevt_request");
    let end = Body::ModelRequestEnd { model_request_start_id: request, is_error: false, model_usage };
    let usage = Body::Usage { usage: Usage::default(), budget: None };
    world.append(&lease, vec![world.draft(end), world.draft(usage)]).await;
    let log = world.log(&id).await;
    let Body::Usage { usage, budget: None } = event(&log[2]).body else { panic!("usage") };
    assert_eq!((usage.input_tokens, usage.output_tokens), (7, 3));
    assert!(usage.active_seconds >= 4.0);
}

pub(crate) async fn taking_moves_an_event_from_the_inbox_into_the_log(world: &World) {
    let (id, lease) = world.leased().await;
    let echo = world.send(&id, vec![message("hello")]).await.remove(0);
    assert_eq!(echo.position, None);
    let view = world.append(&lease, vec![Draft::Take(id_of(&echo))]).await;
    assert!(view.inbox.is_empty());
    assert_eq!(world.store.get_inbox(&id).await.expect("works"), []);
    let log = world.log(&id).await;
    assert_eq!(kinds(&log), ["user.message"]);
    assert_eq!((event(&log[0]).id, event(&log[0]).body), (id_of(&echo), message("hello")));
    assert!(event(&log[0]).processed_at.is_some());
}

pub(crate) async fn events_are_taken_in_the_order_of_the_drafts(world: &World) {
    let (id, lease) = world.leased().await;
    let first = world.send(&id, vec![message("one"), message("two")]).await;
    let second = world.send(&id, vec![interrupt()]).await;
    let waiting: Vec<_> = world.view(&id).await.inbox.into_iter().map(|event| event.id).collect();
    assert_eq!(waiting, [id_of(&first[0]), id_of(&first[1]), id_of(&second[0])]);
    let order = [id_of(&second[0]), id_of(&first[0])];
    let view = world.append(&lease, order.clone().map(Draft::Take).into()).await;
    let logged: Vec<_> = world.log(&id).await.iter().map(id_of).collect();
    assert_eq!(logged, order);
    assert_eq!(view.inbox.len(), 1);
}

pub(crate) async fn taking_what_is_not_there_moves_nothing(world: &World) {
    let (id, lease) = world.leased().await;
    let echo = world.send(&id, vec![message("hello")]).await.remove(0);
    let drafts = vec![Draft::Take(id_of(&echo)), Draft::Take(EventId::from_text("sevt_never"))];
    let result = world.store.append(&lease.token, START, drafts).await;
    assert!(matches!(result, Err(AppendError::Moved(view)) if view.inbox.len() == 1));
    assert!(world.log(&id).await.is_empty());
}

pub(crate) async fn taking_twice_moves_nothing(world: &World) {
    let (id, lease) = world.leased().await;
    let echo = world.send(&id, vec![message("hello")]).await.remove(0);
    let drafts = vec![Draft::Take(id_of(&echo)), Draft::Take(id_of(&echo))];
    let result = world.store.append(&lease.token, START, drafts).await;
    assert!(matches!(result, Err(AppendError::Moved(view)) if view.inbox.len() == 1));
}

pub(crate) async fn a_slice_runs_both_ways(world: &World) {
    let (id, lease) = world.leased().await;
    world.append(&lease, world.says(10)).await;
    let slice = |after, until: Option<u64>, order, limit| Slice {
        after: Position(after),
        until: until.map(Position),
        order,
        limit,
        ..Slice::default()
    };
    let got = async |slice| positions(&world.slice(&id, slice).await);
    assert_eq!(got(slice(0, None, Order::Asc, 3)).await, [1, 2, 3]);
    assert_eq!(got(slice(3, None, Order::Asc, 3)).await, [4, 5, 6]);
    assert_eq!(got(slice(3, Some(5), Order::Asc, 9)).await, [4, 5]);
    assert_eq!(got(slice(0, None, Order::Desc, 3)).await, [10, 9, 8]);
    assert_eq!(got(slice(2, Some(7), Order::Desc, 9)).await, [7, 6, 5, 4, 3]);
    assert!(got(slice(10, None, Order::Asc, 9)).await.is_empty());
    assert!(got(slice(7, Some(7), Order::Desc, 9)).await.is_empty());
}

pub(crate) async fn a_slice_ends_at_its_bytes_but_is_never_empty(world: &World) {
    let (id, lease) = world.leased().await;
    world.append(&lease, world.says(4)).await;
    let sizes: Vec<usize> = world.log(&id).await.iter().map(|event| event.json.len()).collect();
    let within = async |bytes_max| world.slice(&id, Slice { bytes_max, ..Slice::default() }).await.len();
    assert_eq!(within(1).await, 1);
    assert_eq!(within(sizes[0] + sizes[1]).await, 2);
    assert_eq!(within(sizes[0] + sizes[1] + sizes[2] - 1).await, 2);
    assert_eq!(within(sizes.iter().sum()).await, 4);
}

pub(crate) async fn a_slice_shows_only_its_kinds(world: &World) {
    let (id, lease) = world.leased().await;
    let drafts = [said("a"), Body::StatusRunning {}, said("b"), Body::ModelRequestStart {}, said("c")];
    world.append(&lease, drafts.into_iter().map(|body| world.draft(body)).collect()).await;
    let of = async |names: &[&str], order| {
        let kinds = Some(names.iter().map(|name| (*name).to_owned()).collect());
        positions(&world.slice(&id, Slice { kinds, order, limit: 3, ..Slice::default() }).await)
    };
    assert_eq!(of(&["agent.message"], Order::Asc).await, [1, 3, 5]);
    assert_eq!(of(&["agent.message", "session.status_running"], Order::Asc).await, [1, 2, 3]);
    assert_eq!(of(&["session.status_running", "span.model_request_start"], Order::Desc).await, [4, 2]);
    assert!(of(&["user.message"], Order::Asc).await.is_empty());
    assert!(of(&[], Order::Asc).await.is_empty());
}

pub(crate) async fn a_slice_shows_only_its_times(world: &World) {
    let (id, lease) = world.leased().await;
    for _ in 0..8 {
        world.append(&lease, world.says(1)).await;
        world.clock.advance(Duration::from_secs(1));
    }
    let second =
        |seconds: i64| Some(Timestamp::from_micros(noon().as_micros() + 1 + seconds * 1_000_000 - 1));
    let log = world.log(&id).await;
    let within = async |times: TimeBounds| {
        let slice = Slice { times, ..Slice::default() };
        let got = positions(&world.slice(&id, slice).await);
        let expected: Vec<u64> = log
            .iter()
            .filter(|event| times.contain(event.processed_at.expect("in the log")))
            .map(|event| event.position.expect("in the log").0)
            .collect();
        assert_eq!(got, expected, "{times:?}");
        got.len()
    };
    assert_eq!(within(TimeBounds::default()).await, 8);
    assert_eq!(within(TimeBounds { gte: second(2), lt: second(5), ..TimeBounds::default() }).await, 3);
    assert_eq!(within(TimeBounds { gt: second(2), lte: second(5), ..TimeBounds::default() }).await, 3);
    assert_eq!(within(TimeBounds { gt: second(90), ..TimeBounds::default() }).await, 0);
    assert_eq!(within(TimeBounds { lt: second(-1), ..TimeBounds::default() }).await, 0);
    assert_eq!(within(TimeBounds { gt: second(6), lt: second(3), ..TimeBounds::default() }).await, 0);
}

pub(crate) async fn private_events_are_left_out(world: &World) {
    let (id, lease) = world.leased().await;
    let answer = Body::Answer(Answer {
        model_request_start_id: EventId::from_text("sevt_request"),
        blocks: vec!["{\"type\" : \"text\"}".to_owned()],
        finish: Finish::Complete,
        calls: Vec::new(),
    });
    world.append(&lease, vec![world.draft(answer.clone()), world.draft(said("hello"))]).await;
    assert_eq!(positions(&world.slice(&id, Slice::default()).await), [2]);
    let asked = Slice { kinds: Some(vec!["posthouse.answer".to_owned()]), ..Slice::default() };
    assert!(world.slice(&id, asked).await.is_empty());
    let log = world.log(&id).await;
    assert_eq!(kinds(&log), ["posthouse.answer", "agent.message"]);
    assert_eq!(event(&log[0]).body, answer);
}

pub(crate) async fn history_and_inbox_are_of_one_moment(world: &World) {
    let (id, lease) = world.leased().await;
    world.append(&lease, world.says(2)).await;
    let echo = world.send(&id, vec![message("hello")]).await.remove(0);
    let (log, inbox) = world.store.get_history(&id, Slice::default()).await.expect("works");
    assert_eq!(positions(&log), [1, 2]);
    assert_eq!(inbox, [(*echo).clone()]);
    world.append(&lease, vec![Draft::Take(id_of(&echo))]).await;
    let (log, inbox) = world.store.get_history(&id, Slice::default()).await.expect("works");
    assert_eq!((positions(&log), inbox), (vec![1, 2, 3], Vec::new()));
}

pub(crate) async fn an_unknown_session_has_no_events(world: &World) {
    let id = world.id();
    assert!(world.log(&id).await.is_empty());
    assert!(world.store.get_inbox(&id).await.expect("works").is_empty());
    assert!(world.store.look(&id).await.expect("works").is_none());
    assert!(world.store.rebuild(&id).await.expect("works").is_none());
}

pub(crate) async fn many_sessions_are_appended_to_at_once(world: &World) {
    let mut brains = tokio::task::JoinSet::new();
    for brain in 0..50 {
        let (id, lease) = world.leased().await;
        let (store, text) = (world.store.clone(), format!("of {brain}"));
        brains.spawn(async move {
            let mut head = START;
            for _ in 0..20 {
                let body = Body::AgentMessage { content: vec![Content::text(&text)] };
                let drafts = vec![Draft::New { id: store.ids().make(), body }];
                head = store.append(&lease.token, head, drafts).await.expect("appended").state.head;
            }
            (id, text)
        });
    }
    while let Some(brain) = brains.join_next().await {
        let (id, text) = brain.expect("no panic");
        let log = world.log(&id).await;
        assert_eq!(positions(&log), (1..=20).collect::<Vec<u64>>());
        assert!(log.iter().all(|stored| event(stored).body == said(&text)));
    }
}
