//! The one reader: fresh streams, resumed streams, previews, ends.

use protocol::event::{Body, ModelUsage, Preview, PreviewDelta, PreviewEvent, PreviewKind, PreviewText};
use protocol::id::EventId;
use protocol::position::Position;
use session::Draft;
use store::{From, Item, Lease};

use crate::world::{
    START, World, claim, custom_call, id_of, interrupt, is_quiet, message, said, soon, word, words,
};

pub(crate) async fn a_fresh_stream_shows_what_comes(world: &World) {
    let (id, lease) = world.leased().await;
    let mut follower = world.follow(&id, From::Now).await;
    world.append(&lease, world.says(2)).await;
    assert_eq!(words(&mut follower, 2).await, ["1 agent.message", "2 agent.message"]);
    world.append(&lease, world.says(1)).await;
    assert_eq!(words(&mut follower, 1).await, ["3 agent.message"]);
    assert!(is_quiet(&mut follower).await);
}

pub(crate) async fn a_fresh_stream_has_no_backlog(world: &World) {
    let (id, lease) = world.leased().await;
    world.append(&lease, world.says(2)).await;
    world.send(&id, vec![message("before")]).await;
    let mut follower = world.follow(&id, From::Now).await;
    assert!(is_quiet(&mut follower).await);
    world.append(&lease, world.says(1)).await;
    assert_eq!(words(&mut follower, 1).await, ["3 agent.message"]);
}

/// What a brain does when it takes up a message: the session runs, then the message is in the log.
fn take_up(world: &World, id: EventId) -> Vec<Draft> {
    vec![world.draft(Body::StatusRunning {}), Draft::Take(id)]
}

const TAKEN_UP: [&str; 3] = ["(user.message)", "1 session.status_running", "2 user.message"];

pub(crate) async fn a_message_is_shown_waiting_before_the_session_runs(world: &World) {
    let (id, lease) = world.leased().await;
    let mut follower = world.follow(&id, From::Now).await;
    let echo = world.send(&id, vec![message("hello")]).await.remove(0);
    let waiting = soon(follower.next()).await;
    assert_eq!(waiting, Some(Item::Queued { kind: "user.message".into(), json: echo.json.clone() }));
    world.append(&lease, take_up(world, id_of(&echo))).await;
    assert_eq!(words(&mut follower, 2).await, TAKEN_UP[1..]);
    assert!(is_quiet(&mut follower).await);
}

pub(crate) async fn a_message_taken_up_at_once_is_shown_waiting_all_the_same(world: &World) {
    for behind in [0, FAR_BEHIND] {
        let (id, lease) = world.leased().await;
        let mut follower = world.follow(&id, From::Now).await;
        let echo = world.send(&id, vec![message("hello")]).await.remove(0);
        world.append(&lease, take_up(world, id_of(&echo))).await;
        fall_behind(world, &lease, behind).await;
        let waiting = soon(follower.next()).await;
        assert_eq!(waiting, Some(Item::Queued { kind: "user.message".into(), json: echo.json.clone() }));
        assert_eq!(words(&mut follower, 2).await, TAKEN_UP[1..]);
        words(&mut follower, behind).await;
        assert!(is_quiet(&mut follower).await);
    }
}

/// So many flushes that what came before is no longer at hand in memory, but has to be read.
const FAR_BEHIND: usize = 40;

async fn fall_behind(world: &World, lease: &Lease, count: usize) {
    for _ in 0..count {
        world.append(lease, world.says(1)).await;
    }
}

pub(crate) async fn a_message_that_waited_before_the_stream_is_shown_once(world: &World) {
    let (id, lease) = world.leased().await;
    let echo = world.send(&id, vec![message("hello")]).await.remove(0);
    let mut follower = world.follow(&id, From::Now).await;
    world.append(&lease, take_up(world, id_of(&echo))).await;
    assert_eq!(words(&mut follower, 2).await, TAKEN_UP[1..]);
    assert!(is_quiet(&mut follower).await);
}

pub(crate) async fn a_resumed_stream_misses_and_repeats_nothing(world: &World) {
    let (id, lease) = world.leased().await;
    for count in [1, 4, 2] {
        world.append(&lease, world.says(count)).await;
    }
    for after in 0..=7 {
        let mut follower = world.follow(&id, From::After(Position(after))).await;
        let expected: Vec<_> = (after + 1..=7).map(|position| format!("{position} agent.message")).collect();
        assert_eq!(words(&mut follower, expected.len()).await, expected);
        assert!(is_quiet(&mut follower).await);
    }
    // A place that was never given out is taken for the end.
    let mut follower = world.follow(&id, From::After(Position(99))).await;
    world.append(&lease, world.says(1)).await;
    assert_eq!(words(&mut follower, 1).await, ["8 agent.message"]);
}

pub(crate) async fn a_resumed_stream_shows_what_is_pending_again(world: &World) {
    let (id, lease) = world.leased().await;
    world.append(&lease, world.says(2)).await;
    let echo = world.send(&id, vec![message("hello")]).await.remove(0);
    for _ in 0..2 {
        let mut follower = world.follow(&id, From::After(Position(1))).await;
        assert_eq!(words(&mut follower, 2).await, ["2 agent.message", "(user.message)"]);
        assert!(is_quiet(&mut follower).await);
    }
    // Taken up between the connection and the first look.
    let mut follower = world.follow(&id, From::After(Position(1))).await;
    world.append(&lease, take_up(world, id_of(&echo))).await;
    let expected = ["2 agent.message", "(user.message)", "3 session.status_running", "4 user.message"];
    assert_eq!(words(&mut follower, 4).await, expected);
    assert!(is_quiet(&mut follower).await);
}

pub(crate) async fn a_resumed_stream_shows_no_waiting_copy_of_what_was_taken_up_before(world: &World) {
    let (id, lease) = world.leased().await;
    let sent = world.send(&id, vec![message("one"), message("two")]).await;
    world.append(&lease, take_up(world, id_of(&sent[1]))).await;
    let mut follower = world.follow(&id, From::After(START)).await;
    let expected = ["1 session.status_running", "2 user.message", "(user.message)"];
    assert_eq!(words(&mut follower, 3).await, expected);
    assert!(is_quiet(&mut follower).await);
}

pub(crate) async fn waiting_copies_keep_the_order_of_arrival(world: &World) {
    for behind in [0, FAR_BEHIND] {
        let (id, lease) = world.leased().await;
        let mut follower = world.follow(&id, From::Now).await;
        let first = world.send(&id, vec![message("one"), message("two")]).await;
        let second = world.send(&id, vec![interrupt()]).await;
        let third = world.send(&id, vec![message("three")]).await;
        // The interrupt overtakes; nothing has been shown yet.
        world.append(&lease, vec![Draft::Take(id_of(&second[0]))]).await;
        world.append(&lease, vec![Draft::Take(id_of(&first[0])), Draft::Take(id_of(&third[0]))]).await;
        fall_behind(world, &lease, behind).await;
        let shown = words(&mut follower, 7 + behind).await;
        let waiting: Vec<_> = shown.iter().filter(|word| word.starts_with('(')).collect();
        assert_eq!(waiting, ["(user.message)", "(user.message)", "(user.interrupt)", "(user.message)"]);
        let place = |wanted: &str| shown.iter().position(|word| word == wanted).expect("shown");
        // Each before the append that took it up.
        assert!(place("(user.interrupt)") < place("1 user.interrupt"));
        assert!(shown.iter().rposition(|word| word == "(user.message)") < Some(place("2 user.message")));
        assert_eq!(place("2 user.message") + 1, place("3 user.message"));
        world.append(&lease, vec![Draft::Take(id_of(&first[1]))]).await;
        assert_eq!(words(&mut follower, 1).await, [format!("{} user.message", 4 + behind)]);
        assert!(is_quiet(&mut follower).await);
    }
}

pub(crate) async fn a_long_append_is_followed_across_chunks(world: &World) {
    let (id, lease) = world.leased().await;
    let mut follower = world.follow(&id, From::Now).await;
    let echo = world.send(&id, vec![message("hello")]).await.remove(0);
    let mut drafts = world.says(1_000);
    drafts.push(Draft::Take(id_of(&echo)));
    world.append(&lease, drafts).await;
    world.append(&lease, world.says(1)).await;
    let mut expected = vec!["(user.message)".to_owned()];
    expected.extend((1..=1_000).map(|position| format!("{position} agent.message")));
    expected.extend(["1001 user.message".to_owned(), "1002 agent.message".to_owned()]);
    assert_eq!(words(&mut follower, expected.len()).await, expected);
    assert!(is_quiet(&mut follower).await);
}

pub(crate) async fn processed_on_receipt_is_shown_once(world: &World) {
    let (id, lease) = world.leased().await;
    let call: EventId = world.id();
    world.append(&lease, vec![Draft::New { id: call.clone(), body: custom_call() }]).await;
    let mut follower = world.follow(&id, From::Now).await;
    let result = Body::UserCustomToolResult { custom_tool_use_id: call, content: Vec::new(), is_error: None };
    world.send(&id, vec![result]).await;
    assert_eq!(words(&mut follower, 1).await, ["2 user.custom_tool_result"]);
    assert!(is_quiet(&mut follower).await);
}

pub(crate) async fn private_events_are_passed_over(world: &World) {
    let (id, lease) = world.leased().await;
    let mut follower = world.follow(&id, From::Now).await;
    let sandbox = Body::Sandbox { sandbox_id: world.id() };
    world.append(&lease, vec![world.draft(sandbox.clone()), world.draft(said("a"))]).await;
    world.append(&lease, vec![world.draft(sandbox)]).await;
    world.append(&lease, world.says(1)).await;
    assert_eq!(words(&mut follower, 2).await, ["2 agent.message", "4 agent.message"]);
}

pub(crate) async fn many_followers_see_the_same(world: &World) {
    let (id, lease) = world.leased().await;
    let mut readers = tokio::task::JoinSet::new();
    for _ in 0..20 {
        let mut follower = world.follow(&id, From::Now).await;
        readers.spawn(async move { words(&mut follower, 43).await });
    }
    for _ in 0..10 {
        let echo = world.send(&id, vec![message("hello")]).await.remove(0);
        let mut drafts = take_up(world, id_of(&echo));
        drafts.extend(world.says(1));
        world.append(&lease, drafts).await;
    }
    world.append(&lease, world.says(3)).await;
    let seen = soon(readers.join_all()).await;
    let logged = |words: &[String]| -> Vec<String> {
        words.iter().filter(|word| !word.starts_with('(')).cloned().collect()
    };
    let log: Vec<_> = world
        .log(&id)
        .await
        .iter()
        .map(|event| format!("{} {}", event.position.expect("logged"), event.kind))
        .collect();
    for words in seen {
        assert_eq!(logged(&words), log);
        for (index, word) in words.iter().enumerate() {
            if word.ends_with("status_running") {
                assert_eq!(words[index - 1], "(user.message)");
            }
        }
    }
}

pub(crate) async fn a_slow_follower_misses_nothing(world: &World) {
    let (id, lease) = world.leased().await;
    let mut follower = world.follow(&id, From::Now).await;
    for _ in 0..50 {
        world.append(&lease, world.says(30)).await;
    }
    let expected: Vec<_> = (1..=1_500).map(|position| format!("{position} agent.message")).collect();
    assert_eq!(words(&mut follower, 1_500).await, expected);
    assert!(is_quiet(&mut follower).await);
}

pub(crate) async fn a_dropped_wait_loses_nothing(world: &World) {
    let (id, lease) = world.leased().await;
    let mut follower = world.follow(&id, From::Now).await;
    let writer = tokio::spawn({
        let store = world.store.clone();
        let drafts: Vec<_> = world.says(300);
        async move {
            let mut head = START;
            for draft in drafts {
                head = store.append(&lease.token, head, vec![draft]).await.expect("appended").state.head;
            }
        }
    });
    let mut seen = Vec::new();
    while seen.len() < 300 {
        tokio::select! {
            biased;
            item = follower.next() => seen.push(word(&item.expect("goes on"))),
            // Gives up at whatever point it happens to be.
            () = tokio::task::yield_now() => {}
        }
    }
    soon(writer).await.expect("no panic");
    let expected: Vec<_> = (1..=300).map(|position| format!("{position} agent.message")).collect();
    assert_eq!(seen, expected);
}

fn start(id: &EventId) -> Preview {
    Preview::EventStart { event: PreviewEvent { kind: PreviewKind::Message, id: id.clone() } }
}

fn delta(id: &EventId, text: &str) -> Preview {
    let content = PreviewText::Text { text: text.to_owned() };
    Preview::EventDelta { event_id: id.clone(), delta: PreviewDelta::ContentDelta { index: 0, content } }
}

/// Appends the beginning of a model request; gives the place that its previews follow.
async fn ask(world: &World, lease: &Lease) -> Position {
    world.append(lease, vec![world.draft(Body::ModelRequestStart {})]).await.state.head
}

/// Appends an answer and the end of its request.
async fn answer(world: &World, lease: &Lease, id: &EventId) {
    let end = Body::ModelRequestEnd {
        model_request_start_id: world.id(),
        is_error: false,
        model_usage: ModelUsage::default(),
    };
    world.append(lease, vec![Draft::New { id: id.clone(), body: said("ab") }, world.draft(end)]).await;
}

pub(crate) async fn previews_come_between_their_events(world: &World) {
    let (id, lease) = world.leased().await;
    let mut follower = world.follow(&id, From::Now).await;
    for round in 0..3 {
        let after = ask(world, &lease).await;
        let event = world.id();
        world.store.previews().publish(&id, after, start(&event));
        world.store.previews().publish(&id, after, delta(&event, "a"));
        let head = round * 3 + 1;
        let expected = [format!("{head} span.model_request_start"), "~start".to_owned(), "~a".to_owned()];
        assert_eq!(words(&mut follower, 3).await, expected);
        world.store.previews().publish(&id, after, delta(&event, "b"));
        assert_eq!(words(&mut follower, 1).await, ["~b"]);
        answer(world, &lease, &event).await;
        let expected =
            [format!("{} agent.message", head + 1), format!("{} span.model_request_end", head + 2)];
        assert_eq!(words(&mut follower, 2).await, expected);
    }
    assert!(is_quiet(&mut follower).await);
}

pub(crate) async fn previews_wait_for_their_event(world: &World) {
    let (id, lease) = world.leased().await;
    let mut follower = world.follow(&id, From::Now).await;
    let event = world.id();
    // Published ahead of the event that they follow: shown after it.
    world.store.previews().publish(&id, Position(2), start(&event));
    assert!(is_quiet(&mut follower).await);
    world.append(&lease, world.says(1)).await;
    assert_eq!(words(&mut follower, 1).await, ["1 agent.message"]);
    assert!(is_quiet(&mut follower).await);
    world.append(&lease, world.says(1)).await;
    assert_eq!(words(&mut follower, 2).await, ["2 agent.message", "~start"]);
}

pub(crate) async fn late_previews_are_dropped(world: &World) {
    let (id, lease) = world.leased().await;
    let mut follower = world.follow(&id, From::Now).await;
    let after = ask(world, &lease).await;
    let event = world.id();
    world.store.previews().publish(&id, after, start(&event));
    world.store.previews().publish(&id, after, delta(&event, "a"));
    answer(world, &lease, &event).await;
    // The follower looks only now: what was there before the answer is shown before it, and nothing after it.
    let expected =
        ["1 span.model_request_start", "~start", "~a", "2 agent.message", "3 span.model_request_end"];
    assert_eq!(words(&mut follower, 5).await, expected);
    world.store.previews().publish(&id, after, delta(&event, "b"));
    assert!(is_quiet(&mut follower).await);
}

pub(crate) async fn a_preview_whose_beginning_was_missed_is_not_shown(world: &World) {
    let (id, lease) = world.leased().await;
    let mut early = world.follow(&id, From::Now).await;
    let after = ask(world, &lease).await;
    let (first, second) = (world.id(), world.id());
    world.store.previews().publish(&id, after, start(&first));
    let mut late = world.follow(&id, From::Now).await;
    world.store.previews().publish(&id, after, delta(&first, "a"));
    world.store.previews().publish(&id, after, start(&second));
    world.store.previews().publish(&id, after, delta(&second, "b"));
    assert_eq!(words(&mut late, 2).await, ["~start", "~b"]);
    let expected = ["1 span.model_request_start", "~start", "~a", "~start", "~b"];
    assert_eq!(words(&mut early, 5).await, expected);
}

pub(crate) async fn shed_previews_leave_a_prefix(world: &World) {
    let (id, lease) = world.leased().await;
    let mut follower = world.follow(&id, From::Now).await;
    let after = ask(world, &lease).await;
    let event = world.id();
    world.store.previews().publish(&id, after, start(&event));
    for index in 0..10 {
        world.store.previews().publish(&id, after, delta(&event, &index.to_string()));
    }
    let mut shown = words(&mut follower, 4).await.split_off(2);
    assert_eq!(shown, ["~0", "~1"]);
    // It now stops reading, and far more comes than is kept for it.
    for index in 10..5_000 {
        world.store.previews().publish(&id, after, delta(&event, &index.to_string()));
    }
    answer(world, &lease, &event).await;
    loop {
        let item = word(&soon(follower.next()).await.expect("goes on"));
        if !item.starts_with('~') {
            assert_eq!(item, "2 agent.message");
            break;
        }
        shown.push(item);
    }
    let prefix: Vec<_> = (0..shown.len()).map(|index| format!("~{index}")).collect();
    assert_eq!(shown, prefix);
    assert_eq!(words(&mut follower, 1).await, ["3 span.model_request_end"]);
    // The next message is whole again.
    let (after, event) = (ask(world, &lease).await, world.id());
    world.store.previews().publish(&id, after, start(&event));
    assert_eq!(words(&mut follower, 2).await, ["4 span.model_request_start", "~start"]);
}

pub(crate) async fn deletion_ends_the_stream(world: &World) {
    let id = world.session().await;
    let mut follower = world.follow(&id, From::Now).await;
    let mut waiting = world.follow(&id, From::Now).await;
    let waiting = tokio::spawn(async move { (words(&mut waiting, 1).await, waiting.next().await) });
    world.store.delete_session(&world.workspace, &id).await.expect("deleted");
    assert_eq!(words(&mut follower, 1).await, ["session.deleted"]);
    assert_eq!(soon(follower.next()).await, None);
    let (said, end) = soon(waiting).await.expect("no panic");
    assert_eq!((said, end), (vec!["session.deleted".to_owned()], None));
}

pub(crate) async fn an_unknown_session_cannot_be_followed(world: &World) {
    assert!(world.store.follow(&world.id(), From::Now).await.expect("works").is_none());
    let id = world.session().await;
    world.store.delete_session(&world.workspace, &id).await.expect("deleted");
    assert!(world.store.follow(&id, From::Now).await.expect("works").is_none());
}

pub(crate) async fn closing_ends_the_stream(world: &World) {
    let id = world.session().await;
    let mut follower = world.follow(&id, From::Now).await;
    let waiting = tokio::spawn(async move { follower.next().await });
    let claim = tokio::spawn({
        let store = world.store.clone();
        async move { claim(&store, "test").await }
    });
    world.store.clone().close().await;
    assert_eq!(soon(waiting).await.expect("no panic"), None);
    assert!(matches!(soon(claim).await.expect("no panic"), Err(store::Error::Closed)));
    let refused = world.store.try_claim(&id, "test").await;
    assert!(matches!(refused, Err(store::Error::Closed)));
    assert!(matches!(world.store.look(&id).await, Err(store::Error::Closed)));
}
