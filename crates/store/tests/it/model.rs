//! Random histories, beside a model in memory that is simple enough to be believed.
//!
//! After every operation the session is what the model says; at the end the whole log, every way of slicing it, every
//! stream over it and the folded state are, too; also after a restart.

use proptest::prelude::*;
use proptest::sample::Index;
use protocol::event::{Body, Event};
use protocol::id::{EventId, SessionId};
use protocol::parse::Patch;
use protocol::position::Position;
use session::record::{Update, may_delete};
use session::{Admitted, Draft, Record, State, admit};
use store::{AppendError, ChangeError, From, LEASE, Lease, Order, Slice};

use crate::world::{World, custom_call, event, interrupt, message, pair, said, words};

#[derive(Clone, Debug)]
enum Operation {
    Create,
    Send { session: Index, bodies: Vec<Sent> },
    Append { session: Index, drafts: Vec<Drafted>, is_stale: bool },
    Claim { session: Index },
    Release { session: Index },
    Advance { seconds: i64 },
    Rename { session: Index, title: u8 },
    Archive { session: Index },
    Delete { session: Index },
    Restart,
}

#[derive(Clone, Copy, Debug)]
enum Sent {
    Message,
    Interrupt,
    Result,
}

#[derive(Clone, Copy, Debug)]
enum Drafted {
    Say,
    Call,
    Private,
    Run,
    /// Whatever waits at about this place.
    Take(u8),
}

fn operation() -> impl Strategy<Value = Operation> {
    let session = any::<Index>;
    let sent = prop_oneof![3 => Just(Sent::Message), 1 => Just(Sent::Interrupt), 1 => Just(Sent::Result)];
    let drafted = prop_oneof![
        3 => Just(Drafted::Say),
        1 => Just(Drafted::Call),
        1 => Just(Drafted::Private),
        1 => Just(Drafted::Run),
        3 => any::<u8>().prop_map(Drafted::Take),
    ];
    prop_oneof![
        2 => Just(Operation::Create),
        6 => (session(), prop::collection::vec(sent, 1..4))
            .prop_map(|(session, bodies)| Operation::Send { session, bodies }),
        8 => (session(), prop::collection::vec(drafted, 0..5), prop::bool::weighted(0.1))
            .prop_map(|(session, drafts, is_stale)| Operation::Append { session, drafts, is_stale }),
        6 => session().prop_map(|session| Operation::Claim { session }),
        2 => session().prop_map(|session| Operation::Release { session }),
        2 => (-40_i64..60).prop_map(|seconds| Operation::Advance { seconds }),
        1 => (session(), 0..3_u8).prop_map(|(session, title)| Operation::Rename { session, title }),
        1 => session().prop_map(|session| Operation::Archive { session }),
        1 => session().prop_map(|session| Operation::Delete { session }),
        1 => Just(Operation::Restart),
    ]
}

/// What the model knows of a session.
struct Modelled {
    record: Record,
    state: State,
    log: Vec<Event>,
    inbox: Vec<Event>,
    epoch: u64,
    /// The lease that is held, if any, and when it lapses.
    lease: Option<(Lease, i64)>,
}

struct Model {
    world: World,
    sessions: Vec<Modelled>,
    deleted: Vec<SessionId>,
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn any_history_is_what_the_model_says(operations in prop::collection::vec(operation(), 1..60)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let mut model = Model { world: World::on_sqlite(), sessions: Vec::new(), deleted: Vec::new() };
            for operation in operations {
                model = model.apply(operation).await;
                model.check_briefly().await;
            }
            model.check().await;
            model.world = model.world.restarted().await;
            model.check().await;
        });
    }
}

impl Model {
    async fn apply(mut self, operation: Operation) -> Self {
        match operation {
            Operation::Create => self.create().await,
            Operation::Restart => {
                self.world = self.world.restarted().await;
                for session in &mut self.sessions {
                    session.lease = None;
                }
            }
            Operation::Advance { seconds } => {
                let now = self.world.store.now().as_micros() + seconds * 1_000_000;
                self.world.clock.set(protocol::time::Timestamp::from_micros(now));
            }
            Operation::Send { session, bodies } => self.with(session, Do::Send(bodies)).await,
            Operation::Append { session, drafts, is_stale } => {
                self.with(session, Do::Append(drafts, is_stale)).await;
            }
            Operation::Claim { session } => self.with(session, Do::Claim).await,
            Operation::Release { session } => self.with(session, Do::Release).await,
            Operation::Rename { session, title } => self.with(session, Do::Rename(title)).await,
            Operation::Archive { session } => self.with(session, Do::Archive).await,
            Operation::Delete { session } => {
                if !self.sessions.is_empty() {
                    let index = session.index(self.sessions.len());
                    self.delete(index).await;
                }
            }
        }
        self
    }

    async fn create(&mut self) {
        let record = self.world.record();
        let new = self.world.new_session(record.clone(), Vec::new());
        let state = self.world.store.create_session(new).await.expect("made").state;
        let session = Modelled { record, state, log: Vec::new(), inbox: Vec::new(), epoch: 0, lease: None };
        self.sessions.push(session);
    }

    async fn with(&mut self, session: Index, what: Do) {
        if self.sessions.is_empty() {
            return;
        }
        let index = session.index(self.sessions.len());
        let session = &mut self.sessions[index];
        match what {
            Do::Send(bodies) => session.send(&self.world, bodies).await,
            Do::Append(drafts, is_stale) => session.append(&self.world, drafts, is_stale).await,
            Do::Claim => session.claim(&self.world).await,
            Do::Release => session.release(&self.world).await,
            Do::Rename(title) => session.rename(&self.world, title).await,
            Do::Archive => session.archive(&self.world).await,
        }
    }

    async fn delete(&mut self, index: usize) {
        let session = &self.sessions[index];
        let id = session.record.id.clone();
        let result = self.world.store.delete_session(&self.world.workspace, &id).await;
        if may_delete(&session.state).is_ok() {
            result.expect("deleted");
            self.sessions.remove(index);
            self.deleted.push(id);
        } else {
            assert!(matches!(result, Err(ChangeError::Refused(_))));
        }
    }

    async fn check_briefly(&self) {
        for session in &self.sessions {
            let view = self.world.view(&session.record.id).await;
            assert_eq!(*view.record, session.record);
            assert_eq!(view.state, session.state);
            assert_eq!(view.inbox, session.inbox);
        }
    }

    async fn check(&self) {
        self.check_briefly().await;
        for id in &self.deleted {
            assert!(self.world.store.look(id).await.expect("works").is_none());
            assert!(self.world.log(id).await.is_empty());
        }
        for session in &self.sessions {
            session.check(&self.world).await;
        }
        self.world.check_rebuild().await;
    }
}

enum Do {
    Send(Vec<Sent>),
    Append(Vec<Drafted>, bool),
    Claim,
    Release,
    Rename(u8),
    Archive,
}

impl Modelled {
    async fn send(&mut self, world: &World, sent: Vec<Sent>) {
        let call = || {
            let open = self.state.calls.last().map(|call| call.id.clone());
            open.unwrap_or_else(|| EventId::from_text("sevt_never"))
        };
        let bodies: Vec<Body> = sent
            .into_iter()
            .map(|sent| match sent {
                Sent::Message => message("hello"),
                Sent::Interrupt => interrupt(),
                Sent::Result => Body::UserCustomToolResult {
                    custom_tool_use_id: call(),
                    content: Vec::new(),
                    is_error: None,
                },
            })
            .collect();
        let expected = admit(&self.state, &self.inbox, bodies.clone());
        let result = world.store.send_events(&world.workspace, &self.record.id, bodies).await;
        let admitted = match (expected, &result) {
            (Ok(admitted), Ok(_)) => admitted,
            (Err(expected), Err(ChangeError::Refused(refusal))) => {
                assert_eq!(*refusal, expected);
                return;
            }
            (expected, result) => panic!("{expected:?}, but {result:?}"),
        };
        for (admitted, echo) in admitted.into_iter().zip(result.expect("just seen")) {
            let echo = event(&echo);
            match admitted {
                Admitted::Queue(body) => {
                    assert_eq!((&echo.body, echo.processed_at), (&body, None));
                    self.state.queued.add(&body);
                    self.inbox.push(echo);
                }
                Admitted::Log(body) => {
                    assert_eq!(echo.body, body);
                    self.logged(world, echo.id, body);
                }
            }
        }
    }

    fn logged(&mut self, world: &World, id: EventId, body: Body) {
        let at = self.state.next_time(world.store.now());
        self.state.apply(&id, &body, at);
        self.log.push(Event { body, id, processed_at: Some(at) });
    }

    async fn append(&mut self, world: &World, drafted: Vec<Drafted>, is_stale: bool) {
        let Some((lease, _)) = &self.lease else { return };
        let token = lease.token.clone();
        let mut left = self.inbox.clone();
        let mut drafts = Vec::new();
        for drafted in drafted {
            drafts.push(match drafted {
                Drafted::Say => world.draft(said("something")),
                Drafted::Call => world.draft(custom_call()),
                Drafted::Private => world.draft(Body::Sandbox { sandbox_id: world.id() }),
                Drafted::Run => world.draft(Body::StatusRunning {}),
                Drafted::Take(_) if left.is_empty() => continue,
                Drafted::Take(place) => Draft::Take(left.remove(usize::from(place) % left.len()).id),
            });
        }
        let head = self.state.head;
        let expected = if is_stale { head.next() } else { head };
        let result = world.store.append(&token, expected, drafts.clone()).await;
        if is_stale {
            assert!(matches!(result, Err(AppendError::Moved(view)) if view.state == self.state));
            return;
        }
        if !drafts.is_empty() {
            self.lease = self.lease.take().map(|(lease, _)| (lease, until(world)));
        }
        for draft in drafts {
            match draft {
                Draft::New { id, body } => self.logged(world, id, body),
                Draft::Take(id) => {
                    let place = self.inbox.iter().position(|event| event.id == id).expect("it was there");
                    let event = self.inbox.remove(place);
                    self.state.queued.remove(&event.body);
                    self.logged(world, event.id, event.body);
                }
            }
        }
        assert_eq!(result.expect("appended").state, self.state);
    }

    async fn claim(&mut self, world: &World) {
        let claimed = world.store.try_claim(&self.record.id, "model").await.expect("works");
        let is_held = self.lease.as_ref().is_some_and(|(_, until)| *until > world.store.now().as_micros());
        assert_eq!(claimed.is_none(), is_held);
        if let Some(lease) = claimed {
            self.epoch += 1;
            assert_eq!(lease.token.epoch, self.epoch);
            let old = self.lease.replace((lease, until(world)));
            if let Some((old, _)) = old {
                let fenced =
                    world.store.append(&old.token, self.state.head, vec![world.draft(said("no"))]).await;
                assert!(matches!(fenced, Err(AppendError::Fenced)));
            }
        }
    }

    async fn release(&mut self, world: &World) {
        if let Some((lease, _)) = self.lease.take() {
            world.store.release(lease).await.expect("works");
        }
    }

    async fn rename(&mut self, world: &World, title: u8) {
        let update = Update { title: Patch::Set(format!("title {title}")), ..Update::default() };
        let mut record = self.record.clone();
        let expected = record.update(&self.state, update.clone());
        let result = world.store.update_session(&world.workspace, &self.record.id, update).await;
        let Ok(said) = expected else {
            assert!(matches!(result, Err(ChangeError::Refused(_))));
            return;
        };
        if let Some(body) = said {
            record.updated_at = world.store.now();
            self.record = record;
            let id = self.last_id(world).await;
            self.logged(world, id, body);
        }
        assert_eq!(pair(result.expect("updated")), (self.record.clone(), self.state.clone()));
    }

    async fn archive(&mut self, world: &World) {
        let mut record = self.record.clone();
        let expected = record.archive(&self.state, world.store.now());
        let result = world.store.archive_session(&world.workspace, &self.record.id).await;
        let Ok(said) = expected else {
            assert!(matches!(result, Err(ChangeError::Refused(_))));
            return;
        };
        self.record = record;
        let log = world.log(&self.record.id).await;
        for body in said {
            let id = event(&log[self.log.len()]).id;
            self.logged(world, id, body);
        }
        assert_eq!(pair(result.expect("archived")), (self.record.clone(), self.state.clone()));
    }

    async fn last_id(&self, world: &World) -> EventId {
        let last = Slice { order: Order::Desc, limit: 1, private: true, ..Slice::default() };
        event(&world.slice(&self.record.id, last).await[0]).id
    }

    async fn check(&self, world: &World) {
        let id = &self.record.id;
        let log: Vec<Event> = world.log(id).await.iter().map(event).collect();
        assert_eq!(log, self.log);
        let shown: Vec<u64> = (1..)
            .zip(&self.log)
            .filter(|(_, event)| !event.body.is_private())
            .map(|(position, _)| position)
            .collect();
        // Forwards and backwards, in pages.
        for order in [Order::Asc, Order::Desc] {
            let mut paged = self.paged(world, order).await;
            if order == Order::Desc {
                paged.reverse();
            }
            assert_eq!(paged, shown);
        }
        // As a stream from some place.
        let from = Position(self.log.len() as u64 / 2);
        let mut follower = world.follow(id, From::After(from)).await;
        let mut expected: Vec<String> = shown
            .iter()
            .filter(|position| **position > from.0)
            .map(|position| format!("{position} {}", self.log[*position as usize - 1].body.kind()))
            .collect();
        expected.extend(self.inbox.iter().map(|event| format!("({})", event.body.kind())));
        assert_eq!(words(&mut follower, expected.len()).await, expected);
    }

    async fn paged(&self, world: &World, order: Order) -> Vec<u64> {
        let mut slice = Slice { order, limit: 3, ..Slice::default() };
        let mut all = Vec::new();
        loop {
            let page = world.slice(&self.record.id, slice.clone()).await;
            let Some(last) = page.last().and_then(|stored| stored.position) else { return all };
            all.extend(page.iter().filter_map(|stored| stored.position).map(|position| position.0));
            match order {
                Order::Asc => slice.after = last,
                Order::Desc => slice.until = Some(Position(last.0 - 1)),
            }
        }
    }
}

fn until(world: &World) -> i64 {
    world.store.now().as_micros() + LEASE.as_micros() as i64
}
