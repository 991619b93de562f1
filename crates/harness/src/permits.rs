//! How many model requests are in flight: in all and for each workspace, fairly.
//!
//! ```text
//!   acquire ──▶ Permit ── dropped ──▶ the next in line
//!      └──────▶ waiting ──▶ Permit
//!                  └── dropped: gives its place in the line up
//! ```
//!
//! A permit goes to the workspace that holds the fewest, among equals to the one that was served least recently, and
//! within a workspace first come, first served.
//!
//! # Across processes, approximately
//!
//! No process asks another before a request leaves: that would put a round trip before each first token. Each takes
//! the limits divided by the number of brain processes that are alive, rounded up. So all together may go over a limit
//! by less than one request for each process, and while one process has little to do, its share lies idle.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use protocol::id::WorkspaceId;
use tokio::sync::oneshot;

/// Limits on model requests in flight, for all brain processes together. `None` is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ModelLimits {
    /// In all.
    pub in_flight_max: Option<u32>,
    /// Of one workspace.
    pub in_flight_per_workspace_max: Option<u32>,
}

/// The permits of this process. Cheap to clone; all clones are the same.
#[derive(Clone)]
pub(crate) struct Permits(Arc<Mutex<Pool>>);

/// The right to have one model request in flight.
#[must_use = "a permit that is dropped lets the next request leave"]
pub(crate) struct Permit {
    permits: Permits,
    workspace: WorkspaceId,
}

/// A place in the line.
pub(crate) struct Waiting {
    granted: oneshot::Receiver<Permit>,
    permits: Permits,
    workspace: WorkspaceId,
    ticket: u64,
}

/// What became of an attempt.
pub(crate) enum Acquired {
    /// The request may leave.
    Now(Permit),
    /// Others come first.
    Later(Waiting),
}

struct Pool {
    limits: ModelLimits,
    /// How many processes share the limits.
    brains: u32,
    held: u32,
    lanes: HashMap<WorkspaceId, Lane>,
    /// The lanes in which somebody waits: by permits held, then by turn, which no two share.
    open: BTreeSet<(u32, u64, WorkspaceId)>,
    /// Grows with each permit, each lane and each ticket.
    turn: u64,
}

/// One workspace's part.
struct Lane {
    held: u32,
    /// When it was last served, or made.
    turn: u64,
    waiting: VecDeque<(u64, oneshot::Sender<Permit>)>,
}

impl Permits {
    pub(crate) fn new(limits: ModelLimits) -> Self {
        let (lanes, open) = (HashMap::new(), BTreeSet::new());
        Self(Arc::new(Mutex::new(Pool { limits, brains: 1, held: 0, lanes, open, turn: 0 })))
    }

    /// A permit, at once or later. `brains` is how many processes share the limits now.
    pub(crate) fn acquire(&self, workspace: &WorkspaceId, brains: u32) -> Acquired {
        let (grant, granted) = oneshot::channel();
        let mut pool = self.lock();
        pool.brains = brains.max(1);
        pool.turn += 1;
        let ticket = pool.turn;
        pool.change(workspace, |lane| lane.waiting.push_back((ticket, grant)));
        drop(pool);
        self.grant();
        let mut waiting = Waiting { granted, permits: self.clone(), workspace: workspace.clone(), ticket };
        match waiting.granted.try_recv() {
            Ok(permit) => Acquired::Now(permit),
            Err(_) => Acquired::Later(waiting),
        }
    }

    /// Gives out what there is.
    fn grant(&self) {
        loop {
            let Some((workspace, grant)) = self.lock().next() else { return };
            // If nobody waits there any more the permit comes back, which must not find the lock held.
            let _ = grant.send(Permit { permits: self.clone(), workspace });
        }
    }

    fn lock(&self) -> MutexGuard<'_, Pool> {
        // Consistent after every statement that could panic.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Waiting {
    /// Waits for the permit. May be dropped and called again.
    pub(crate) async fn permit(&mut self) -> Permit {
        (&mut self.granted)
            .await
            .expect("the pool keeps the other end until it grants, and lives as long as this")
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let ticket = self.ticket;
        self.permits
            .lock()
            .change(&self.workspace, |lane| lane.waiting.retain(|(other, _)| *other != ticket));
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut pool = self.permits.lock();
        pool.held -= 1;
        pool.change(&self.workspace, |lane| lane.held -= 1);
        drop(pool);
        self.permits.grant();
    }
}

impl Pool {
    /// Takes the next out of the line and counts its permit, if there is one to give.
    fn next(&mut self) -> Option<(WorkspaceId, oneshot::Sender<Permit>)> {
        let share = |max: u32| max.div_ceil(self.brains);
        if self.limits.in_flight_max.is_some_and(|max| self.held >= share(max)) {
            return None;
        }
        let (held, _, workspace) = self.open.first()?.clone();
        if self.limits.in_flight_per_workspace_max.is_some_and(|max| held >= share(max)) {
            return None;
        }
        self.turn += 1;
        let turn = self.turn;
        let mut next = None;
        self.change(&workspace, |lane| {
            next = lane.waiting.pop_front();
            lane.held += 1;
            lane.turn = turn;
        });
        self.held += 1;
        let (_, grant) = next.expect("somebody waits in an open lane");
        Some((workspace, grant))
    }

    /// Changes a lane, made if need be, and its place among the open ones. One of which there is nothing to say is
    /// forgotten.
    fn change(&mut self, workspace: &WorkspaceId, change: impl FnOnce(&mut Lane)) {
        self.turn += 1;
        let turn = self.turn;
        let new = || Lane { held: 0, turn, waiting: VecDeque::new() };
        let lane = self.lanes.entry(workspace.clone()).or_insert_with(new);
        self.open.remove(&(lane.held, lane.turn, workspace.clone()));
        change(lane);
        if !lane.waiting.is_empty() {
            self.open.insert((lane.held, lane.turn, workspace.clone()));
        } else if lane.held == 0 {
            self.lanes.remove(workspace);
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    fn workspace(name: &str) -> WorkspaceId {
        WorkspaceId::from_text(format!("wrkspc_{name}"))
    }

    fn permits(in_flight_max: Option<u32>, in_flight_per_workspace_max: Option<u32>) -> Permits {
        Permits::new(ModelLimits { in_flight_max, in_flight_per_workspace_max })
    }

    fn now(permits: &Permits, name: &str) -> Permit {
        match permits.acquire(&workspace(name), 1) {
            Acquired::Now(permit) => permit,
            Acquired::Later(_) => panic!("{name} has to wait"),
        }
    }

    fn later(permits: &Permits, name: &str) -> Waiting {
        match permits.acquire(&workspace(name), 1) {
            Acquired::Now(_) => panic!("{name} does not have to wait"),
            Acquired::Later(waiting) => waiting,
        }
    }

    fn granted(waiting: &mut Waiting) -> Option<Permit> {
        waiting.permit().now_or_never()
    }

    #[test]
    fn without_limits_nobody_waits() {
        let permits = permits(None, None);
        let held: Vec<Permit> = (0..100).map(|_| now(&permits, "a")).collect();
        drop(held);
        assert!(permits.lock().lanes.is_empty());
    }

    #[test]
    fn a_workspace_with_one_request_is_next_however_many_another_has_in_line() {
        let permits = permits(Some(1), None);
        let held = now(&permits, "large");
        let mut large: Vec<Waiting> = (0..50).map(|_| later(&permits, "large")).collect();
        let mut small = later(&permits, "small");
        drop(held);
        // Both hold none, and the large one was in line first.
        drop(granted(&mut large[0]).expect("it is next"));
        assert!(granted(&mut large[1]).is_none());
        assert!(granted(&mut small).is_some());
    }

    #[test]
    fn equal_workspaces_take_turns() {
        let permits = permits(Some(1), None);
        let mut held = Some(now(&permits, "a"));
        let names = ["a", "a", "a", "b", "b", "c"];
        let mut waiting: Vec<(&str, Waiting)> =
            names.iter().map(|name| (*name, later(&permits, name))).collect();
        let mut order = String::new();
        while !waiting.is_empty() {
            drop(held.take());
            let place = waiting.iter_mut().position(|(_, waiting)| {
                held = granted(waiting);
                held.is_some()
            });
            order.push_str(waiting.remove(place.expect("somebody is next")).0);
        }
        assert_eq!(order, "abcaba");
    }

    #[test]
    fn a_workspace_at_its_limit_does_not_hold_up_the_others() {
        let permits = permits(Some(3), Some(1));
        let first = now(&permits, "a");
        let mut second = later(&permits, "a");
        let _other = now(&permits, "b");
        assert!(granted(&mut second).is_none());
        drop(first);
        assert!(granted(&mut second).is_some());
    }

    #[test]
    fn whoever_stops_waiting_loses_nothing_for_the_others() {
        let permits = permits(Some(1), None);
        let held = now(&permits, "a");
        let gone = later(&permits, "a");
        let granted_and_gone = later(&permits, "a");
        let mut last = later(&permits, "a");
        drop(gone);
        drop(held);
        // It has been granted, and never looked.
        drop(granted_and_gone);
        assert!(granted(&mut last).is_some());
        drop(last);
        assert!(permits.lock().lanes.is_empty() && permits.lock().held == 0);
    }

    #[test]
    fn each_process_takes_its_share_rounded_up() {
        let permits = permits(Some(5), None);
        let acquire = |brains| permits.acquire(&workspace("a"), brains);
        let (first, second) = (acquire(3), acquire(3));
        assert!(matches!((&first, &second), (Acquired::Now(_), Acquired::Now(_))));
        let Acquired::Later(mut third) = acquire(3) else { panic!("two of five are a third, rounded up") };
        // The other processes are gone.
        assert!(matches!(acquire(1), Acquired::Now(_)));
        assert!(granted(&mut third).is_some());
    }
}
